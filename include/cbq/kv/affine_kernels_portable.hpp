// SPDX-License-Identifier: Apache-2.0
#pragma once

// Encoders of keys and values in xsimd's registers, in pieces of 16 elements; use affine_group.hpp.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/kv/affine_steps.hpp>
#include <cbq/quant/divide.hpp>
#include <cbq/quant/rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace isa::portable::affine {

[[nodiscard]] inline AffineExtent extent(const float* x, std::size_t size) noexcept {
  using lanes::Floats, lanes::Ints;
  const Ints exponent(0x7f800000);
  Floats low[lanes::count], high[lanes::count];
  for (std::size_t v = 0; v < lanes::count; ++v) low[v] = high[v] = Floats(x[0]);
  Ints bad(0);  // bits, which -ffast-math leaves alone
  lanes::for_each_block({x, size}, x[0], [&](const float* block, std::size_t) {
    for (std::size_t v = 0; v < lanes::count; ++v) {
      const auto values = Floats::load_unaligned(block + v * Floats::size);
      low[v] = xsimd::min(low[v], values);
      high[v] = xsimd::max(high[v], values);
      const Ints bits = xsimd::bitwise_cast<std::int32_t>(values) & exponent;
      bad = bad | xsimd::select(bits == exponent, exponent, Ints(0));
    }
  });
  for (std::size_t v = 1; v < lanes::count; ++v) {
    low[0] = xsimd::min(low[0], low[v]);
    high[0] = xsimd::max(high[0], high[v]);
  }
  return {xsimd::reduce_min(low[0]), xsimd::reduce_max(high[0]), !xsimd::any(bad != Ints(0))};
}

/// Calls body(codes, at) for each register of int32 codes of x, at = 0 and up in steps of lanes::Ints::size; the last
/// 16 are filled up with code 0.
template <class Body>
void for_each_code(const float* x, std::size_t size, const AffineSteps& steps, Body&& body) noexcept {
  using lanes::Floats;
  const Floats divisor(steps.divisor), offset(steps.offset), none(0.0f), top(steps.top);
  std::size_t at = 0;
  lanes::for_each_block({x, size}, steps.offset, [&](const float* block, std::size_t) {
    for (std::size_t v = 0; v < lanes::count; ++v, at += Floats::size) {
      const Floats u = divide(Floats::load_unaligned(block + v * Floats::size) - offset, divisor);
      body(xsimd::nearbyint_as_int(xsimd::min(xsimd::max(u, none), top)), at);
    }
  });
}

inline void codes(const float* x, std::size_t size, const AffineSteps& steps, std::uint8_t* out) noexcept {
  std::int32_t block[lanes::width];
  for_each_code(x, size, steps, [&](const lanes::Ints& code, std::size_t at) {
    code.store_unaligned(block + at % lanes::width);
    if ((at + lanes::Ints::size) % lanes::width != 0) return;
    for (std::size_t j = 0; j < lanes::width; ++j) out[j] = static_cast<std::uint8_t>(block[j]);
    out += lanes::width;
  });
}

/// Replaces one field of the words of all channels by its bits of the codes of x.
inline void fields(const float* x, std::size_t size, const AffineSteps& steps, const AffineFields& to) noexcept {
  using Bytes = xsimd::batch<std::uint8_t>;
  const lanes::Ints mask = lanes::Ints(to.mask) << to.shift;
  for_each_code(x, size, steps, [&](const lanes::Ints& codes, std::size_t channel) {
    std::byte* words = to.words + channel / 16 * to.panel_bytes + channel % 16 * sizeof(std::uint32_t);
    auto* at = reinterpret_cast<std::uint8_t*>(words);
    const lanes::Ints old = xsimd::bitwise_cast<std::int32_t>(Bytes::load_unaligned(at));
    const lanes::Ints field = ((codes >> to.from) << to.shift) & mask;
    xsimd::bitwise_cast<std::uint8_t>((old & ~mask) | field).store_unaligned(at);
  });
}

/// The product x, which compilers may not fuse into a sum: those that do would add up other bits.
[[nodiscard]] inline lanes::Floats rounded(lanes::Floats x) noexcept {
#if defined(__x86_64__)
  asm("" : "+x"(x.data));
#elif defined(__aarch64__)
  asm("" : "+w"(x.data));
#endif
  return x;
}

/// weights null: 1.
[[nodiscard]] inline AffineSums sums(const float* x, const float* weights, std::size_t size,
                                     const AffineSteps& steps) noexcept {
  using lanes::Floats;
  const Floats offset(steps.offset), divisor(steps.divisor), none(0.0f), top(steps.top);
  Floats w[lanes::count], c[lanes::count], u[lanes::count], cc[lanes::count], cu[lanes::count], error[lanes::count];
  for (Floats(*term)[lanes::count] : {&w, &c, &u, &cc, &cu, &error}) {
    for (Floats& sum : *term) sum = none;
  }
  for (std::size_t i = 0; i < size; i += lanes::width) {
    float values[lanes::width] = {}, costs[lanes::width] = {};
    for (std::size_t j = 0; j < lanes::width && i + j < size; ++j) {
      values[j] = x[i + j];
      costs[j] = weights == nullptr ? 1.0f : weights[i + j];
    }
    for (std::size_t v = 0; v < lanes::count; ++v) {
      const Floats weight = Floats::load_unaligned(costs + v * Floats::size);
      const Floats at = divide(Floats::load_unaligned(values + v * Floats::size) - offset, divisor);
      const Floats code = xsimd::to_float(xsimd::nearbyint_as_int(xsimd::min(xsimd::max(at, none), top)));
      const Floats weighted = rounded(weight * code), off = at - code;
      w[v] += weight;
      c[v] += weighted;
      u[v] += rounded(weight * at);
      cc[v] += rounded(weighted * code);
      cu[v] += rounded(weighted * at);
      error[v] += rounded(weight * off * off);
    }
  }
  return {lanes::tree_sum(w),  lanes::tree_sum(c),  lanes::tree_sum(u),
          lanes::tree_sum(cc), lanes::tree_sum(cu), lanes::tree_sum(error)};
}

}  // namespace isa::portable::affine
}  // namespace CBQ_ABI
}  // namespace cbq
