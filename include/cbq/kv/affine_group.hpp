// SPDX-License-Identifier: Apache-2.0
#pragma once

// The quantizer of keys and values: a group of numbers that belong together (one token's channels, or one channel's
// tokens) shares a scale and a float offset, both stored as half and found anew for every group:
//
//   offset = min x rounded down to half,  scale = (max x - offset) / (2^b - 1) rounded up to half
//   code = clamp(round((x - offset) / scale), 0, 2^b - 1),  x^ = scale * code + offset
//
// (WKVQuant's token-wise groups; the float offset instead of a zero point is that of KIVI.) Codes come from the
// *stored* scale and offset, so what an encoder sees is what every reader decodes, bit for bit on any machine: scale *
// code is exact in float and only the sum rounds. A group that varies by less than 2^-11 of its offset is constant,
// scale 0.
//
// Encoding what was decoded gives the same bytes, provided that codes 0 and 2^b - 1 both occur in the group. They do
// unless the rounding of the offset is as coarse as half a scale (|offset| beyond 2^9 scales) or the scale is below
// 2^-14, half's smallest normal number. Two passes over each group, in vectors.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include <cbq/core/checked.hpp>
#include <cbq/core/cpu.hpp>
#include <cbq/core/element.hpp>
#include <cbq/core/result.hpp>
#include <cbq/kv/affine_kernels_avx2.hpp>
#include <cbq/kv/affine_kernels_avx512.hpp>
#include <cbq/kv/affine_kernels_portable.hpp>
#include <cbq/kv/affine_steps.hpp>
#include <cbq/quant/rows.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {

/// Scale and offset of one group, as stored.
struct AffineGroup {
  half scale = {};
  half offset = {};
};

inline namespace CBQ_ABI {

/// The largest half that is at most x; minus infinity below the smallest. x is a number.
[[nodiscard]] constexpr half half_at_most(float x) noexcept {
  const half nearest = to_half(x);
  if (to_float(nearest) <= x) return nearest;
  if (nearest.bits == 0) return {0x8001};
  return {static_cast<std::uint16_t>(nearest.bits < 0x8000 ? nearest.bits - 1 : nearest.bits + 1)};
}

/// The smallest half that is at least x; infinity above the largest. x is a number.
[[nodiscard]] constexpr half half_at_least(float x) noexcept {
  return {static_cast<std::uint16_t>(half_at_most(-x).bits ^ 0x8000u)};
}

/// The instruction set that encoders of this machine use; all of them write the same bytes.
[[nodiscard]] inline Isa affine_isa() noexcept {
  const CpuFeatures& features = usable_features();
  for (const Isa isa : {Isa::avx512_vnni, Isa::avx2}) {
    if (has_isa(features, isa)) return isa;
  }
  return Isa::portable;
}

/// Smallest and largest element; `high` is infinite where the group holds NaN or infinity. {0, 0} for an empty group.
[[nodiscard]] inline Interval affine_range(std::span<const float> x, Isa isa = affine_isa()) noexcept {
  if (x.empty()) return {};
  AffineExtent all;
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      all = isa::avx512_vnni::affine::extent(x.data(), x.size());
      break;
    case Isa::avx2:
      all = isa::avx2::affine::extent(x.data(), x.size());
      break;
#endif
    default:
      all = isa::portable::affine::extent(x.data(), x.size());
      break;
  }
  return {all.low, all.finite ? all.high : std::numeric_limits<float>::infinity()};
}

/// Scale and offset of a group whose elements lie in `range`; bits 1 to 8. Errc::not_finite, and Errc::bad_argument
/// where half cannot hold them: elements below -65504, or a range beyond 65504 * (2^bits - 1).
[[nodiscard]] constexpr Result<AffineGroup> fit_affine_group(const Interval& range, std::size_t bits) noexcept {
  if (!is_finite(range.low) || !is_finite(range.high)) {
    return Error{Errc::not_finite, "a key or value is NaN or infinite"};
  }
  const half offset = half_at_most(range.low + 0.0f);  // -0 becomes 0
  const double low = static_cast<double>(to_float(offset)), high = static_cast<double>(range.high);
  const double below = low < 0 ? -low : low, above = high < 0 ? -high : high;
  const double top = static_cast<double>((1u << bits) - 1);
  // Decoded numbers are rounded to float; without this allowance the largest of them could ask for the next half.
  const double allowance = 0x1p-24 * (below > above ? below : above);
  const double reach = high - low - allowance;
  const half scale = half_at_least(static_cast<float>(reach > 0 ? reach / top : 0));
  constexpr unsigned infinite = 0x7c00;
  if ((offset.bits & infinite) == infinite || scale.bits == infinite) {
    return Error{Errc::bad_argument, "keys and values of a group are too large for a scale and offset of half"};
  }
  if (static_cast<double>(to_float(scale)) * top <= 0x1p-11 * below) return AffineGroup{.scale = {}, .offset = offset};
  return AffineGroup{.scale = scale, .offset = offset};
}

