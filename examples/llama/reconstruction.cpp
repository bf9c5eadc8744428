// SPDX-License-Identifier: Apache-2.0
#include "reconstruction.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <stop_token>
#include <utility>

#include <unistd.h>

#include <cbq/io/atomic_file.hpp>
#include <cbq/io/mapped_file.hpp>
#include <cbq/loss/absolute.hpp>
#include <cbq/loss/softmax_kl.hpp>
#include <cbq/loss/squared.hpp>
#include <cbq/loss/weighted_sum.hpp>
#include <cbq/reconstruct/reconstruction.hpp>
#include <cbq/rounding/straight_through.hpp>

#include "interrupt.hpp"
#include "kv_training.hpp"
#include "model_rotation.hpp"
#include "progress.hpp"
#include "student_blocks.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

namespace {

using Loss = cbq::WeightedSum<cbq::SquaredLoss, cbq::FeatureKl, cbq::AbsoluteLoss>;

// Makes the loss of a window; a term of weight 0 costs nothing.
struct LossOf {
  ReconstructionLoss kind = ReconstructionLoss::l2;
  [[nodiscard]] Loss operator()(double variance, std::size_t channels) const {
    const auto sum = [](const std::array<double, 3>& weights, const cbq::SquaredLoss& squared = {},
                        const cbq::AbsoluteLoss& absolute = {}) {
      return Loss(weights, squared, cbq::FeatureKl(), absolute);
    };
    switch (kind) {
      case ReconstructionLoss::l2_kl:
        return sum({1, 1, 0});
      case ReconstructionLoss::kl:
        return sum({0, 1, 0});
      case ReconstructionLoss::mae:
        return sum({0, 0, 1 / std::sqrt(variance > 0 ? variance : 1.0)}, {}, cbq::AbsoluteLoss::per_element(channels));
      case ReconstructionLoss::l2:
        break;
    }
    return sum({1, 0, 0}, cbq::SquaredLoss::normalized(variance, channels));
  }
};

// What a host reads.
struct HostInput {
  const ChangedWeights& original;
  const ChangedWeights& changed;
  std::span<const ModuleReport> plan;
  const QuantizationOptions& options;
};

// The model as cbq::reconstruct() sees it.
template <Architecture A>
class Host {
  using Opener = BlockOpener<A>;
  using Norm = typename Opener::Norm;
  using Trained = cbq::TrainableLinear<cbq::RoundingChoice<float>>;
  using Layer = StudentLinear<Trained>;

 public:
  using Scalar = float;
  using Student = StudentBlock<typename Opener::template Block<Layer>>;
  using Teacher = typename Opener::template Block<ObservedLinear>;
  using Head = cbq::HeadGradient<Norm, cbq::DenseGradient<float>>;

  static Result<std::unique_ptr<Host>> create(const HostInput& model, const CalibrationTokens& tokens) {
    const ModelConfig& config = model.original.config();
    Result<Opener> opener = Opener::create(config, tokens.length);
    if (!opener) return opener.error();
    auto host = std::make_unique<Host>(model, *std::move(opener));
    host->memory_.reserve(8);
    Result<Norm> norm = host->opener_.norm(model.original, host->opener_.norm_names().back(), host->memory_);
    if (!norm) return norm.error();
    const MatrixModule module = config.tied ? embedding_module(config) : head_module(config);
    auto head = Opener::template dense<cbq::DenseGradient<float>>(model.original, module, host->memory_);
    if (!head) return head.error();
    host->head_.emplace(*norm, *head);
    if (model.options.cache.scheme.smoothed) {
      auto smoothing = first_smoothing(model.changed, model.plan, tokens, model.options);
      if (!smoothing) return smoothing.error();
      host->smoothing_ = *std::move(smoothing);
    }
    return host;
  }

  Host(const HostInput& model, Opener opener)
      : model_(model), opener_(std::move(opener)), executor_(make_executor(model.options.threads)) {}

  [[nodiscard]] std::size_t blocks() const { return model_.original.config().layers; }
  [[nodiscard]] Head* head() { return &*head_; }
  [[nodiscard]] CodesByModule take_codes() { return std::move(codes_); }
  [[nodiscard]] ClipsByModule take_clips() { return std::move(clips_); }
  [[nodiscard]] std::vector<cbq::KvSmoothing> take_smoothing() { return std::move(learned_); }
  [[nodiscard]] std::size_t trained_parameters() const { return trained_parameters_; }

