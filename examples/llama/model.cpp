// SPDX-License-Identifier: Apache-2.0
#include "model.hpp"

#include <algorithm>
#include <cctype>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/stored_input_grid.hpp>
#include <cbq/nn/bloom_block.hpp>
#include <cbq/nn/causal_model.hpp>
#include <cbq/nn/llama_block.hpp>
#include <cbq/nn/opt_block.hpp>

#include "interrupt.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

// Positions of OPT, learned, and of BLOOM, ALiBi's: one type, so that their layers are compiled once.
class PlainPositions {
 public:
  explicit PlainPositions(cbq::LearnedPositions learned) noexcept : learned_(std::move(learned)) {}
  explicit PlainPositions(cbq::AlibiPositions alibi) noexcept : alibi_(std::move(alibi)) {}

  [[nodiscard]] std::size_t max_positions() const noexcept {
    return learned_ ? learned_->max_positions() : alibi_.max_positions();
  }
  [[nodiscard]] Status add_to(const MatrixView<float>& hidden,
                              std::span<const std::uint32_t> positions) const noexcept {
    return learned_ ? learned_->add_to(hidden, positions) : Status();
  }
  [[nodiscard]] std::span<const float> slopes() const noexcept { return alibi_.slopes(); }

 private:
  std::optional<cbq::LearnedPositions> learned_;
  cbq::AlibiPositions alibi_;
};

using LlamaBlock = cbq::LlamaBlock<EngineLinear>;
using OptBlock = cbq::OptBlock<EngineLinear, PlainPositions>;
using LlamaModel = cbq::CausalModel<LlamaBlock>;
using OptModel = cbq::CausalModel<OptBlock>;
using AnyModel = std::variant<LlamaModel, OptModel>;

cbq::ModelShape shape_of(const ModelConfig& config) {
  return {config.vocabulary, config.hidden, config.layers, config.context};
}

cbq::LlamaConfig llama_config(const ModelConfig& config, const cbq::Grid& heads) {
  return {.shape = shape_of(config),
          .intermediate = config.intermediate,
          .attention = {config.heads, config.kv_heads, config.head_width},
          .norm_epsilon = static_cast<float>(config.norm_epsilon),
          .rotary = config.rotary,
          .head_grid = heads};
}

cbq::OptConfig opt_config(const ModelConfig& config, const cbq::Grid& heads) {
  return {.shape = shape_of(config),
          .intermediate = config.intermediate,
          .heads = config.heads,
          .activation = config.activation,
          .norm_epsilon = static_cast<float>(config.norm_epsilon),
          .head_grid = heads};
}

// The grid of queries, keys and values that a checkpoint was made for.
Result<cbq::Grid> head_grid(const cbq::QuantizationRecord& record) {
  if (!record.notes.contains(attention_bits_key)) return cbq::Grid{};
  const Result<std::uint64_t> bits = cbq::json_unsigned(record.notes, attention_bits_key);
  if (!bits) return bits.error();
  return cbq::attention_grid(static_cast<int>(std::min<std::uint64_t>(*bits, 99)));
}

// Builds the parts of a model from its files.
class Loader {
 public:
  /// `cache` may be null: then packed weights have memory of their own.
  Loader(const ModelSource& source, const LoadOptions& options, const cbq::QuantizationRecord& record,
         const PackedCache* cache)
      : source_(source), options_(options), record_(record), cache_(cache) {}

  Result<AnyModel> load() {
    const ModelConfig& config = source_.config();
    if (const Status known = check_inputs(); !known) return known.error();
    const Result<cbq::Grid> heads = head_grid(record_);
    if (!heads) return cbq::in_context(heads.error(), "config.json");
    heads_ = *heads;
    if (config.architecture == Architecture::llama) {
      return load_model<LlamaBlock>(llama_config(config, heads_),
                                    [this](std::size_t layer) { return llama_block(layer); });
    }
    return load_model<OptBlock>(opt_config(config, heads_), [this](std::size_t layer) { return opt_block(layer); });
  }

  [[nodiscard]] std::size_t weight_bytes() const { return weight_bytes_; }

 private:
  Result<FloatMatrix> vector(const std::string& name, std::size_t size) const {
    return source_.read_matrix(name, 1, size);
  }

