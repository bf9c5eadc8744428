// SPDX-License-Identifier: Apache-2.0
#include "generation.hpp"

#include <algorithm>
#include <atomic>
#include <random>
#include <string>
#include <utility>

#include <cbq/core/bad_alloc.hpp>

#include "interrupt.hpp"
#include "progress.hpp"
#include "sampler.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

Result<Generation> generate(const Model& model, const Tokenizer& tokenizer, std::span<const std::int32_t> prompt,
                            const GenerationOptions& options, const std::function<void(std::string_view)>& sink) {
  if (prompt.empty()) return Error{Errc::bad_argument, "nothing to continue: the prompt has no tokens", "prompt"};
  const std::size_t longest = model.config().context;
  if (prompt.size() >= longest) {
    return Error{Errc::bad_argument, "the prompt fills the model's context", "prompt", prompt.size(), longest - 1};
  }
  const std::size_t room = std::min(options.new_tokens, longest - prompt.size());
  Result<Session> session = Session::create(model, prompt.size() + room, options.machine, options.kv);
  if (!session) return session.error();
  Generation result;
  Sampler sampler(options.temperature, options.seed);
  StreamDecoder decoder(tokenizer, StreamDecoder::Start::continues, ShowSpecial::no);
  Stopwatch watch;
  Result<std::span<const float>> logits = session->next_logits(prompt, options.pruning ? &*options.pruning : nullptr);
  if (!logits) return logits.error();
  result.prompt_seconds = watch.seconds();
  watch = {};
  std::span<const float> latest = *logits;
  while (result.tokens.size() < room) {
    if (const Status ok = check_interrupt(); !ok) return ok.error();
    const std::int32_t token = sampler.draw(latest);
    result.tokens.push_back(token);
    const auto& ends = model.config().eos;
    if (std::find(ends.begin(), ends.end(), std::int64_t{token}) != ends.end()) break;
    const Result<std::string> text = decoder.push(token);
    if (!text) return text.error();
    if (!text->empty()) sink(*text);
    if (result.tokens.size() == room) break;
    const Result<std::span<const float>> next = session->next_logits({&token, 1});
    if (!next) return next.error();
    latest = *next;
  }
  result.new_seconds = watch.seconds();
  if (const std::string rest = decoder.finish(); !rest.empty()) sink(rest);
  return result;
}

namespace {

// The seed of sequence `index`: far from that of its neighbours.
std::uint64_t sequence_seed(std::uint64_t seed, std::size_t index) {
  std::uint64_t z = seed + 0x9e3779b97f4a7c15u * (index + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Draws one sequence; `tokens` is filled from its second element on.
Status sample_sequence(Session& session, std::vector<std::int32_t>& tokens, std::uint64_t seed) {
  Sampler sampler(1.0, seed);
  session.reset();
  for (std::size_t i = 1; i < tokens.size(); ++i) {
    const Result<std::span<const float>> logits = session.next_logits({&tokens[i - 1], 1});
    if (!logits) return logits.error();
    tokens[i] = sampler.draw(*logits);
  }
  return {};
}

}  // namespace

Result<std::string> sample_text(const Model& model, const Tokenizer& tokenizer, const SamplingOptions& options) {
  if (options.context < 2 || options.tokens == 0) {
    return Error{Errc::bad_argument, "a sequence has at least two tokens", "context", options.context};
  }
  const std::size_t count = cbq::divide_up(options.tokens, options.context);
  const std::size_t workers = std::max<std::size_t>(1, std::min(options.machine.threads, count));
  std::vector<Session> sessions;
  for (std::size_t i = 0; i < workers; ++i) {
    Result<Session> session = Session::create(model, options.context, {1, options.machine.isa});
    if (!session) return session.error();
    sessions.push_back(*std::move(session));
  }
  std::vector<std::vector<std::int32_t>> sequences(count);
  const auto vocabulary = static_cast<std::uint64_t>(model.config().vocabulary);
  for (std::size_t i = 0; i < count; ++i) {
    sequences[i].resize(std::min(options.context, options.tokens - i * options.context));
    const std::optional<std::int32_t> first = tokenizer.bos() ? tokenizer.bos() : tokenizer.eos();
    const std::uint64_t random = std::mt19937_64(sequence_seed(~options.seed, i))();
    sequences[i].front() = first ? *first : static_cast<std::int32_t>(random % vocabulary);
  }
  std::vector<Status> states(count);
  Progress progress("sampling", "tokens", options.tokens);
  std::atomic<std::size_t> next = 0;
  std::atomic<std::size_t> done = 0;
  make_executor(workers).for_each_index(workers, [&](std::size_t worker) {
    for (std::size_t i = next++; i < count && interrupt_signal() == 0; i = next++) {
      states[i] = cbq::bad_alloc_as_error(
          "sample", [&] { return sample_sequence(sessions[worker], sequences[i], sequence_seed(options.seed, i)); });
      const std::size_t finished = done += sequences[i].size();
      if (worker == 0) progress.update(finished);
    }
  });
  if (const Status ok = check_interrupt(); !ok) return ok.error();
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    if (!states[i]) return states[i].error();
    const Result<std::string> part = tokenizer.decode(sequences[i], ShowSpecial::no);
    if (!part) return part.error();
    text += *part;
    if (!text.ends_with('\n')) text += '\n';
  }
  return text;
}

}  // namespace cbq_llama
