// SPDX-License-Identifier: Apache-2.0
#pragma once

// Layers of a transformer in plain double, straight from the definitions; shares nothing with include/cbq.

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

namespace oracle {

/// Row-major matrix of doubles.
struct Matrix {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::vector<double> values = {};

  Matrix() = default;
  Matrix(std::size_t r, std::size_t c) : rows(r), columns(c), values(r * c) {}
  Matrix(std::size_t r, std::size_t c, const std::vector<float>& from) : rows(r), columns(c) {
    for (const float v : from) values.push_back(static_cast<double>(v));
  }
  double& operator()(std::size_t r, std::size_t c) { return values[r * columns + c]; }
  double operator()(std::size_t r, std::size_t c) const { return values[r * columns + c]; }
};

/// x W^T + bias; an empty bias is none.
inline Matrix linear(const Matrix& x, const Matrix& w, const std::vector<double>& bias = {}) {
  Matrix y(x.rows, w.rows);
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t n = 0; n < w.rows; ++n) {
      double sum = bias.empty() ? 0.0 : bias[n];
      for (std::size_t k = 0; k < x.columns; ++k) sum += x(t, k) * w(n, k);
      y(t, n) = sum;
    }
  }
  return y;
}

/// The rows of `indices`; all where there are none.
template <class Index>
Matrix gather(const Matrix& x, const std::vector<Index>& indices) {
  if (indices.empty()) return x;
  Matrix y(indices.size(), x.columns);
  for (std::size_t i = 0; i < indices.size(); ++i) {
    for (std::size_t c = 0; c < x.columns; ++c) y(i, c) = x(indices[i], c);
  }
  return y;
}

inline Matrix add(const Matrix& a, const Matrix& b) {
  Matrix sum = a;
  for (std::size_t i = 0; i < sum.values.size(); ++i) sum.values[i] += b.values[i];
  return sum;
}

inline Matrix rms_norm(const Matrix& x, const std::vector<double>& weight, double epsilon) {
  Matrix y = x;
  for (std::size_t t = 0; t < x.rows; ++t) {
    double squares = 0;
    for (std::size_t i = 0; i < x.columns; ++i) squares += x(t, i) * x(t, i);
    const double root = std::sqrt(squares / static_cast<double>(x.columns) + epsilon);
    for (std::size_t i = 0; i < x.columns; ++i) y(t, i) = x(t, i) / root * weight[i];
  }
  return y;
}

inline Matrix layer_norm(const Matrix& x, const std::vector<double>& weight, const std::vector<double>& bias,
                         double epsilon) {
  Matrix y = x;
  const auto n = static_cast<double>(x.columns);
  for (std::size_t t = 0; t < x.rows; ++t) {
    double mean = 0;
    for (std::size_t i = 0; i < x.columns; ++i) mean += x(t, i) / n;
    double variance = 0;
    for (std::size_t i = 0; i < x.columns; ++i) variance += (x(t, i) - mean) * (x(t, i) - mean) / n;
    for (std::size_t i = 0; i < x.columns; ++i) {
      y(t, i) = (x(t, i) - mean) / std::sqrt(variance + epsilon) * weight[i] + bias[i];
    }
  }
  return y;
}

/// Each head of each row rounded to a grid of its own: 4 bits affine, 8 symmetric, 16 as it is.
inline Matrix quantized_heads(const Matrix& x, std::size_t width, int bits) {
  Matrix y = x;
  for (std::size_t first = 0; bits != 16 && first < x.values.size(); first += width) {
    double low = 0, high = 0;
    for (std::size_t i = first; i < first + width; ++i) {
      low = std::fmin(low, x.values[i]);
      high = std::fmax(high, x.values[i]);
    }
    const double step = bits == 8 ? std::fmax(-low, high) / 127 : (high - low) / 15;
    const double zero = bits == 8 ? 0 : std::nearbyint(-low / step);
    const double least = bits == 8 ? -127 : -zero, most = bits == 8 ? 127 : 15 - zero;
    for (std::size_t i = first; i < first + width; ++i) {
      y.values[i] = step * std::fmin(std::fmax(std::nearbyint(x.values[i] / step), least), most);
    }
  }
  return y;
}

/// Rotates each head of row t by the angle (first + t) * frequencies[pair]: a complex product of elements i and i +
/// half.
inline Matrix rotary(const Matrix& x, const std::vector<double>& frequencies, std::size_t first) {
  Matrix y = x;
  const std::size_t half = frequencies.size();
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t head = 0; head < x.columns; head += 2 * half) {
      for (std::size_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(first + t) * frequencies[i];
        const double re = x(t, head + i), im = x(t, head + half + i);
        y(t, head + i) = re * std::cos(angle) - im * std::sin(angle);
        y(t, head + half + i) = re * std::sin(angle) + im * std::cos(angle);
      }
    }
  }
  return y;
}

/// 1 / base^(2i / width) for i < width / 2.
inline std::vector<double> rotary_frequencies(double base, std::size_t width) {
  std::vector<double> frequencies;
  for (std::size_t i = 0; i < width; i += 2) {
    frequencies.push_back(1.0 / std::pow(base, static_cast<double>(i) / static_cast<double>(width)));
  }
  return frequencies;
}

/// Causal attention: query t is at position keys.rows - q.rows + t; slopes of ALiBi, one per query head, or none.
inline Matrix attention(const Matrix& q, const Matrix& keys, const Matrix& values, std::size_t width, double scale,
                        const std::vector<double>& slopes = {}) {
  Matrix out(q.rows, q.columns);
  const std::size_t heads = q.columns / width;
  const std::size_t group = heads / (keys.columns / width);
  for (std::size_t t = 0; t < q.rows; ++t) {
    const std::size_t visible = keys.rows - q.rows + t + 1;
    for (std::size_t h = 0; h < heads; ++h) {
      const std::size_t kv = h / group * width;
      std::vector<double> scores(visible);
      double best = -std::numeric_limits<double>::infinity();
      for (std::size_t j = 0; j < visible; ++j) {
        for (std::size_t i = 0; i < width; ++i) scores[j] += q(t, h * width + i) * keys(j, kv + i) * scale;
        if (!slopes.empty()) scores[j] += slopes[h] * static_cast<double>(j);
        best = std::fmax(best, scores[j]);
      }
      double total = 0;
      for (double& s : scores) total += s = std::exp(s - best);
      for (std::size_t j = 0; j < visible; ++j) {
        for (std::size_t i = 0; i < width; ++i) out(t, h * width + i) += scores[j] / total * values(j, kv + i);
      }
    }
  }
  return out;
}

inline double silu(double x) {
  return x / (1 + std::exp(-x));
}
inline double gelu_erf(double x) {
  return x * std::erfc(-x / std::sqrt(2.0)) / 2;
}
inline double gelu_tanh(double x) {
  return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

/// Largest difference relative to the largest magnitude of the reference.
inline double distance(const std::vector<float>& got, const Matrix& wanted) {
  double worst = got.size() == wanted.values.size() ? 0.0 : INFINITY;
  double largest = 1e-30;
  for (const double v : wanted.values) largest = std::fmax(largest, std::fabs(v));
  for (std::size_t i = 0; i < got.size() && i < wanted.values.size(); ++i) {
    const double difference = std::fabs(static_cast<double>(got[i]) - wanted.values[i]) / largest;
    worst = difference <= worst ? worst : difference;  // NaN counts
  }
  return worst;
}

}  // namespace oracle