  static std::span<const float> values(const FloatMatrix& matrix) {
    return {matrix.memory.data(), matrix.memory.size()};
  }

  // A rotation or a clip that no linear layer has would be left out.
  Status check_inputs() const {
    std::vector<MatrixModule> modules = all_block_modules(source_.config());
    if (!source_.config().tied) modules.push_back(head_module(source_.config()));
    const auto find = [&](const std::string& name) {
      return std::find_if(modules.begin(), modules.end(),
                          [&](const MatrixModule& module) { return module.name == name; });
    };
    for (const cbq::ModuleClip& clip : record_.clips) {
      if (find(clip.module) != modules.end()) continue;
      return Error{Errc::unsupported, "no linear layer has clipped activations", "cbq.activation_clips", clip.module};
    }
    for (const cbq::ModuleRotation& rotation : record_.rotations) {
      const auto found = find(rotation.module);
      if (found == modules.end()) {
        return Error{Errc::unsupported, "the input of no linear layer is rotated", "cbq.input_rotations",
                     rotation.module};
      }
      if (const std::size_t block = cbq::hadamard_size(found->inputs); block != rotation.block) {
        return Error{Errc::unsupported, "inputs are rotated in blocks of another size", rotation.module, rotation.block,
                     block};
      }
    }
    return {};
  }

  Result<EngineLinear> matrix(const MatrixModule& module, Operation operation) {
    if (const Status ok = check_interrupt(); !ok) return ok.error();
    FloatMatrix bias;
    if (module.has_bias) {
      Result<FloatMatrix> stored = vector(module.name + ".bias", module.outputs);
      if (!stored) return stored.error();
      bias = *std::move(stored);
    }
    const bool rotated = cbq::find_rotation(record_, module.name) != nullptr;
    const OperatorRole role{operation, options_.profile,
                            rotated ? cbq::InputRotation::hadamard : cbq::InputRotation::none,
                            options_.observe ? options_.observe(module) : nullptr};
    const cbq::ModuleScheme* quantized = cbq::find_module(record_, module.name);
    Result<EngineLinear> op = quantized != nullptr ? quantized_matrix(module, quantized->scheme, values(bias), role)
                                                   : dense_matrix(module, values(bias), role);
    if (!op) return in_module(op.error(), module.name);
    if (const cbq::ModuleClip* learned = cbq::find_clip(record_, module.name); learned != nullptr) {
      const Status clipped = op->clip_activations(learned->clip);
      if (!clipped) return in_module(clipped.error(), module.name);
    }
    if (quantized != nullptr && quantized->ranges == cbq::ActivationRanges::fixed) {
      const Status fixed = fix_activations(module, quantized->scheme.activation, *op);
      if (!fixed) return in_module(fixed.error(), module.name);
    }
    weight_bytes_ += op->info().bytes;
    return op;
  }

  Status fix_activations(const MatrixModule& module, const cbq::Grid& grid, EngineLinear& op) const {
    const Result<cbq::StaticGrid> fixed = cbq::read_input_grid(*source_.checkpoint(), module.name, grid);
    return fixed ? op.fix_activations(*fixed) : Status(fixed.error());
  }

  Result<EngineLinear> dense_matrix(const MatrixModule& module, std::span<const float> bias, OperatorRole role) {
    const std::string name = module.name + ".weight";
    const Result<FloatMatrix> weights = source_.read_matrix(name, module.outputs, module.inputs);
    if (!weights) return weights.error();
    const std::string_view type = source_.find(name)->type;
    const DenseStorage storage = type == "F16"    ? DenseStorage::float16
                                 : type == "BF16" ? DenseStorage::bfloat16
                                                  : DenseStorage::float32;
    return EngineLinear::dense(cbq::as_const(weights->view), storage, bias, role);
  }

