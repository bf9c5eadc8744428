// SPDX-License-Identifier: Apache-2.0
#pragma once

// RMSNorm (LLaMA) and LayerNorm (OPT) over the rows of a matrix. Sums run in float over pieces of 1024 elements and in
// double across them. Cost: two or three passes over a row that lies in L1.
//
//   RMSNorm    y = w x / sqrt(mean(x^2) + eps)                        Zhang and Sennrich, 2019
//   LayerNorm  y = w (x - mean(x)) / sqrt(var(x) + eps) + b           Ba, Kiros and Hinton, 2016

#include <xsimd/xsimd.hpp>

#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>
#include <utility>

#include <cbq/core/context.hpp>
#include <cbq/nn/linear.hpp>
#include <cbq/quant/rows.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// y = norm(x) row by row; y may be x.
template <class N>
concept Norm = std::movable<N> && requires(const N& norm, const MatrixView<const float>& x, const MatrixView<float>& y,
                                           ExecutionContext<>& context) {
  { norm.width() } -> std::same_as<std::size_t>;
  { norm.forward(x, y, context) } -> std::same_as<Status>;
};

namespace norm {

/// out[i] = (x[i] - shift) * scale * weight[i] + bias[i]; bias may be null.
inline void scale_row(std::span<const float> x, float shift, float scale, const float* weight, const float* bias,
                      float* out) noexcept {
  using Floats = lanes::Floats;
  const Floats shifts(shift), scales(scale);
  std::size_t i = 0;
  for (; i + Floats::size <= x.size(); i += Floats::size) {
    const Floats value = (Floats::load_unaligned(&x[i]) - shifts) * scales * Floats::load_unaligned(weight + i);
    (bias == nullptr ? value : value + Floats::load_unaligned(bias + i)).store_unaligned(out + i);
  }
  for (; i < x.size(); ++i) {
    const float value = (x[i] - shift) * scale * weight[i];
    out[i] = bias == nullptr ? value : value + bias[i];
  }
}

[[nodiscard]] inline Status check(const MatrixView<const float>& x, const MatrixView<float>& y,
                                  std::size_t width) noexcept {
  if (x.columns == width && y.columns == width && x.rows == y.rows && x.stride >= width && y.stride >= width) return {};
  return Error{Errc::bad_shape, "input and result must be rows of the width of the norm", "",
               ErrorText(x.rows) << " x " << x.columns << ", " << y.rows << " x " << y.columns, width};
}

}  // namespace norm

class RmsNorm {
 public:
  /// Copies `weight`. Errc::bad_shape (empty), Errc::bad_argument (epsilon < 0), Errc::out_of_memory.
  [[nodiscard]] static Result<RmsNorm> create(std::span<const float> weight, float epsilon) noexcept {
    if (weight.empty()) return Error{Errc::bad_shape, "a norm needs at least one element", "weight"};
    if (!(epsilon >= 0)) return Error{Errc::bad_argument, "the epsilon of a norm must not be negative", "epsilon"};
    Result<AlignedBuffer<float>> copy = linear::copy_bias(weight, weight.size());
    if (!copy) return copy.error();
    RmsNorm result;
    result.weight_ = *std::move(copy);
    result.epsilon_ = epsilon;
    return result;
  }

  [[nodiscard]] std::size_t width() const noexcept { return weight_.size(); }

  /// See Norm. Errc::bad_shape.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const float>& x, const MatrixView<float>& y,
                               ExecutionContext<E>& context) const noexcept {
    if (const Status valid = norm::check(x, y, width()); !valid) return valid;
    for_each_row_block(context.executor(), x.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        const std::span<const float> values(row(x, r), width());
        const double mean = sum_of_squares(values) / static_cast<double>(width());
        const auto scale = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(epsilon_)));
        norm::scale_row(values, 0.0f, scale, weight_.data(), nullptr, row(y, r));
      }
    });
    return {};
  }

 private:
  AlignedBuffer<float> weight_;
  float epsilon_ = 0.0f;
};

class LayerNorm {
 public:
  /// Copies `weight` and `bias`. Errc::bad_shape, Errc::bad_argument (epsilon < 0), Errc::out_of_memory.
  [[nodiscard]] static Result<LayerNorm> create(std::span<const float> weight, std::span<const float> bias,
                                                float epsilon) noexcept {
    if (weight.empty() || weight.size() != bias.size()) {
      return Error{Errc::bad_shape, "a layer norm has as many weights as biases, at least one", "", bias.size(),
                   weight.size()};
    }
    if (!(epsilon >= 0)) return Error{Errc::bad_argument, "the epsilon of a norm must not be negative", "epsilon"};
    Result<AlignedBuffer<float>> weight_copy = linear::copy_bias(weight, weight.size());
    Result<AlignedBuffer<float>> bias_copy = linear::copy_bias(bias, bias.size());
    if (!weight_copy) return weight_copy.error();
    if (!bias_copy) return bias_copy.error();
    LayerNorm result;
    result.weight_ = *std::move(weight_copy);
    result.bias_ = *std::move(bias_copy);
    result.epsilon_ = epsilon;
    return result;
  }

  [[nodiscard]] std::size_t width() const noexcept { return weight_.size(); }

  /// See Norm. Errc::bad_shape.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const float>& x, const MatrixView<float>& y,
                               ExecutionContext<E>& context) const noexcept {
    if (const Status valid = norm::check(x, y, width()); !valid) return valid;
    for_each_row_block(context.executor(), x.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        const std::span<const float> values(row(x, r), width());
        const auto count = static_cast<double>(width());
        const double mean = sum(values) / count;
        // Around the mean as a float, corrected by what that rounding left: no cancellation for a large mean.
        const auto shift = static_cast<float>(mean);
        const double rest = mean - static_cast<double>(shift);
        double squares = 0;
        for (std::size_t first = 0; first < width(); first += 1024) {
          const auto piece = values.subspan(first, width() - first < 1024 ? width() - first : 1024);
          squares += centered_squares(piece, shift);
        }
        const double variance = squares / count - rest * rest;
        const double safe = variance > 0 ? variance : (variance == variance ? 0.0 : variance);
        const auto scale = static_cast<float>(1.0 / std::sqrt(safe + static_cast<double>(epsilon_)));
        norm::scale_row(values, shift, scale, weight_.data(), bias_.data(), row(y, r));
      }
    });
    return {};
  }

 private:
  [[nodiscard]] static double centered_squares(std::span<const float> x, float shift) noexcept {
    using Floats = lanes::Floats;
    const Floats shifts(shift);
    Floats sums(0.0f);
    std::size_t i = 0;
    for (; i + Floats::size <= x.size(); i += Floats::size) {
      const Floats difference = Floats::load_unaligned(&x[i]) - shifts;
      sums += difference * difference;
    }
    auto total = static_cast<double>(xsimd::reduce_add(sums));
    for (; i < x.size(); ++i) total += static_cast<double>((x[i] - shift) * (x[i] - shift));
    return total;
  }

  AlignedBuffer<float> weight_;
  AlignedBuffer<float> bias_;
  float epsilon_ = 0.0f;
};

static_assert(Norm<RmsNorm> && Norm<LayerNorm>);

}  // namespace CBQ_ABI
}  // namespace cbq
