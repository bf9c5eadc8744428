// SPDX-License-Identifier: Apache-2.0
#include "command_line.hpp"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <new>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>
#include <Eigen/Core>

#include <cbq/quant/trip.hpp>

#include "interrupt.hpp"
#include "memory_estimate.hpp"
#include "recipe.hpp"

namespace cbq_llama {

using cbq::Status;

namespace {

constexpr int exit_failed = 1;
constexpr int exit_wrong_command_line = 2;

struct Commands {
  InfoCommand info;
  QuantizeCommand quantize;
  PerplexityCommand perplexity;
  GenerateCommand generate;
  PasskeyCommand passkey;
  SampleCommand sample;
  BenchCommand bench;
  CompareCommand compare;
  ChooseCommand choose;
  AblateCommand ablate;
  ExportCommand exported;
  ImportCommand imported;
  std::string preset;  ///< of quantize
  std::function<Status(const Console&)> chosen;
};

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const cbq::Isa isa : cbq::all_isas) names.emplace_back(cbq::isa_name(isa));
  return names;
}

void add_common(CLI::App& app, CommonOptions& common) {
  app.add_option("MODEL", common.model.path, "Hugging Face folder, .gguf file, or folder that quantize wrote")
      ->required();
  app.add_option("--threads", common.threads, "number of threads; 0: all")->check(CLI::Range(0, 1024))->type_name("N");
  app.add_option("--isa", common.isa, "highest instruction set to use")
      ->check(CLI::IsMember(isa_names()))
      ->type_name("NAME");
  app.add_option("--json", common.json, "write the figures as JSON; -: to standard output, and nothing else there")
      ->type_name("FILE");
  app.add_flag_callback(
      "--no-mmap", [&common] { common.model.mode = cbq::FileMode::read; },
      "read the model's files into memory instead of mapping them: safe where somebody may change them meanwhile");
  app.add_option("--pre-tokenizer", common.model.pre_tokenizer,
                 "how a GGUF vocabulary splits text, for example gpt-2 or smollm; default: as the file says")
      ->type_name("NAME");
}

// Of the commands that run a model as its files are.
void add_packed_cache(CLI::App& app, CommonOptions& common) {
  app.add_option("--packed-cache", common.packed_cache,
                 "keep the packed weights of a quantized model in this file, or in a file of its own in this folder")
      ->type_name("PATH");
}

// Scheme names are read once here, so that a wrong one is a wrong command line.
std::string check_scheme(const std::string& name) {
  const cbq::Result<cbq::Scheme> scheme = cbq::parse_scheme(name.c_str());
  if (scheme) return {};
  std::string message;
  cbq::append_message(message, scheme.error());
  return message;
}

std::string check_kv_scheme(const std::string& name) {
  const cbq::Result<cbq::KvScheme> scheme = cbq::parse_kv_scheme(name);
  if (scheme) return {};
  std::string message;
  cbq::append_message(message, scheme.error());
  return message;
}

// Of the commands that run a model with a cache of a chosen form.
void add_kv(CLI::App& app, KvArguments& kv) {
  app.add_option("--kv", kv.scheme, "how keys and values are kept: f32, f16, or kv4_2d_past and the like")
      ->check(CLI::Validator(check_kv_scheme, "", ""))
      ->capture_default_str()
      ->type_name("SCHEME");
  app.add_option("--kv-sinks", kv.policy.sinks, "first positions that a quantized cache keeps exact")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--kv-recent", kv.policy.recent, "last positions that it keeps exact; more are quantized 64 at a time")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--attention", kv.attention,
                 "what attention multiplies: float (what --kv keeps), int8, or int8_static (calibrated scales)")
      ->check(CLI::IsMember({"float", "int8", "int8_static"}).description(""))
      ->capture_default_str()
      ->type_name("KIND");
  app.add_option(
         "--softmax", kv.softmax,
         "what its weights are rounded to: float, log2 (powers of two, 4 bits), or log2_normalized (over their sum)")
      ->check(CLI::IsMember({"float", "log2", "log2_normalized"}).description(""))
      ->capture_default_str()
      ->type_name("KIND");
  app.add_option("--calibration", kv.calibration,
                 "texts for smoothing factors of _2d and scales of int8_static; default: a text built in")
      ->type_name("FILE");
}