  Result<EngineLinear> quantized_matrix(const MatrixModule& module, const cbq::Scheme& scheme,
                                        std::span<const float> bias, OperatorRole role) {
    if (options_.on_load != nullptr) {
      const Result<cbq::QuantizedMatrix> codes = options_.on_load->quantize(module, scheme.weight);
      if (!codes) return codes.error();
      return EngineLinear::quantized(codes->view(), scheme, bias, options_.operators, role);
    }
    if (cache_ != nullptr) {
      const Result<cbq::PackedMatrix> packed = cache_->matrix(module, scheme);
      if (!packed) return packed.error();
      return EngineLinear::packed(*packed, scheme, bias, role);
    }
    const Result<cbq::StoredMatrix> codes = cbq::StoredMatrix::read(*source_.checkpoint(), module.name, scheme.weight);
    if (!codes) return codes.error();
    const cbq::QuantizedMatrixView view = codes->view();
    if (view.codes.rows != module.outputs || view.codes.columns != module.inputs) {
      return Error{Errc::bad_shape, "a tensor has the wrong shape", module.name + ".weight_shape",
                   ErrorText("[") << view.codes.rows << ", " << view.codes.columns << "]",
                   ErrorText("[") << module.outputs << ", " << module.inputs << "]"};
    }
    return EngineLinear::quantized(view, scheme, bias, options_.operators, role);
  }

  // The same error, with the module's name unless it names a tensor of it already.
  static Error in_module(const Error& error, std::string_view name) {
    const std::string_view where(error.where.c_str(), error.where.size);
    return where.starts_with(name) ? error : cbq::in_context(error, name);
  }

  Result<cbq::AttentionParts<EngineLinear>> attention(const std::vector<MatrixModule>& modules) {
    constexpr Operation kind = Operation::attention_projections;
    Result<EngineLinear> query = matrix(modules[0], kind);
    if (!query) return query.error();
    Result<EngineLinear> key = matrix(modules[1], kind);
    if (!key) return key.error();
    Result<EngineLinear> value = matrix(modules[2], kind);
    if (!value) return value.error();
    Result<EngineLinear> output = matrix(modules[3], kind);
    if (!output) return output.error();
    return cbq::AttentionParts<EngineLinear>{*std::move(query), *std::move(key), *std::move(value), *std::move(output)};
  }

  template <class N>
  Result<N> norm(const std::string& name) const {
    const ModelConfig& config = source_.config();
    const Result<FloatMatrix> weight = vector(name + ".weight", config.hidden);
    if (!weight) return weight.error();
    const auto epsilon = static_cast<float>(config.norm_epsilon);
    if constexpr (std::is_same_v<N, cbq::RmsNorm>) {
      return N::create(values(*weight), epsilon);
    } else {
      const Result<FloatMatrix> bias = vector(name + ".bias", config.hidden);
      if (!bias) return bias.error();
      return N::create(values(*weight), values(*bias), epsilon);
    }
  }

  Result<LlamaBlock> llama_block(std::size_t layer) {
    const std::string name = block_name(source_.config(), layer);
    const std::vector<MatrixModule> modules = block_modules(source_.config(), layer);
    Result<cbq::RmsNorm> first = norm<cbq::RmsNorm>(name + ".input_layernorm");
    if (!first) return first.error();
    auto attended = attention(modules);
    if (!attended) return attended.error();
    Result<cbq::RmsNorm> second = norm<cbq::RmsNorm>(name + ".post_attention_layernorm");
    if (!second) return second.error();
    Result<EngineLinear> gate = matrix(modules[4], Operation::mlp_projections);
    if (!gate) return gate.error();
    Result<EngineLinear> up = matrix(modules[5], Operation::mlp_projections);
    if (!up) return up.error();
    Result<EngineLinear> down = matrix(modules[6], Operation::mlp_projections);
    if (!down) return down.error();
    return LlamaBlock::create(llama_config(source_.config(), heads_),
                              {*std::move(first),
                               *std::move(attended),
                               *std::move(second),
                               {*std::move(gate), *std::move(up), *std::move(down)}});
  }

  Result<OptBlock> opt_block(std::size_t layer) {
    const std::vector<MatrixModule> modules = block_modules(source_.config(), layer);
    const std::vector<std::string> norms = norm_names(source_.config());
    Result<cbq::LayerNorm> first = norm<cbq::LayerNorm>(norms[2 * layer]);
    if (!first) return first.error();
    auto attended = attention(modules);
    if (!attended) return attended.error();
    Result<cbq::LayerNorm> second = norm<cbq::LayerNorm>(norms[2 * layer + 1]);
    if (!second) return second.error();
    Result<EngineLinear> up = matrix(modules[4], Operation::mlp_projections);
    if (!up) return up.error();
    Result<EngineLinear> down = matrix(modules[5], Operation::mlp_projections);
    if (!down) return down.error();
    return OptBlock::create(
        opt_config(source_.config(), heads_),
        {*std::move(first), *std::move(attended), *std::move(second), {*std::move(up), *std::move(down)}});
  }

