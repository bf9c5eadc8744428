// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loop that writes packed panels over an executor, shared by every source of codes: bytes (packed_weights.hpp),
// floats (pack_float.hpp), stored words and blocks of other formats (io/). A source hands out 32 codes of one output at
// the time; see pack_panel(). One pass over the source.

#include <cstddef>
#include <cstdint>

#include <cbq/core/cpu.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/gemm/line_packing.hpp>
#include <cbq/gemm/line_packing_avx2.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

/// How far ahead rows are read and panels are written, in bytes. 16 rows and a panel are more streams than prefetchers
/// of processors follow, above all where rows are shorter than pages.
inline constexpr std::size_t read_distance = 512;
inline constexpr std::size_t write_distance = 2048;

/// Rows of bytes, `stride` bytes from one to the next.
struct ByteRows {
  const std::byte* data = nullptr;
  std::size_t rows = 0;
  std::size_t row_bytes = 0;
  std::size_t stride = 0;

  [[nodiscard, gnu::always_inline]] const std::byte* at(std::size_t n, std::size_t offset) const noexcept {
    return data + n * stride + offset;
  }
  /// Asks for what will be read read_distance after `offset` of `count` rows: in these rows, or in those of the next
  /// panel. Into the second-level cache: 16 rows whose length is a multiple of 4 KiB share one set of the first.
  [[gnu::always_inline]] void prefetch(std::size_t first, std::size_t count, std::size_t offset) const noexcept {
    std::size_t ahead = offset + read_distance;
    if (ahead >= row_bytes) {
      ahead -= row_bytes;
      first += panel_outputs;
      if (first >= rows || ahead >= row_bytes) return;
      count = rows - first < count ? rows - first : count;
    }
    const std::byte* row = at(first, ahead);
    for (std::size_t o = 1; o < count; ++o, row += stride) __builtin_prefetch(row, 0, 2);
    __builtin_prefetch(row, 0, 2);
  }
};

/// One block of a panel: where it is written and which inputs it holds.
struct Place {
  std::byte* block = nullptr;
  std::size_t input = 0;
  std::size_t count = 0;  ///< 1 .. 32
};

/// What outputs [first, first + count) of a matrix are packed into; group_inputs is group_length() of its grid.
struct Panel {
  const PackedLayout* layout = nullptr;
  std::size_t group_inputs = 0;
  std::size_t first = 0;
  std::size_t count = 0;
  std::byte* data = nullptr;
};

/// Blocks that are packed for four outputs before the turn of the next four: a whole cache line of codes in bytes.
inline constexpr std::size_t piece_blocks = 2;

/// Walks through the groups and blocks of a panel.
class PanelCursor {
 public:
  explicit PanelCursor(const Panel& panel) noexcept : panel_(panel), next_(panel.data) {}

  /// The next blocks, at most piece_blocks; calls `header(group, bytes)` for every group that starts among them. 0 at
  /// the end.
  template <class Header>
  [[nodiscard]] std::size_t next(Place (&places)[piece_blocks], const Header& header) noexcept {
    std::size_t taken = 0;
    while (taken < piece_blocks && input_ < panel_.layout->inputs) {
      if (left_ == 0) {
        const std::size_t rest = panel_.layout->inputs - input_;
        left_ = rest < panel_.group_inputs ? rest : panel_.group_inputs;
        header(group_++, next_);
        next_ += panel_.layout->header_bytes;
      }
      const std::size_t count = left_ < block_inputs ? left_ : block_inputs;
      places[taken++] = {next_, input_, count};
      // Lines far ahead, but in this panel: without it every first store waits for memory.
      const std::size_t ahead = static_cast<std::size_t>(next_ - panel_.data) + write_distance;
      for (std::size_t l = 0; l < panel_.layout->bits && ahead + l * line_bytes < panel_.layout->panel_bytes; ++l) {
        __builtin_prefetch(panel_.data + ahead + l * line_bytes, 1);
      }
      next_ += block_bytes(panel_.layout->bits);
      input_ += count;
      left_ -= count;
    }
    return taken;
  }

 private:
  const Panel& panel_;
  std::byte* next_;
  std::size_t input_ = 0;
  std::size_t left_ = 0;  ///< inputs of the group that began
  std::size_t group_ = 0;
};

