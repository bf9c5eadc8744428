// SPDX-License-Identifier: Apache-2.0
#pragma once

// LearnedSteps: nearest rounding whose steps are trained straight through (Esser et al., LSQ, 2020), without offsets:
//
//   w^ = s (clamp(round(w / s) + z, 0, 2^b - 1) - z),   s = s0 e^rho,   dL/ds = sum g (d - m w / s)
//
// The ablation of every rounding method, and the cheapest of them: one parameter per group.

#include <cstddef>
#include <limits>

#include <cbq/rounding/offset_rounding.hpp>
#include <cbq/rounding/straight_through_rule.hpp>

namespace cbq {

struct LearnedStepsOptions {
  double step_rate = 1e-3;  ///< of the log steps
  double offset_rate = 0;   ///< there are no offsets
  double reach = std::numeric_limits<double>::infinity();
  std::size_t rank = 0;
};

inline namespace CBQ_ABI {

template <class T>
using LearnedSteps = OffsetRounding<T, StraightThroughRule<T>, NoOffsets<T>, LearnedStepsOptions>;

static_assert(TrainableRounding<LearnedSteps<float>>);

}  // namespace CBQ_ABI
}  // namespace cbq
