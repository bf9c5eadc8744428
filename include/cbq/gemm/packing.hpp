// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loop that writes packed panels, shared by every source of codes: bytes (packed_weights.hpp), floats
// (pack_float.hpp), stored words and blocks of other formats (io/). A source hands out 32 codes of one output at the
// time, a byte each in two 16-byte vectors; the codes of four outputs are joined and transposed into 16 bytes of each
// line. A step is 4 inputs, so a 64-bit word w holds two of them and one shift joins what a line wants side by side:
//
//   8 bits   line s             = step s
//   4 bits   line s / 2         = step s | step (s + 1) << 4 = low half of (w | w >> 28)
//   2 bits   line s / 4         = step s | step (s + 1) << 2, likewise with >> 30, | the same of the next two << 4
//   3 bits   as 2 bits; line 2  = bit 2 of step s at bit s
//
// The vectors are the compilers' own generic ones, SSE2 or NEON in a baseline build: about 10 instructions for 32
// codes, which is less than memory takes to bring them (docs/benchmarks.md), so wider registers would add nothing.

#include <cstddef>
#include <cstdint>

#include <cbq/core/executor.hpp>
#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace packing {

using Words [[gnu::vector_size(16)]] = std::uint32_t;
using Longs [[gnu::vector_size(16)]] = std::uint64_t;

/// 32 codes of one output, a byte each, in the order of the inputs: 8 per 64-bit word.
struct BlockCodes {
  Longs half[2];
};

/// Codes of four outputs next to each other.
inline constexpr std::size_t quad_outputs = 4;
using QuadCodes = BlockCodes[quad_outputs];

/// `value` in each byte.
[[nodiscard]] constexpr std::uint64_t every_byte(unsigned value) noexcept {
  return 0x0101010101010101u * value;
}

/// The first `count` codes at `from`, then code 0; count <= 32.
[[nodiscard, gnu::always_inline]] inline BlockCodes load_codes(const void* from, std::size_t count) noexcept {
  BlockCodes codes = {};
  if (count == block_inputs) {
    __builtin_memcpy(&codes, from, block_inputs);
  } else if (count != 0) {
    __builtin_memcpy(&codes, from, count);
  }
  return codes;
}

/// Two lines' words of four outputs.
struct Joined {
  Words even;  ///< of steps 0 and 1
  Words odd;   ///< of steps 2 and 3
};

/// From half a block of each output: step 2 j | step (2 j + 1) << (32 - Shift), byte by byte.
template <int Shift>
[[nodiscard, gnu::always_inline]] inline Joined join(const Longs (&w)[quad_outputs]) noexcept {
  Words joined[quad_outputs];
  _Pragma("GCC unroll 4") for (std::size_t o = 0; o < quad_outputs; ++o) {
    const Longs both = w[o] | w[o] >> Shift;
    __builtin_memcpy(&joined[o], &both, sizeof both);
  }
  const Words first = __builtin_shufflevector(joined[0], joined[1], 0, 2, 4, 6);
  const Words second = __builtin_shufflevector(joined[2], joined[3], 0, 2, 4, 6);
  return {__builtin_shufflevector(first, second, 0, 2, 4, 6), __builtin_shufflevector(first, second, 1, 3, 5, 7)};
}

/// Half `h` of each output's block, shifted right by `shift` and masked.
[[gnu::always_inline]] inline void take_half(const QuadCodes& codes, std::size_t h, int shift, std::uint64_t mask,
                                             Longs (&w)[quad_outputs]) noexcept {
  _Pragma("GCC unroll 4") for (std::size_t o = 0; o < quad_outputs; ++o) w[o] =
      codes[o].half[h] >> shift & (Longs{} + mask);
}

[[gnu::always_inline]] inline void store_words(const Words& words, std::byte* line) noexcept {
  __builtin_memcpy(line, &words, sizeof words);
}

