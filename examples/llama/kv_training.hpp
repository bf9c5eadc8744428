// SPDX-License-Identifier: Apache-2.0
#pragma once

// Caches of blocks that are trained: where the smoothing of their keys and values begins, and the sites that train it.

#include <cstddef>
#include <span>
#include <vector>

#include <cbq/nn/decoded_attention_gradient.hpp>

#include "calibration.hpp"
#include "kv_smoothing_files.hpp"

namespace cbq_llama {

/// By find_kv_smoothing(), from one pass of the float model over some of the sequences. Errors of reading the model, of
/// its blocks and of find_kv_smoothing(), naming the layer.
[[nodiscard]] cbq::Result<std::vector<cbq::KvSmoothing>> first_smoothing(const ChangedWeights& weights,
                                                                         std::span<const ModuleReport> plan,
                                                                         const CalibrationTokens& tokens,
                                                                         const QuantizationOptions& options);

/// The cache of a layer; `smoothing`, of schemes with `_2d`, is where it begins (null: none). Errc::unsupported for
/// keys with scales per channel, which are not of one token; errors of cbq::KvSite::create().
[[nodiscard]] cbq::Result<cbq::KvSites<float>> cache_sites(const ModelConfig& config, const CacheSettings& settings,
                                                           const cbq::KvSmoothing* smoothing);

/// What the sites have learned. Errc::out_of_memory.
[[nodiscard]] cbq::Result<cbq::KvSmoothing> smoothing_of(const cbq::KvSites<float>& sites);

}  // namespace cbq_llama
