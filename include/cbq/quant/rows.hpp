// SPDX-License-Identifier: Apache-2.0
#pragma once

// Row loops of quantization on xsimd: magnitudes, ranges, sums, codes, and the squared error of a candidate grid. Each
// reads a row, or the part of a row that shares one scale, and no element beyond it. Sixteen lanes whatever the
// register width and a fixed order of addition: the same bits from SSE2 to AVX-512 (unless the compiler contracts to
// FMA). Linear cost.
//
//   code = clamp(round(x / scale) + zero, 0, max_code),  round half to even       x^ = scale * (code - zero)

#include <xsimd/xsimd.hpp>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include <cbq/core/element.hpp>
#include <cbq/core/element_rows.hpp>
#include <cbq/quant/divide.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The grid of one row segment, in unsigned codes 0 .. max_code; x^ = scale * (code - zero).
struct CodeGrid {
  float scale = 1;
  int zero = 0;
  int max_code = 15;
};

/// Smallest and largest element.
struct Interval {
  float low = 0;
  float high = 0;
};

/// How a grid fits a row: sums over the row, with d = code - zero.
struct GridFit {
  double squared_error = 0;  ///< of x - scale * d
  double x_dot_d = 0;        ///< x_dot_d / d_dot_d is the best scale for these codes
  double d_dot_d = 0;
};

/// Gradients that a row adds to its scale and its zero point.
struct RowGradient {
  double scale = 0;
  double zero = 0;
};

/// What order_statistic ranks.
enum class Compare : unsigned char { values, magnitudes };

namespace lanes {

using Floats = xsimd::batch<float>;
using Ints = xsimd::batch<std::int32_t>;
inline constexpr std::size_t width = 16;
static_assert(width % Floats::size == 0, "[cbq] rows: registers of more than 512 bits need a wider block");
inline constexpr std::size_t count = width / Floats::size;

/// Calls `body(const float* sixteen, valid)` for each 16 elements; a shorter last piece is copied and padded.
template <class Body>
void for_each_block(std::span<const float> x, float padding, Body&& body) noexcept {
  std::size_t i = 0;
  for (; x.size() - i >= width; i += width) body(x.data() + i, width);
  if (i == x.size()) return;
  float block[width];
  for (std::size_t j = 0; j < width; ++j) block[j] = j < x.size() - i ? x[i + j] : padding;
  body(static_cast<const float*>(block), x.size() - i);
}

/// Integers in the order of the floats' values: NaNs of either sign lie outside the infinities.
inline Ints ordered(const Ints& bits) noexcept {
  return bits ^ ((bits >> 31) & Ints(0x7fffffff));
}
inline float from_ordered(std::int32_t key) noexcept {
  return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff));
}

/// Sums the sixteen lanes as a tree whose shape does not depend on the register width.
inline float tree_sum(Floats (&sums)[count]) noexcept {
  for (std::size_t half = count / 2; half != 0; half /= 2) {
    for (std::size_t v = 0; v < half; ++v) sums[v] += sums[v + half];
  }
  float last[Floats::size];
  sums[0].store_unaligned(last);
  for (std::size_t half = Floats::size / 2; half != 0; half /= 2) {
    for (std::size_t j = 0; j < half; ++j) last[j] += last[j + half];
  }
  return last[0];
}

/// Sums term(x) over the row: float lanes over pieces of 1024, double across pieces. term(0) must be 0.
template <class Term>
double sum_terms(std::span<const float> x, Term&& term) noexcept {
  double total = 0;
  for (std::size_t first = 0; first < x.size(); first += 1024) {
    const auto piece = x.subspan(first, x.size() - first < 1024 ? x.size() - first : 1024);
    Floats sums[count];
    for (Floats& sum : sums) sum = Floats(0.0f);
    for_each_block(piece, 0.0f, [&](const float* block, std::size_t) {
      for (std::size_t v = 0; v < count; ++v) sums[v] += term(Floats::load_unaligned(block + v * Floats::size));
    });
    total += static_cast<double>(tree_sum(sums));
  }
  return total;
}

/// Calls body(x, d, v, valid) for every register of the row: d = code - zero, v its place in a block of 16.
template <class Body>
void for_each_code(std::span<const float> x, const CodeGrid& grid, Body&& body) noexcept {
  const Floats scale(grid.scale);
  const Floats low(static_cast<float>(-grid.zero));
  const Floats high(static_cast<float>(grid.max_code - grid.zero));
  for_each_block(x, 0.0f, [&](const float* block, std::size_t valid) {
    for (std::size_t v = 0; v < count; ++v) {
      const Floats value = Floats::load_unaligned(block + v * Floats::size);
      // Limits are integers, so clamping before rounding gives the same codes and keeps the conversion in range.
      body(value, xsimd::nearbyint_as_int(xsimd::min(xsimd::max(divide(value, scale), low), high)), v, valid);
    }
  });
}

}  // namespace lanes