/// Writes the codes of four outputs; `lines` points at their 16 bytes in the first line of the block. What codes above
/// the largest of `Bits` bits become is unspecified.
template <int Bits>
[[gnu::always_inline]] inline void store_codes(const QuadCodes& codes, std::byte* lines) noexcept {
  static_assert(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8, "[cbq] store_codes: Bits must be 2, 3, 4 or 8");
  Longs w[quad_outputs];
  [[maybe_unused]] Words high = {};
  _Pragma("GCC unroll 4") for (std::size_t h = 0; h < 2; ++h) {
    if constexpr (Bits == 8) {
      const auto line = [&](std::size_t step) { return lines + (4 * h + step) * line_bytes; };
      Words rows[quad_outputs];
      _Pragma("GCC unroll 4") for (std::size_t o = 0; o < quad_outputs; ++o)
          __builtin_memcpy(&rows[o], &codes[o].half[h], sizeof rows[o]);
      const Words low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
      const Words low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
      const Words high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
      const Words high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
      store_words(__builtin_shufflevector(low01, low23, 0, 1, 4, 5), line(0));
      store_words(__builtin_shufflevector(low01, low23, 2, 3, 6, 7), line(1));
      store_words(__builtin_shufflevector(high01, high23, 0, 1, 4, 5), line(2));
      store_words(__builtin_shufflevector(high01, high23, 2, 3, 6, 7), line(3));
    } else if constexpr (Bits == 4) {
      take_half(codes, h, 0, every_byte(15), w);
      const Joined joined = join<28>(w);
      store_words(joined.even, lines + 2 * h * line_bytes);
      store_words(joined.odd, lines + (2 * h + 1) * line_bytes);
    } else {
      take_half(codes, h, 0, every_byte(3), w);
      const Joined low = join<30>(w);
      store_words(low.even | low.odd << 4, lines + h * line_bytes);
      if constexpr (Bits == 3) {
        take_half(codes, h, 2, every_byte(1), w);
        const Joined bit = join<31>(w);
        high |= (bit.even | bit.odd << 2) << (4 * static_cast<unsigned>(h));
      }
    }
  }
  if constexpr (Bits == 3) store_words(high, lines + 2 * line_bytes);
}

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
  /// Asks for what will be read read_distance after `offset` of row n: in this row, or in that of the next panel.
  [[gnu::always_inline]] void prefetch(std::size_t n, std::size_t offset) const noexcept {
    const std::size_t ahead = offset + read_distance;
    if (ahead < row_bytes) {
      __builtin_prefetch(at(n, ahead));
    } else if (rows - n > panel_outputs && ahead - row_bytes < row_bytes) {
      __builtin_prefetch(at(n + panel_outputs, ahead - row_bytes));
    }
  }
};

using Ints [[gnu::vector_size(16)]] = std::int32_t;
using Floats [[gnu::vector_size(16)]] = float;

/// Writes 16 scales as half; scales[0] are those of outputs 0, 2, 4, 6, scales[1] of 1, 3, 5, 7, and so on. With groups
/// of 32 packing spends a fifth of its time on scales, so normal halves, which most are, are rounded without a branch.
inline void store_scales(const Floats (&scales)[4], std::byte* header) noexcept {
  constexpr std::int32_t smallest = 0x38800000;  // 2^-14
  constexpr std::int32_t limit = 0x477ff000;     // 65520, from where halves are infinite
  Ints outside = {};
  Ints stored[4];
  _Pragma("GCC unroll 4") for (std::size_t i = 0; i < 4; ++i) {
    const Ints bits = __builtin_bit_cast(Ints, scales[i]);
    const Ints size = bits & 0x7fffffff;
    outside |= (size - smallest) | (limit - 1 - size);  // negative when outside
    stored[i] = (size + (0xfff - 0x38000000) + (size >> 13 & 1)) >> 13 | (bits >> 16 & 0x8000);
  }
  if ((outside[0] | outside[1] | outside[2] | outside[3]) < 0) {
    for (std::size_t i = 0; i < 4; ++i) {
      for (std::size_t lane = 0; lane < 4; ++lane) stored[i][lane] = to_half(scales[i][lane]).bits;
    }
  }
  const Ints halves[2] = {stored[0] | stored[1] << 16, stored[2] | stored[3] << 16};
  __builtin_memcpy(header, halves, sizeof halves);
}

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

/// Packs one panel; false when a code is above the largest of Bits bits. `source.codes(output, input, count)` gives
/// BlockCodes with zeros behind the first `count`; `source.prefetch(output, input)` asks for what comes later;
/// `source.header(panel, group, bytes)` writes scales and zero points of one group.
template <int Bits, class Source>
[[nodiscard]] bool pack_panel(const Source& source, const Panel& panel) noexcept {
  Place places[piece_blocks];
  PanelCursor cursor(panel);
  const auto header = [&](std::size_t group, std::byte* bytes) { source.header(panel, group, bytes); };
  Longs seen = {};
  while (const std::size_t blocks = cursor.next(places, header)) {
    for (std::size_t o = 0; o < panel.count; ++o) source.prefetch(panel.first + o, places[0].input);
    for (std::size_t o = 0; o < panel_outputs; o += quad_outputs) {
      for (std::size_t b = 0; b < blocks; ++b) {
        QuadCodes codes = {};
        _Pragma("GCC unroll 4") for (std::size_t i = 0; i < quad_outputs; ++i) {
          if (o + i >= panel.count) break;
          codes[i] = source.codes(panel.first + o + i, places[b].input, places[b].count);
          seen |= codes[i].half[0] | codes[i].half[1];
        }
        store_codes<Bits>(codes, places[b].block + o * step_inputs);
      }
    }
  }
  return ((seen[0] | seen[1]) & ~every_byte((1u << Bits) - 1u)) == 0;
}

template <class Source>
[[nodiscard]] bool pack_panel(const Source& source, const Panel& panel) noexcept {
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
