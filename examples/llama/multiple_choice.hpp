// SPDX-License-Identifier: Apache-2.0
#pragma once

// Multiple-choice items, and how often a model prefers the right choice. An item is a line of JSON,
//
//   {"prompt": "The king sat on his", "choices": [" throne", " honey", " seven"], "answer": 0}
//
// A choice follows the prompt as it stands: it begins with a blank where one belongs. Its score is the log likelihood
// of the choice given the prompt over its length in UTF-8 bytes, which does not depend on how a tokenizer cuts it; of
// equal scores the first wins. The prompt is evaluated once, then each choice from there on.
//
// Tokens: prompt and choice are encoded together, because words may join at the border. What all choices of an item
// have in common with the encoded prompt is the shared part; what follows is scored, for each choice alike.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <cbq/core/result.hpp>

#include "model.hpp"
#include "threads.hpp"
#include "tokenizer.hpp"

namespace cbq_llama {

struct ChoiceItem {
  std::string prompt;
  std::vector<std::string> choices;
  std::size_t answer = 0;  ///< index of the right choice
  std::size_t line = 0;    ///< of the file, from 1
};

/// An item as tokens.
struct TokenizedItem {
  struct Choice {
    std::vector<std::int32_t> tokens;
    std::size_t bytes = 0;  ///< of the choice's text
  };
  std::vector<std::int32_t> prompt;  ///< the shared part
  std::vector<Choice> choices;
  std::size_t answer = 0;
};

struct ChoiceOptions {
  Machine machine = {};
  std::string label = "choosing";  ///< of the progress line
};

struct ChoiceResult {
  std::vector<std::size_t> chosen;  ///< per item
  double accuracy = 0;              ///< share of items whose right choice has the best score
  double standard_error = 0;        ///< of the accuracy: sqrt(p (1 - p) / (items - 1)); 0 for a single item
  double accuracy_of_sums = 0;      ///< the same for likelihoods that are not divided by lengths
  double chance = 0;                ///< accuracy of drawing lots
  double right_log_likelihood = 0;  ///< of right choices, nats per byte, mean over items
  double seconds = 0;
};

/// Items of JSON lines; empty lines are skipped. Errc::bad_file naming line and reason: invalid JSON, a missing key, an
/// answer out of range, an empty choice, fewer than two choices, no items at all.
[[nodiscard]] cbq::Result<std::vector<ChoiceItem>> parse_items(std::string_view text);

/// Errc::bad_file naming the line of an item that is longer than `context` tokens, that has nothing to predict from, or
/// a choice without tokens.
[[nodiscard]] cbq::Result<std::vector<TokenizedItem>> tokenize_items(const Tokenizer& tokenizer,
                                                                     const std::vector<ChoiceItem>& items,
                                                                     std::size_t context);

/// Reads, parses and tokenizes a file for a model. Errors of all three, naming the file.
[[nodiscard]] cbq::Result<std::vector<TokenizedItem>> read_items(const std::string& path, const ModelSource& source);

/// Scores all items, one thread each. Errors of Session; Errc::not_finite naming the item, Errc::interrupted.
[[nodiscard]] cbq::Result<ChoiceResult> choose(const Model& model, const std::vector<TokenizedItem>& items,
                                               const ChoiceOptions& options);

}  // namespace cbq_llama