/// Packs one panel; false when a code is above the largest of Bits bits or a header was refused.
///   source.codes(output, input, count)     BlockCodes with zeros behind the first `count`
///   source.prefetch(first, count, input)   asks for what these outputs read later
///   source.header(panel, group, bytes)     writes scales and zero points of one group; false when it cannot
template <int Bits, class Source>
[[nodiscard]] bool pack_panel(const Source& source, const Panel& panel) noexcept {
#if defined(__x86_64__)
  const bool whole_with_avx2 = usable_features().avx2 && panel.count == panel_outputs;  // to the same bytes
#endif
  Place places[piece_blocks];
  PanelCursor cursor(panel);
  bool valid = true;
  const auto header = [&](std::size_t group, std::byte* bytes) { valid = source.header(panel, group, bytes) && valid; };
  BlockCodes seen = {};
  while (const std::size_t blocks = cursor.next(places, header)) {
    source.prefetch(panel.first, panel.count, places[0].input);
#if defined(__x86_64__)
    if (whole_with_avx2) {
      isa::avx2::pack_places<Bits>(source, places, blocks, panel.first, seen);
      continue;
    }
#endif
    for (std::size_t o = 0; o < panel_outputs; o += quad_outputs) {
      for (std::size_t b = 0; b < blocks; ++b) {
        QuadCodes codes = {};
        _Pragma("GCC unroll 4") for (std::size_t i = 0; i < quad_outputs; ++i) {
          if (o + i >= panel.count) break;
          codes[i] = source.codes(panel.first + o + i, places[b].input, places[b].count);
          seen.half[0] |= codes[i].half[0];
          seen.half[1] |= codes[i].half[1];
        }
        store_codes<Bits>(codes, places[b].block + o * step_inputs);
      }
    }
  }
  const Longs all = seen.half[0] | seen.half[1];
  return valid && ((all[0] | all[1]) & ~every_byte((1u << Bits) - 1u)) == 0;
}

/// The same for the width of the layout; sources that have one width only say so in a constant `bits`.
template <class Source>
[[nodiscard]] bool pack_panel(const Source& source, const Panel& panel) noexcept {
  if constexpr (requires { Source::bits; }) {
    return pack_panel<Source::bits>(source, panel);
  } else {
    switch (panel.layout->bits) {
      case 2:
        return pack_panel<2>(source, panel);
      case 3:
        return pack_panel<3>(source, panel);
      case 4:
        return pack_panel<4>(source, panel);
      default:
        return pack_panel<8>(source, panel);
    }
  }
}

/// The layout of an `outputs` x `inputs` matrix for packing into `bytes` bytes. Errors as packed_layout();
/// Errc::unsupported for a code width without kernels, Errc::bad_shape when the memory is too small.
[[nodiscard]] inline Result<PackedLayout> layout_for(const Grid& grid, std::size_t outputs, std::size_t inputs,
                                                     std::size_t bytes) noexcept {
  if (grid.bits != 2 && grid.bits != 3 && grid.bits != 4 && grid.bits != 8) {
    return Error{Errc::unsupported, "[cbq] pack: no packed kernel for codes of this width", "bits", grid.bits,
                 "2, 3, 4 or 8"};
  }
  const Result<PackedLayout> layout = packed_layout(grid, outputs, inputs);
  if (layout && bytes < packed_bytes(*layout)) {
    return Error{Errc::bad_shape, "[cbq] pack: the memory is too small", "memory", bytes, packed_bytes(*layout)};
  }
  return layout;
}

/// Outputs packed by one task: whole panels of about half a million weights together.
[[nodiscard]] constexpr std::size_t panels_per_task(const PackedLayout& layout) noexcept {
  constexpr std::size_t weights = std::size_t{1} << 19;
  const std::size_t panels = weights / panel_outputs / (layout.inputs == 0 ? 1 : layout.inputs);
  return panels == 0 ? 1 : panels;
}

/// Calls `pack(panel)` for all panels of a matrix, in tasks of panels_per_task(); whether all calls returned true.
template <Executor E, class Pack>
[[nodiscard]] bool for_each_panel(const PackedLayout& layout, const Grid& grid, std::byte* memory, const E& executor,
                                  const Pack& pack) noexcept {
  const std::size_t panels = layout.inputs == 0 ? 0 : layout.panels;
  const std::size_t per_task = panels_per_task(layout);
  unsigned char failed = 0;
  executor.for_each_index(divide_up(panels, per_task), [&](std::size_t task) {
    const std::size_t last = (task + 1) * per_task < panels ? (task + 1) * per_task : panels;
    for (std::size_t p = task * per_task; p < last; ++p) {
      const std::size_t first = p * panel_outputs;
      const std::size_t rest = layout.outputs - first;
      const Panel panel{&layout, group_length(grid, layout.inputs), first, rest < panel_outputs ? rest : panel_outputs,
                        memory + p * layout.panel_bytes};
      if (!pack(panel)) __atomic_store_n(&failed, static_cast<unsigned char>(1), __ATOMIC_RELAXED);
    }
  });
  return failed == 0;
}

}  // namespace packing
}  // namespace CBQ_ABI
}  // namespace cbq