// Of the commands that can drop tokens of a prompt.
void add_prune(CLI::App& app, PruneArguments& prune) {
  app.add_option("--prune", prune.sparsity, "mean share of a prompt's tokens that layers do without; 0: none")
      ->capture_default_str()
      ->type_name("S");
  const std::map<std::string, cbq::Importance> kinds = {{"first_token", cbq::Importance::first_token},
                                                        {"column_sums", cbq::Importance::column_sums}};
  app.add_option("--prune-by", prune.importance,
                 "tokens stay that attend to the first token (first_token, default), or are attended to (column_sums)")
      ->transform(CLI::CheckedTransformer(kinds).description(""))
      ->type_name("KIND");
  const std::map<std::string, cbq::PrunedPositions> positions = {{"original", cbq::PrunedPositions::original},
                                                                 {"compacted", cbq::PrunedPositions::compacted}};
  app.add_option_function<cbq::PrunedPositions>(
         "--prune-positions", [&prune](const cbq::PrunedPositions& where) { prune.positions = where; },
         "of tokens that stay: original (default; BLOOM: compacted), or compacted")
      ->transform(CLI::CheckedTransformer(positions).description(""))
      ->type_name("KIND");
}

// Of the commands that run a model whose activations can be quantized.
void add_low_bit_tokens(CLI::App& app, PruneArguments& prune) {
  app.add_option("--low-bit-tokens", prune.low_bit_tokens,
                 "share of a prompt's tokens, the least important, whose 8-bit activations have 4 bits; 0: none")
      ->capture_default_str()
      ->type_name("S");
}

// Replaces "4G" by bytes.
std::string read_size(std::string& text) {
  const cbq::Result<std::size_t> bytes = parse_size(text);
  if (bytes) {
    text = std::to_string(*bytes);
    return {};
  }
  std::string message;
  cbq::append_message(message, bytes.error());
  return message;
}

template <class Command>
CLI::App* add_command(CLI::App& app, Commands& commands, Command& command, const char* name, const char* what) {
  CLI::App* added = app.add_subcommand(name, what);
  add_common(*added, command.common);
  added->callback([&commands, &command] {
    commands.chosen = [&command](const Console& console) { return run(command, console); };
  });
  return added;
}

// Names that `quantize` has beyond those of schemes.
std::string check_named_scheme(const std::string& name) {
  const cbq::Result<NamedScheme> scheme = parse_named_scheme(name);
  if (scheme) return {};
  std::string message;
  cbq::append_message(message, scheme.error());
  return message;
}

// Settings that measured well, or that the paper has; what the command line names stays as it names it.
void apply_preset(const CLI::App& app, const std::string& name, QuantizeCommand& command) {
  QuantizeCommand preset;
  ReconstructionSettings& training = preset.reconstruction;
  if (name == "paper") {
    preset.preprocessing = Preprocessing::cfp;
    preset.rotation = Rotation::none;
    preset.calibration.samples = 128;
    preset.calibration.sequence = 0;
    training.rounding.method = cbq::RoundingMethod::lora;
    training.loss = ReconstructionLoss::l2_kl;
    training.logits_weight = 0;
    training.epochs = 3;
    training.batch = 1;
  } else if (name == "fast") {
    preset.calibration.samples = 128;
    training.steps = 400;
  } else {
    preset.calibration.samples = 1024;
    training.steps = 4800;
  }
  const auto apply = [&](const char* option, auto QuantizeCommand::*part, auto member) {
    if (app.count(option) == 0) (command.*part).*member = (preset.*part).*member;
  };
  using Training = ReconstructionSettings;
  if (app.count("--preprocess") == 0) command.preprocessing = preset.preprocessing;
  if (app.count("--rotate") == 0) command.rotation = preset.rotation;
  if (app.count("--rounding") == 0) command.reconstruction.rounding.method = training.rounding.method;
  apply("--samples", &QuantizeCommand::calibration, &CalibrationSettings::samples);
  apply("--sequence", &QuantizeCommand::calibration, &CalibrationSettings::sequence);
  apply("--loss", &QuantizeCommand::reconstruction, &Training::loss);
  apply("--logits-weight", &QuantizeCommand::reconstruction, &Training::logits_weight);
  apply("--batch", &QuantizeCommand::reconstruction, &Training::batch);
  if (app.count("--steps") != 0 || app.count("--epochs") != 0) return;
  command.reconstruction.steps = training.steps;
  command.reconstruction.epochs = training.epochs;
}