  [[nodiscard]] Result<Teacher> open_teacher(std::size_t layer) {
    const auto linear = [&](const MatrixModule& module, std::vector<FloatMatrix>& memory) {
      return Opener::template dense<ObservedLinear>(model_.original, module, memory);
    };
    const auto site = [&](const MatrixModule& module) -> Result<Site> { return float_site_of(model_.plan, module); };
    return opener_.template open<ObservedLinear>(model_.original, layer, linear, site);
  }

  [[nodiscard]] Result<Student> open_student(std::size_t layer) {
    const auto linear = [&](const MatrixModule& module, std::vector<FloatMatrix>& memory) -> Result<Layer> {
      if (stays_float(module)) {
        auto dense = Opener::template dense<ObservedLinear>(model_.changed, module, memory);
        return dense ? Result<Layer>(Layer(*std::move(dense))) : dense.error();
      }
      Result<Trained> made = trained(module);
      return made ? Result<Layer>(Layer(*std::move(made))) : made.error();
    };
    const bool learned = model_.options.reconstruction.clip_rate > 0;
    const auto clip = learned ? cbq::ClipMultiplier::learned : cbq::ClipMultiplier::fixed;
    const auto site = [&](const MatrixModule& module) -> Result<Site> {
      return stays_float(module) ? float_site_of(model_.plan, module) : site_of(model_.plan, module, clip);
    };
    const Result<Site> heads = head_site(model_.options);
    if (!heads) return heads.error();
    auto block = opener_.template open<Layer>(model_.changed, layer, linear, site, *heads);
    if (!block) return block.error();
    Student student(*std::move(block));
    if (cbq::is_float(model_.options.cache.scheme)) return student;
    auto sites =
        cache_sites(model_.original.config(), model_.options.cache, smoothing_.empty() ? nullptr : &smoothing_[layer]);
    if (!sites) return sites.error();
    student.inner().attention().parts().cache = *std::move(sites);
    return student;
  }

  [[nodiscard]] Status finish(std::size_t layer, Student& student) {
    const std::vector<MatrixModule> modules = block_modules(model_.original.config(), layer);
    std::size_t next = 0;
    student.for_each_layer([&](Trained* linear) {
      const MatrixModule& module = modules[next++];
      if (linear == nullptr) return;
      trained_parameters_ += linear->rounding().trained_parameters();
      codes_.emplace(module.name, linear->take_codes());
    });
    if (model_.options.cache.scheme.smoothed) {
      const cbq::KvSites<float>& sites = student.inner().attention().parts().cache;
      Result<cbq::KvSmoothing> smoothing = smoothing_of(sites);
      if (!smoothing) return smoothing.error();
      learned_.push_back(*std::move(smoothing));
      if (sites.keys.is_trained()) trained_parameters_ += 4 * sites.keys.channels();
    }
    std::size_t reader = 0;  // sites come in the order of the layers that read them
    student.for_each_activation([&](const char*, Site& site) {
      const std::size_t first = reader;
      for (; reader < modules.size() && first_reader(reader, A) == first; ++reader) {
        if (site.is_trained()) clips_.emplace(modules[reader].name, site.clip());
      }
    });
    return {};
  }

 private:
  // Layers without a scheme, where what is trained is the cache.
  [[nodiscard]] bool stays_float(const MatrixModule& module) const {
    return !cbq::is_float(model_.options.cache.scheme) && !scheme_of(model_.plan, module);
  }
  [[nodiscard]] Result<Trained> trained(const MatrixModule& module) const {
    const Result<cbq::Scheme> scheme = scheme_of(model_.plan, module);
    if (!scheme) return scheme.error();
    const auto weights = model_.changed.read_matrix(module.name + ".weight", module.outputs, module.inputs);
    if (!weights) return weights.error();
    std::vector<FloatMatrix> memory;
    const auto bias = Opener::bias(model_.changed, module, memory);
    if (!bias) return bias.error();
    const QuantizationOptions& options = model_.options;
    Result<Trained> linear = Trained::create(cbq::as_const(weights->view), *bias, scheme->weight,
                                             options.reconstruction.rounding, options.calibration.seed, executor_);
    if (!linear) return cbq::in_context(linear.error(), module.name);
    return linear;
  }

