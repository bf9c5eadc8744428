// SPDX-License-Identifier: Apache-2.0
#pragma once

// LoRA-Rounding, the rounding of CBQ (Ding et al., 2023): AdaRound whose offsets are a product of low rank,
//
//   V = V0 + A1 A2,  A1 [N x r] ~ N(0, 1/r),  A2 [r x K] = 0,  V0 = h^-1(frac(w / s))
//
// so that training starts from the weights themselves. V0 is computed when needed and V exists in tiles only: (N + K) r
// trained parameters instead of N K. Formulas: rectified_sigmoid.hpp, low_rank_offsets.hpp. The paper's rank is 5; what
// rank 5 cannot decide stays nearest rounding, and straight_through.hpp measures better where its memory is there.

#include <cstddef>

#include <cbq/rounding/low_rank_offsets.hpp>
#include <cbq/rounding/offset_rounding.hpp>
#include <cbq/rounding/rectified_sigmoid.hpp>

namespace cbq {

struct LoraRoundingOptions {
  double offset_rate = 2e-2;  ///< of A1 and A2; the paper's 1e-4 hardly moves V in a few hundred steps
  double step_rate = 1e-3;    ///< of the log steps
  PenaltyOptions penalty = {.weight = 0.1};
  std::size_t rank = 5;  ///< 1 .. min(outputs, inputs)
};

inline namespace CBQ_ABI {

template <class T>
using LoraRounding = OffsetRounding<T, RectifiedSigmoidRule<T>, LowRankOffsets<T>, LoraRoundingOptions>;

static_assert(TrainableRounding<LoraRounding<float>>);

}  // namespace CBQ_ABI
}  // namespace cbq