  Result<cbq::RotaryPositions> positions(const cbq::LlamaConfig& config) const {
    return cbq::RotaryPositions::create(config);
  }
  Result<PlainPositions> positions(const cbq::OptConfig& config) const {
    if (source_.config().architecture == Architecture::bloom) {
      Result<cbq::AlibiPositions> alibi = cbq::AlibiPositions::create(config);
      return alibi ? Result<PlainPositions>(PlainPositions(*std::move(alibi))) : alibi.error();
    }
    const FloatTensor tensor = position_tensor(source_.config());
    const Result<FloatMatrix> table = source_.read_matrix(tensor.name, tensor.rows, tensor.columns);
    if (!table) return table.error();
    Result<cbq::LearnedPositions> learned = cbq::LearnedPositions::create(cbq::as_const(table->view));
    return learned ? Result<PlainPositions>(PlainPositions(*std::move(learned))) : learned.error();
  }

  template <class Block, class LoadBlock>
  Result<AnyModel> load_model(const typename Block::Config& config, const LoadBlock& load_block) {
    const ModelConfig& sizes = source_.config();
    std::vector<Block> blocks;
    blocks.reserve(sizes.layers);
    for (std::size_t layer = 0; layer < sizes.layers; ++layer) {
      Result<Block> block = load_block(layer);
      if (!block) return block.error();
      blocks.push_back(*std::move(block));
    }
    auto placed = positions(config);
    if (!placed) return placed.error();
    auto final_norm = norm<typename Block::FinalNorm>(norm_names(sizes).back());
    if (!final_norm) return final_norm.error();
    Result<EngineLinear> embedding = matrix(embedding_module(sizes), Operation::head);
    if (!embedding) return embedding.error();
    cbq::CausalModelParts<Block> parts{.embedding = std::nullopt,
                                       .positions = *std::move(placed),
                                       .blocks = std::move(blocks),
                                       .final_norm = *std::move(final_norm),
                                       .head = *std::move(embedding)};
    if (!sizes.tied) {
      Result<EngineLinear> head = matrix(head_module(sizes), Operation::head);
      if (!head) return head.error();
      parts.embedding = std::exchange(parts.head, *std::move(head));
    }
    if (const std::string name = embedding_norm_name(sizes); !name.empty()) {
      auto embedded = norm<typename Block::FinalNorm>(name);
      if (!embedded) return embedded.error();
      parts.embedding_norm = *std::move(embedded);
    }
    Result<cbq::CausalModel<Block>> model = cbq::CausalModel<Block>::create(config, std::move(parts));
    if (!model) return model.error();
    return AnyModel(*std::move(model));
  }

  const ModelSource& source_;
  const LoadOptions& options_;
  const cbq::QuantizationRecord& record_;
  const PackedCache* cache_;
  cbq::Grid heads_ = {};  // of queries, keys and values
  std::size_t weight_bytes_ = 0;
};

std::string lower_case(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

// The common scheme of the blocks' linear layers, in words.
std::string scheme_of(const ModelSource& source, const cbq::QuantizationRecord& record) {
  std::string common;
  for (const MatrixModule& module : all_block_modules(source.config())) {
    const cbq::ModuleScheme* quantized = cbq::find_module(record, module.name);
    std::string name;
    if (quantized != nullptr) {
      name = cbq::scheme_name(quantized->scheme).c_str();
    } else if (const auto stored = source.find(module.name + ".weight")) {
      name = lower_case(stored->type);
    }
    if (common.empty()) common = name;
    if (common != name) return "mixed";
  }
  return common;
}

// See Model::activation_bits().
int activation_bits_of(const ModelSource& source, const cbq::QuantizationRecord& record) {
  int most = 0;
  for (const MatrixModule& module : all_block_modules(source.config())) {
    const cbq::ModuleScheme* quantized = cbq::find_module(record, module.name);
    if (quantized == nullptr || quantized->scheme.activation.bits == 16) continue;
    most = std::max(most, quantized->scheme.activation.bits);
  }
  return most;
}

}  // namespace

