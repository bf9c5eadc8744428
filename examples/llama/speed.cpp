// SPDX-License-Identifier: Apache-2.0
#include "speed.hpp"

#include <algorithm>
#include <random>
#include <vector>

#include "interrupt.hpp"
#include "progress.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// Adds what `profile` gained since the last call to the phase, and clears it.
void collect(Profile* profile, PhaseTimes& phase) {
  if (profile == nullptr) return;
  for (std::size_t i = 0; i < profile->seconds.size(); ++i) phase.operations.seconds[i] += profile->seconds[i];
  *profile = {};
}

}  // namespace

Result<Speed> measure_speed(const Model& model, Profile* profile, const SpeedOptions& options) {
  const std::size_t total = options.prompt_tokens + options.new_tokens;
  KvOptions kv = options.kv;
  kv.profile = profile;
  Result<Session> session = Session::create(model, total, options.machine, kv);
  if (!session) return session.error();
  std::mt19937_64 generator(options.seed);
  std::vector<std::int32_t> tokens(total);
  for (std::int32_t& token : tokens) {
    token = static_cast<std::int32_t>(generator() % static_cast<std::uint64_t>(model.config().vocabulary));
  }
  const std::span<const std::int32_t> all(tokens);
  Speed speed;
  std::vector<double> prompt_seconds;
  std::vector<double> new_seconds;
  Progress progress(options.label, "tokens", total * (options.runs + 1));
  // One run more than asked for: the first one grows memory and wakes threads, and is not counted.
  for (std::size_t run = 0; run <= options.runs; ++run) {
    session->reset();
    collect(profile, speed.prompt);
    if (run == 1) speed = {};
    Stopwatch watch;
    if (options.prompt_tokens != 0) {
      const auto logits =
          session->next_logits(all.first(options.prompt_tokens), options.pruning ? &*options.pruning : nullptr);
      if (!logits) return logits.error();
    }
    const double prompt = watch.seconds();
    collect(profile, speed.prompt);
    watch = {};
    for (std::size_t i = options.prompt_tokens; i < total; ++i) {
      const auto logits = session->next_logits(all.subspan(i, 1));
      if (!logits) return logits.error();
      if (const Status ok = check_interrupt(); !ok) return ok.error();
    }
    const double generation = watch.seconds();
    collect(profile, speed.generation);
    progress.update(total * (run + 1));
    if (run == 0) continue;
    speed.prompt.total += prompt;
    speed.generation.total += generation;
    prompt_seconds.push_back(prompt);
    new_seconds.push_back(generation);
  }
  speed.prompt_tokens_per_second = static_cast<double>(options.prompt_tokens) / median(prompt_seconds);
  speed.new_tokens_per_second = static_cast<double>(options.new_tokens) / median(new_seconds);
  return speed;
}

}  // namespace cbq_llama