/// How codes of `bits` bits are made.
[[nodiscard]] constexpr AffineSteps affine_steps(const AffineGroup& group, std::size_t bits) noexcept {
  const float scale = to_float(group.scale);
  return {.offset = to_float(group.offset),
          .divisor = scale == 0 ? std::numeric_limits<float>::infinity() : scale,
          .top = static_cast<float>((1u << bits) - 1)};
}

/// Codes of x, one byte each: x.size() rounded up to a multiple of 16, code 0 behind the last.
inline void affine_codes(std::span<const float> x, const AffineGroup& group, std::size_t bits, std::uint8_t* codes,
                         Isa isa = affine_isa()) noexcept {
  const AffineSteps steps = affine_steps(group, bits);
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::affine::codes(x.data(), x.size(), steps, codes);
    case Isa::avx2:
      return isa::avx2::affine::codes(x.data(), x.size(), steps, codes);
#endif
    default:
      return isa::portable::affine::codes(x.data(), x.size(), steps, codes);
  }
}

/// What a code stands for. One rounding, with or without fused multiplication.
[[nodiscard]] constexpr float affine_value(unsigned code, const AffineGroup& group) noexcept {
  return to_float(group.scale) * static_cast<float>(code) + to_float(group.offset);
}

/// Rows of elements to bytes and back, for hosts with a cache of their own. `row_bytes(width)` says how many.
template <class C>
concept KvCodec = requires(const C& codec, std::span<const typename C::Value> row, std::span<const std::byte> bytes,
                           std::span<typename C::Value> out_row, std::span<std::byte> out_bytes) {
  { codec.row_bytes(row.size()) } noexcept -> std::same_as<Result<std::size_t>>;
  { codec.encode(row, out_bytes) } noexcept -> std::same_as<Status>;
  { codec.decode(bytes, out_row) } noexcept -> std::same_as<Status>;
};

/// A row in groups of `group` elements (the last may be shorter), each: scale half, offset half, then codes of `Bits`
/// bits from the lowest up, filled up to a whole byte. Nothing needs alignment. Elements are quantized as floats;
/// decoded ones are rounded once more where T is narrower.
template <std::size_t Bits, Element T = float>
  requires(Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8)
struct AffineGroupCodec {
  using Value = T;
  std::size_t group = 128;

  /// Errc::bad_argument for groups of 0 elements, Errc::bad_shape where the bytes do not fit in 64 bits.
  [[nodiscard]] constexpr Result<std::size_t> row_bytes(std::size_t width) const noexcept {
    if (group == 0) return Error{Errc::bad_argument, "a group needs an element", "group of a KV codec", group};
    constexpr std::size_t widest = std::numeric_limits<std::size_t>::max() / 16;  // no group is 16 bytes per element
    if (width > widest) return Error{Errc::bad_shape, "a row does not fit in 64 bits", "width", width, widest};
    const std::size_t rest = width % group;
    return (group <= width ? width / group * group_bytes(group) : 0) + (rest == 0 ? 0 : group_bytes(rest));
  }