// The paper's settings, which `--method wkvquant` is; what the command line names stays as it names it, and what the
// method does not leave open is refused.
void apply_wkvquant(const CLI::App& app, QuantizeCommand& command) {
  for (const char* name : {"--overlap", "--ends", "--clip-rate", "--preset"}) {
    if (app.count(name) != 0)
      throw CLI::ValidationError(name, "does not go with wkvquant, which is a setting of its own");
  }
  ReconstructionSettings& training = command.reconstruction;
  if (app.count("--kv") == 0) command.cache.scheme = {.bits = 4, .smoothed = true, .past_only = true};
  if (app.count("--samples") == 0) command.calibration.samples = 128;
  if (app.count("--window") == 0) training.windows.size = 3;
  if (app.count("--batch") == 0) training.batch = 1;
  if (app.count("--steps") == 0 && app.count("--epochs") == 0) training.epochs = 5;
  if (app.count("--loss") == 0) training.loss = ReconstructionLoss::mae;
  if (app.count("--logits-weight") == 0) training.logits_weight = 0;
  if (app.count("--rounding") == 0) training.rounding.method = cbq::RoundingMethod::clipping;
}

// With float weights, only smoothing can be trained.
void check_trains_something(const QuantizeCommand& command) {
  const auto is_float = [](const cbq::Scheme& scheme) { return scheme.weight.bits == 16; };
  for (const SchemeRule& rule : command.schemes) {
    if (!is_float(rule.scheme)) return;
  }
  if (!command.scheme.empty()) {
    const cbq::Result<NamedScheme> named = parse_named_scheme(command.scheme);
    if (!named || !is_float(named->scheme)) return;
  }
  const cbq::KvScheme& cache = command.cache.scheme;
  if (cache.smoothed || cache.channel_keys) return;
  const std::string name = cbq::kv_scheme_name(cache).c_str();
  throw CLI::ValidationError("--kv", name + " has nothing to train where weights stay in float; caches with _2d have");
}

void add_calibration(CLI::App& app, CalibrationSettings& settings) {
  app.add_option("--calibration", settings.texts, "texts for methods that need them, equal parts of each")
      ->type_name("FILE");
  app.add_option("--samples", settings.samples, "calibration sequences; agile, wkvquant: 128 unless named")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--sequence", settings.sequence, "tokens of each")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--seed", settings.seed, "of samples, batches and rotations")->capture_default_str()->type_name("S");
}

template <class Value, class Name = Value>
void add_choice(CLI::App& app, const char* name, Value& value, const std::map<std::string, Name>& names,
                const char* what) {
  app.add_option(name, value, what)->transform(CLI::CheckedTransformer(names).description(""))->type_name("NAME");
}

void add_rounding(CLI::App& app, cbq::RoundingChoiceOptions& rounding) {
  add_choice(app, "--rounding", rounding.method,
             {{"straight_through", cbq::RoundingMethod::straight_through},
              {"straight_through_low_rank", cbq::RoundingMethod::straight_through_low_rank},
              {"lora", cbq::RoundingMethod::lora},
              {"ada", cbq::RoundingMethod::ada},
              {"nearest", cbq::RoundingMethod::nearest},
              {"clipping", cbq::RoundingMethod::clipping}},
             "straight_through (default), straight_through_low_rank, lora, ada, nearest: steps alone are trained, or "
             "clipping: ends of ranges are");
  app.add_option("--rank", rounding.rank, "of methods of low rank; default: 32 (straight_through_low_rank), 5 (lora)")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  app.add_option("--offset-rate", rounding.offset_rate,
                 "learning rate of the rounding; default: the method's, of straight_through 0.1 / sqrt(steps)")
      ->check(CLI::NonNegativeNumber)
      ->type_name("R");
  app.add_option("--step-rate", rounding.step_rate, "learning rate of the scales; default: the method's")
      ->check(CLI::NonNegativeNumber)
      ->type_name("R");
}

void add_reconstruction(CLI::App& app, ReconstructionSettings& settings) {
  const auto number = [&](const char* name, std::size_t& value, const char* what) {
    return app.add_option(name, value, what)->check(CLI::PositiveNumber)->capture_default_str()->type_name("N");
  };
  const auto weight = [&](const char* name, double& value, const char* what) {
    app.add_option(name, value, what)->check(CLI::NonNegativeNumber)->capture_default_str()->type_name("W");
  };
  number("--window", settings.windows.size, "blocks that are trained together");
  app.add_option("--overlap", settings.windows.overlap, "blocks that a window shares with the next")
      ->capture_default_str()
      ->type_name("N");
  add_choice(app, "--ends", settings.windows.ends,
             {{"fixed", cbq::WindowEnds::fixed}, {"growing", cbq::WindowEnds::growing}},
             "fixed (default), or growing: windows of 1, 2, .. blocks at both ends");
  CLI::Option* const steps = number("--steps", settings.steps, "steps per window");
  app.add_option("--epochs", settings.epochs, "passes over the samples per window, in place of --steps")
      ->check(CLI::PositiveNumber)
      ->excludes(steps)
      ->type_name("N");
  number("--batch", settings.batch, "sequences per step");
  add_choice(app, "--loss", settings.loss,
             {{"l2", ReconstructionLoss::l2},
              {"l2+kl", ReconstructionLoss::l2_kl},
              {"kl", ReconstructionLoss::kl},
              {"mae", ReconstructionLoss::mae}},
             "l2 (default), l2+kl (CBQ's paper), kl, over features, or mae (wkvquant)");
  weight("--logits-weight", settings.logits_weight, "of the divergence of the logits in the last window");
  weight("--same-input-weight", settings.same_input_weight, "of the loss against float blocks with the same input");
  app.add_option("--clip-rate", settings.clip_rate,
                 "learning rate of what shrinks the ranges of 4-bit activations; 0: nothing does")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("R");
  add_rounding(app, settings.rounding);
}

