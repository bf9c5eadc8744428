// SPDX-License-Identifier: Apache-2.0
#pragma once

// A better scale and offset for a group of keys or values than its range gives: codes are found for the present ones,
// then the scale and offset for which these codes err least, by (weighted) least squares, and so on in turns
// (alternating minimization, as in Lloyd's method, restricted to uniform grids; the weights are ours):
//
//   minimize over s, o:  sum w (x - s code - o)^2,   code = clamp(round((x - o) / s), 0, 2^b - 1)
//
// Weights say how much an error of a channel costs; for keys the mean square of the queries that meet it. Without them
// a group whose loud channels matter most, such as keys that are not rotated, gets worse: its extremes are cut. Each
// step is one pass over the group, in registers, with sixteen lanes and a fixed order of addition.

#include <cstddef>
#include <limits>
#include <span>

#include <cbq/kv/affine_group.hpp>

namespace cbq {

/// How scale and offset of groups are refined.
struct AffineRefinement {
  int steps = 0;                   ///< least-squares steps; 0: the range as it is
  const float* weights = nullptr;  ///< of the squared errors, not negative, one per channel; null: equal ones
};

inline namespace CBQ_ABI {

namespace affine_refinement {

/// Sums over a group, with u = (x - offset) / scale and c its code.
struct Moments {
  double w = 0, c = 0, u = 0, cc = 0, cu = 0;  ///< of weight times these
  double error = 0;                            ///< of weight * (u - c)^2
};

/// The sums of `Moments` in sixteen lanes.
struct Sums {
  lanes::Floats w[lanes::count], c[lanes::count], u[lanes::count], cc[lanes::count], cu[lanes::count];
  lanes::Floats error[lanes::count];
};

/// A group in steps from its offset.
struct Steps {
  lanes::Floats scale, offset, top;

  Steps(const AffineGroup& fit, std::size_t bits) noexcept
      : scale(to_float(fit.scale)), offset(to_float(fit.offset)), top(static_cast<float>((1u << bits) - 1)) {}

  /// Adds 16 elements and their weights.
  void add(const float* x, const float* weights, Sums& sums) const noexcept {
    using lanes::Floats;
    for (std::size_t v = 0; v < lanes::count; ++v) {
      const Floats weight = Floats::load_unaligned(weights + v * Floats::size);
      const Floats steps = divide(Floats::load_unaligned(x + v * Floats::size) - offset, scale);
      const Floats code = xsimd::to_float(xsimd::nearbyint_as_int(xsimd::min(xsimd::max(steps, Floats(0.0f)), top)));
      const Floats weighted = weight * code, off = steps - code;
      sums.w[v] += weight;
      sums.c[v] += weighted;
      sums.u[v] += weight * steps;
      sums.cc[v] += weighted * code;
      sums.cu[v] += weighted * steps;
      sums.error[v] += weight * off * off;
    }
  }
};

[[nodiscard]] inline Moments measure(std::span<const float> x, const float* weights, const AffineGroup& fit,
                                     std::size_t bits) noexcept {
  static constexpr float equal[lanes::width] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  const Steps steps(fit, bits);
  Sums sums;
  for (lanes::Floats(*lane)[lanes::count] : {&sums.w, &sums.c, &sums.u, &sums.cc, &sums.cu, &sums.error}) {
    for (lanes::Floats& sum : *lane) sum = lanes::Floats(0.0f);
  }
  std::size_t i = 0;
  for (; x.size() - i >= lanes::width; i += lanes::width) {
    steps.add(x.data() + i, weights == nullptr ? equal : weights + i, sums);
  }
  if (i < x.size()) {
    float values[lanes::width] = {}, costs[lanes::width] = {};
    for (std::size_t j = 0; i + j < x.size(); ++j) {
      values[j] = x[i + j];
      costs[j] = weights == nullptr ? 1.0f : weights[i + j];
    }
    steps.add(values, costs, sums);
  }
  const auto total = [](lanes::Floats(&lane)[lanes::count]) { return static_cast<double>(lanes::tree_sum(lane)); };
  return {total(sums.w), total(sums.c), total(sums.u), total(sums.cc), total(sums.cu), total(sums.error)};
}

/// The group that errs least with the codes of `moments`, or `fit` where they do not tell.
[[nodiscard]] inline AffineGroup solve(const Moments& m, const AffineGroup& fit) noexcept {
  const double spread = m.w * m.cc - m.c * m.c;
  if (!(spread > 0x1p-20 * m.w * m.cc)) return fit;  // one code only, or no weight
  const double slope = (m.w * m.cu - m.c * m.u) / spread;
  const double shift = (m.u - slope * m.c) / m.w;
  const double scale = static_cast<double>(to_float(fit.scale));
  const AffineGroup next = {
      .scale = to_half(static_cast<float>(slope * scale)),
      .offset = to_half(static_cast<float>(static_cast<double>(to_float(fit.offset)) + shift * scale))};
  constexpr unsigned infinite = 0x7c00;
  const bool usable = next.scale.bits != 0 && next.scale.bits < infinite && (next.offset.bits & infinite) != infinite;
  return usable ? next : fit;
}

}  // namespace affine_refinement

/// `fit` (of fit_affine_group(), for finite x), or a group whose weighted squared error on x is smaller;
/// refinement.weights has x.size() elements.
[[nodiscard]] inline AffineGroup refine_affine_group(std::span<const float> x, const AffineGroup& fit, std::size_t bits,
                                                     const AffineRefinement& refinement) noexcept {
  if (refinement.steps <= 0 || fit.scale.bits == 0) return fit;
  AffineGroup best = fit, next = fit;
  double least = std::numeric_limits<double>::infinity();
  for (int step = 0;; ++step) {
    const affine_refinement::Moments moments = affine_refinement::measure(x, refinement.weights, next, bits);
    const double scale = static_cast<double>(to_float(next.scale));
    const double error = moments.error * scale * scale;
    if (!(error < least)) return best;
    best = next;
    least = error;
    if (step == refinement.steps) return best;
    next = affine_refinement::solve(moments, best);
    if (next.scale.bits == best.scale.bits && next.offset.bits == best.offset.bits) return best;
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
