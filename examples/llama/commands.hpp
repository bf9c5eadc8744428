// SPDX-License-Identifier: Apache-2.0
#pragma once

// The commands of `cbq-llama`, as functions of their options. Each prints its result and returns an Error for what went
// wrong; nothing here reads the command line.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <cbq/core/result.hpp>

#include "ablation_rows.hpp"
#include "checkpoint_export.hpp"
#include "checkpoint_import.hpp"
#include "kv_setup.hpp"
#include "model.hpp"
#include "prompt_pruning.hpp"
#include "quantization.hpp"
#include "report.hpp"
#include "threads.hpp"

namespace cbq_llama {

/// Where a command writes.
struct Console {
  std::FILE* out = stdout;
  std::FILE* err = stderr;
};

/// Where a model is, and how to split text where its file is not to be asked.
struct ModelPath {
  std::string path;
  std::string pre_tokenizer;  ///< for GGUF vocabularies; empty: the one that the file names
  cbq::FileMode mode = cbq::FileMode::map;
};

/// Options that every command has.
struct CommonOptions {
  ModelPath model;
  std::size_t threads = 0;   ///< 0 means all
  std::string isa;           ///< empty means the best
  std::string packed_cache;  ///< file or folder of packed weights; empty: none
  std::string json;          ///< a file, "-" for standard output and nothing else there, or empty
};

struct InfoCommand {
  CommonOptions common;
};

/// What `--method agile` has of its own.
struct AgileArguments {
  std::string weights = "gptq";                      ///< how they are rounded: another method's name
  std::optional<cbq::ActivationRanges> ranges = {};  ///< nothing: fixed for 4 bits and TRIP, dynamic for 8
  std::optional<double> percentile = {};
  int largest_exponent = 3;  ///< of TRIP, where the scheme's name has `_trip`
};

struct QuantizeCommand {
  CommonOptions common;
  std::string output;
  std::string scheme;               ///< of layers that `schemes` does not name; empty: they stay in floating point
  std::vector<SchemeRule> schemes;  ///< of the file `recipe`
  std::string recipe;
  std::string method = "rtn";
  RangeSearch range = RangeSearch::mse;
  Preprocessing preprocessing = Preprocessing::none;
  std::optional<Rotation> rotation = {};  ///< nothing: see rotation_of()
  CalibrationSettings calibration = {};
  ReconstructionSettings reconstruction = {};
  CacheSettings cache = {};
  GptqSettings gptq = {};
  AgileArguments agile = {};
  PruneArguments prune = {};
  bool resume = false;
  std::size_t memory_budget = 0;  ///< bytes; 0: no limit
  int head_bits = 8;
  int attention_bits = 16;
  bool explain = false;
};

struct PerplexityCommand {
  CommonOptions common;
  std::string text;  ///< empty: the evaluation text beside the model
  std::string reference;
  std::size_t context = 512;
  std::size_t windows = 0;
  Operators operators = Operators::packed;
  KvArguments kv = {};
  PruneArguments prune = {};
};

struct GenerateCommand {
  CommonOptions common;
  std::string prompt;
  std::size_t new_tokens = 64;
  double temperature = 0;
  std::uint64_t seed = 0;
  KvArguments kv = {};
  PruneArguments prune = {};
};

struct PasskeyCommand {
  CommonOptions common;
  std::size_t context = 2048;
  std::size_t items = 10;
  std::uint64_t seed = 0;
  KvArguments kv = {};
};

struct SampleCommand {
  CommonOptions common;
  std::string output;
  std::size_t tokens = 65536;
  std::size_t context = 512;
  std::uint64_t seed = 0;
};

struct BenchCommand {
  CommonOptions common;
  std::size_t prompt_tokens = 512;
  std::size_t new_tokens = 64;
  std::size_t runs = 5;
  bool profile = false;
  KvArguments kv = {};
  PruneArguments prune = {};
};

struct CompareCommand {
  CommonOptions common;
  std::string text;
  std::string svg;
  std::size_t context = 512;
  std::size_t windows = 0;           ///< 0: as many as take a fraction of a minute
  std::vector<std::string> schemes;  ///< empty: a selection
  int head_bits = 8;
  std::string prompt;
};

struct ChooseCommand {
  CommonOptions common;
  std::string items;
  Operators operators = Operators::packed;
};

struct AblateCommand {
  CommonOptions common;
  std::string output;
  std::vector<std::string> texts;        ///< to evaluate on
  std::vector<std::string> calibration;  ///< texts
  std::string items;                     ///< multiple-choice; empty: none
  AblationSelection selection = {};
  std::size_t steps = 0;  ///< per window, of every row; 0: as the row says
  std::string options;    ///< of `quantize`, for every row, before the row's own
  std::size_t context = 512;
  std::size_t windows = 64;  ///< at most this many of each text; 0: all
  bool list = false;         ///< only print the rows
  /// Read options of `quantize`, and those of `perplexity` that say how a model is run. Errc::bad_argument.
  std::function<cbq::Result<QuantizeCommand>(const std::vector<std::string>&)> parse;
  std::function<cbq::Result<PerplexityCommand>(const std::vector<std::string>&)> parse_run;
};

struct ExportCommand {
  CommonOptions common;
  std::string output;
  ExportOptions options = {};
};

struct ImportCommand {
  CommonOptions common;
  std::string output;
};

[[nodiscard]] cbq::Status run(const InfoCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const QuantizeCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const PerplexityCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const GenerateCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const PasskeyCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const SampleCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const BenchCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const CompareCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const ChooseCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const AblateCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const ExportCommand& command, const Console& console);
[[nodiscard]] cbq::Status run(const ImportCommand& command, const Console& console);

// ---- what the commands share ----

/// Threads and instruction set of the options. Errc::bad_argument.
[[nodiscard]] cbq::Result<Machine> machine_of(const CommonOptions& common);

/// A scheme by its name, in which `--method agile` allows `_trip` at the end or before `_asym`: static activations with
/// channel factors.
struct NamedScheme {
  cbq::Scheme scheme;
  bool trip = false;
};
/// Errc::bad_argument.
[[nodiscard]] cbq::Result<NamedScheme> parse_named_scheme(const std::string& name);

/// What quantize() is told. Errc::bad_argument (scheme).
[[nodiscard]] cbq::Result<QuantizationOptions> quantization_options(const QuantizeCommand& command,
                                                                    const Machine& machine);

/// What became of a window of a reconstruction.
[[nodiscard]] cbq::Json window_json(const cbq::WindowReport& entry);

/// Opens the model's files and reads its weights.
struct LoadedModel {
  ModelSource source;
  Model model;
  double bits_per_weight = 0;
};
/// The files of a model without its weights in memory.
[[nodiscard]] cbq::Result<ModelSource> open_source(const ModelPath& model);
/// A model to run. Errc::bad_file, too, where its files changed while they were read.
[[nodiscard]] cbq::Result<LoadedModel> load_model(const ModelPath& model, const LoadOptions& options = {});

/// The members of a report that describe a model and the machine.
[[nodiscard]] Report describe(const std::string& path, const LoadedModel& loaded, const Machine& machine);

/// The last part of a path.
[[nodiscard]] std::string base_name(std::string path);

/// A whole text file; line ends of CR LF become LF, as text mode reads them elsewhere. Errc::io, Errc::bad_file.
[[nodiscard]] cbq::Result<std::string> read_text(const std::string& path);

/// The text to evaluate `model` with when none is named: `model`-evaluation.txt beside its folder. Errc::bad_argument
/// when there is none.
[[nodiscard]] cbq::Result<std::string> default_text(const std::string& model);

/// Writes `json` where the options say, if anywhere.
[[nodiscard]] cbq::Status write_json(const CommonOptions& common, const cbq::Json& json, const Console& console);

/// Prints and writes what an export or an import did.
struct Conversion {
  std::string output;
  std::string format;
  ExportReport report;
  double seconds = 0;
};
[[nodiscard]] cbq::Status report_conversion(const CommonOptions& common, const Conversion& done,
                                            const Console& console);

/// Whether text for people goes to standard output.
[[nodiscard]] inline bool prints_text(const CommonOptions& common) {
  return common.json != "-";
}

}  // namespace cbq_llama
