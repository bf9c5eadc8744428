// SPDX-License-Identifier: Apache-2.0
#pragma once

// The files beside a model's weights that say how text becomes tokens and how to generate.

#include <cbq/core/result.hpp>
#include <cbq/io/atomic_folder.hpp>

#include "model_source.hpp"

namespace cbq_llama {

/// Copies them into a new folder; of a GGUF file its vocabulary becomes one (vocabulary_file). Errc::io.
[[nodiscard]] cbq::Status copy_companions(const cbq::AtomicFolder& folder, const ModelSource& source);

}  // namespace cbq_llama