  HostInput model_;
  Opener opener_;
  ToolExecutor executor_;
  std::vector<FloatMatrix> memory_;
  std::optional<Head> head_;
  CodesByModule codes_;
  ClipsByModule clips_;
  std::vector<cbq::KvSmoothing> smoothing_, learned_;
  std::size_t trained_parameters_ = 0;
};

// What the blocks of a model and its last norm are made of.
std::vector<FloatTensor> block_tensors(const ModelConfig& config) {
  std::vector<FloatTensor> tensors = norm_tensors(config);
  for (const MatrixModule& module : all_block_modules(config)) {
    tensors.push_back({module.name + ".weight", module.outputs, module.inputs});
    if (module.has_bias) tensors.push_back({module.name + ".bias", 1, module.outputs});
  }
  return tensors;
}

// Of everything that the blocks and targets of a run depend on and that cbq::reconstruct() does not see.
Result<std::uint64_t> fingerprint(const HostInput& model) {
  const ModelConfig& config = model.original.config();
  std::uint64_t hash = cbq::hash_bytes({});
  const auto add = [&](const auto* values, std::size_t count) {
    hash = cbq::hash_bytes(std::as_bytes(std::span(values, count)), hash);
  };
  const auto add_number = [&](double value) { add(&value, 1); };
  const cbq::RoundingChoiceOptions& rounding = model.options.reconstruction.rounding;
  add_number(static_cast<double>(rounding.method));
  add_number(static_cast<double>(rounding.rank));
  add_number(rounding.offset_rate.value_or(-1));
  add_number(rounding.step_rate.value_or(-1));
  add_number(static_cast<double>(model.options.reconstruction.loss));
  add_number(model.options.attention_bits);
  if (const CacheSettings& cache = model.options.cache; !cbq::is_float(cache.scheme)) {
    add(cbq::kv_scheme_name(cache.scheme).characters, sizeof(cbq::KvSchemeName::characters));
    add_number(cache.rate);
  }
  for (const ModuleReport& entry : model.plan) {
    const std::string name = entry.scheme ? cbq::scheme_name(*entry.scheme).c_str() : "float";
    add(name.data(), name.size());
    if (!entry.inputs) continue;
    add(&entry.inputs->grid.scale, 1);
    add_number(entry.inputs->grid.zero);
  }
  const auto add_tensors = [&](const ChangedWeights& weights, const std::vector<FloatTensor>& tensors) -> Status {
    for (const FloatTensor& tensor : tensors) {
      const Result<FloatMatrix> matrix = weights.read_matrix(tensor.name, tensor.rows, tensor.columns);
      if (!matrix) return matrix.error();
      add(matrix->memory.data(), matrix->memory.size());
    }
    return {};
  };
  std::vector<FloatTensor> tensors = block_tensors(config);
  if (&model.changed != &model.original) {
    if (const Status added = add_tensors(model.changed, tensors); !added) return added.error();
  }
  const MatrixModule head = config.tied ? embedding_module(config) : head_module(config);
  tensors.push_back({head.name + ".weight", head.outputs, head.inputs});
  if (const Status added = add_tensors(model.original, tensors); !added) return added.error();
  return hash;
}

// The file of the run's state: read when asked to, written after each window.
class StateFile {
 public:
  static Result<StateFile> open(const std::string& path, Resume resume) {
    StateFile state(path);
    if (::access(path.c_str(), F_OK) != 0) return state;
    if (resume == Resume::no) {
      return Error{Errc::bad_argument, "a run that was cut off left its state: --resume continues it, or remove it",
                   path};
    }
    // Copied: the run replaces the file while it reads.
    Result<cbq::FileBytes> bytes = cbq::FileBytes::open(path, cbq::FileMode::read);
    if (!bytes) return bytes.error();
    state.bytes_.emplace(*std::move(bytes));
    return state;
  }

  [[nodiscard]] cbq::CheckpointOptions options(std::uint64_t fingerprint) const {
    cbq::CheckpointOptions options;
    options.fingerprint = fingerprint;
    options.save = [path = path_](std::span<const std::byte> state) { return cbq::write_file(path, state); };
    if (bytes_) options.resume = bytes_->bytes();
    return options;
  }

