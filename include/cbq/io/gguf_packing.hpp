// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packs matrices of GGUF blocks without decoding or rounding them: the codes move to other places, the half scales are
// copied bit for bit, and every packed weight is the float that decode_gguf() gives.
//
//   Q4_0   x = d (q - 8)     4 bits, groups of 32, symmetric    always exact
//   Q8_0   x = d q           8 bits, groups of 32, symmetric    always exact: code q + 128, zero point 128
//   Q4_1   x = d q + m       4 bits, groups of 32, affine       exact where m = -d z with an integer z of 0 .. 15 in
//                                                               every block, x = d (q - z); else Errc::unsupported
//
// Few Q4_1 files obey that rule, as m is a minimum and no multiple of d: decode such a tensor and quantize it anew if
// that is what you want, nothing here does it silently. One pass over the bytes, tasks of whole panels.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/gemm/packed_weights.hpp>
#include <cbq/gemm/packing.hpp>
#include <cbq/io/gguf.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The grid of the blocks of `type`. Errc::unsupported for types that have no packed form.
[[nodiscard]] constexpr Result<Grid> gguf_grid(GgufType type) noexcept {
  switch (type) {
    case GgufType::q4_0:
      return make_scheme(4, 8, 32, Zero::symmetric).weight;
    case GgufType::q4_1:
      return make_scheme(4, 8, 32, Zero::affine).weight;
    case GgufType::q8_0:
      return make_scheme(8, 8, 32, Zero::symmetric).weight;
    default: {
      const Result<GgufTypeLayout> layout = gguf_layout(static_cast<std::uint32_t>(type));
      return Error{Errc::unsupported, "blocks of this GGUF type have no packed form", "",
                   layout ? layout->name : "unknown type", "Q4_0, Q4_1 or Q8_0"};
    }
  }
}

namespace packing {

[[nodiscard]] constexpr bool is_finite_half(half value) noexcept {
  return (value.bits & 0x7c00u) != 0x7c00u;
}

/// The z of 0 .. 15 with m = -d z, or -1; m and d finite.
[[nodiscard]] constexpr int integer_zero(half d, half m) noexcept {
  const float scale = to_float(d);
  const float minimum = to_float(m);
  if (minimum == 0) return 0;
  if (scale == 0) return -1;
  const float zero = -minimum / scale;
  if (!(zero >= 0.5f && zero < 15.5f)) return -1;
  const int nearest = static_cast<int>(zero + 0.5f);
  return scale * static_cast<float>(nearest) == -minimum ? nearest : -1;  // the product is exact: 15 bits
}

/// Blocks of 32 inputs in rows; `Bytes` each, the first two a half scale.
template <std::size_t Bytes>
struct GgufBlocks {
  static constexpr std::size_t block_size = Bytes;

  [[nodiscard, gnu::always_inline]] const std::byte* block(std::size_t n, std::size_t input) const noexcept {
    return rows.at(n, input / block_inputs * Bytes);
  }
  [[gnu::always_inline]] void prefetch(std::size_t first, std::size_t count, std::size_t input) const noexcept {
    rows.prefetch(first, count, input / block_inputs * Bytes);
  }
  [[nodiscard]] half number(std::size_t n, std::size_t group, std::size_t index) const noexcept {
    return load_unaligned<half>(rows.at(n, group * Bytes + index * sizeof(half)));
  }
  /// Copies the scales of a group.
  [[nodiscard]] bool header(const Panel& panel, std::size_t group, std::byte* bytes) const noexcept {
    half scales[panel_outputs] = {};
    unsigned largest = 0;  // without a branch for each: with groups of 32 this is a good part of packing
    const std::byte* from = rows.at(panel.first, group * Bytes);
    for (std::size_t o = 0; o < panel.count; ++o) {
      scales[o] = load_unaligned<half>(from);
      const unsigned size = scales[o].bits & 0x7fffu;
      largest = size > largest ? size : largest;
      from += o + 1 < panel.count ? rows.stride : 0;
    }
    __builtin_memcpy(bytes, scales, sizeof scales);
    return largest < 0x7c00u;
  }
  /// Why header() refused this block, if it did.
  [[nodiscard]] Status check(std::size_t n, std::size_t group) const noexcept {
    if (is_finite_half(number(n, group, 0))) return {};
    return Error{Errc::not_finite, "[cbq] pack_gguf: scales must be finite"};
  }