void add_gptq(CLI::App& app, GptqSettings& settings) {
  app.add_option("--damping", settings.damping, "gptq: share of the mean of the moments' diagonal")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("D");
  app.add_flag("--act-order", settings.act_order, "gptq: columns of large inputs first; takes static groups");
  app.add_flag("--static-groups", settings.static_groups, "gptq: scales of the weights as they were");
}

constexpr const char* agile_options[] = {"--weights", "--activations", "--percentile",     "--trip-exponent",
                                         "--prune",   "--prune-by",    "--prune-positions"};

void add_agile(CLI::App& app, AgileArguments& agile) {
  app.add_option("--weights", agile.weights, "agile: how weights are rounded: gptq, rtn or cbq")
      ->check(CLI::IsMember({"gptq", "rtn", "cbq"}).description(""))
      ->capture_default_str()
      ->type_name("NAME");
  add_choice<std::optional<cbq::ActivationRanges>, cbq::ActivationRanges>(
      app, "--activations", agile.ranges,
      {{"static", cbq::ActivationRanges::fixed}, {"dynamic", cbq::ActivationRanges::dynamic}},
      "agile: static, one grid per layer, or dynamic; default: static for 4 bits and _trip, dynamic for 8");
  const auto percentile = [](const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    return *end == '\0' && value > 0 && value <= 100 ? "" : "a percentile lies above 0 and at most at 100";
  };
  app.add_option("--percentile", agile.percentile,
                 "agile: of values within a static range; 100: all; default: 99.9 for 4 bits, 100 for 8")
      ->check(CLI::Validator(percentile, "", ""))
      ->type_name("R");
  app.add_option("--trip-exponent", agile.largest_exponent, "agile: largest exponent of channel factors, with _trip")
      ->check(CLI::Range(1, cbq::trip::most_exponent))
      ->capture_default_str()
      ->type_name("N");
}

// What the command line leaves open, and what it may not say.
void apply_agile(const CLI::App& app, QuantizeCommand& command) {
  if (command.method == "agile") {
    if (app.count("--samples") == 0) command.calibration.samples = 128;
    const cbq::Result<NamedScheme> named = parse_named_scheme(command.scheme);
    if (app.count("--trip-exponent") != 0 && !(named && named->trip)) {
      throw CLI::ValidationError("--trip-exponent", "goes with schemes of channel factors, those with _trip");
    }
    return;
  }
  for (const char* name : agile_options) {
    if (app.count(name) != 0) throw CLI::ValidationError(name, "goes with --method agile");
  }
}