 private:
  explicit StateFile(std::string path) : path_(std::move(path)) {}
  std::string path_;
  std::optional<cbq::FileBytes> bytes_;
};

// Epochs as steps, and the rate of offsets that depends on their number.
Result<QuantizationOptions> with_steps(QuantizationOptions options) {
  ReconstructionSettings& settings = options.reconstruction;
  if (settings.epochs != 0) {
    const std::size_t samples = options.calibration.samples;
    const std::size_t batch = settings.batch < samples ? settings.batch : samples;
    const Result<std::size_t> steps = cbq::checked_product(settings.epochs, cbq::divide_up(samples, batch));
    if (!steps) return Error{Errc::bad_argument, "more steps than can be counted", "--epochs", settings.epochs};
    settings.steps = *steps;
    settings.epochs = 0;
  }
  cbq::RoundingChoiceOptions& rounding = settings.rounding;
  if (rounding.method == cbq::RoundingMethod::straight_through && !rounding.offset_rate) {
    rounding.offset_rate = cbq::straight_through_offset_rate(settings.steps);
  }
  return options;
}

cbq::ReconstructionOptions loop_options(const QuantizationOptions& options) {
  const ReconstructionSettings& settings = options.reconstruction;
  cbq::ReconstructionOptions loop;
  loop.windows = settings.windows;
  loop.trained = settings.trained;
  loop.steps = settings.steps;
  loop.batch = settings.batch;
  loop.logits_weight = settings.logits_weight;
  loop.same_input_weight = settings.same_input_weight;
  loop.clip_rate = settings.clip_rate;
  loop.hardened_share = cbq::hardened_share(settings.rounding.method);
  loop.seed = options.calibration.seed;
  return loop;
}

template <Architecture A>
Result<Reconstructed> run(const HostInput& model, const CalibrationTokens& tokens, const std::string& checkpoint) {
  cbq::ReconstructionOptions loop = loop_options(model.options);
  Result<StateFile> file = StateFile::open(checkpoint, model.options.resume);
  if (!file) return file.error();
  const Result<std::uint64_t> identity = fingerprint(model);
  if (!identity) return identity.error();
  Result<std::unique_ptr<Host<A>>> host = Host<A>::create(model, tokens);
  if (!host) return host.error();
  Result<FirstStates> states = FirstStates::create(model.original, model.plan, tokens, model.options);
  if (!states) return states.error();
  std::stop_source stop;
  loop.checkpoint = file->options(*identity);
  loop.stop = stop.get_token();
  std::optional<Progress> progress;
  loop.progress = [&](const cbq::ReconstructionProgress& now) {
    if (!check_interrupt()) stop.request_stop();
    if (!progress) progress.emplace("reconstructing", "steps", now.windows * now.steps);
    progress->update(now.window * now.steps + now.step);
  };
  const ToolExecutor executor = make_executor(model.options.threads);
  cbq::ExecutionContext<ToolExecutor> context(executor, cbq::detect());
  Result<std::vector<cbq::WindowReport>> windows =
      cbq::reconstruct(**host, {states->target.view(), states->student.view(), tokens.length},
                       LossOf{model.options.reconstruction.loss}, loop, context);
  if (!windows) {
    const bool state = model.options.resume == Resume::yes && windows.error().code != Errc::interrupted;
    return state ? cbq::in_context(windows.error(), checkpoint) : windows.error();
  }
  return Reconstructed{(*host)->take_codes(), (*host)->take_clips(), (*host)->take_smoothing(), *std::move(windows),
                       (*host)->trained_parameters()};
}

}  // namespace

std::string checkpoint_path(const std::string& output) {
  const std::size_t last = output.find_last_not_of('/');
  return output.substr(0, last == std::string::npos ? 0 : last + 1) + ".checkpoint";
}

Result<Reconstructed> reconstruct_blocks(const ChangedWeights& weights, std::span<const ModuleReport> plan,
                                         const CalibrationTokens& tokens, const std::string& checkpoint,
                                         const QuantizationOptions& options) {
  const Result<QuantizationOptions> settled = with_steps(options);
  if (!settled) return settled.error();
  // The targets of a rotated model are those of the float model in the same basis.
  ChangedWeights rotated(weights.source());
  const bool preprocessed = options.preprocessing != Preprocessing::none;
  if (preprocessed) {
    const Rotation rotation = rotation_of(weights.source().config(), options);
    const ToolExecutor executor = make_executor(options.threads);
    if (const Status done = rotate_model(rotation, options.calibration.seed, executor, rotated); !done)
      return done.error();
  }
  const HostInput model = {preprocessed ? rotated : weights, weights, plan, *settled};
  return weights.config().architecture == Architecture::llama ? run<Architecture::llama>(model, tokens, checkpoint)
                                                              : run<Architecture::opt>(model, tokens, checkpoint);
}

}  // namespace cbq_llama