  ByteRows rows;
};

/// Codes of 4 bits: byte j holds input j in its low and input j + 16 in its high half.
[[nodiscard, gnu::always_inline]] inline BlockCodes load_halves(const std::byte* from) noexcept {
  Longs both;
  __builtin_memcpy(&both, from, sizeof both);
  const Longs mask = Longs{} + every_byte(15);
  return {{both & mask, both >> 4 & mask}};
}

struct Q4_0Blocks : GgufBlocks<18> {
  static constexpr int bits = 4;
  [[nodiscard, gnu::always_inline]] BlockCodes codes(std::size_t n, std::size_t input, std::size_t) const noexcept {
    return load_halves(block(n, input) + 2);
  }
};

struct Q4_1Blocks : GgufBlocks<20> {
  static constexpr int bits = 4;
  [[nodiscard, gnu::always_inline]] BlockCodes codes(std::size_t n, std::size_t input, std::size_t) const noexcept {
    return load_halves(block(n, input) + 4);
  }
  [[nodiscard]] bool header(const Panel& panel, std::size_t group, std::byte* bytes) const noexcept {
    bool exact = GgufBlocks::header(panel, group, bytes);
    for (std::size_t o = 0; o < panel_outputs; ++o) {
      int zero = 0;
      if (o < panel.count) {
        const half minimum = number(panel.first + o, group, 1);
        zero = is_finite_half(minimum) ? integer_zero(number(panel.first + o, group, 0), minimum) : -1;
      }
      exact = exact && zero >= 0;
      bytes[group_scales_bytes + o] = static_cast<std::byte>(zero);
    }
    return exact;
  }
  [[nodiscard]] Status check(std::size_t n, std::size_t group) const noexcept {
    const half minimum = number(n, group, 1);
    if (!is_finite_half(minimum)) return Error{Errc::not_finite, "[cbq] pack_gguf: minima must be finite"};
    if (const Status finite = GgufBlocks::check(n, group); !finite) return finite;
    if (integer_zero(number(n, group, 0), minimum) >= 0) return {};
    return Error{Errc::unsupported,
                 "[cbq] pack_gguf: a minimum is no multiple -0 .. -15 of its scale, so no integer zero point is exact"};
  }
};

struct Q8_0Blocks : GgufBlocks<34> {
  static constexpr int bits = 8;
  [[nodiscard, gnu::always_inline]] BlockCodes codes(std::size_t n, std::size_t input, std::size_t) const noexcept {
    BlockCodes codes = load_codes(block(n, input) + 2, block_inputs);
    for (Longs& half : codes.half) half ^= Longs{} + every_byte(128);
    return codes;
  }
};

template <class Blocks, Executor E>
[[nodiscard]] Result<PackedMatrix> pack_blocks(const GgufTensor& tensor, const Grid& grid, std::span<std::byte> memory,
                                               const E& executor) noexcept {
  const std::size_t outputs = tensor.shape.sizes[0];
  const std::size_t inputs = tensor.shape.sizes[1];
  const Result<PackedLayout> layout = layout_for(grid, outputs, inputs, memory.size());
  if (!layout) return layout.error();
  const std::size_t row_bytes = inputs / block_inputs * Blocks::block_size;
  const Result<std::size_t> wanted = checked_product(outputs, row_bytes);
  if (inputs % block_inputs != 0 || !wanted || tensor.bytes.size() != *wanted) {
    return Error{Errc::bad_shape, "[cbq] pack_gguf: the bytes are not the blocks of this shape", "",
                 ErrorText(tensor.bytes.size()) << " bytes", shape_text(tensor.shape)};
  }
  Blocks blocks = {};
  blocks.rows = {tensor.bytes.data(), outputs, row_bytes, row_bytes};
  const bool valid = for_each_panel(*layout, grid, memory.data(), executor,
                                    [&](const Panel& panel) { return pack_panel(blocks, panel); });
  for (std::size_t n = 0; !valid && n < outputs; ++n) {
    for (std::size_t g = 0; g < layout->groups; ++g) {
      const Status checked = blocks.check(n, g);
      if (checked) continue;
      Error error = checked.error();
      error.where << "output " << n << ", group " << g;
      return error;
    }
  }
  return PackedMatrix{memory.data(), *layout, 1.0f};
}

}  // namespace packing

/// Packs a Q4_0, Q4_1 or Q8_0 matrix [outputs, inputs] on gguf_grid(tensor.type) into `memory` of at least
/// packed_bytes() of its layout. Errors name tensor, output and group: Errc::unsupported (another type, or Q4_1 blocks
/// that are not exact), Errc::bad_shape, Errc::not_finite. The bytes do not depend on the executor.
template <Executor E = SerialExecutor>
[[nodiscard]] Result<PackedMatrix> pack_gguf(const GgufTensor& tensor, std::span<std::byte> memory,
                                             const E& executor = {}) noexcept {
  const auto named = [&](Result<PackedMatrix> result) -> Result<PackedMatrix> {
    if (!result) return in_context(result.error(), tensor.name);
    return result;
  };
  const Result<Grid> grid = gguf_grid(tensor.type);
  if (!grid) return named(grid.error());
  if (tensor.shape.rank != 2) {
    return named(Error{Errc::bad_shape, "[cbq] pack_gguf: not a matrix", "", shape_text(tensor.shape), "rank 2"});
  }
  switch (tensor.type) {
    case GgufType::q4_0:
      return named(packing::pack_blocks<packing::Q4_0Blocks>(tensor, *grid, memory, executor));
    case GgufType::q4_1:
      return named(packing::pack_blocks<packing::Q4_1Blocks>(tensor, *grid, memory, executor));
    default:
      return named(packing::pack_blocks<packing::Q8_0Blocks>(tensor, *grid, memory, executor));
  }
}

/// The same for a scheme known at compile time; Errc::unsupported unless its weights are on gguf_grid(tensor.type).
template <Scheme S, Executor E = SerialExecutor>
[[nodiscard]] Result<PackedWeightsView<S>> pack_gguf(const GgufTensor& tensor, std::span<std::byte> memory,
                                                     const E& executor = {}) noexcept {
  const Result<Grid> grid = gguf_grid(tensor.type);
  if (!grid) return in_context(grid.error(), tensor.name);
  if (*grid != checked<S>().weight) {
    return Error{Errc::unsupported, "[cbq] pack_gguf: the blocks are on another grid than the scheme's weights",
                 tensor.name, gguf_layout(static_cast<std::uint32_t>(tensor.type))->name, scheme_name(S).c_str()};
  }
  const Result<PackedMatrix> packed = pack_gguf(tensor, memory, executor);
  if (!packed) return packed.error();
  return PackedWeightsView<S>{*packed};
}

}  // namespace CBQ_ABI
}  // namespace cbq
