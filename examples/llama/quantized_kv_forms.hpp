// SPDX-License-Identifier: Apache-2.0
#pragma once

// Caches of a layer whose past is quantized: packed, with integer attention, or rounded, with attention in float; for
// decoding, or for a text in one pass. In a file of their own, so that their kernels are compiled once.

#include <cstddef>
#include <memory>

#include <cbq/core/result.hpp>
#include <cbq/kv/quantized_kv_options.hpp>

#include "kv_cache.hpp"

namespace cbq_llama {

/// The cache of a layer: what `options` say of operators and use; scheme, shape and capacity as `cache` says. Errors as
/// cbq::QuantizedKvCache::create().
[[nodiscard]] cbq::Result<std::unique_ptr<LayerKv::Form>> make_quantized_form(const cbq::QuantizedKvOptions& cache,
                                                                              const cbq::RowTransform& transform,
                                                                              const KvOptions& options);

}  // namespace cbq_llama
