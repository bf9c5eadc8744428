// SPDX-License-Identifier: Apache-2.0
#pragma once

// AdaRound (Nagel et al., 2020): a dense offset per weight decides between the two nearest codes through a rectified
// sigmoid, a compensation loss drives every decision to 0 or 1. Formulas: rectified_sigmoid.hpp. One parameter per
// weight, six scalars per weight with gradient and Adam. Frozen steps as in the paper: step_rate = 0.
//
// A decision has to travel up to 2.4 and Adam with a decay to zero moves it by at most rate * steps / 2; and it hardly
// feels the loss before the exponent is small. Hence a large rate and an exponent from 8 for a few hundred steps; for
// BRECQ's 20000 they are 1e-3 and 20.

#include <cstddef>

#include <cbq/rounding/offset_rounding.hpp>
#include <cbq/rounding/rectified_sigmoid.hpp>

namespace cbq {

struct AdaRoundOptions {
  double offset_rate = 5e-2;
  double step_rate = 1e-3;  ///< of the log steps
  PenaltyOptions penalty = {.first_exponent = 8};
  std::size_t rank = 0;  ///< none: dense
};

inline namespace CBQ_ABI {

template <class T>
using AdaRound = OffsetRounding<T, RectifiedSigmoidRule<T>, DenseOffsets<T>, AdaRoundOptions>;

static_assert(TrainableRounding<AdaRound<float>>);

}  // namespace CBQ_ABI
}  // namespace cbq
