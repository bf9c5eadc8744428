// SPDX-License-Identifier: Apache-2.0
#pragma once

// Smoothing factors of a quantized cache from a calibration text: the float cache's keys, values and the queries that
// read them, observed layer by layer while the model runs.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/kv/kv_scheme.hpp>
#include <cbq/kv/smoothing.hpp>

#include "model.hpp"
#include "threads.hpp"

namespace cbq_llama {

/// Text to calibrate with.
struct SmoothingText {
  std::span<const std::int32_t> tokens;
  std::size_t length = 512;  ///< of the sequences it is cut into; a rest shorter than that is left out, unless all is
};

/// One smoothing per layer for a cache of `scheme`; with `rotary`, of keys before that embedding. Errc::bad_argument
/// for a text without tokens; errors of sessions and of cbq::find_kv_smoothing(), which name the layer.
[[nodiscard]] cbq::Result<std::vector<cbq::KvSmoothing>> find_smoothing(
    const Model& model, const SmoothingText& text, const cbq::KvScheme& scheme, const Machine& machine,
    std::shared_ptr<const cbq::RotaryTable> rotary = nullptr);

}  // namespace cbq_llama
