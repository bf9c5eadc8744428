// SPDX-License-Identifier: Apache-2.0
#pragma once

// Straight-through rounding with learned offsets: each weight is moved by up to half a step before it is rounded to the
// nearest code, and offsets and steps are trained together with the rounding passed over in the backward pass.
//
//   w^ = s (clamp(round(w / s + v) + z, 0, 2^b - 1) - z),   |v| <= 1/2,   s = s0 e^rho,   z constant
//
// StraightThrough holds v densely and is the default: of the methods here it reconstructs best. StraightThroughLowRank
// has v = A1 A2, unbounded by default, for matrices whose dense offsets and their optimizer state do not fit. Forward
// and hard weights agree but for the last 2^-12 of a step. Gradients: straight_through_rule.hpp. Related: Hubara et
// al., AdaQuant (2020), and Cheng et al., SignRound (2023), which also train dense offsets straight through.

#include <cmath>
#include <cstddef>
#include <limits>

#include <cbq/rounding/low_rank_offsets.hpp>
#include <cbq/rounding/offset_rounding.hpp>
#include <cbq/rounding/straight_through_rule.hpp>

namespace cbq {

/// The rate of dense offsets for `steps` >= 1 steps of Adam with a decay to zero: the best of those measured at 96, 400
/// and 1600 steps, where activations are not of 4 bits (docs/reconstruction.md).
[[nodiscard]] inline double straight_through_offset_rate(std::size_t steps) noexcept {
  return 0.1 / std::sqrt(static_cast<double>(steps));
}

/// Rates are for Adam with a decay to zero.
struct StraightThroughOptions {
  double offset_rate = 2.5e-3;  ///< for 1600 steps; see straight_through_offset_rate()
  double step_rate = 1e-3;      ///< of the log steps
  double reach = 0.5;           ///< |v| at most, in steps
  std::size_t rank = 0;         ///< none: dense
};

struct StraightThroughLowRankOptions {
  double offset_rate = 5e-3;                               ///< of A1 and A2
  double step_rate = 1e-3;                                 ///< of the log steps
  double reach = std::numeric_limits<double>::infinity();  ///< |v| at most, in steps
  std::size_t rank = 32;                                   ///< 1 .. min(outputs, inputs)
};

inline namespace CBQ_ABI {

template <class T>
using StraightThrough = OffsetRounding<T, StraightThroughRule<T>, DenseOffsets<T>, StraightThroughOptions>;

template <class T>
using StraightThroughLowRank =
    OffsetRounding<T, StraightThroughRule<T>, LowRankOffsets<T>, StraightThroughLowRankOptions>;

static_assert(TrainableRounding<StraightThrough<float>> && TrainableRounding<StraightThroughLowRank<float>>);

}  // namespace CBQ_ABI
}  // namespace cbq
