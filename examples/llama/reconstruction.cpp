// SPDX-License-Identifier: Apache-2.0
#include "reconstruction.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <stop_token>
#include <type_traits>
#include <utility>

#include <cbq/loss/squared.hpp>
#include <cbq/nn/activation_site.hpp>
#include <cbq/nn/block_gradient.hpp>
#include <cbq/nn/opt_block.hpp>
#include <cbq/reconstruct/reconstruction.hpp>
#include <cbq/rounding/straight_through.hpp>

#include "commands.hpp"
#include "interrupt.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

using Rounding = cbq::StraightThrough<float>;
using Site = cbq::ActivationSite<float>;

// A block and the memory that its parts look at.
template <class Block>
class OwningBlock {
 public:
  using Scalar = float;
  using Tape = typename Block::Tape;

  OwningBlock(std::vector<FloatMatrix> memory, Block block) : memory_(std::move(memory)), block_(std::move(block)) {}

  template <cbq::Executor E>
  [[nodiscard]] Status forward(const MatrixView<const float>& x, std::size_t length, const MatrixView<float>& y,
                               Tape& tape, cbq::ExecutionContext<E>& context) const {
    return block_.forward(x, length, y, tape, context);
  }
  template <cbq::Executor E>
  [[nodiscard]] Status backward(const MatrixView<const float>& dy, const MatrixView<const float>& x, std::size_t length,
                                Tape& tape, const MatrixView<float>& dx, cbq::ExecutionContext<E>& context) {
    return block_.backward(dy, x, length, tape, dx, context);
  }
  template <class F>
  void for_each_linear(F&& f) {
    block_.for_each_linear(f);
  }

 private:
  std::vector<FloatMatrix> memory_;
  Block block_;
};

std::span<const float> values(const FloatMatrix& matrix) {
  return {matrix.memory.data(), matrix.memory.size()};
}

// The gains of all norms, two per block, then the final one.
std::vector<FloatTensor> weight_norms(const ModelConfig& config) {
  std::vector<FloatTensor> norms = norm_tensors(config);
  std::erase_if(norms, [](const FloatTensor& tensor) { return tensor.name.ends_with(".bias"); });
  return norms;
}

std::string module_of(const FloatTensor& tensor) {
  return tensor.name.substr(0, tensor.name.rfind('.'));
}

// The model as cbq::reconstruct() sees it.
template <Architecture A>
class Host {
  template <class L>
  using Block =
      std::conditional_t<A == Architecture::llama, cbq::LlamaBlockGradient<L, Site>, cbq::OptBlockGradient<L, Site>>;
  using Norm = std::conditional_t<A == Architecture::llama, cbq::RmsNormGradient<float>, cbq::LayerNormGradient<float>>;
  using Trained = cbq::TrainableLinear<Rounding>;
  using Dense = cbq::DenseGradient<float>;

 public:
  using Scalar = float;
  using Student = OwningBlock<Block<Trained>>;
  using Teacher = OwningBlock<Block<Dense>>;
  using Head = cbq::HeadGradient<Norm, Dense>;

  static Result<std::unique_ptr<Host>> create(const ModelSource& source, std::span<const ModuleReport> plan,
                                              const QuantizationOptions& options) {
    auto host = std::make_unique<Host>(source, plan, options);
    const ModelConfig& config = source.config();
    const std::vector<FloatTensor> norms = weight_norms(config);
    if constexpr (A == Architecture::llama) {
      Result<cbq::RotaryTable> table =
          cbq::RotaryTable::create(config.rotary, config.head_width, options.reconstruction.sequence);
      if (!table) return table.error();
      host->rotary_ = *std::move(table);
    }
    Result<Norm> norm = host->norm(module_of(norms.back()), host->memory_);
    if (!norm) return norm.error();
    const MatrixModule module = config.tied ? embedding_module(config) : head_module(config);
    Result<Dense> head = host->dense(module, host->memory_);
    if (!head) return head.error();
    host->head_.emplace(*norm, *head);
    return host;
  }

  Host(const ModelSource& source, std::span<const ModuleReport> plan, const QuantizationOptions& options)
      : source_(source), plan_(plan), seed_(options.reconstruction.seed), executor_(make_executor(options.threads)) {}

  [[nodiscard]] std::size_t blocks() const { return source_.config().layers; }
  [[nodiscard]] Head* head() { return &*head_; }
  [[nodiscard]] CodesByModule take_codes() { return std::move(codes_); }

