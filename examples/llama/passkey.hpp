// SPDX-License-Identifier: Apache-2.0
#pragma once

// Retrieval of a number that is hidden in a long text of no interest: what a cache must keep that forgets little on
// average. The text is made of phrases of this file's own, the number of random digits; the model is asked for it at
// the end and answers greedily.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <cbq/core/result.hpp>

#include "model.hpp"
#include "tokenizer.hpp"

namespace cbq_llama {

struct PasskeyOptions {
  std::size_t context = 2048;  ///< tokens of a text with the question and the answer
  std::size_t items = 10;      ///< the number lies at depths (i + 1/2) / items
  std::uint64_t seed = 0;
  Machine machine = {};
  KvOptions kv = {};
};

struct PasskeyItem {
  std::string key;     ///< digits
  double depth = 0;    ///< share of the filling that comes before the number
  std::string prompt;  ///< ends with the question
  std::vector<std::int32_t> ids = {};
};

/// The text of item `index`: as long as leaves room for the answer. Errc::bad_argument where not even the question
/// fits.
[[nodiscard]] cbq::Result<PasskeyItem> make_passkey_item(const Tokenizer& tokenizer, const PasskeyOptions& options,
                                                         std::size_t index);

/// Whether the first digits of an answer are `key`.
[[nodiscard]] bool says(const std::string& answer, const std::string& key);

struct PasskeyAnswer {
  PasskeyItem item;
  std::string answer;  ///< what the model wrote
  bool retrieved = false;
};

/// Asks for all of them, one after another. Errors of the model and the tokenizer; Errc::interrupted.
[[nodiscard]] cbq::Result<std::vector<PasskeyAnswer>> retrieve_passkeys(const Model& model, const Tokenizer& tokenizer,
                                                                        const PasskeyOptions& options);

}  // namespace cbq_llama