void add_quantize(CLI::App& app, Commands& commands) {
  QuantizeCommand& command = commands.quantize;
  CLI::App* added = add_command(app, commands, command, "quantize", "quantize a model into a folder");
  added->add_option("-o,--output", command.output, "folder to write; required")->type_name("DIR");
  added
      ->add_option("--scheme", command.scheme,
                   "for example w4a8_g128, with agile also w4a4_trip; required but where a recipe lists schemes")
      ->check(CLI::Validator(check_named_scheme, "", ""))
      ->type_name("NAME");
  added
      ->add_option("--method", command.method,
                   "how weights are rounded: rtn, smoothquant, gptq, adaround, cbq or wkvquant; or agile")
      ->check(CLI::IsMember({"rtn", "smoothquant", "gptq", "adaround", "cbq", "wkvquant", "agile"}).description(""))
      ->capture_default_str()
      ->type_name("NAME");
  const std::map<std::string, RangeSearch> ranges = {{"mse", RangeSearch::mse}, {"minmax", RangeSearch::minmax}};
  added->add_option("--range", command.range, "how scales are found: mse (default) or minmax")
      ->transform(CLI::CheckedTransformer(ranges).description("{mse,minmax}"))
      ->type_name("NAME");
  std::map<std::string, Preprocessing> preprocessings;
  for (const char* name : preprocessing_names) {
    preprocessings.emplace(name, static_cast<Preprocessing>(preprocessings.size()));
  }
  add_choice(*added, "--preprocess", command.preprocessing, preprocessings,
             "none (default), cfp or smoothquant: outliers of weights and activations first; cfp_scaling or "
             "cfp_truncation: half of cfp");
  const std::map<std::string, Rotation> rotations = {
      {"none", Rotation::none}, {"offline", Rotation::offline}, {"full", Rotation::full}};
  add_choice(*added, "--rotate", command.rotation, rotations,
             "none, offline, or full: inputs of down_proj too; default: full for activations of 4 bits (not with "
             "agile, nor for BLOOM), else none");
  add_calibration(*added, command.calibration);
  added
      ->add_option_function<std::string>(
          "--preset", [&commands](const std::string& name) { commands.preset = name; },
          "settings of cbq: paper, fast or best; options that are named go before")
      ->check(CLI::IsMember({"paper", "fast", "best"}).description(""))
      ->type_name("NAME");
  add_reconstruction(*added, command.reconstruction);
  added
      ->add_option_function<std::string>(
          "--kv",
          [&command](const std::string& name) {
            if (const auto scheme = cbq::parse_kv_scheme(name)) command.cache.scheme = *scheme;
          },
          "cache that training simulates; wkvquant: kv4_2d_past unless named, cbq and adaround: none unless named")
      ->check(CLI::Validator(check_kv_scheme, "", ""))
      ->type_name("SCHEME");
  added->add_option("--smoothing-rate", command.cache.rate, "learning rate of the smoothing of _2d")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->type_name("R");
  add_gptq(*added, command.gptq);
  add_agile(*added, command.agile);
  add_prune(*added, command.prune);
  added->add_flag("--resume", command.resume, "continue a cbq run that was cut off, from DIR.checkpoint");
  added->add_option("--memory-budget", command.memory_budget, "of calibration, for example 4G or 500M; default: none")
      ->transform(CLI::Validator(read_size, "", ""))
      ->type_name("SIZE");
  added->add_option("--head-bits", command.head_bits, "of embedding and head")
      ->check(CLI::IsMember({16, 8, 4}))
      ->capture_default_str()
      ->type_name("N");
  added->add_option("--attention-bits", command.attention_bits, "of queries, keys and values, per token and head")
      ->check(CLI::IsMember({16, 8, 4}))
      ->capture_default_str()
      ->type_name("N");
  added->add_flag("--explain", command.explain, "list each tensor's scheme, bits and error, and windows");
  added->add_option("--recipe", command.recipe, "JSON file with options by their names, and schemes of single layers")
      ->type_name("FILE");
  added->callback([&commands, &command, added] {
    if (!command.recipe.empty()) {
      if (const Status read = apply_recipe(command.recipe, *added, command.schemes); !read) {
        commands.chosen = [read](const Console&) { return read; };
        return;
      }
    }
    if (command.output.empty()) throw CLI::RequiredError("--output");
    if (command.scheme.empty() && command.schemes.empty()) throw CLI::RequiredError("--scheme");
    const bool agile_trains = command.method == "agile" && command.agile.weights == "cbq";
    const bool trains =
        command.method == "cbq" || command.method == "adaround" || command.method == "wkvquant" || agile_trains;
    apply_agile(*added, command);
    if (!trains && added->count("--kv") != 0) {
      throw CLI::ValidationError("--kv", "goes with a method that trains: wkvquant, cbq or adaround");
    }
    if (command.method == "wkvquant") apply_wkvquant(*added, command);
    if (!commands.preset.empty()) apply_preset(*added, commands.preset, command);
    if (command.method == "wkvquant" || added->count("--kv") != 0) check_trains_something(command);
    commands.chosen = [&command](const Console& console) { return run(command, console); };
  });
}

void add_operators(CLI::App& app, Operators& operators) {
  const std::map<std::string, Operators> names = {{"packed", Operators::packed},
                                                  {"fake_quantized", Operators::fake_quantized}};
  app.add_option("--operators", operators,
                 "packed (default), or fake_quantized: the same grids, computed in floating point")
      ->transform(CLI::CheckedTransformer(names).description("{packed,fake_quantized}"))
      ->type_name("NAME");
}

