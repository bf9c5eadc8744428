// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <string_view>
#include <vector>

#include <cbq/io/atomic_file.hpp>

#include "commands.hpp"
#include "generation.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

Status run(const GenerateCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  LoadOptions load;
  load.packed_cache = {command.common.packed_cache, machine->threads, console.err};
  const Result<LoadedModel> loaded = load_model(command.common.model, load);
  if (!loaded) return loaded.error();
  const Result<Tokenizer> tokenizer = loaded->source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  const Result<std::vector<std::int32_t>> prompt = tokenizer->encode(command.prompt);
  if (!prompt) return prompt.error();

  const Result<KvSetup> kv = KvSetup::create(command.kv, *loaded, *machine);
  if (!kv) return kv.error();

  const bool streams = prints_text(command.common);
  std::string text = command.prompt;
  if (streams) (void)std::fputs(command.prompt.c_str(), console.out);
  GenerationOptions options;
  options.new_tokens = command.new_tokens;
  options.temperature = command.temperature;
  options.seed = command.seed;
  options.machine = *machine;
  options.kv = kv->options();
  const auto pruning = pruning_of(command.prune, loaded->model.config(), loaded->model.activation_bits());
  if (!pruning) return pruning.error();
  options.pruning = *pruning;
  const Result<Generation> done = generate(loaded->model, *tokenizer, *prompt, options, [&](std::string_view piece) {
    text += piece;
    if (!streams) return;
    (void)std::fwrite(piece.data(), 1, piece.size(), console.out);
    (void)std::fflush(console.out);
  });
  if (streams) (void)std::fputc('\n', console.out);
  if (!done) return done.error();

  Report report = describe(command.common.model.path, *loaded, *machine);
  kv->describe(report);
  report.seed = command.seed;
  report.tokens = done->tokens.size();
  report.seconds = done->prompt_seconds + done->new_seconds;
  report.prompt_tokens_per_second = static_cast<double>(prompt->size()) / done->prompt_seconds;
  // The first new token comes with the prompt.
  if (done->tokens.size() > 1) {
    report.new_tokens_per_second = static_cast<double>(done->tokens.size() - 1) / done->new_seconds;
  }
  report.peak_memory_bytes = peak_memory_bytes();
  cbq::Json json = to_json(report);
  json["text"] = text;
  json["new_token_ids"] = done->tokens;
  return write_json(command.common, json, console);
}

Status run(const SampleCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  const Result<LoadedModel> loaded = load_model(command.common.model);
  if (!loaded) return loaded.error();
  const Result<Tokenizer> tokenizer = loaded->source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  const Stopwatch watch;
  SamplingOptions options;
  options.tokens = command.tokens;
  options.context = command.context;
  options.seed = command.seed;
  options.machine = *machine;
  const Result<std::string> text = sample_text(loaded->model, *tokenizer, options);
  if (!text) return text.error();
  if (const Status written = cbq::write_file(command.output, *text); !written) return written;

  Report report = describe(command.common.model.path, *loaded, *machine);
  report.seed = command.seed;
  report.tokens = command.tokens;
  report.context = command.context;
  report.seconds = watch.seconds();
  report.new_tokens_per_second = static_cast<double>(command.tokens) / *report.seconds;
  report.peak_memory_bytes = peak_memory_bytes();
  if (prints_text(command.common)) {
    (void)std::fprintf(console.out, "%s: %zu tokens drawn with seed %llu, %s of text, %.1f s\n", command.output.c_str(),
                       command.tokens, static_cast<unsigned long long>(command.seed), size_text(text->size()).c_str(),
                       *report.seconds);
  }
  return write_json(command.common, to_json(report), console);
}

}  // namespace cbq_llama
