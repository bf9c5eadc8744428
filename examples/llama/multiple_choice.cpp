// SPDX-License-Identifier: Apache-2.0
#include "multiple_choice.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <span>
#include <utility>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/json.hpp>

#include "commands.hpp"
#include "interrupt.hpp"
#include "progress.hpp"
#include "scores.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

std::string line_name(std::size_t line) {
  return "line " + std::to_string(line);
}

Result<std::vector<std::string>> parse_choices(const cbq::Json& json) {
  const cbq::Json* list = cbq::json_find(json, "choices");
  if (list == nullptr) return Error{Errc::bad_file, "a JSON key is missing", "choices"};
  if (!list->is_array() || list->size() < 2) {
    return Error{Errc::bad_file, "an item has a list of choices", "choices",
                 list->is_array() ? "fewer" : list->type_name(), "at least two texts"};
  }
  std::vector<std::string> choices;
  for (const cbq::Json& entry : *list) {
    const auto* text = entry.get_ptr<const cbq::Json::string_t*>();
    if (text == nullptr) return Error{Errc::bad_file, "a choice is no text", "choices", entry.type_name(), "text"};
    if (text->empty()) return Error{Errc::bad_file, "a choice is empty", ErrorText("choice ") << choices.size()};
    choices.push_back(*text);
  }
  return choices;
}

Result<ChoiceItem> parse_item(std::string_view line) {
  const Result<cbq::Json> json = cbq::parse_json(line);
  if (!json) return json.error();
  if (!json->is_object()) return Error{Errc::bad_file, "an item is a JSON object", "", json->type_name()};
  const Result<std::string_view> prompt = cbq::json_string(*json, "prompt");
  if (!prompt) return prompt.error();
  Result<std::vector<std::string>> choices = parse_choices(*json);
  if (!choices) return choices.error();
  const Result<std::uint64_t> answer = cbq::json_unsigned(*json, "answer");
  if (!answer) return answer.error();
  if (*answer >= choices->size()) {
    return Error{Errc::bad_file, "the answer names no choice", "answer", *answer,
                 ErrorText("0 to ") << choices->size() - 1};
  }
  return ChoiceItem{std::string(*prompt), *std::move(choices), static_cast<std::size_t>(*answer), 0};
}

// Ids of a text behind what the tokenizer puts before it, and nothing after it.
Result<std::vector<std::int32_t>> encode(const Tokenizer& tokenizer, const std::string& text) {
  Result<std::vector<std::int32_t>> ids =
      tokenizer.encode(text, {EncodeOptions::Special::as_text, EncodeOptions::Frame::omitted});
  if (!ids) return ids.error();
  ids->insert(ids->begin(), tokenizer.prefix().begin(), tokenizer.prefix().end());
  return ids;
}

Result<TokenizedItem> tokenize(const Tokenizer& tokenizer, const ChoiceItem& item, std::size_t context) {
  Result<std::vector<std::int32_t>> prompt = encode(tokenizer, item.prompt);
  if (!prompt) return prompt.error();
  std::size_t shared = prompt->size();
  std::vector<std::vector<std::int32_t>> whole;
  for (const std::string& choice : item.choices) {
    Result<std::vector<std::int32_t>> ids = encode(tokenizer, item.prompt + choice);
    if (!ids) return ids.error();
    const auto limit = static_cast<std::ptrdiff_t>(std::min(shared, ids->size()));
    const auto end = std::mismatch(ids->begin(), ids->begin() + limit, prompt->begin());
    shared = static_cast<std::size_t>(end.first - ids->begin());
    whole.push_back(*std::move(ids));
  }
  if (shared == 0) return Error{Errc::bad_file, "nothing to predict the choices from: the prompt has no tokens"};
  prompt->resize(shared);
  TokenizedItem tokenized{*std::move(prompt), {}, item.answer};
  for (std::size_t i = 0; i < whole.size(); ++i) {
    if (whole[i].size() == shared) return Error{Errc::bad_file, "a choice has no tokens", ErrorText("choice ") << i};
    if (whole[i].size() > context) {
      return Error{Errc::bad_file, "longer than the model's context", ErrorText("choice ") << i,
                   ErrorText(whole[i].size()) << " tokens", ErrorText("at most ") << context};
    }
    whole[i].erase(whole[i].begin(), whole[i].begin() + static_cast<std::ptrdiff_t>(shared));
    tokenized.choices.push_back({std::move(whole[i]), item.choices[i].size()});
  }
  return tokenized;
}