/// Largest magnitude; infinity or NaN when the row holds one (test with is_finite). 0 for an empty row.
[[nodiscard]] inline float max_abs(std::span<const float> x) noexcept {
  lanes::Ints best[lanes::count];
  for (lanes::Ints& b : best) b = lanes::Ints(0);
  lanes::for_each_block(x, 0.0f, [&](const float* block, std::size_t) {
    for (std::size_t v = 0; v < lanes::count; ++v) {
      const auto bits =
          xsimd::bitwise_cast<std::int32_t>(lanes::Floats::load_unaligned(block + v * lanes::Floats::size));
      best[v] = xsimd::max(best[v], bits & lanes::Ints(0x7fffffff));
    }
  });
  for (std::size_t v = 1; v < lanes::count; ++v) best[0] = xsimd::max(best[0], best[v]);
  return std::bit_cast<float>(xsimd::reduce_max(best[0]));
}

/// Smallest and largest element; one of them is infinite or NaN when the row holds such an element. {0, 0} for an empty
/// row.
[[nodiscard]] inline Interval min_max(std::span<const float> x) noexcept {
  if (x.empty()) return {};
  lanes::Ints low(std::numeric_limits<std::int32_t>::max());
  lanes::Ints high(std::numeric_limits<std::int32_t>::min());
  lanes::for_each_block(x, x.front(), [&](const float* block, std::size_t) {
    for (std::size_t v = 0; v < lanes::count; ++v) {
      const auto values = lanes::Floats::load_unaligned(block + v * lanes::Floats::size);
      const auto keys = lanes::ordered(xsimd::bitwise_cast<std::int32_t>(values));
      low = xsimd::min(low, keys);
      high = xsimd::max(high, keys);
    }
  });
  return {lanes::from_ordered(xsimd::reduce_min(low)), lanes::from_ordered(xsimd::reduce_max(high))};
}

/// Sum of the elements, float within pieces of 1024 and double across them.
[[nodiscard]] inline double sum(std::span<const float> x) noexcept {
  return lanes::sum_terms(x, [](const lanes::Floats& v) { return v; });
}

/// Sum of the squared elements.
[[nodiscard]] inline double sum_of_squares(std::span<const float> x) noexcept {
  return lanes::sum_terms(x, [](const lanes::Floats& v) { return v * v; });
}

/// Writes x.size() codes. Finite x, grid.scale not 0, 0 <= grid.zero <= grid.max_code <= 255.
inline void quantize_row(std::span<const float> x, const CodeGrid& grid, std::uint8_t* codes) noexcept {
  std::int32_t block[lanes::width];
  lanes::for_each_code(x, grid, [&](const lanes::Floats&, const lanes::Ints& d, std::size_t v, std::size_t valid) {
    (d + lanes::Ints(grid.zero)).store_unaligned(block + v * lanes::Floats::size);
    if (v + 1 != lanes::count) return;
    for (std::size_t j = 0; j < valid; ++j) codes[j] = static_cast<std::uint8_t>(block[j]);
    codes += valid;
  });
}

/// out[i] = scale * (code of x[i] - zero): quantize and dequantize in one pass. out may be x.
inline void fake_quantize_row(std::span<const float> x, const CodeGrid& grid, float* out) noexcept {
  float block[lanes::width];
  lanes::for_each_code(x, grid, [&](const lanes::Floats&, const lanes::Ints& d, std::size_t v, std::size_t valid) {
    (lanes::Floats(grid.scale) * xsimd::to_float(d)).store_unaligned(block + v * lanes::Floats::size);
    if (v + 1 != lanes::count) return;
    std::memcpy(out, block, valid * sizeof(float));
    out += valid;
  });
}

/// Error and moments of `grid` on the row, in one pass.
[[nodiscard]] inline GridFit measure(std::span<const float> x, const CodeGrid& grid) noexcept {
  GridFit fit;
  const lanes::Floats scale(grid.scale);
  for (std::size_t first = 0; first < x.size(); first += 1024) {
    lanes::Floats error[lanes::count], xd[lanes::count], dd[lanes::count];
    for (std::size_t v = 0; v < lanes::count; ++v) error[v] = xd[v] = dd[v] = lanes::Floats(0.0f);
    const auto piece = x.subspan(first, x.size() - first < 1024 ? x.size() - first : 1024);
    lanes::for_each_code(piece, grid,
                         [&](const lanes::Floats& value, const lanes::Ints& code, std::size_t v, std::size_t) {
                           const lanes::Floats d = xsimd::to_float(code);
                           const lanes::Floats difference = value - scale * d;
                           error[v] += difference * difference;
                           xd[v] += value * d;
                           dd[v] += d * d;
                         });
    fit.squared_error += static_cast<double>(lanes::tree_sum(error));
    fit.x_dot_d += static_cast<double>(lanes::tree_sum(xd));
    fit.d_dot_d += static_cast<double>(lanes::tree_sum(dd));
  }
  return fit;
}