void add_perplexity(CLI::App& app, Commands& commands) {
  PerplexityCommand& command = commands.perplexity;
  CLI::App* added = add_command(app, commands, command, "perplexity", "evaluate a model on a text");
  add_packed_cache(*added, command.common);
  added->add_option("--text", command.text, "text; default: MODEL-evaluation.txt beside the model")->type_name("FILE");
  added->add_option("--context", command.context, "tokens per window")->capture_default_str()->type_name("N");
  added->add_option("--windows", command.windows, "at most this many windows; 0: all")->type_name("N");
  added->add_option("--reference", command.reference, "model to measure the divergence from")->type_name("MODEL");
  add_operators(*added, command.operators);
  add_kv(*added, command.kv);
  added
      ->add_option("--kv-rope", command.kv.rope,
                   "whether keys are quantized after rotary embedding (post), or before it (pre; fake_quantized only)")
      ->check(CLI::IsMember({"post", "pre"}).description(""))
      ->capture_default_str()
      ->type_name("WHEN");
  add_prune(*added, command.prune);
  add_low_bit_tokens(*added, command.prune);
}

void add_choose(CLI::App& app, Commands& commands) {
  ChooseCommand& command = commands.choose;
  CLI::App* added = add_command(app, commands, command, "choose", "answer multiple-choice items");
  add_packed_cache(*added, command.common);
  added->add_option("--items", command.items, "JSON lines: prompt, choices, index of the answer")
      ->required()
      ->type_name("FILE");
  add_operators(*added, command.operators);
}

