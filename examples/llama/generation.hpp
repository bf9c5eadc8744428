// SPDX-License-Identifier: Apache-2.0
#pragma once

// Continues a text token by token.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include <cbq/core/result.hpp>

#include "model.hpp"
#include "tokenizer.hpp"

namespace cbq_llama {

struct GenerationOptions {
  std::size_t new_tokens = 64;
  double temperature = 0;  ///< 0: always the likeliest token
  std::uint64_t seed = 0;
  Machine machine = {};
  KvOptions kv = {};
  std::optional<cbq::ScheduledPruning> pruning = {};  ///< of the prompt
};

struct Generation {
  std::vector<std::int32_t> tokens;  ///< the new ones, with the token that ended the text, if any
  double prompt_seconds = 0;
  double new_seconds = 0;
};

/// Continues `prompt`, which must not be empty, by up to `new_tokens` tokens; ends early at a token that ends texts or
/// at the model's context. `sink` gets the text piece by piece, whole characters each time. Errors of the model and the
/// tokenizer, and Errc::interrupted.
[[nodiscard]] cbq::Result<Generation> generate(const Model& model, const Tokenizer& tokenizer,
                                               std::span<const std::int32_t> prompt, const GenerationOptions& options,
                                               const std::function<void(std::string_view)>& sink);

struct SamplingOptions {
  std::size_t tokens = 0;     ///< in all
  std::size_t context = 512;  ///< tokens per sequence
  std::uint64_t seed = 0;
  Machine machine = {};
};

/// Texts drawn from the model itself: sequences of `context` tokens, temperature 1, nothing cut off. Each starts with
/// the token that begins texts (BOS, else EOS, else a random token). One after another, as text. The same for any
/// number of threads.
[[nodiscard]] cbq::Result<std::string> sample_text(const Model& model, const Tokenizer& tokenizer,
                                                   const SamplingOptions& options);

}  // namespace cbq_llama