// Of one item; written by one worker.
struct ItemScore {
  Status status;
  std::size_t chosen = 0;
  std::size_t chosen_of_sums = 0;
  double right = 0;  ///< score of the right choice
};

class Scorer {
 public:
  static Result<Scorer> create(const Model& model, std::size_t capacity, const Machine& machine) {
    Result<Session> session = Session::create(model, capacity, {1, machine.isa});
    if (!session) return session.error();
    return Scorer(*std::move(session), model.config().vocabulary);
  }

  Status run(const TokenizedItem& item, ItemScore& score) {
    session_.reset();
    const Result<MatrixView<const float>> hidden = session_.forward(item.prompt);
    if (!hidden) return hidden.error();
    const MatrixView<float> first = cbq::matrix_view(first_.data(), 1, first_.size());
    if (const Status done = session_.logits(cbq::rows(*hidden, hidden->rows - 1, 1), first); !done) return done;
    double best = 0;
    double best_sum = 0;
    for (std::size_t i = 0; i < item.choices.size(); ++i) {
      const Result<double> likelihood = log_likelihood(item, item.choices[i].tokens);
      if (!likelihood) return likelihood.error();
      const double normalized = *likelihood / static_cast<double>(item.choices[i].bytes);
      if (i == item.answer) score.right = normalized;
      if (i == 0 || normalized > best) {
        best = normalized;
        score.chosen = i;
      }
      if (i == 0 || *likelihood > best_sum) {
        best_sum = *likelihood;
        score.chosen_of_sums = i;
      }
    }
    return {};
  }

 private:
  static constexpr std::size_t logit_rows = 64;

  Scorer(Session session, std::size_t vocabulary)
      : session_(std::move(session)), first_(vocabulary), logits_(logit_rows * vocabulary) {}

  // Of `tokens` behind the item's prompt, whose positions the session holds.
  Result<double> log_likelihood(const TokenizedItem& item, std::span<const std::int32_t> tokens) {
    double sum = -score_token(first_, static_cast<std::size_t>(tokens.front())).nll;
    if (tokens.size() > 1) {
      session_.truncate(item.prompt.size());
      const Result<MatrixView<const float>> hidden = session_.forward(tokens.first(tokens.size() - 1));
      if (!hidden) return hidden.error();
      for (std::size_t at = 0; at < hidden->rows; at += logit_rows) {
        const std::size_t count = std::min(logit_rows, hidden->rows - at);
        const MatrixView<float> out = cbq::matrix_view(logits_.data(), count, first_.size());
        if (const Status done = session_.logits(cbq::rows(*hidden, at, count), out); !done) return done.error();
        for (std::size_t i = 0; i < count; ++i) {
          const std::span<const float> row(cbq::row(out, i), first_.size());
          sum -= score_token(row, static_cast<std::size_t>(tokens[at + i + 1])).nll;
        }
      }
    }
    if (!std::isfinite(sum)) return Error{Errc::not_finite, "the model's logits are not finite"};
    return sum;
  }

  Session session_;
  std::vector<float> first_;  ///< logits behind the prompt
  std::vector<float> logits_;
};