void add_generate(CLI::App& app, Commands& commands) {
  GenerateCommand& command = commands.generate;
  CLI::App* added = add_command(app, commands, command, "generate", "continue a text");
  add_packed_cache(*added, command.common);
  added->add_option("--prompt", command.prompt, "text to continue")->required()->type_name("TEXT");
  added->add_option("-n,--new-tokens", command.new_tokens, "tokens to add")->capture_default_str()->type_name("N");
  added->add_option("--temperature", command.temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str()
      ->type_name("T");
  added->add_option("--seed", command.seed, "of the random choices")->capture_default_str()->type_name("S");
  add_kv(*added, command.kv);
  add_prune(*added, command.prune);
  add_low_bit_tokens(*added, command.prune);
}

void add_passkey(CLI::App& app, Commands& commands) {
  PasskeyCommand& command = commands.passkey;
  CLI::App* added = add_command(app, commands, command, "passkey", "retrieve a number hidden in long text");
  add_packed_cache(*added, command.common);
  added->add_option("--context", command.context, "tokens of a text, question and answer included")
      ->capture_default_str()
      ->type_name("N");
  added->add_option("--items", command.items, "texts, each with the number at another depth")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str()
      ->type_name("N");
  added->add_option("--seed", command.seed, "of numbers and texts")->capture_default_str()->type_name("S");
  add_kv(*added, command.kv);
}

void add_sample(CLI::App& app, Commands& commands) {
  SampleCommand& command = commands.sample;
  CLI::App* added = add_command(app, commands, command, "sample", "draw a text from the model itself, temperature 1");
  added->add_option("-o,--output", command.output, "file to write")->required()->type_name("FILE");
  added->add_option("--tokens", command.tokens, "in all")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->type_name("N");
  added->add_option("--context", command.context, "tokens per sequence")->capture_default_str()->type_name("N");
  added->add_option("--seed", command.seed, "of the random choices")->capture_default_str()->type_name("S");
}

void add_bench(CLI::App& app, Commands& commands) {
  BenchCommand& command = commands.bench;
  CLI::App* added = add_command(app, commands, command, "bench", "measure tokens per second");
  add_packed_cache(*added, command.common);
  added->add_option("--prompt-tokens,--prompt", command.prompt_tokens, "length of the prompt")
      ->capture_default_str()
      ->type_name("N");
  added->add_option("--new-tokens", command.new_tokens, "tokens after it")->capture_default_str()->type_name("N");
  added->add_option("--runs", command.runs, "runs to take the medians of")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  added->add_flag("--profile", command.profile, "time per kind of operation");
  add_kv(*added, command.kv);
  add_prune(*added, command.prune);
  add_low_bit_tokens(*added, command.prune);
}

void add_compare(CLI::App& app, Commands& commands) {
  CompareCommand& command = commands.compare;
  CLI::App* added =
      add_command(app, commands, command, "compare", "quantize to several schemes, run each, print a table");
  added->add_option("--text", command.text, "text; default: MODEL-evaluation.txt beside the model")->type_name("FILE");
  added->add_option("--svg", command.svg, "draw the table")->type_name("FILE");
  added->add_option("--schemes", command.schemes, "schemes, separated by commas")
      ->delimiter(',')
      ->check(CLI::Validator(check_scheme, "", ""))
      ->type_name("NAMES");
  added->add_option("--context", command.context, "tokens per window")->capture_default_str()->type_name("N");
  added->add_option("--windows", command.windows, "at most this many windows; 0: 32, for large models 8")
      ->type_name("N");
  added->add_option("--head-bits", command.head_bits, "of embedding and head")
      ->check(CLI::IsMember({16, 8, 4}))
      ->capture_default_str()
      ->type_name("N");
  added->add_option("--prompt", command.prompt, "text to continue with each model")->type_name("TEXT");
}

// Reads a command, its required arguments, and options; of options that are named twice the last counts.
cbq::Status parse_command(CLI::App& app, std::vector<std::string> arguments, const std::vector<std::string>& options) {
  const std::string name = arguments.front();
  for (CLI::Option* option : app.get_subcommand(name)->get_options()) {
    if (option->get_items_expected_max() == 1) option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
  arguments.insert(arguments.end(), options.begin(), options.end());
  std::reverse(arguments.begin(), arguments.end());
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return cbq::Error{cbq::Errc::bad_argument, "not options of the command", name, error.what()};
  }
  return {};
}

cbq::Result<PerplexityCommand> parse_run(const std::vector<std::string>& options) {
  CLI::App app;
  Commands commands;
  add_perplexity(app, commands);
  if (const cbq::Status read = parse_command(app, {"perplexity", "MODEL"}, options); !read) return read.error();
  return commands.perplexity;
}

cbq::Result<QuantizeCommand> parse_quantize(const std::vector<std::string>& options) {
  CLI::App app;
  Commands commands;
  add_quantize(app, commands);
  if (const cbq::Status read = parse_command(app, {"quantize", "MODEL", "-o", "DIR"}, options); !read) {
    return read.error();
  }
  if (commands.quantize.recipe.empty()) return commands.quantize;
  return cbq::Error{cbq::Errc::bad_argument, "no recipes here: a row is its options", "--recipe"};
}

void add_ablate(CLI::App& app, Commands& commands) {
  AblateCommand& command = commands.ablate;
  command.parse = parse_quantize;
  command.parse_run = parse_run;
  CLI::App* added =
      add_command(app, commands, command, "ablate", "run baselines and ablations, write a table and plots");
  added->add_option("-o,--output", command.output, "folder for results; rows that it has are not run again")
      ->required()
      ->type_name("DIR");
  added->add_option("--text", command.texts, "texts to evaluate on")->required()->type_name("FILE");
  added->add_option("--calibration", command.calibration, "texts for methods that need them, equal parts of each")
      ->type_name("FILE");
  added->add_option("--items", command.items, "multiple-choice items, see choose")->type_name("FILE");
  const auto names = [&](const char* name, std::vector<std::string>& value, const char* what) {
    return added->add_option(name, value, what)->delimiter(',')->type_name("NAMES");
  };
  names("--only", command.selection.only, "rows, separated by commas; * stands for any text");
  names("--schemes", command.selection.schemes, "of all rows; default: six for baselines, two for ablations")
      ->check(CLI::Validator(check_scheme, "", ""));
  names("--settings", command.selection.settings,
        "whose ablations are run: default, paper; default: both; or agile or kv: their rows in place of all others")
      ->check(CLI::IsMember({"default", "paper", "agile", "kv"}).description(""));
  added->add_option("--seeds", command.selection.seeds, "seeds 0, 1, .. of each row that has one")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  added->add_option("--steps", command.steps, "per window, of all rows; default: the row's")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  added->add_option("--options", command.options, "options of quantize for all rows, in one argument")
      ->type_name("TEXT");
  added->add_option("--context", command.context, "tokens per window of the evaluation")
      ->capture_default_str()
      ->type_name("N");
  added->add_option("--windows", command.windows, "at most this many of each text; 0: all")
      ->capture_default_str()
      ->type_name("N");
  added->add_flag("--list", command.list, "print the rows, and which are done");
  added->callback([&commands, &command] {
    const std::vector<std::string>& settings = command.selection.settings;
    const bool own_rows = std::any_of(settings.begin(), settings.end(),
                                      [](const std::string& name) { return name == "agile" || name == "kv"; });
    if (own_rows && (settings.size() != 1 || !command.selection.schemes.empty())) {
      throw CLI::ValidationError("--settings", "agile and kv stand alone: their rows have schemes of their own");
    }
    commands.chosen = [&command](const Console& console) { return run(command, console); };
  });
}

void add_export(CLI::App& app, Commands& commands) {
  ExportCommand& command = commands.exported;
  CLI::App* added = add_command(app, commands, command, "export", "write a quantized model in another program's form");
  added->add_option("-o,--output", command.output, "folder to write, new or empty; of gguf a file, OUT.gguf")
      ->required()
      ->type_name("OUT");
  std::map<std::string, ExportFormat> formats;
  for (std::size_t i = 0; i < std::size(export_format_names); ++i) {
    formats.emplace(export_format_names[i], static_cast<ExportFormat>(i));
  }
  added->add_option("--format", command.options.format, "compressed-tensors, gptq, awq or gguf")
      ->required()
      ->transform(CLI::CheckedTransformer(formats).description(""))
      ->type_name("NAME");
  added
      ->add_option("--shard-size", command.options.shard_bytes, "largest file of tensors, for example 2G; default: one")
      ->transform(CLI::Validator(read_size, "", ""))
      ->type_name("SIZE");
  const std::map<std::string, cbq::GptqZeros> versions = {{"1", cbq::GptqZeros::v1}, {"2", cbq::GptqZeros::v2}};
  added
      ->add_option_function<cbq::GptqZeros>(
          "--gptq-version", [&command](const cbq::GptqZeros& version) { command.options.gptq_zeros = version; },
          "of zero points: 1 or 2; default: 1 where all weights are symmetric")
      ->transform(CLI::CheckedTransformer(versions).description(""))
      ->type_name("N");
}

void add_import(CLI::App& app, Commands& commands) {
  ImportCommand& command = commands.imported;
  CLI::App* added =
      add_command(app, commands, command, "import", "read another program's quantized folder or GGUF file");
  added->add_option("-o,--output", command.output, "folder to write")->required()->type_name("DIR");
}

// A line of text that needs no memory: what is too long is cut.
class Line {
 public:
  Line& operator+=(const char* text) {
    // Names from files may hold anything; the message is one line.
    for (; *text != '\0' && size_ + 2 < sizeof text_; ++text)
      text_[size_++] = *text == '\n' || *text == '\r' ? ' ' : *text;
    return *this;
  }
  void print(std::FILE* to) {
    text_[size_++] = '\n';
    (void)std::fwrite(text_, 1, size_, to);
    (void)std::fflush(to);
  }

 private:
  char text_[1024] = {};
  std::size_t size_ = 0;
};

int report_failure(const cbq::Error& error, const Console& console) {
  if (error.code == cbq::Errc::interrupted) {
    (void)std::fputs("cbq-llama: interrupted\n", console.err);
    return 128 + interrupt_signal();
  }
  Line line;
  line += "cbq-llama: ";
  cbq::append_message(line, error);
  line.print(console.err);
  return exit_failed;
}

int report_usage(const CLI::App& app, const CLI::ParseError& error, const Console& console) {
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {  // --help, --version
    std::ostringstream text;
    (void)app.exit(error, text, text);
    (void)std::fputs(text.str().c_str(), console.out);
    return 0;
  }
  std::string line = error.what();
  line = line.substr(0, line.find('\n'));
  (void)std::fprintf(console.err, "cbq-llama: %s (see --help)\n", line.c_str());
  return exit_wrong_command_line;
}

}  // namespace

