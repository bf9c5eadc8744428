// SPDX-License-Identifier: Apache-2.0
#pragma once

// ActivationSite: what a scheme does to the input of linear layers, with a backward pass. Floating-point grids do
// nothing; others fake-quantize per token, per group of a token, or all tokens on one grid, exactly as the packed path
// does (<cbq/quant/activation.hpp>). Gradients pass straight through. A clip multiplier c shrinks every range and can
// be learned; operators run with it (clip_activations()). Where activations are per tensor, a grid that calibration
// fixed (fix_activations()) replaces the range of all tokens of a call.
//
//   step = c step_0,  u = x / step,  v = round(u),  q = clamp(v, low, high),  x^ = step q,  m = 1[low <= v <= high]
//   dx = m dx^        dc = sum dx^ (q - m u) step_0                             algorithms: LSQ, Esser et al., 2020

#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <type_traits>

#include <cbq/nn/differentiable.hpp>
#include <cbq/quant/activation.hpp>

namespace cbq {

/// Whether the clip multiplier of an activation site is trained.
enum class ClipMultiplier : unsigned char { fixed, learned };

inline namespace CBQ_ABI {

template <class T>
class ActivationSite {
 public:
  using Scalar = T;
  static constexpr T smallest_clip = static_cast<T>(0.3);

  /// The identity.
  ActivationSite() noexcept = default;

  /// Errc::unsupported as check_activation_grid(); a grid of 16 bits is the identity.
  [[nodiscard]] static Result<ActivationSite> create(const Grid& grid,
                                                     ClipMultiplier clip = ClipMultiplier::fixed) noexcept {
    ActivationSite site;
    if (grid.bits == 16) return site;
    if (const Status valid = check_activation_grid(grid); !valid) return valid.error();
    site.grid_ = grid;
    site.multiplier_ = clip;
    return site;
  }

  [[nodiscard]] bool is_identity() const noexcept { return grid_.bits == 16; }
  [[nodiscard]] bool is_trained() const noexcept { return !is_identity() && multiplier_ == ClipMultiplier::learned; }
  [[nodiscard]] T& clip() noexcept { return clip_; }
  [[nodiscard]] T& clip_gradient() noexcept { return clip_gradient_; }
  /// See PackedLinear::fix_activations().
  [[nodiscard]] Status fix_activations(const StaticGrid& fixed) noexcept {
    const Status valid = check_activation_rules({.fixed = fixed}, grid_, 0);
    if (valid) fixed_ = fixed;
    return valid;
  }
  /// After an optimizer's step: c stays in [0.3, 1].
  void project() noexcept { clip_ = clip_ < smallest_clip ? smallest_clip : clip_ > T(1) ? T(1) : clip_; }

  /// x^ = site(x). Errc::not_finite naming a token.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, const MatrixView<T>& out,
                               ExecutionContext<E>& context) const noexcept {
    const auto failed = context.workspace().template take<unsigned char>(x.rows);
    if (!failed) return failed.error();
    const Token all = fit_all(x);
    for_each_row_block(context.executor(), x.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        (*failed)[r] = 0;
        for_each_group(x.columns, [&](std::size_t first, std::size_t count) {
          const Token token = fit(row(x, r) + first, count, all);
          if (!token.finite) (*failed)[r] = 1;
          if (token.finite) quantize(token, row(x, r) + first, count, row(out, r) + first);
        });
      }
    });
    for (std::size_t r = 0; r < x.rows; ++r) {
      if ((*failed)[r] != 0)
        return Error{Errc::not_finite, "an activation is NaN or infinite", ErrorText("token ") << r};
    }
    return {};
  }

  /// Replaces dL/dx^ by dL/dx.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<T>& gradient, const MatrixView<const T>& x, const MatrixView<const T>&,
                                ExecutionContext<E>& context) noexcept {
    if (!is_trained() && clip_ == T(1) && !fixed_) return {};  // nothing is clipped
    const auto parts = context.workspace().template take<double>(x.rows);
    if (!parts) return parts.error();
    const Token all = fit_all(x);
    for_each_row_block(context.executor(), x.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        (*parts)[r] = 0;
        for_each_group(x.columns, [&](std::size_t first, std::size_t count) {
          const Token token = fit(row(x, r) + first, count, all);
          (*parts)[r] += backward_group(token, {row(x, r) + first, count}, row(gradient, r) + first);
        });
      }
    });
    for (const double part : *parts) clip_gradient_ += static_cast<T>(part);
    return {};
  }

 private:
  /// The grid of a token, or of one of its groups.
  struct Token {
    T scale = 0;
    T inverse = 0;
    T low = 0;
    T high = 0;
    bool finite = true;
    bool given = false;  ///< for all tokens
  };

  /// Calls f(first, count) for what shares a grid in a row of `inputs`.
  template <class F>
  void for_each_group(std::size_t inputs, const F& f) const noexcept {
    const std::size_t group = group_length(grid_, inputs);
    for (std::size_t first = 0; first < inputs; first += group) {
      f(first, inputs - first < group ? inputs - first : group);
    }
  }

  /// The smallest and largest value of some, zero included.
  struct Range {
    T low = 0;
    T high = 0;
    bool finite = true;
  };
  [[nodiscard]] static Range range_of(const T* x, std::size_t count) noexcept {
    Range range;
    for (std::size_t i = 0; i < count; ++i) {
      range.low = x[i] < range.low ? x[i] : range.low;
      range.high = x[i] > range.high ? x[i] : range.high;
      range.finite = range.finite && x[i] - x[i] == T(0);
    }
    return range;
  }

  /// The grid of all tokens, given where activations are per tensor.
  [[nodiscard]] Token fit_all(const MatrixView<const T>& x) const noexcept {
    if (grid_.granularity != Granularity::per_tensor || is_identity()) return {};
    ActivationRules rules = {.clip = static_cast<float>(clip_), .fixed = fixed_};
    if (!rules.fixed) {
      Range whole;
      for (std::size_t r = 0; r < x.rows; ++r) {
        const Range range = range_of(row(x, r), x.columns);
        if (!range.finite) continue;
        whole.low = range.low < whole.low ? range.low : whole.low;
        whole.high = range.high > whole.high ? range.high : whole.high;
      }
      rules.fixed = static_grid(grid_, static_cast<float>(whole.low), static_cast<float>(whole.high));
    }
    const TokenGrid token = fit_token(fixed_token_grid(rules, grid_, grid_), grid_);
    return {.scale = static_cast<T>(token.scale),
            .inverse = static_cast<T>(token.inverse),
            .low = static_cast<T>(token.low),
            .high = static_cast<T>(token.high),
            .given = true};
  }

  [[nodiscard]] Token fit(const T* x, std::size_t count, const Token& all) const noexcept {
    const Range range = range_of(x, count);
    if (!range.finite) return {.finite = false};
    if (all.given) return all;
    const T low = range.low * clip_;
    const T high = range.high * clip_;
    if constexpr (std::is_same_v<T, float>) {
      const TokenGrid token = fit_token(Interval{low, high}, grid_);
      return {token.scale, token.inverse, token.low, token.high};
    } else {
      if (grid_.zero == Zero::symmetric) {
        const T limit = grid_.bits == 8 ? T(127) : T(7);
        const T largest = -low > high ? -low : high;
        if (largest == T(0)) return {};
        return {largest / limit, limit / largest, -limit, limit};
      }
      if (high == low) return {};
      const T inverse = T(15) / (high - low);
      const T zero = std::nearbyint(-low * inverse);
      return {(high - low) / T(15), inverse, -zero, T(15) - zero};
    }
  }

  static void quantize(const Token& token, const T* x, std::size_t count, T* out) noexcept {
    if constexpr (std::is_same_v<T, float>) {
      fake_quantize_token({x, count}, {token.scale, token.inverse, token.low, token.high}, out);
    } else {
      for (std::size_t i = 0; i < count; ++i) {
        const T code = std::nearbyint(x[i] * token.inverse);
        out[i] = token.scale * (code < token.low ? token.low : code > token.high ? token.high : code);
      }
    }
  }

  [[nodiscard]] double backward_group(const Token& token, std::span<const T> x, T* gradient) const noexcept {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const T u = x[i] * token.inverse;
      const T code = std::nearbyint(u);
      const bool inside = code >= token.low && code <= token.high;
      const T clamped = code < token.low ? token.low : code > token.high ? token.high : code;
      sum += static_cast<double>(gradient[i] * (clamped - (inside ? u : T(0))));
      if (!inside) gradient[i] = T(0);
    }
    return sum * static_cast<double>(token.scale / clip_);
  }

  Grid grid_ = {};
  ClipMultiplier multiplier_ = ClipMultiplier::fixed;
  T clip_ = 1;
  T clip_gradient_ = 0;
  std::optional<StaticGrid> fixed_ = {};
};

static_assert(DifferentiableActivation<ActivationSite<float>> && DifferentiableActivation<ActivationSite<double>>);

}  // namespace CBQ_ABI
}  // namespace cbq