  /// Writes row_bytes(row.size()) bytes, which is the size of `bytes`: Errc::bad_shape otherwise. Errors of
  /// fit_affine_group, naming the group; those before it are then written.
  [[nodiscard]] Status encode(std::span<const T> row, std::span<std::byte> bytes) const noexcept {
    if (const Status shape = check(row.size(), bytes.size()); !shape) return shape;
    std::byte* out = bytes.data();
    for (std::size_t first = 0; first < row.size(); first += group) {
      const auto x = row.subspan(first, row.size() - first < group ? row.size() - first : group);
      const Result<AffineGroup> fit = fit_group(x);
      if (!fit) return Error{fit.error().code, fit.error().what, ErrorText("group ") << first / group};
      std::memcpy(out, &*fit, sizeof(AffineGroup));
      out += sizeof(AffineGroup);
      for (std::size_t at = 0; at < x.size(); at += piece) {
        const auto part = x.subspan(at, x.size() - at < piece ? x.size() - at : piece);
        float values[piece];
        std::uint8_t codes[piece];
        to_float_row(part.data(), part.size(), values);
        affine_codes(std::span<const float>(values, part.size()), *fit, Bits, codes);
        out = pack(codes, part.size(), out);
      }
    }
    return {};
  }

  /// Writes all of `row` from the row_bytes(row.size()) bytes that encode() wrote; Errc::bad_shape for another size.
  /// Any bytes decode to something.
  [[nodiscard]] Status decode(std::span<const std::byte> bytes, std::span<T> row) const noexcept {
    if (const Status shape = check(row.size(), bytes.size()); !shape) return shape;
    const std::byte* in = bytes.data();
    for (std::size_t first = 0; first < row.size(); first += group) {
      const auto x = row.subspan(first, row.size() - first < group ? row.size() - first : group);
      AffineGroup fit;
      std::memcpy(&fit, in, sizeof fit);
      in += sizeof fit;
      const float scale = to_float(fit.scale), offset = to_float(fit.offset);
      for (std::size_t at = 0; at < x.size(); at += 8) {
        const std::size_t count = x.size() - at < 8 ? x.size() - at : 8;
        std::uint64_t word = 0;
        std::memcpy(&word, in, divide_up(count * Bits, 8));
        in += divide_up(count * Bits, 8);
        for (std::size_t j = 0; j < count; ++j) {
          const auto code = static_cast<unsigned>(word >> (Bits * j)) & ((1u << Bits) - 1);
          x[at + j] = from_float<T>(scale * static_cast<float>(code) + offset);
        }
      }
    }
    return {};
  }

 private:
  static constexpr std::size_t piece = 256;  // elements, whole bytes and blocks of 16

  static constexpr std::size_t group_bytes(std::size_t count) noexcept {
    return sizeof(AffineGroup) + count / 8 * Bits + divide_up(count % 8 * Bits, 8);
  }

  [[nodiscard]] Status check(std::size_t width, std::size_t bytes) const noexcept {
    const Result<std::size_t> wanted = row_bytes(width);
    if (!wanted) return wanted.error();
    if (bytes == *wanted) return {};
    return Error{Errc::bad_shape, "a row has other bytes", "bytes of a KV codec", bytes, *wanted};
  }

  [[nodiscard]] static Result<AffineGroup> fit_group(std::span<const T> x) noexcept {
    Interval range = {std::numeric_limits<float>::max(), -std::numeric_limits<float>::max()};
    for (std::size_t at = 0; at < x.size(); at += piece) {
      float values[piece];
      const std::size_t count = x.size() - at < piece ? x.size() - at : piece;
      to_float_row(x.data() + at, count, values);
      const Interval part = affine_range({values, count});
      if (!is_finite(part.low) || !is_finite(part.high)) return fit_affine_group(part, Bits);
      if (part.low < range.low) range.low = part.low;
      if (part.high > range.high) range.high = part.high;
    }
    return fit_affine_group(range, Bits);
  }

  /// The end of what it wrote.
  static std::byte* pack(const std::uint8_t* codes, std::size_t count, std::byte* out) noexcept {
    for (std::size_t at = 0; at < count; at += 8) {
      const std::size_t here = count - at < 8 ? count - at : 8;
      std::uint64_t word = 0;
      for (std::size_t j = 0; j < here; ++j) word |= static_cast<std::uint64_t>(codes[at + j]) << (Bits * j);
      std::memcpy(out, &word, divide_up(here * Bits, 8));
      out += divide_up(here * Bits, 8);
    }
    return out;
  }
};

static_assert(KvCodec<AffineGroupCodec<4>>);

}  // namespace CBQ_ABI
}  // namespace cbq
