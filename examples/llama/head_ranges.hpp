// SPDX-License-Identifier: Apache-2.0
#pragma once

// How large queries, keys and values of every head become, observed while a model runs over a calibration text: static
// scales of integer attention. Extremes, as the published code takes them.

#include <cstddef>
#include <memory>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/kv/int8_kv_cache.hpp>

#include "kv_cache.hpp"
#include "kv_smoothing.hpp"
#include "model.hpp"
#include "threads.hpp"

namespace cbq_llama {

/// A form that does what `inner` does, and raises `ranges` to the largest magnitudes that pass through it.
[[nodiscard]] std::unique_ptr<LayerKv::Form> observe_ranges(std::unique_ptr<LayerKv::Form> inner, HeadRanges& ranges);

/// INT8 scales of each layer. Errc::bad_argument for a text without tokens; errors of sessions.
[[nodiscard]] cbq::Result<std::vector<HeadRanges>> find_head_scales(const Model& model, const SmoothingText& text,
                                                                    const Machine& machine);

}  // namespace cbq_llama
