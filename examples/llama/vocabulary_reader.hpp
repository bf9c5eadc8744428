// SPDX-License-Identifier: Apache-2.0
#pragma once

// The vocabulary of a GGUF file, from its metadata or from the JSON file that stands for it in folders made of GGUF
// files. A key that is absent leaves its member empty; one that is there with another type is an error, never passed
// over: a list without one of its entries would give every later token another id.

#include <cbq/core/result.hpp>
#include <cbq/io/gguf_metadata.hpp>
#include <cbq/io/json.hpp>

#include "tokenizer.hpp"

namespace cbq_llama {

/// From the keys `tokenizer.ggml.*`. Errc::bad_file naming the key.
[[nodiscard]] cbq::Result<GgufVocabulary> read_vocabulary(const cbq::GgufMetadata& metadata);

/// From what to_json() (gguf_vocabulary.hpp) gave. Errc::bad_file naming the member.
[[nodiscard]] cbq::Result<GgufVocabulary> read_vocabulary(const cbq::Json& json);

}  // namespace cbq_llama
