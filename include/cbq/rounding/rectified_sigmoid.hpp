// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rule of AdaRound and LoRA-Rounding, per weight w of a segment with step s and trained offset D:
//
//   u = w / s, n = floor(u), f = u - n       V = V0 + D,  V0 = h^-1(f):  D = 0 is the weight itself, not its rounding
//   h(V) = clip((zeta - gamma) sig(V) + gamma, 0, 1),  zeta = 1.1, gamma = -0.1
//   soft  w^ = s clamp(n + h, low, high)      hard  w^ = s clamp(n + 1[V >= 0], low, high)
//   L_com = sum 1 - |2 h - 1|^beta            beta falls from 20 to 2: first only the decided ones feel it, then all
//
// V0 is never stored: with a = f - gamma and b = (zeta - f) e^-D, sig(V) = a / (a + b), and V >= 0 is a >= b. Backward,
// g = dL/dw^, m = 1[low <= n + h <= high], f and n constants for D, straight through for s:
//
//   dL/dD = (g s m + w_com dL_com/dh) (zeta - gamma) sig (1 - sig) 1[0 < h < 1]      dL/ds = sum g (d - m u)
//
// Nagel et al., Up or Down? (AdaRound, 2020); constants and exponent as in BRECQ (2021).

#include <cmath>
#include <cstddef>

#include <cbq/quant/divide.hpp>
#include <cbq/rounding/segment_loops.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {

/// How the compensation loss is weighed against the reconstruction.
enum class PenaltyWeighting : unsigned char {
  relative,  ///< |its part of dL/dV| = weight * |the reconstruction's part|, ramped up over the last 60 % of the steps;
             ///< decides little where soft weights can do without any error, because both parts then vanish
  mean,      ///< weight * mean over the weights of the matrix, after 20 % of the steps
  sum,       ///< weight * sum over them, after 20 % of the steps: AdaRound's, BRECQ's with 0.01
};

/// What methods with a compensation loss have as `penalty` in their options.
struct PenaltyOptions {
  PenaltyWeighting weighting = PenaltyWeighting::mean;
  double weight = 1;
  double first_exponent = 20;  ///< beta at the end of the warm-up
  double last_exponent = 2;    ///< beta at the end of the window
  double warm_up = 0.2;        ///< share of the steps without the loss (relative: see there)
};