int run_tool(int count, const char* const* arguments, const Console& console) {
  Eigen::setNbThreads(1);  // it knows OpenMP, but not --threads
  try {
    CLI::App app("Quantizes LLaMA, OPT and BLOOM models and runs the packed result.", "cbq-llama");
    app.require_subcommand(1);
    char version[48] = {};
    (void)std::snprintf(version, sizeof version, "cbq-llama %d.%d.%d", CBQ_VERSION_MAJOR, CBQ_VERSION_MINOR,
                        CBQ_VERSION_PATCH);
    app.set_version_flag("--version", version);
    Commands commands;
    (void)add_command(app, commands, commands.info, "info", "describe a model");
    add_quantize(app, commands);
    add_perplexity(app, commands);
    add_generate(app, commands);
    add_passkey(app, commands);
    add_sample(app, commands);
    add_bench(app, commands);
    add_compare(app, commands);
    add_choose(app, commands);
    add_ablate(app, commands);
    add_export(app, commands);
    add_import(app, commands);
    try {
      app.parse(count, arguments);
    } catch (const CLI::ParseError& error) {
      return report_usage(app, error, console);
    }
    const Status done = commands.chosen(console);
    return done ? 0 : report_failure(done.error(), console);
  } catch (const std::bad_alloc&) {
    return report_failure({cbq::Errc::out_of_memory, "not enough memory", count > 1 ? arguments[1] : ""}, console);
  }
}

}  // namespace cbq_llama