struct Model::State {
  std::optional<PackedCache> cache;  ///< outlives the operators that look into it
  AnyModel model;
  ModelConfig config;
  std::string scheme;
  int activation_bits = 0;
  std::string method = "none";
  std::size_t calibration_tokens = 0;
  std::size_t weight_bytes = 0;
};

Model::Model(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

static Result<PackedCache> open_cache(const ModelSource& source, const LoadOptions& options,
                                      const cbq::QuantizationRecord& record) {
  if (options.operators != Operators::packed || options.on_load != nullptr) {
    return Error{Errc::bad_argument, "a packed cache is for packed operators of a model as its files are", "",
                 options.packed_cache.path};
  }
  return PackedCache::open(source, record, options.packed_cache);
}

Result<Model> Model::load(const ModelSource& source, const LoadOptions& options) {
  cbq::QuantizationRecord record;
  if (options.on_load != nullptr) {
    record = options.on_load->record;
  } else if (!source.is_gguf()) {
    const auto modules = cbq::packed_modules(*source.checkpoint());
    Result<cbq::QuantizationRecord> read = cbq::parse_quantization(source.json(), modules);
    if (!read) return cbq::in_context(read.error(), source.path());
    record = *std::move(read);
  }
  std::optional<PackedCache> cache;
  if (!options.packed_cache.path.empty()) {
    Result<PackedCache> opened = open_cache(source, options, record);
    if (!opened) return opened.error();
    cache.emplace(*std::move(opened));
  }
  Loader loader(source, options, record, cache ? &*cache : nullptr);
  Result<AnyModel> model = loader.load();
  if (!model) return model.error();
  State state{.cache = std::move(cache),
              .model = *std::move(model),
              .config = source.config(),
              .scheme = scheme_of(source, record),
              .activation_bits = activation_bits_of(source, record),
              .weight_bytes = loader.weight_bytes()};
  if (!record.modules.empty()) {
    state.method = record.method;
    const auto tokens = cbq::json_unsigned(record.notes, "calibration_tokens");
    if (tokens) state.calibration_tokens = *tokens;
  }
  return Model(std::make_unique<State>(std::move(state)));
}

const ModelConfig& Model::config() const {
  return state_->config;
}
const std::string& Model::scheme() const {
  return state_->scheme;
}
int Model::activation_bits() const {
  return state_->activation_bits;
}
const std::string& Model::method() const {
  return state_->method;
}
std::size_t Model::calibration_tokens() const {
  return state_->calibration_tokens;
}
std::size_t Model::weight_bytes() const {
  return state_->weight_bytes;
}

struct Session::State {
  State(const Model::State& its_model, const Machine& machine)
      : model(its_model), executor(make_executor(machine.threads)), context(executor, machine.isa) {}

  const Model::State& model;
  ToolExecutor executor;
  EngineLinear::Context context;
  cbq::ModelCache<LayerKv> cache;
  std::size_t piece = 0;  // tokens that the cache takes at once; 0: all
  std::vector<std::uint32_t> tokens;
  std::vector<std::uint32_t> survivors;
  std::vector<float> hidden;
  std::vector<float> logits;
};

Session::Session(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Result<Session> Session::create(const Model& model, std::size_t capacity, const Machine& machine, const KvOptions& kv) {
  if (capacity == 0 || capacity > model.config().context) {
    return Error{Errc::bad_argument, "the sequence does not fit the model's context", "tokens", capacity,
                 ErrorText("1 to ") << model.config().context};
  }
  auto state = std::make_unique<State>(*model.state_, machine);
  Result<cbq::ModelCache<LayerKv>> cache = make_kv_cache(model.config(), capacity, kv);
  if (!cache) return cache.error();
  state->cache = *std::move(cache);
  if (kv.scheme.bits < 16 && kv.use == KvUse::decoding) state->piece = kv_prompt_piece;
  return Session(std::move(state));
}

void Session::reset() {
  state_->cache.reset();
}

void Session::truncate(std::size_t size) {
  state_->cache.truncate(size);
}

std::size_t Session::size() const {
  return state_->cache.size();
}

// Makes room for the hidden states of tokens, too.
Status Session::read_tokens(std::span<const std::int32_t> tokens) {
  for (const std::int32_t token : tokens) {
    if (token < 0) return Error{Errc::bad_argument, "a token id is negative", "token", token};
  }
  state_->tokens.assign(tokens.begin(), tokens.end());
  const std::size_t size = tokens.size() * state_->model.config.hidden;
  if (state_->hidden.size() < size) state_->hidden.resize(size);
  return {};
}

Result<MatrixView<const float>> Session::forward(std::span<const std::int32_t> tokens, const Observer& observer) {
  if (const Status read = read_tokens(tokens); !read) return read.error();
  const std::size_t width = state_->model.config.hidden;
  const MatrixView<float> hidden = cbq::matrix_view(state_->hidden.data(), tokens.size(), width);
  const Status done = std::visit(
      [&](const auto& model) {
        if (observer == nullptr) return model.forward_hidden(state_->tokens, state_->cache, hidden, state_->context);
        return model.forward_hidden(state_->tokens, state_->cache, hidden, state_->context, observer);
      },
      state_->model.model);
  if (!done) return done.error();
  return cbq::as_const(hidden);
}

Result<Session::Survivors> Session::forward_pruned(std::span<const std::int32_t> tokens,
                                                   const cbq::ScheduledPruning& policy) {
  if (const Status read = read_tokens(tokens); !read) return read.error();
  const std::size_t past = size();
  const std::size_t width = state_->model.config.hidden;
  const MatrixView<float> hidden = cbq::matrix_view(state_->hidden.data(), tokens.size(), width);
  state_->survivors.resize(tokens.size());
  const Result<std::size_t> left = std::visit(
      [&](const auto& model) {
        return model.forward_pruned(state_->tokens, state_->cache, {hidden, state_->survivors}, policy,
                                    state_->context);
      },
      state_->model.model);
  if (!left) return left.error();
  const std::size_t layers = state_->cache.layers();
  std::size_t kept = *left;
  for (std::size_t i = 1; i < layers; ++i) {
    for (std::size_t p = past; p < size(); ++p) kept += state_->cache.holds(i, p) ? 1u : 0u;
  }
  return Survivors{cbq::as_const(cbq::rows(hidden, 0, *left)), std::span(state_->survivors).first(*left),
                   1 - static_cast<double>(kept) / static_cast<double>(layers * tokens.size())};
}

Status Session::logits(const MatrixView<const float>& hidden, const MatrixView<float>& logits) {
  return std::visit([&](const auto& model) { return model.logits(hidden, logits, state_->context); },
                    state_->model.model);
}

Result<std::span<const float>> Session::next_logits(std::span<const std::int32_t> tokens,
                                                    const cbq::ScheduledPruning* policy) {
  if (tokens.empty()) return Error{Errc::bad_argument, "no token to continue from", "tokens", 0, "at least 1"};
  const std::size_t past = size();
  const std::size_t piece = state_->piece == 0 ? tokens.size() : state_->piece;
  const auto pass = [&](std::span<const std::int32_t> some) -> Result<MatrixView<const float>> {
    if (policy == nullptr) return forward(some);
    const Result<Survivors> left = forward_pruned(some, *policy);
    if (!left) return left.error();
    return left->hidden;
  };
  while (tokens.size() > piece) {
    const Status go = check_interrupt();
    const auto done = go ? pass(tokens.first(piece)) : Result<MatrixView<const float>>(go.error());
    if (!done) {
      truncate(past);
      return done.error();
    }
    tokens = tokens.subspan(piece);
  }
  const Result<MatrixView<const float>> hidden = pass(tokens);
  if (!hidden) {
    truncate(past);
    return hidden.error();
  }
  state_->logits.resize(state_->model.config.vocabulary);
  const MatrixView<float> out = cbq::matrix_view(state_->logits.data(), 1, state_->logits.size());
  if (const Status done = logits(cbq::rows(*hidden, hidden->rows - 1, 1), out); !done) return done.error();
  return std::span<const float>(state_->logits);
}

}  // namespace cbq_llama