inline namespace CBQ_ABI {

/// The function h and what belongs to it, of one value, for reports and tests.
namespace rectified_sigmoid {
inline constexpr double zeta = 1.1;
inline constexpr double gamma = -0.1;

[[nodiscard]] inline double value(double v) noexcept {
  const double h = (zeta - gamma) / (1 + std::exp(-v)) + gamma;
  return h < 0 ? 0 : h > 1 ? 1 : h;
}
/// 0 <= h <= 1.
[[nodiscard]] inline double inverse(double h) noexcept {
  return -std::log((zeta - gamma) / (h - gamma) - 1);
}
/// 1 - |2 h - 1|^beta.
[[nodiscard]] inline double penalty(double h, double beta) noexcept {
  return 1 - std::pow(std::fabs(2 * h - 1), beta);
}
/// Exponent at `progress`, 0 .. 1: linear after the warm-up.
[[nodiscard]] inline double exponent(const PenaltyOptions& options, double progress) noexcept {
  const double t = (progress - options.warm_up) / (1 - options.warm_up);
  const double part = t < 0 ? 0 : t > 1 ? 1 : t;
  return options.first_exponent + (options.last_exponent - options.first_exponent) * part;
}
}  // namespace rectified_sigmoid

template <class T>
class RectifiedSigmoidRule {
 public:
  static constexpr bool has_penalty = true;
  static constexpr bool limited = false;
  /// Squared norms of the two parts of dL/dV.
  struct Sums {
    double reconstruction = 0;
    double penalty = 0;
  };
  struct Term {
    double weight = 0;
    double exponent = 2;
    bool relative = false;  ///< the weight is still to be set by weighed()
  };

  template <class Options>
  explicit RectifiedSigmoidRule(const Options& options) noexcept : options_(options.penalty) {}

  [[nodiscard]] Term term(const Penalty& penalty, std::size_t weights) const noexcept {
    const double exponent = rectified_sigmoid::exponent(options_, penalty.progress);
    const double after = penalty.progress >= options_.warm_up ? options_.weight : 0.0;
    switch (options_.weighting) {
      case PenaltyWeighting::mean:
        return {after / static_cast<double>(weights == 0 ? 1 : weights), exponent};
      case PenaltyWeighting::sum:
        return {after, exponent};
      case PenaltyWeighting::relative:
        break;
    }
    const double ramp = (penalty.progress - 0.4) / 0.6;
    const double weight = options_.weight * (ramp < 0 ? 0 : ramp > 1 ? 1 : ramp);
    return {weight, exponent, weight != 0};
  }
  [[nodiscard]] Term weighed(const Term& term, const Sums& sums) const noexcept {
    // Where nothing is undecided any more, any weight will do.
    const double ratio = sums.penalty > 1e-60 ? std::sqrt(sums.reconstruction / sums.penalty) : 0.0;
    return {term.weight * ratio, term.exponent};
  }

  void soft(const SegmentInput<T>& in, const SegmentGrid<T>& grid, T* out) const noexcept {
    const Lanes value(grid.value), low(grid.low), high(grid.high);
    segments::transform<T>(
        in.size, out,
        [&](std::size_t, const Lanes& w, const Lanes& offset) {
          const Decision x = decide(w, offset, grid);
          return value * segments::clamp<T>(x.floor + x.h, low, high);
        },
        in.weights, in.offsets);
  }
  void hard(const SegmentInput<T>& in, const SegmentGrid<T>& grid, T* out) const noexcept {
    const Lanes value(grid.value);
    segments::transform<T>(
        in.size, out,
        [&](std::size_t, const Lanes& w, const Lanes& offset) { return value * decide(w, offset, grid).hard; },
        in.weights, in.offsets);
  }

  [[nodiscard]] T backward(const SegmentInput<T>& in, const SegmentGrid<T>& grid, const Term& term,
                           T* out) const noexcept {
    return backward_of(in, grid, term, out, [](const Decision& x, const Lanes& low, const Lanes& high) {
      return segments::clamp<T>(x.floor + x.h, low, high);
    });
  }
  /// dL/dD as if the forward pass had been soft, dL/ds of the hard one.
  [[nodiscard]] T backward_hard(const SegmentInput<T>& in, const SegmentGrid<T>& grid, const Term& term,
                                T* out) const noexcept {
    return backward_of(in, grid, term, out, [](const Decision& x, const Lanes&, const Lanes&) { return x.hard; });
  }

  /// Adds the squared norms of the two parts of dL/dV, the second with weight 1.
  void measure(const SegmentInput<T>& in, const SegmentGrid<T>& grid, const Term& term, Sums& sums) const noexcept {
    const Lanes step(grid.step);
    segments::Sum<T> reconstruction;
    T slopes[segments::width];
    for (std::size_t i = 0; i < in.size; i += segments::width) {
      const std::size_t size = in.size - i < segments::width ? in.size - i : segments::width;
      segments::transform<T>(
          size, slopes,
          [&](std::size_t place, const Lanes& w, const Lanes& offset, const Lanes& g) {
            const Decision x = decide(w, offset, grid);
            const Lanes part = xsimd::select(x.inside, g * step * x.slope, Lanes(T{0}));
            reconstruction.parts[place] += part * part;
            return penalty_slope(x.h, term.exponent) * x.slope;
          },
          in.weights + i, in.offsets + i, in.upstream + i);
      // Not in the registers above: lanes behind the end of the segment have a slope, too.
      for (std::size_t j = 0; j < size; ++j) sums.penalty += static_cast<double>(slopes[j] * slopes[j]);
    }
    sums.reconstruction += static_cast<double>(reconstruction.total());
  }

 private:
  using Lanes = segments::Lanes<T>;

  /// Everything about the rounding of some weights.
  struct Decision {
    Lanes scaled;  ///< u
    Lanes floor;   ///< n
    Lanes h;
    Lanes slope;  ///< dh/dV
    Lanes hard;   ///< d of the hard weight
    typename Lanes::batch_bool_type inside;
  };

  [[nodiscard]] static Decision decide(const Lanes& w, const Lanes& offset, const SegmentGrid<T>& grid) noexcept {
    const Lanes none(T{0}), one(T{1}), low(grid.low), high(grid.high);
    const Lanes zeta(static_cast<T>(rectified_sigmoid::zeta)), gamma(static_cast<T>(rectified_sigmoid::gamma));
    const Lanes width(static_cast<T>(rectified_sigmoid::zeta - rectified_sigmoid::gamma));
    Decision x;
    x.scaled = divide(w, Lanes(grid.step));
    x.floor = xsimd::floor(x.scaled);
    const Lanes f = segments::clamp<T>(x.scaled - x.floor, none, one);
    const Lanes a = f - gamma;
    const Lanes b = (zeta - f) * xsimd::exp(-segments::clamp<T>(offset, Lanes(T{-60}), Lanes(T{60})));
    const Lanes sigmoid = a / (a + b);
    const Lanes stretched = sigmoid * width + gamma;
    x.h = segments::clamp<T>(stretched, none, one);
    x.slope = xsimd::select(x.h == stretched, width * sigmoid * (one - sigmoid), none);
    x.hard = segments::clamp<T>(x.floor + xsimd::select(a >= b, one, none), low, high);
    const Lanes code = x.floor + x.h;
    x.inside = code >= low && code <= high;
    return x;
  }

  /// dL_com/dh.
  [[nodiscard]] static Lanes penalty_slope(const Lanes& h, double exponent) noexcept {
    const auto beta = static_cast<T>(exponent);
    const Lanes t = h + h - Lanes(T{1});
    const Lanes size = xsimd::max(xsimd::abs(t), Lanes(static_cast<T>(1e-30)));
    const Lanes slope = Lanes(-2 * beta) * xsimd::exp(Lanes(beta - 1) * xsimd::log(size));
    return xsimd::select(t < Lanes(T{0}), -slope, slope);
  }

  template <class ForwardCode>
  [[nodiscard]] T backward_of(const SegmentInput<T>& in, const SegmentGrid<T>& grid, const Term& term, T* out,
                              const ForwardCode& forward_code) const noexcept {
    const Lanes step(grid.step), none(T{0}), low(grid.low), high(grid.high), weight(static_cast<T>(term.weight));
    segments::Sum<T> sum;
    const auto steps = [&](std::size_t place, const Decision& x, const Lanes& g) {
      const Lanes d = forward_code(x, low, high);
      sum.parts[place] += g * xsimd::select(x.inside, d - x.scaled, d);
      return xsimd::select(x.inside, g * step, none);
    };
    if (term.weight == 0) {  // no logarithm, no second exponential
      segments::transform<T>(
          in.size, out,
          [&](std::size_t place, const Lanes& w, const Lanes& offset, const Lanes& g) {
            const Decision x = decide(w, offset, grid);
            return steps(place, x, g) * x.slope;
          },
          in.weights, in.offsets, in.upstream);
    } else {
      segments::transform<T>(
          in.size, out,
          [&](std::size_t place, const Lanes& w, const Lanes& offset, const Lanes& g) {
            const Decision x = decide(w, offset, grid);
            return (steps(place, x, g) + weight * penalty_slope(x.h, term.exponent)) * x.slope;
          },
          in.weights, in.offsets, in.upstream);
    }
    return sum.total();
  }

  PenaltyOptions options_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
