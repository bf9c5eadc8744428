// SPDX-License-Identifier: Apache-2.0
#pragma once

// Vocabularies in GGUF's words (GgufVocabulary) from and to where they are kept: the metadata of GGUF files, the file
// `vocabulary_file` of folders that were made of them, and, for writing only, a tokenizer.json.

#include <string_view>

#include <cbq/core/result.hpp>
#include <cbq/io/gguf_keys.hpp>
#include <cbq/io/json.hpp>

#include "tokenizer.hpp"

namespace cbq_llama {

/// The content of `vocabulary_file`; vocabulary_reader.hpp reads it.
[[nodiscard]] cbq::Json to_json(const GgufVocabulary& vocabulary);

/// A tokenizer.json as a GGUF vocabulary of `size` tokens: ids without a token become unused ones. Errors:
/// Tokenizer::from_json; Errc::unsupported where GGUF has no words for a part of it, or where the result splits a text
/// of all tokens and the embedded calibration text differently; Errc::bad_file for more tokens than `size`.
[[nodiscard]] cbq::Result<GgufVocabulary> vocabulary_of_json(std::string_view tokenizer_json, const SpecialIds& ids,
                                                             std::size_t size);

/// Appends the keys tokenizer.*.
void add_keys(const GgufVocabulary& vocabulary, cbq::GgufKeys& keys);

}  // namespace cbq_llama
