// SPDX-License-Identifier: Apache-2.0
#include "passkey.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <random>
#include <string_view>
#include <utility>

#include "generation.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Result;

namespace {

constexpr std::size_t key_digits = 5;
constexpr std::size_t answer_tokens = 12;

constexpr std::string_view opening =
    "A secret number is hidden in the following text. Find it and keep it in mind.\n\n";
constexpr std::string_view question = "\n\nThe text is over. What is the secret number? The secret number is";

constexpr std::array<std::string_view, 12> subjects = {
    "The old ferry",     "A patient baker",  "The north gate",     "Our neighbour's cat",
    "A row of lanterns", "The weather vane", "The youngest clerk", "A cart of apples",
    "The village choir", "A grey heron",     "The clock tower",    "The travelling painter"};
constexpr std::array<std::string_view, 12> actions = {
    "waits beside",           "looks towards",   "goes slowly past", "is often seen near",
    "has always belonged to", "turns away from", "makes room for",   "comes back to",
    "is well known in",       "keeps an eye on", "was built before", "says nothing about"};
constexpr std::array<std::string_view, 12> places = {"the market square", "the narrow bridge",  "the river bank",
                                                     "the school garden", "the miller's house", "the harbour wall",
                                                     "the empty station", "the lower meadow",   "the stone well",
                                                     "the library steps", "the eastern road",   "the boat shed"};
constexpr std::array<std::string_view, 8> endings = {" in the morning",      " when it rains",     " after the harvest",
                                                     " as it did last year", " until the evening", " without any hurry",
                                                     " on most days",        ", and nobody minds"};

template <std::size_t N>
std::string_view pick(const std::array<std::string_view, N>& phrases, std::mt19937_64& random) {
  return phrases[random() % N];
}

std::string sentence(std::mt19937_64& random) {
  std::string text(pick(subjects, random));
  for (const std::string_view part : {pick(actions, random), pick(places, random)}) {
    text += ' ';
    text += part;
  }
  text += pick(endings, random);
  text += ". ";
  return text;
}

std::string needle(const std::string& key) {
  return "The secret number is " + key + ". Keep in mind that " + key + " is the secret number. ";
}

// The text with the first `count` sentences.
std::string prompt_text(const std::vector<std::string>& sentences, std::size_t count, const PasskeyItem& item) {
  std::string text(opening);
  const auto before = static_cast<std::size_t>(item.depth * static_cast<double>(count));
  for (std::size_t i = 0; i < count; ++i) {
    if (i == before) text += needle(item.key);
    text += sentences[i];
  }
  if (count <= before) text += needle(item.key);
  text.pop_back();  // the blank after the last sentence
  text += question;
  return text;
}

}  // namespace

bool says(const std::string& answer, const std::string& key) {
  const auto is_digit = [](unsigned char c) { return std::isdigit(c) != 0; };
  const auto first = std::find_if(answer.begin(), answer.end(), is_digit);
  return std::string(first, std::find_if_not(first, answer.end(), is_digit)) == key;
}

Result<PasskeyItem> make_passkey_item(const Tokenizer& tokenizer, const PasskeyOptions& options, std::size_t index) {
  std::mt19937_64 random(options.seed * 1000003 + index);
  PasskeyItem item;
  item.depth = (static_cast<double>(index) + 0.5) / static_cast<double>(options.items);
  item.key += static_cast<char>('1' + random() % 9);
  while (item.key.size() < key_digits) item.key += static_cast<char>('0' + random() % 10);

  const std::size_t room = options.context > answer_tokens ? options.context - answer_tokens : 0;
  std::vector<std::string> sentences;
  std::size_t tokens = 0;
  while (tokens < room) {
    sentences.push_back(sentence(random));
    const auto ids = tokenizer.encode(sentences.back(), {.frame = EncodeOptions::Frame::omitted});
    if (!ids) return ids.error();
    tokens += std::max<std::size_t>(1, ids->size());
  }
  // Tokens of a whole text are about the sum of its sentences': a few sentences more or fewer.
  const std::size_t per_sentence = sentences.empty() ? 1 : tokens / sentences.size() + 1;
  for (std::size_t count = sentences.size();;) {
    item.prompt = prompt_text(sentences, count, item);
    Result<std::vector<std::int32_t>> ids = tokenizer.encode(item.prompt);
    if (!ids) return ids.error();
    item.ids = *std::move(ids);
    if (item.ids.size() <= room) return item;
    if (count == 0) break;
    count -= std::min(count, std::max<std::size_t>(1, (item.ids.size() - room) / per_sentence));
  }
  return Error{Errc::bad_argument, "a number, the question and the answer do not fit in the context", "context",
               options.context, ErrorText("at least ") << item.ids.size() + answer_tokens};
}

Result<std::vector<PasskeyAnswer>> retrieve_passkeys(const Model& model, const Tokenizer& tokenizer,
                                                     const PasskeyOptions& options) {
  if (options.items == 0) return Error{Errc::bad_argument, "nothing to retrieve", "items", 0, "at least 1"};
  if (options.context > model.config().context) {
    return Error{Errc::bad_argument, "the texts do not fit the model's context", "context", options.context,
                 ErrorText("at most ") << model.config().context};
  }
  GenerationOptions generation;
  generation.new_tokens = answer_tokens;
  generation.machine = options.machine;
  generation.kv = options.kv;
  std::vector<PasskeyAnswer> answers(options.items);
  Progress progress("retrieving", "items", options.items);
  for (std::size_t i = 0; i < options.items; ++i) {
    Result<PasskeyItem> item = make_passkey_item(tokenizer, options, i);
    if (!item) return item.error();
    PasskeyAnswer& answer = answers[i];
    const Result<Generation> done =
        generate(model, tokenizer, item->ids, generation, [&](std::string_view piece) { answer.answer += piece; });
    if (!done) return cbq::in_context(done.error(), "item " + std::to_string(i));
    answer.retrieved = says(answer.answer, item->key);
    answer.item = *std::move(item);
    progress.update(i + 1);
  }
  return answers;
}

}  // namespace cbq_llama