  [[nodiscard]] Result<Teacher> open_teacher(std::size_t layer) {
    std::vector<FloatMatrix> memory;
    const auto linear = [&](const MatrixModule& module) { return dense(module, memory); };
    const auto site = [](const MatrixModule&) -> Result<Site> { return Site(); };
    return open<Dense>(layer, linear, site, memory);
  }

  [[nodiscard]] Result<Student> open_student(std::size_t layer) {
    std::vector<FloatMatrix> memory;
    const auto linear = [&](const MatrixModule& module) { return trained(module); };
    const auto site = [&](const MatrixModule& module) -> Result<Site> {
      const ModuleReport* entry = find(module);
      if (entry == nullptr) return no_scheme(module);
      return Site::create(entry->scheme->activation);
    };
    return open<Trained>(layer, linear, site, memory);
  }

  [[nodiscard]] Status finish(std::size_t layer, Student& student) {
    const std::vector<MatrixModule> modules = block_modules(source_.config(), layer);
    std::size_t next = 0;
    student.for_each_linear(
        [&](const char*, Trained& linear) { codes_.emplace(modules[next++].name, linear.take_codes()); });
    return {};
  }

 private:
  [[nodiscard]] const ModuleReport* find(const MatrixModule& module) const {
    const auto entry =
        std::find_if(plan_.begin(), plan_.end(), [&](const ModuleReport& e) { return e.module.name == module.name; });
    return entry == plan_.end() || !entry->scheme ? nullptr : &*entry;
  }

  [[nodiscard]] static Error no_scheme(const MatrixModule& module) {
    return {Errc::unsupported, "reconstruction needs a scheme for every linear layer of the blocks", module.name};
  }

  [[nodiscard]] Result<std::span<const float>> keep(const std::string& name, std::size_t rows, std::size_t columns,
                                                    std::vector<FloatMatrix>& memory) const {
    Result<FloatMatrix> matrix = source_.read_matrix(name, rows, columns);
    if (!matrix) return matrix.error();
    memory.push_back(*std::move(matrix));
    return values(memory.back());
  }

  [[nodiscard]] Result<Norm> norm(const std::string& name, std::vector<FloatMatrix>& memory) const {
    const ModelConfig& config = source_.config();
    const auto gain = keep(name + ".weight", 1, config.hidden, memory);
    if (!gain) return gain.error();
    if constexpr (A == Architecture::llama) {
      return Norm(*gain, config.norm_epsilon);
    } else {
      const auto bias = keep(name + ".bias", 1, config.hidden, memory);
      if (!bias) return bias.error();
      return Norm(*gain, *bias, config.norm_epsilon);
    }
  }

  [[nodiscard]] Result<std::span<const float>> bias(const MatrixModule& module,
                                                    std::vector<FloatMatrix>& memory) const {
    if (!module.has_bias) return std::span<const float>();
    return keep(module.name + ".bias", 1, module.outputs, memory);
  }

  [[nodiscard]] Result<Dense> dense(const MatrixModule& module, std::vector<FloatMatrix>& memory) const {
    const auto weights = keep(module.name + ".weight", module.outputs, module.inputs, memory);
    if (!weights) return weights.error();
    const auto added = bias(module, memory);
    if (!added) return added.error();
    return Dense(cbq::matrix_view(weights->data(), module.outputs, module.inputs), *added);
  }

  [[nodiscard]] Result<Trained> trained(const MatrixModule& module) const {
    const ModuleReport* entry = find(module);
    if (entry == nullptr) return no_scheme(module);
    std::vector<FloatMatrix> memory;
    const auto weights = keep(module.name + ".weight", module.outputs, module.inputs, memory);
    if (!weights) return weights.error();
    const auto added = bias(module, memory);
    if (!added) return added.error();
    Result<Trained> linear = Trained::create(cbq::matrix_view(weights->data(), module.outputs, module.inputs), *added,
                                             entry->scheme->weight, {}, seed_, executor_);
    if (!linear) return cbq::in_context(linear.error(), module.name);
    return linear;
  }

