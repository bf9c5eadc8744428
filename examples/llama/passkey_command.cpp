// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "commands.hpp"
#include "passkey.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

namespace {

void print(const Report& report, const std::vector<PasskeyAnswer>& answers, std::size_t retrieved, std::FILE* out) {
  (void)std::fprintf(out, "model       %s (%s, %.3f bits per weight)\n", report.model.c_str(), report.scheme.c_str(),
                     *report.bits_per_weight);
  (void)std::fprintf(out, "cache       %s\n", kv_text(report).c_str());
  for (const PasskeyAnswer& one : answers) {
    (void)std::fprintf(out, "depth %3.0f %%  %s: %s\n", 100 * one.item.depth, one.item.key.c_str(),
                       cbq::Json(one.answer).dump(-1, ' ', false, cbq::Json::error_handler_t::replace).c_str());
  }
  (void)std::fprintf(out, "retrieved   %zu of %zu at %zu tokens\n", retrieved, answers.size(), *report.context);
  (void)std::fprintf(out, "run         %.1f s, %zu threads, %s\n", *report.seconds, *report.threads,
                     report.isa.c_str());
}

cbq::Json answers_json(const std::vector<PasskeyAnswer>& answers) {
  cbq::Json list = cbq::Json::array();
  for (const PasskeyAnswer& one : answers) {
    list.push_back({{"key", one.item.key},
                    {"depth", one.item.depth},
                    {"tokens", one.item.ids.size()},
                    {"answer", one.answer},
                    {"retrieved", one.retrieved}});
  }
  return list;
}

}  // namespace

Status run(const PasskeyCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  LoadOptions load;
  load.packed_cache = {command.common.packed_cache, machine->threads, console.err};
  const Result<LoadedModel> loaded = load_model(command.common.model, load);
  if (!loaded) return loaded.error();
  const Result<Tokenizer> tokenizer = loaded->source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  const Result<KvSetup> kv = KvSetup::create(command.kv, *loaded, *machine);
  if (!kv) return kv.error();
  const Stopwatch watch;
  PasskeyOptions options;
  options.context = command.context;
  options.items = command.items;
  options.seed = command.seed;
  options.machine = *machine;
  options.kv = kv->options();
  const Result<std::vector<PasskeyAnswer>> answers = retrieve_passkeys(loaded->model, *tokenizer, options);
  if (!answers) return answers.error();

  Report report = describe(command.common.model.path, *loaded, *machine);
  kv->describe(report);
  report.seed = command.seed;
  report.context = command.context;
  report.seconds = watch.seconds();
  report.peak_memory_bytes = peak_memory_bytes();
  std::size_t retrieved = 0;
  std::size_t tokens = 0;
  for (const PasskeyAnswer& one : *answers) {
    retrieved += one.retrieved ? 1 : 0;
    tokens += one.item.ids.size();
  }
  report.tokens = tokens;
  if (prints_text(command.common)) print(report, *answers, retrieved, console.out);
  cbq::Json json = to_json(report);
  json["passkey_retrieved"] = static_cast<double>(retrieved) / static_cast<double>(answers->size());
  json["passkeys"] = answers_json(*answers);
  return write_json(command.common, json, console);
}

}  // namespace cbq_llama