/// Straight-through gradient of fake_quantize_row: dx[i] = upstream[i] where the rounded value lies on the grid, else
/// 0; the result is the gradient of scale and zero (formulas in affine.hpp). `upstream` and `dx` hold x.size() floats,
/// may be equal.
[[nodiscard]] inline RowGradient backward_row(std::span<const float> x, const CodeGrid& grid, const float* upstream,
                                              float* dx) noexcept {
  using lanes::Floats;
  const Floats scale(grid.scale);
  const Floats low(static_cast<float>(-grid.zero));
  const Floats high(static_cast<float>(grid.max_code - grid.zero));
  const Floats none(0.0f);
  RowGradient gradient;
  for (std::size_t first = 0; first < x.size(); first += 1024) {
    Floats ds[lanes::count], dz[lanes::count];
    for (std::size_t v = 0; v < lanes::count; ++v) ds[v] = dz[v] = none;
    const auto piece = x.subspan(first, x.size() - first < 1024 ? x.size() - first : 1024);
    std::size_t at = first;
    lanes::for_each_block(piece, 0.0f, [&](const float* block, std::size_t valid) {
      float g[lanes::width] = {};
      std::memcpy(g, upstream + at, valid * sizeof(float));
      for (std::size_t v = 0; v < lanes::count; ++v) {
        const Floats u = divide(Floats::load_unaligned(block + v * Floats::size), scale);
        const Floats up = Floats::load_unaligned(g + v * Floats::size);
        const Floats d = xsimd::to_float(xsimd::nearbyint_as_int(xsimd::min(xsimd::max(u, low), high)));
        // Rounding reaches the grid from half a step beyond it: up to, and at even limits including, the tie.
        const Floats near =
            xsimd::to_float(xsimd::nearbyint_as_int(xsimd::min(xsimd::max(u, low - 1.0f), high + 1.0f)));
        const auto inside = near == d;
        ds[v] += up * xsimd::select(inside, d - u, d);
        dz[v] -= xsimd::select(inside, none, up * scale);
        xsimd::select(inside, up, none).store_unaligned(g + v * Floats::size);
      }
      std::memcpy(dx + at, g, valid * sizeof(float));
      at += valid;
    });
    gradient.scale += static_cast<double>(lanes::tree_sum(ds));
    gradient.zero += static_cast<double>(lanes::tree_sum(dz));
  }
  return gradient;
}

/// The element of rank `rank` (1 = smallest) of the row's values or magnitudes, exactly and without memory: 32 counting
/// passes bisect over the floats' bits. Finite x, 1 <= rank <= x.size().
[[nodiscard]] inline float order_statistic(std::span<const float> x, Compare compare, std::size_t rank) noexcept {
  const lanes::Ints mask(compare == Compare::magnitudes ? 0x7fffffff : -1);
  const auto count_up_to = [&](std::int32_t key) {
    std::size_t total = 0;
    lanes::Ints counts(0);
    std::size_t blocks = 0;
    // The padding is the largest key, which no finite limit reaches.
    lanes::for_each_block(x, std::bit_cast<float>(0x7fffffff), [&](const float* block, std::size_t) {
      for (std::size_t v = 0; v < lanes::count; ++v) {
        const auto values = lanes::Floats::load_unaligned(block + v * lanes::Floats::size);
        const auto keys = lanes::ordered(xsimd::bitwise_cast<std::int32_t>(values) & mask);
        counts += xsimd::select(keys <= lanes::Ints(key), lanes::Ints(1), lanes::Ints(0));
      }
      if (++blocks == (std::size_t{1} << 20)) {
        total += static_cast<std::size_t>(xsimd::reduce_add(counts));
        counts = lanes::Ints(0);
        blocks = 0;
      }
    });
    return total + static_cast<std::size_t>(xsimd::reduce_add(counts));
  };
  std::int64_t low = std::numeric_limits<std::int32_t>::min();
  std::int64_t high = 0x7f7fffff;  // the largest finite float: every element is at most this
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (count_up_to(static_cast<std::int32_t>(middle)) >= rank) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return lanes::from_ordered(static_cast<std::int32_t>(high));
}

/// Elements of any type as floats, exactly for half and bfloat16, rounded for double (infinite beyond float's range).
template <Element T>
void to_float_row(const T* x, std::size_t size, float* out) noexcept {
  decode_elements<T>(reinterpret_cast<const std::byte*>(x), {out, size});
}

}  // namespace CBQ_ABI
}  // namespace cbq
