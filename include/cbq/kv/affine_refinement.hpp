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

[[nodiscard]] inline AffineSums sums_of(std::span<const float> x, const float* weights, const AffineSteps& steps,
                                        Isa isa) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::affine::sums(x.data(), weights, x.size(), steps);
    case Isa::avx2:
      return isa::avx2::affine::sums(x.data(), weights, x.size(), steps);
#endif
    default:
      return isa::portable::affine::sums(x.data(), weights, x.size(), steps);
  }
}

[[nodiscard]] inline Moments measure(std::span<const float> x, const float* weights, const AffineGroup& fit,
                                     std::size_t bits, Isa isa = affine_isa()) noexcept {
  const AffineSums sums = sums_of(x, weights, affine_steps(fit, bits), isa);
  return {static_cast<double>(sums.w),  static_cast<double>(sums.c),  static_cast<double>(sums.u),
          static_cast<double>(sums.cc), static_cast<double>(sums.cu), static_cast<double>(sums.error)};
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
