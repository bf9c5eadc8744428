// SPDX-License-Identifier: Apache-2.0
#pragma once

// `cbq-llama quantize --rotate offline|full`: the model computes the same function in another basis, in which the
// activations that are quantized have no outliers (cbq::rotate_decoder()). Holds the whole model in floating point.

#include <cstdint>

#include <cbq/transform/decoder_rotation.hpp>

#include "changed_weights.hpp"
#include "quantization.hpp"
#include "threads.hpp"

namespace cbq_llama {

/// Replaces all of `weights` by those of the rotated model; nothing for Rotation::none. A tied head gets weights of its
/// own: it takes the gain of the final norm, which the embedding does not have. Equal seeds rotate into equal bases.
/// Errors of reading the model and of cbq::rotate_decoder().
[[nodiscard]] cbq::Status rotate_model(Rotation rotation, std::uint64_t seed, const ToolExecutor& executor,
                                       ChangedWeights& weights);

}  // namespace cbq_llama
