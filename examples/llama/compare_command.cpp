// SPDX-License-Identifier: Apache-2.0

// The demonstration: quantizes a float model to several schemes, reads each result back from its files, runs it packed,
// and prints what it costs and what it gives.

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/io/atomic_file.hpp>

#include "commands.hpp"
#include "comparison_chart.hpp"
#include "evaluation.hpp"
#include "generation.hpp"
#include "speed.hpp"

namespace cbq_llama {

using cbq::Error;
using cbq::Result;
using cbq::Status;

namespace {

constexpr const char* default_schemes[] = {"w8a8",       "w4a8_g32",        "w4a8_g128",
                                           "w4a16_g128", "w3a16_g128_asym", "w2a16_g64_asym"};
constexpr const char* default_prompt = "The history of";
constexpr std::size_t sample_tokens = 40;

// A folder of our own for the quantized models; goes away with everything in it.
class ScratchFolder {
 public:
  [[nodiscard]] static Result<ScratchFolder> create() {
    std::error_code failure;
    const std::filesystem::path place = std::filesystem::temp_directory_path(failure);
    std::string pattern = (failure ? std::filesystem::path("/tmp") : place) / "cbq-compare-XXXXXX";
    if (::mkdtemp(pattern.data()) == nullptr) {
      return cbq::system_error("cannot create a temporary folder", pattern, errno);
    }
    return ScratchFolder(std::move(pattern));
  }
  ScratchFolder(ScratchFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ScratchFolder& operator=(ScratchFolder&&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  explicit ScratchFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// One line of the table.
struct Row {
  std::string name;  ///< of the scheme, or of the float type
  std::string path;
  Report report;
  std::string generated;
};

// What all rows are measured with.
struct Bench {
  const CompareCommand& command;
  const Console& console;
  Machine machine;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> prompt;
  std::size_t windows = 0;
  std::size_t context = 512;
};

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

// Speed and memory with nothing but this model in memory.
Status measure_alone(Row& row, const Bench& bench) {
  const bool fresh = restart_peak_memory();
  const Result<LoadedModel> loaded = load_model({row.path, {}});
  if (!loaded) return loaded.error();
  row.report = describe(row.path, *loaded, bench.machine);
  SpeedOptions options;
  options.prompt_tokens = std::min<std::size_t>(512, loaded->model.config().context / 2);
  options.new_tokens = 64;
  options.runs = 3;
  options.machine = bench.machine;
  options.label = "measuring " + row.name;
  const Result<Speed> speed = measure_speed(loaded->model, nullptr, options);
  if (!speed) return speed.error();
  row.report.prompt_tokens_per_second = speed->prompt_tokens_per_second;
  row.report.new_tokens_per_second = speed->new_tokens_per_second;
  if (fresh) row.report.peak_memory_bytes = peak_memory_bytes();
  return {};
}

// Quality against the float model; a null reference for the float model itself.
Status measure_quality(Row& row, const Model* reference, const Model& model, const Tokenizer& tokenizer,
                       const Bench& bench) {
  EvaluationOptions options;
  options.context = bench.context;
  options.windows = bench.windows;
  options.machine = bench.machine;
  options.label = "evaluating " + row.name;
  const Result<Evaluation> done = evaluate(model, reference, bench.tokens, options);
  if (!done) return done.error();
  row.report.perplexity = done->perplexity;
  row.report.nll = done->nll;
  row.report.nll_stderr = done->nll_stderr;
  row.report.windows = done->windows;
  row.report.tokens = done->tokens;
  row.report.context = bench.context;
  row.report.seconds = done->seconds;
  if (done->divergence) {
    row.report.kl_mean = done->divergence->kl_mean;
    row.report.kl_p99 = done->divergence->kl_p99;
    row.report.top1_agreement = done->divergence->top1_agreement;
    row.report.probability_error_rms = done->divergence->probability_error_rms;
  }
  GenerationOptions generation;
  generation.new_tokens = sample_tokens;
  generation.temperature = 0.7;
  generation.seed = 1;
  generation.machine = bench.machine;
  const Result<Generation> text =
      generate(model, tokenizer, bench.prompt, generation, [&](std::string_view piece) { row.generated += piece; });
  if (!text) return text.error();
  row.generated = one_line(row.generated);
  return {};
}

void print_header(const Bench& bench, std::FILE* out) {
  (void)std::fprintf(out, "%s: %zu windows of %zu tokens, %zu threads, %s, embedding and head %d bits\n\n",
                     bench.command.common.model.path.c_str(), bench.windows, bench.context, bench.machine.threads,
                     cbq::isa_name(bench.machine.isa), bench.command.head_bits);
  (void)std::fprintf(out, "%-17s %6s %9s %10s %9s %7s %17s %17s %9s\n", "scheme", "bits", "file", "perplexity", "KL",
                     "top-1", "prompt tokens/s", "new tokens/s", "memory");
}

std::string rate_text(double rate, double reference) {
  char text[48] = {};
  (void)std::snprintf(text, sizeof text, "%.0f (%.2fx)", rate, rate / reference);
  return text;
}

void print_row(const Row& row, const Row& reference, std::FILE* out) {
  const Report& report = row.report;
  (void)std::fprintf(out, "%-17s %6.3f %9s %10.3f ", row.name.c_str(), *report.bits_per_weight,
                     size_text(*report.file_bytes).c_str(), *report.perplexity);
  if (report.kl_mean) {
    (void)std::fprintf(out, "%9.5f %5.1f %% ", *report.kl_mean, 100 * *report.top1_agreement);
  } else {
    (void)std::fprintf(out, "%9s %7s ", "-", "-");
  }
  (void)std::fprintf(out, "%17s %17s %9s\n",
                     rate_text(*report.prompt_tokens_per_second, *reference.report.prompt_tokens_per_second).c_str(),
                     rate_text(*report.new_tokens_per_second, *reference.report.new_tokens_per_second).c_str(),
                     report.peak_memory_bytes ? size_text(*report.peak_memory_bytes).c_str() : "-");
  (void)std::fflush(out);
}

void print_samples(const std::vector<Row>& rows, const std::string& prompt, std::FILE* out) {
  (void)std::fprintf(out, "\n\"%s ...\" continued at temperature 0.7:\n", prompt.c_str());
  for (const Row& row : rows) (void)std::fprintf(out, "  %-16s %s\n", row.name.c_str(), row.generated.c_str());
  (void)std::fprintf(out,
                     "\nbits: per weight of linear layers, embedding and head, with scales and zero points. KL: nats "
                     "per token from the float\nmodel. memory: largest resident size while the model is loaded and "
                     "runs. Each model was read back from its files.\n");
}

Status draw_chart(const std::vector<Row>& rows, const Bench& bench) {
  Chart chart;
  chart.title = base_name(bench.command.common.model.path) + " in few bits: rounding to nearest, packed";
  char subtitle[200] = {};
  (void)std::snprintf(subtitle, sizeof subtitle, "%zu windows of %zu tokens; embedding and head %d bits, counted",
                      bench.windows, bench.context, bench.command.head_bits);
  chart.subtitle = subtitle;
  chart.float_perplexity = *rows.front().report.perplexity;
  chart.float_megabytes = static_cast<double>(*rows.front().report.file_bytes) * 1e-6;
  for (const Row& row : rows) {
    if (!row.report.kl_mean) continue;
    chart.points.push_back({row.name, *row.report.bits_per_weight, *row.report.kl_mean, *row.report.perplexity,
                            static_cast<double>(*row.report.file_bytes) * 1e-6});
  }
  return cbq::write_file(bench.command.svg, draw(chart));
}

// Quantizes to every scheme; the first row is the float model.
Result<std::vector<Row>> quantize_all(const ModelSource& source, const Bench& bench, const ScratchFolder& scratch) {
  std::vector<Row> rows(1);
  const auto stored = source.find(all_block_modules(source.config()).front().name + ".weight");
  rows[0].name = "float (" + std::string(stored ? stored->type : "?") + ")";
  rows[0].path = bench.command.common.model.path;
  std::vector<std::string> names = bench.command.schemes;
  if (names.empty()) names.assign(std::begin(default_schemes), std::end(default_schemes));
  for (const std::string& name : names) {
    const Result<cbq::Scheme> scheme = cbq::parse_scheme(name.c_str());
    if (!scheme) return scheme.error();
    QuantizationOptions options;
    options.rules = {{"*", *scheme}};
    options.head_bits = bench.command.head_bits;
    options.threads = bench.machine.threads;
    Row row;
    row.name = name;
    row.path = scratch.file(name);
    const Result<QuantizationReport> done = quantize(source, row.path, options);
    if (!done) return done.error();
    rows.push_back(std::move(row));
  }
  return rows;
}

Status measure_all(std::vector<Row>& rows, const Bench& bench) {
  for (Row& row : rows) {
    if (const Status ok = measure_alone(row, bench); !ok) return ok;
  }
  const Result<LoadedModel> reference =
      load_model({rows.front().path, bench.command.common.model.pre_tokenizer, bench.command.common.model.mode});
  if (!reference) return reference.error();
  const Result<Tokenizer> tokenizer = reference->source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  const bool prints = prints_text(bench.command.common);
  if (prints) print_header(bench, bench.console.out);
  for (Row& row : rows) {
    if (&row == &rows.front()) {
      if (const Status ok = measure_quality(row, nullptr, reference->model, *tokenizer, bench); !ok) return ok;
    } else {
      const Result<LoadedModel> packed = load_model({row.path, {}});
      if (!packed) return packed.error();
      if (const Status ok = measure_quality(row, &reference->model, packed->model, *tokenizer, bench); !ok) return ok;
    }
    if (prints) print_row(row, rows.front(), bench.console.out);
  }
  return {};
}

}  // namespace

Status run(const CompareCommand& command, const Console& console) {
  const Result<Machine> machine = machine_of(command.common);
  if (!machine) return machine.error();
  const Result<std::string> path = command.text.empty() ? default_text(command.common.model.path) : command.text;
  if (!path) return path.error();
  const Result<std::string> text = read_text(*path);
  if (!text) return text.error();
  const Result<ModelSource> source = open_source(command.common.model);
  if (!source) return source.error();
  const Result<Tokenizer> tokenizer = source->tokenizer();
  if (!tokenizer) return tokenizer.error();
  Result<std::vector<std::int32_t>> tokens = tokenizer->encode(*text);
  if (!tokens) return cbq::in_context(tokens.error(), *path);
  const std::string prompt = command.prompt.empty() ? default_prompt : command.prompt;
  Result<std::vector<std::int32_t>> prompt_tokens = tokenizer->encode(prompt);
  if (!prompt_tokens) return prompt_tokens.error();

  Bench bench{command,         console,        *machine, *std::move(tokens), *std::move(prompt_tokens),
              command.windows, command.context};
  // Small models take a second or two per scheme with 32 windows, a hundred times larger ones minutes.
  constexpr std::size_t small_model = 20'000'000;
  const ModelConfig& config = source->config();
  const std::size_t size = config.layers * config.hidden * (4 * config.hidden + 3 * config.intermediate);
  if (bench.windows == 0) bench.windows = size < small_model ? 32 : 8;
  bench.windows = std::min(bench.windows, bench.tokens.size() / std::max<std::size_t>(1, bench.context));

  const Result<ScratchFolder> scratch = ScratchFolder::create();
  if (!scratch) return scratch.error();
  Result<std::vector<Row>> rows = quantize_all(*source, bench, *scratch);
  if (!rows) return rows.error();
  if (const Status ok = measure_all(*rows, bench); !ok) return ok;
  if (prints_text(command.common)) print_samples(*rows, prompt, console.out);
  if (!command.svg.empty()) {
    if (const Status ok = draw_chart(*rows, bench); !ok) return ok;
  }
  cbq::Json json = {{"model", command.common.model.path}, {"prompt", prompt}, {"results", cbq::Json::array()}};
  for (Row& row : *rows) {
    row.report.model = command.common.model.path;
    cbq::Json entry = to_json(row.report);
    entry["generated"] = row.generated;
    json["results"].push_back(std::move(entry));
  }
  return write_json(command.common, json, console);
}

}  // namespace cbq_llama
