// SPDX-License-Identifier: Apache-2.0
#pragma once

// What calibration will hold in memory, computed from shapes before any work, and what a budget makes of it.

#include <cstddef>
#include <span>
#include <string>

#include "quantization.hpp"

namespace cbq_llama {

/// With all activations in memory. `options` must need calibration; options.calibration.sequence is not 0.
[[nodiscard]] MemoryEstimate estimate_memory(const ModelConfig& config, std::span<const ModuleReport> plan,
                                             const QuantizationOptions& options);

/// The same under options.memory_budget: activations go to a file where they do not fit. Errc::out_of_memory where the
/// rest does not fit either, with the smallest budget and with settings that would do; Errc::bad_argument for more
/// calibration tokens than can be addressed.
[[nodiscard]] cbq::Result<MemoryEstimate> plan_memory(const ModelConfig& config, std::span<const ModuleReport> plan,
                                                      const QuantizationOptions& options);

/// Bytes of "4G", "512M", "100K" or "1000" (powers of 1024); Errc::bad_argument.
[[nodiscard]] cbq::Result<std::size_t> parse_size(const std::string& text);

/// "4.5G" and the like, in the same units, rounded up: as a budget it is enough.
[[nodiscard]] std::string budget_text(std::size_t bytes);

}  // namespace cbq_llama
