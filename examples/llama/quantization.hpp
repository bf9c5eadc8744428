// SPDX-License-Identifier: Apache-2.0
#pragma once

// `cbq-llama quantize`: reads a float model, quantizes its linear layers and its embedding and head, and writes a
// Hugging Face folder in the compressed-tensors form, which appears only when it is complete.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/io/quantization_config.hpp>
#include <cbq/kv/kv_scheme.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/reconstruct/options.hpp>
#include <cbq/reconstruct/rounding_choice.hpp>
#include <cbq/scheme.hpp>
#include <cbq/scheme/activation_rules.hpp>
#include <cbq/transform/input_rotation.hpp>

#include "kv_smoothing_files.hpp"
#include "model_layout.hpp"
#include "model_source.hpp"
#include "prompt_pruning.hpp"
#include "threads.hpp"

namespace cbq_llama {

/// The scheme of the modules whose name matches `pattern`, in which `*` stands for any text. Weights of 16 bits stay
/// in floating point.
struct SchemeRule {
  std::string pattern = "*";
  cbq::Scheme scheme = {};
};

/// Whether `name` is what `pattern` says, in which `*` stands for any text.
[[nodiscard]] bool matches(std::string_view pattern, std::string_view name);

/// How scales are found.
enum class RangeSearch : unsigned char { mse, minmax };

/// Codes of matrices that a method quantized together, by module name.
using CodesByModule = std::map<std::string, cbq::QuantizedMatrix>;

/// Learned clip multipliers of layers' activations, by module name.
using ClipsByModule = std::map<std::string, float>;

/// Where calibration sequences come from.
struct CalibrationSettings {
  std::vector<std::string> texts;  ///< files, equal parts of each
  std::size_t samples = 512;       ///< sequences in all
  std::size_t sequence = 512;      ///< tokens of each; 0: the model's context, at most 2048
  std::uint64_t seed = 0;
};

/// Between the outputs of a window and their targets.
enum class ReconstructionLoss : unsigned char {
  l2,     ///< squared error over the variance of the targets
  l2_kl,  ///< the paper's: squared error summed over channels, and the divergence of softmaxes over features
  kl,     ///< the latter alone
  mae,    ///< mean absolute error over the mean deviation of the targets; WKVQuant's
};

/// What is done to weights before they are rounded.
enum class Preprocessing : unsigned char {
  none,
  cfp,             ///< both halves of the paper's: activations scaled, weights truncated
  cfp_scaling,     ///< the first alone
  cfp_truncation,  ///< the second alone
  smoothquant,
};
/// By which command lines and files name them, in their order.
inline constexpr const char* preprocessing_names[] = {"none", "cfp", "cfp_scaling", "cfp_truncation", "smoothquant"};

/// Into which basis a model is rotated after preprocessing; see model_rotation.hpp.
enum class Rotation : unsigned char {
  none,
  offline,  ///< residual stream and value heads; nothing is left at run time
  full,     ///< inputs of down_proj (fc2) too, which operators transform at run time
};

/// How `--method cbq` trains; see cbq::ReconstructionOptions.
struct ReconstructionSettings {
  cbq::WindowOptions windows = {};
  cbq::TrainedBlocks trained = cbq::TrainedBlocks::all;
  std::size_t steps = 1600;  ///< per window
  std::size_t epochs = 0;    ///< if not 0: steps are this many passes over the samples
  std::size_t batch = 1;     ///< sequences per step
  double logits_weight = 1.0;
  double same_input_weight = 0.0;
  double clip_rate = 3e-3;  ///< of the clip multipliers of 4-bit activations; 0: they stay 1
  ReconstructionLoss loss = ReconstructionLoss::l2;
  cbq::RoundingChoiceOptions rounding = {};
};

/// The quantized cache that reconstruction simulates.
struct CacheSettings {
  cbq::KvScheme scheme = {.bits = 32};
  double rate = 5e-4;  ///< learning rate of the smoothing, of schemes with `_2d`; 0: it stays as it was found
};

/// How `--method gptq` rounds; see cbq::GptqOptions.
struct GptqSettings {
  double damping = 0.01;
  bool act_order = false;  ///< takes static groups
  bool static_groups = false;
};

/// How `--method agile` finds static activations, those of schemes with activations per tensor; see
/// input_calibration.hpp.
struct ActivationSettings {
  bool fixed = false;        ///< calibration finds them; otherwise each call does, as for other methods
  int largest_exponent = 0;  ///< K of TRIP; 0: no channel factors
  /// Of all values, in (0, 100]; 100: their extremes. Nothing: default_percentile() of the bits, but extremes where
  /// that leaves nothing but zero.
  std::optional<double> percentile = {};
};

/// What measured best on the pocket models: clipping is for 4 bits only.
[[nodiscard]] constexpr double default_percentile(int bits) {
  return bits == 4 ? 99.9 : 100.0;
}

/// Whether work that was cut off is continued.
enum class Resume : unsigned char { no, yes };

/// How much memory calibration takes at its peak, in bytes. Files of the model are mapped and not counted: the system
/// drops their pages where memory is short.
struct MemoryEstimate {
  std::size_t weights = 0;      ///< of the open window: weights, what is computed with, roundings
  std::size_t gradients = 0;    ///< of them
  std::size_t optimizer = 0;    ///< its state, and the window's start, to go back to
  std::size_t activations = 0;  ///< both streams of hidden states of all sequences
  std::size_t batch = 0;        ///< what a batch leaves for its backward pass, and working memory
  std::size_t rest = 0;         ///< head, changed weights, codes of finished blocks, checkpoint, the program