  // A block of linear layers and sites that the two callbacks make.
  template <class L, class MakeLinear, class MakeSite>
  [[nodiscard]] Result<OwningBlock<Block<L>>> open(std::size_t layer, const MakeLinear& make, const MakeSite& make_site,
                                                   std::vector<FloatMatrix>& memory) const {
    const ModelConfig& config = source_.config();
    const std::vector<MatrixModule> modules = block_modules(config, layer);
    std::vector<L> linears;
    std::vector<Site> sites;
    memory.reserve(32);
    for (const MatrixModule& module : modules) {
      Result<L> linear = make(module);
      if (!linear) return linear.error();
      linears.push_back(*std::move(linear));
      const Result<Site> site = make_site(module);
      if (!site) return site.error();
      sites.push_back(*site);
    }
    const std::vector<FloatTensor> norms = weight_norms(config);
    Result<Norm> first = norm(module_of(norms[2 * layer]), memory);
    if (!first) return first.error();
    Result<Norm> second = norm(module_of(norms[2 * layer + 1]), memory);
    if (!second) return second.error();
    auto attention = cbq::SelfAttentionGradient<L, Site>::create(
        {config.heads, config.kv_heads, config.head_width}, A == Architecture::llama ? &rotary_ : nullptr,
        {std::move(linears[0]), std::move(linears[1]), std::move(linears[2]), std::move(linears[3]), sites[0],
         sites[3]});
    if (!attention) return attention.error();
    if constexpr (A == Architecture::llama) {
      auto mlp = cbq::GatedMlpGradient<L, Site>::create(
          {std::move(linears[4]), std::move(linears[5]), std::move(linears[6]), sites[4], sites[6]});
      if (!mlp) return mlp.error();
      return OwningBlock<Block<L>>(std::move(memory), {*first, *std::move(attention), *second, *std::move(mlp)});
    } else {
      auto mlp =
          cbq::ReluMlpGradient<L, Site>::create({std::move(linears[4]), std::move(linears[5]), sites[4], sites[5]});
      if (!mlp) return mlp.error();
      return OwningBlock<Block<L>>(std::move(memory), {*first, *std::move(attention), *second, *std::move(mlp)});
    }
  }

  const ModelSource& source_;
  std::span<const ModuleReport> plan_;
  std::uint64_t seed_;
  ToolExecutor executor_;
  cbq::RotaryTable rotary_;
  std::vector<FloatMatrix> memory_;
  std::optional<Head> head_;
  CodesByModule codes_;
};

// Rows of the embedding, and learned positions, for all tokens.
class Embeddings {
 public:
  static Result<Embeddings> read(const ModelSource& source, std::span<const ModuleReport> plan,
                                 const QuantizationOptions& options) {
    const ModelConfig& config = source.config();
    const MatrixModule module = embedding_module(config);
    Embeddings result;
    Result<FloatMatrix> table = source.read_matrix(module.name + ".weight", module.outputs, module.inputs);
    if (!table) return table.error();
    result.table_ = *std::move(table);
    const auto entry =
        std::find_if(plan.begin(), plan.end(), [&](const ModuleReport& e) { return e.module.name == module.name; });
    if (entry != plan.end() && entry->scheme) {
      const Result<cbq::QuantizedMatrix> codes = quantize_module(source, module, entry->scheme->weight, options);
      if (!codes) return codes.error();
      result.rounded_.resize(result.table_.memory.size());
      const auto out = cbq::matrix_view(result.rounded_.data(), module.outputs, module.inputs);
      if (const Status done = cbq::dequantize(codes->view(), entry->scheme->weight, out); !done) return done.error();
    }
    if (const FloatTensor positions = position_tensor(config); !positions.name.empty()) {
      Result<FloatMatrix> learned = source.read_matrix(positions.name, positions.rows, positions.columns);
      if (!learned) return learned.error();
      result.positions_ = *std::move(learned);
    }
    return result;
  }

  // What enters the first block of the float model, or of the quantized one.
  void look_up(std::span<const std::int32_t> tokens, std::size_t length, bool quantized,
               const MatrixView<float>& out) const {
    const float* table = quantized && !rounded_.empty() ? rounded_.data() : table_.memory.data();
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      float* hidden = cbq::row(out, t);
      std::memcpy(hidden, table + static_cast<std::size_t>(tokens[t]) * out.columns, out.columns * sizeof(float));
      if (positions_.memory.size() == 0) continue;
      const float* learned = cbq::row(positions_.view, t % length + cbq::LearnedPositions::offset);
      for (std::size_t i = 0; i < out.columns; ++i) hidden[i] += learned[i];
    }
  }

 private:
  FloatMatrix table_;
  FloatMatrix positions_;
  std::vector<float> rounded_;
};

