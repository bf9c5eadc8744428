// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantization in plain double, straight from the definitions; shares nothing with include/cbq.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace oracle {

/// Round half to even, by cases.
inline double round_half_even(double x) {
  const double below = std::floor(x);
  const double rest = x - below;
  if (rest < 0.5) return below;
  if (rest > 0.5) return below + 1;
  return std::fmod(below, 2.0) == 0 ? below : below + 1;
}

struct Grid {
  double scale = 1;
  int zero = 0;
  int max_code = 15;
};

inline int code(double x, const Grid& grid) {
  const double v = round_half_even(x / grid.scale) + grid.zero;
  return static_cast<int>(std::clamp(v, 0.0, static_cast<double>(grid.max_code)));
}

inline double value(int code, const Grid& grid) {
  return grid.scale * (code - grid.zero);
}

inline double squared_error(const std::vector<float>& x, const Grid& grid) {
  double error = 0;
  for (const float v : x) {
    const double d = static_cast<double>(v) - value(code(static_cast<double>(v), grid), grid);
    error += d * d;
  }
  return error;
}

/// Least squared error over `steps` scales up to `top` and all given zero points.
inline double best_squared_error(const std::vector<float>& x, double top, int first_zero, int last_zero, int max_code,
                                 int steps = 1000) {
  double best = INFINITY;
  for (int zero = first_zero; zero <= last_zero; ++zero) {
    for (int i = 1; i <= steps; ++i) best = std::min(best, squared_error(x, {top * i / steps, zero, max_code}));
  }
  return best;
}

/// Value of a binary16 code.
inline double half_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa != 0 ? static_cast<double>(NAN) : sign * static_cast<double>(INFINITY);
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(mantissa + 1024, exponent - 25));
}

/// Value of a bfloat16 code.
inline double bfloat16_value(std::uint16_t bits) {
  const int exponent = (bits >> 7) & 255;
  const int mantissa = bits & 127;
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == 255) return mantissa != 0 ? static_cast<double>(NAN) : sign * static_cast<double>(INFINITY);
  return sign * (exponent == 0 ? std::ldexp(mantissa, -133) : std::ldexp(mantissa + 128, exponent - 134));
}

/// `count` values with the tails of a Laplace distribution and magnitude about `size`; the same on every platform.
inline std::vector<float> random_weights(std::size_t count, std::uint32_t seed, double size = 1.0) {
  std::mt19937 generator(seed);
  std::vector<float> values(count);
  for (float& v : values) {
    const double u = (static_cast<double>(generator()) + 0.5) / 4294967296.0;
    const double sign = (generator() & 1u) != 0 ? 1.0 : -1.0;
    v = static_cast<float>(-sign * size * std::log(u));
  }
  return values;
}

}  // namespace oracle