  [[nodiscard]] std::size_t total() const { return weights + gradients + optimizer + activations + batch + rest; }
  bool spilled = false;  ///< the activations lie in a temporary file, in addition to total()
  std::size_t spilled_bytes = 0;
};

struct QuantizationOptions {
  std::vector<SchemeRule> rules;  ///< of the linear layers of the blocks; the first that matches counts
  int head_bits = 8;              ///< of embedding and head: 16, 8 (per row) or 4 (groups of 32)
  int attention_bits = 16;        ///< of queries, keys and values: 16, 8 or 4, per token and head
  RangeSearch range = RangeSearch::mse;
  std::string method = "rtn";  ///< of the linear layers of the blocks: rtn, gptq, cbq, or wkvquant: cbq by its settings
  std::string method_name;     ///< in config.json; empty: `method`
  Preprocessing preprocessing = Preprocessing::none;
  std::optional<Rotation> rotation = {};  ///< nothing: see rotation_of()
  CalibrationSettings calibration = {};
  ReconstructionSettings reconstruction = {};
  CacheSettings cache = {};
  GptqSettings gptq = {};
  ActivationSettings activations = {};
  PruneArguments prune = {};      ///< of the calibration text, while static activations are found
  Resume resume = Resume::no;     ///< `method` cbq: from OUTPUT.checkpoint, if there is one
  std::size_t memory_budget = 0;  ///< of calibration, in bytes; 0: no limit
  std::function<void(const MemoryEstimate&)> announce = {};  ///< called before calibration
  std::size_t threads = 1;
};

/// Whether a method trains blocks.
[[nodiscard]] inline bool reconstructs(const std::string& method) {
  return method == "cbq" || method == "wkvquant";
}

/// "none", "offline" or "full".
[[nodiscard]] const char* rotation_name(Rotation rotation);

/// The static grid of what a layer reads.
struct StaticInput {
  cbq::StaticGrid grid;
  std::vector<std::size_t> channels;  ///< how many have the factor 2^0, 2^1, ..; empty: none has one
  double plain_error = 0;             ///< squared error over squared values on calibration rows, without factors
  double error = 0;                   ///< with them
};

/// What became of one matrix.
struct ModuleReport {
  MatrixModule module;
  std::optional<cbq::Scheme> scheme;  ///< nothing: it stayed in floating point
  double bits_per_weight = 16;        ///< with scales and zero points, as stored
  double relative_error = 0;          ///< sqrt(sum (w - w^)^2 / sum w^2)
  cbq::InputRotation rotation = cbq::InputRotation::none;
  std::optional<StaticInput> inputs;  ///< of static activations
  std::string reason;                 ///< why it stayed in floating point
};

/// Of the layers `block` (in the order of block_modules()), the first with a scheme that reads the input of `reader`,
/// itself a first_reader(); nullptr where all stay in floating point.
[[nodiscard]] inline const ModuleReport* first_quantized_reader(std::span<const ModuleReport> block, std::size_t reader,
                                                                Architecture architecture) {
  for (std::size_t i = reader; i < block.size() && first_reader(i, architecture) == reader; ++i) {
    if (block[i].scheme) return &block[i];
  }
  return nullptr;
}

struct QuantizationReport {
  std::vector<ModuleReport> modules;
  double bits_per_weight = 0;  ///< of the whole folder, see bits_per_weight()
  Rotation rotation = Rotation::none;
  std::size_t calibration_tokens = 0;
  std::size_t file_bytes = 0;
  std::vector<cbq::WindowReport> windows;   ///< of reconstruction
  ClipsByModule clips;                      ///< that it learned
  std::vector<cbq::KvSmoothing> smoothing;  ///< of the cache, where there is one with `_2d`
  std::size_t trained_parameters = 0;       ///< by reconstruction, of all blocks
};

/// Average bits per weight of a model's matrices as its files store them: linear layers, embedding, head (tied ones
/// once), learned positions. Scales, zero points and biases count as bits, not as weights; norms count as neither.
/// Errc::bad_file when one is missing.
[[nodiscard]] cbq::Result<double> bits_per_weight(const ModelSource& source);

/// Errc::bad_argument for a rule that no linear layer of the blocks gets its scheme from, as "schemes[i].pattern".
[[nodiscard]] cbq::Status check_rules(const ModelConfig& config, std::span<const SchemeRule> rules);

/// The rotation that `options` name, or else the one that measured best: full where an activation has 4 bits, otherwise
/// none.
[[nodiscard]] Rotation rotation_of(const ModelConfig& config, const QuantizationOptions& options);

/// What `options` make of each matrix of the model, in the order of the model; the head of a rotated model is not tied.
/// Errc::unsupported for a scheme without packed kernels, and, with calibration, for layers that read the same input on
/// different grids; Errc::bad_argument (head bits).
[[nodiscard]] cbq::Result<std::vector<ModuleReport>> plan_quantization(const ModelConfig& config,
                                                                       const QuantizationOptions& options);

/// Rounds one matrix to nearest. Errors of cbq::round_nearest().
[[nodiscard]] cbq::Result<cbq::QuantizedMatrix> round_to_nearest(const FloatMatrix& weights, const cbq::Grid& grid,
                                                                 const QuantizationOptions& options);

/// Reads and rounds one module. Errors as ModelSource::read() and cbq::round_nearest().
[[nodiscard]] cbq::Result<cbq::QuantizedMatrix> quantize_module(const ModelSource& source, const MatrixModule& module,
                                                                const cbq::Grid& grid,
                                                                const QuantizationOptions& options);

/// Quantizes `source` into the folder `output`. An existing folder is replaced only if cbq wrote it. Errors of reading
/// (see ModelSource), of writing (Errc::io), Errc::unsupported, Errc::interrupted, Errc::out_of_memory for a budget
/// that is too small; the target is then as it was.
[[nodiscard]] cbq::Result<QuantizationReport> quantize(const ModelSource& source, const std::string& output,
                                                       const QuantizationOptions& options);

}  // namespace cbq_llama