template <Architecture A>
Result<CodesByModule> run(const ModelSource& source, std::span<const ModuleReport> plan,
                          std::span<const std::int32_t> tokens, const QuantizationOptions& options) {
  const ReconstructionSettings& settings = options.reconstruction;
  Result<std::unique_ptr<Host<A>>> host = Host<A>::create(source, plan, options);
  if (!host) return host.error();
  const std::size_t hidden = source.config().hidden;
  cbq::TapeMatrix<float> target, student;
  for (cbq::TapeMatrix<float>* matrix : {&target, &student}) {
    if (const Status taken = matrix->reshape(tokens.size(), hidden); !taken) return taken.error();
  }
  {
    const Result<Embeddings> embeddings = Embeddings::read(source, plan, options);
    if (!embeddings) return embeddings.error();
    embeddings->look_up(tokens, settings.sequence, false, target.view());
    embeddings->look_up(tokens, settings.sequence, true, student.view());
  }
  std::stop_source stop;
  cbq::ReconstructionOptions loop;
  loop.windows = settings.windows;
  loop.steps = settings.steps;
  loop.batch = settings.batch;
  loop.logits_weight = settings.logits_weight;
  loop.seed = settings.seed;
  loop.stop = stop.get_token();
  std::optional<Progress> progress;
  loop.progress = [&](const cbq::ReconstructionProgress& now) {
    if (!check_interrupt()) stop.request_stop();
    if (!progress) progress.emplace("reconstructing", "steps", now.windows * now.steps);
    progress->update(now.window * now.steps + now.step);
  };
  const ToolExecutor executor = make_executor(options.threads);
  cbq::ExecutionContext<ToolExecutor> context(executor, cbq::detect());
  const auto done = cbq::reconstruct(**host, {target.view(), student.view(), settings.sequence},
                                     cbq::SquaredLoss::normalized, loop, context);
  if (!done) return done.error();
  return (*host)->take_codes();
}

}  // namespace

Result<std::vector<std::int32_t>> calibration_tokens(const ModelSource& source,
                                                     const ReconstructionSettings& settings) {
  if (settings.calibration.empty()) {
    return Error{Errc::bad_argument, "this method needs a calibration text", "--calibration"};
  }
  if (settings.sequence < 2 || settings.sequence > source.config().context || settings.samples == 0) {
    return Error{Errc::bad_argument, "calibration sequences must fit the model's context", "--sequence",
                 settings.sequence, ErrorText("2 to ") << source.config().context};
  }
  const Result<Tokenizer> tokenizer = source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  std::vector<std::int32_t> tokens;
  tokens.reserve(settings.samples * settings.sequence);
  std::mt19937_64 random(settings.seed);
  const std::size_t files = settings.calibration.size();
  for (std::size_t f = 0; f < files; ++f) {
    const std::string& path = settings.calibration[f];
    const Result<std::string> text = read_text(path);
    if (!text) return text.error();
    const Result<std::vector<std::int32_t>> ids = tokenizer->encode(*text);
    if (!ids) return cbq::in_context(ids.error(), path);
    if (ids->size() < settings.sequence) {
      return Error{Errc::bad_argument, "the calibration text is shorter than one sequence", path,
                   ErrorText(ids->size()) << " tokens", settings.sequence};
    }
    const std::size_t last = settings.samples * (f + 1) / files;
    for (std::size_t sample = settings.samples * f / files; sample < last; ++sample) {
      const auto first = static_cast<std::ptrdiff_t>(random() % (ids->size() - settings.sequence + 1));
      tokens.insert(tokens.end(), ids->begin() + first,
                    ids->begin() + first + static_cast<std::ptrdiff_t>(settings.sequence));
    }
  }
  return tokens;
}

Result<CodesByModule> reconstruct_blocks(const ModelSource& source, std::span<const ModuleReport> plan,
                                         std::span<const std::int32_t> tokens, const QuantizationOptions& options) {
  return source.config().architecture == Architecture::llama ? run<Architecture::llama>(source, plan, tokens, options)
                                                             : run<Architecture::opt>(source, plan, tokens, options);
}

}  // namespace cbq_llama