ChoiceResult summarize(const std::vector<TokenizedItem>& items, std::span<const ItemScore> scores) {
  ChoiceResult result;
  std::size_t right = 0;
  std::size_t right_by_sums = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    result.chosen.push_back(scores[i].chosen);
    if (scores[i].chosen == items[i].answer) ++right;
    if (scores[i].chosen_of_sums == items[i].answer) ++right_by_sums;
    result.chance += 1 / static_cast<double>(items[i].choices.size());
    result.right_log_likelihood += scores[i].right;
  }
  const auto count = static_cast<double>(items.size());
  result.accuracy = static_cast<double>(right) / count;
  result.accuracy_of_sums = static_cast<double>(right_by_sums) / count;
  result.chance /= count;
  result.right_log_likelihood /= count;
  if (items.size() > 1) result.standard_error = std::sqrt(result.accuracy * (1 - result.accuracy) / (count - 1));
  return result;
}

}  // namespace

Result<std::vector<ChoiceItem>> parse_items(std::string_view text) {
  std::vector<ChoiceItem> items;
  std::size_t line = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view content = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    ++line;
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    Result<ChoiceItem> item = parse_item(content);
    if (!item) return cbq::in_context(item.error(), line_name(line));
    item->line = line;
    items.push_back(*std::move(item));
  }
  if (items.empty()) return Error{Errc::bad_file, "no items"};
  return items;
}

Result<std::vector<TokenizedItem>> tokenize_items(const Tokenizer& tokenizer, const std::vector<ChoiceItem>& items,
                                                  std::size_t context) {
  std::vector<TokenizedItem> tokenized;
  for (const ChoiceItem& item : items) {
    Result<TokenizedItem> tokens = tokenize(tokenizer, item, context);
    if (!tokens) return cbq::in_context(tokens.error(), line_name(item.line));
    tokenized.push_back(*std::move(tokens));
  }
  return tokenized;
}

Result<std::vector<TokenizedItem>> read_items(const std::string& path, const ModelSource& source) {
  const Result<std::string> text = read_text(path);
  if (!text) return text.error();
  const Result<std::vector<ChoiceItem>> items = parse_items(*text);
  if (!items) return cbq::in_context(items.error(), path);
  const Result<Tokenizer> tokenizer = source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  Result<std::vector<TokenizedItem>> tokenized = tokenize_items(*tokenizer, *items, source.config().context);
  if (!tokenized) return cbq::in_context(tokenized.error(), path);
  return tokenized;
}

Result<ChoiceResult> choose(const Model& model, const std::vector<TokenizedItem>& items, const ChoiceOptions& options) {
  std::size_t capacity = 1;
  for (const TokenizedItem& item : items) {
    for (const auto& choice : item.choices) capacity = std::max(capacity, item.prompt.size() + choice.tokens.size());
  }
  std::vector<Scorer> workers;
  const std::size_t count = std::clamp<std::size_t>(options.machine.threads, 1, std::max<std::size_t>(1, items.size()));
  for (std::size_t i = 0; i < count; ++i) {
    Result<Scorer> worker = Scorer::create(model, capacity, options.machine);
    if (!worker) return worker.error();
    workers.push_back(*std::move(worker));
  }
  const Stopwatch watch;
  std::vector<ItemScore> scores(items.size());
  Progress progress(options.label, "items", items.size());
  std::atomic<std::size_t> next = 0;
  std::atomic<std::size_t> done = 0;
  std::atomic<bool> failed = false;
  make_executor(count).for_each_index(count, [&](std::size_t worker) {
    for (std::size_t i = next++; i < items.size() && !failed && interrupt_signal() == 0; i = next++) {
      scores[i].status = cbq::bad_alloc_as_error("choose", [&] { return workers[worker].run(items[i], scores[i]); });
      if (!scores[i].status) failed = true;
      const std::size_t finished = ++done;
      if (worker == 0) progress.update(finished);
    }
  });
  if (const Status ok = check_interrupt(); !ok) return ok.error();
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (!scores[i].status) return cbq::in_context(scores[i].status.error(), "item " + std::to_string(i));
  }
  ChoiceResult result = summarize(items, scores);
  result.seconds = watch.seconds();
  return result;
}

}  // namespace cbq_llama
