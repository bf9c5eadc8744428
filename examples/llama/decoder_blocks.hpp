// SPDX-License-Identifier: Apache-2.0
#pragma once

// Blocks of a checkpoint with a backward pass, made of linear layers of the caller's choice.

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cbq/gemm/extern_kernels.hpp>
#include <cbq/nn/activation_site.hpp>
#include <cbq/nn/block_gradient.hpp>
#include <cbq/nn/bloom_block.hpp>
#include <cbq/nn/rotated_site.hpp>
#include <cbq/nn/self_attention.hpp>
#include <cbq/quant/activation_range.hpp>
#include <cbq/rounding/input_moments.hpp>
#include <cbq/transform/channel_statistics.hpp>

#include "changed_weights.hpp"
#include "quantization.hpp"

namespace cbq_llama {

using Site = cbq::RotatedSite<cbq::ActivationSite<float>>;

/// What is told about the inputs of a linear layer; each may be null.
struct InputObserver {
  cbq::InputMoments* moments = nullptr;
  cbq::ChannelStatistics<float>* statistics = nullptr;
  cbq::ActivationRange* range = nullptr;
};

/// A linear layer with constant weights that are kept elsewhere; forward passes show their inputs to the observer.
class ObservedLinear {
 public:
  using Scalar = float;
  ObservedLinear(const cbq::MatrixView<const float>& weights, std::span<const float> bias) : dense_(weights, bias) {}

  [[nodiscard]] std::size_t outputs() const noexcept { return dense_.outputs(); }
  [[nodiscard]] std::size_t inputs() const noexcept { return dense_.inputs(); }
  void observe(const InputObserver& observer) { observer_ = observer; }

  template <cbq::Executor E>
  [[nodiscard]] cbq::Status forward(const cbq::MatrixView<const float>& x, const cbq::MatrixView<float>& y,
                                    cbq::ExecutionContext<E>& context) const {
    if (observer_.moments != nullptr) {
      if (const cbq::Status added = observer_.moments->add(x, context.executor()); !added) return added;
    }
    if (observer_.statistics != nullptr) {
      if (const cbq::Status added = observer_.statistics->add(x, "inputs", context.executor()); !added) return added;
    }
    if (observer_.range != nullptr) {
      if (const cbq::Status added = observer_.range->add(x); !added) return added;
    }
    return dense_.forward(x, y, context);
  }
  template <cbq::Executor E>
  [[nodiscard]] cbq::Status backward(const cbq::MatrixView<const float>& dy, const cbq::MatrixView<const float>& x,
                                     const cbq::MatrixView<float>& dx, cbq::Accumulate accumulate,
                                     cbq::ExecutionContext<E>& context) const {
    return dense_.backward(dy, x, dx, accumulate, context);
  }

 private:
  cbq::DenseGradient<float> dense_;
  InputObserver observer_;
};

/// A block and the memory that its parts look at.
template <class Block>
class OwningBlock {
 public:
  using Scalar = float;
  using Tape = typename Block::Tape;

  OwningBlock(std::vector<FloatMatrix> memory, Block block) : memory_(std::move(memory)), block_(std::move(block)) {}

  template <cbq::Executor E>
  [[nodiscard]] cbq::Status forward(const cbq::MatrixView<const float>& x, std::size_t length,
                                    const cbq::MatrixView<float>& y, Tape& tape,
                                    cbq::ExecutionContext<E>& context) const {
    return block_.forward(x, length, y, tape, context);
  }
  template <cbq::Executor E>
  [[nodiscard]] cbq::Status backward(const cbq::MatrixView<const float>& dy, const cbq::MatrixView<const float>& x,
                                     std::size_t length, Tape& tape, const cbq::MatrixView<float>& dx,
                                     cbq::ExecutionContext<E>& context) {
    return block_.backward(dy, x, length, tape, dx, context);
  }
  template <class F>
  void for_each_linear(F&& f) {
    block_.for_each_linear(f);
  }
  template <class F>
  void for_each_activation(F&& f) {
    block_.for_each_activation(f);
  }
  template <class F>
  void for_each_cache(F&& f) {
    block_.for_each_cache(f);
  }
  [[nodiscard]] Block& inner() noexcept { return block_; }

 private:
  std::vector<FloatMatrix> memory_;
  Block block_;
};

/// Opens blocks of a model of architecture A; those of BLOOM are opened as OPT's. The weights must outlive what is
/// opened, and so must the opener.
template <Architecture A>
class BlockOpener {
 public:
  template <class L>
  using Inner =
      std::conditional_t<A == Architecture::llama, cbq::LlamaBlockGradient<L, Site>, cbq::OptBlockGradient<L, Site>>;
  template <class L>
  using Block = OwningBlock<Inner<L>>;
  using Norm = std::conditional_t<A == Architecture::llama, cbq::RmsNormGradient<float>, cbq::LayerNormGradient<float>>;
  using Memory = std::vector<FloatMatrix>;

  /// For sequences of up to `length` tokens.
  static cbq::Result<BlockOpener> create(const ModelConfig& config, std::size_t length) {
    BlockOpener opener(config);
    if constexpr (A == Architecture::llama) {
      cbq::Result<cbq::RotaryTable> table = cbq::RotaryTable::create(config.rotary, config.head_width, length);
      if (!table) return table.error();
      opener.rotary_ = *std::move(table);
    }
    for (std::size_t h = 0; h < config.heads && config.architecture == Architecture::bloom; ++h) {
      opener.slopes_.push_back(cbq::alibi_slope(h, config.heads));
    }
    return opener;
  }

  /// Block `layer` of linear layers and sites that make_linear(module, memory) and make_site(module) give; `heads` is
  /// the site of queries, keys and values.
  template <class L, class MakeLinear, class MakeSite>
  [[nodiscard]] cbq::Result<Block<L>> open(const ChangedWeights& weights, std::size_t layer, const MakeLinear& make,
                                           const MakeSite& make_site, const Site& heads = {}) const {
    Memory memory;
    memory.reserve(32);  // spans into it stay where they are
    std::vector<L> linears;
    std::vector<Site> sites;
    for (const MatrixModule& module : block_modules(config_, layer)) {
      cbq::Result<L> linear = make(module, memory);
      if (!linear) return linear.error();
      linears.push_back(*std::move(linear));
      const cbq::Result<Site> site = make_site(module);
      if (!site) return site.error();
      sites.push_back(*site);
    }
    const std::vector<std::string> norms = norm_names();
    cbq::Result<Norm> first = norm(weights, norms[2 * layer], memory);
    if (!first) return first.error();
    cbq::Result<Norm> second = norm(weights, norms[2 * layer + 1], memory);
    if (!second) return second.error();
    cbq::AttentionPositions positions(A == Architecture::llama ? &rotary_ : nullptr);
    positions.slopes = slopes_;
    auto attention = cbq::SelfAttentionGradient<L, Site>::create(
        {config_.heads, config_.kv_heads, config_.head_width}, positions,
        {std::move(linears[0]), std::move(linears[1]), std::move(linears[2]), std::move(linears[3]), sites[0], sites[3],
         heads});
    if (!attention) return attention.error();
    if constexpr (A == Architecture::llama) {
      auto mlp = cbq::GatedMlpGradient<L, Site>::create(
          {std::move(linears[4]), std::move(linears[5]), std::move(linears[6]), sites[4], sites[6]});
      if (!mlp) return mlp.error();
      return Block<L>(std::move(memory), {*first, *std::move(attention), *second, *std::move(mlp)});
    } else {
      auto mlp = cbq::PlainMlpGradient<L, Site>::create(
          {std::move(linears[4]), std::move(linears[5]), sites[4], sites[5]}, config_.activation);
      if (!mlp) return mlp.error();
      return Block<L>(std::move(memory), {*first, *std::move(attention), *second, *std::move(mlp)});
    }
  }

  /// A linear layer type made of weights and bias, with its weights in `memory`.
  template <class L>
  [[nodiscard]] static cbq::Result<L> dense(const ChangedWeights& weights, const MatrixModule& module, Memory& memory) {
    const auto values = keep(weights, module.name + ".weight", {module.outputs, module.inputs}, memory);
    if (!values) return values.error();
    const auto added = bias(weights, module, memory);
    if (!added) return added.error();
    return L(cbq::matrix_view(values->data(), module.outputs, module.inputs), *added);
  }

  [[nodiscard]] static cbq::Result<std::span<const float>> bias(const ChangedWeights& weights,
                                                                const MatrixModule& module, Memory& memory) {
    if (!module.has_bias) return std::span<const float>();
    return keep(weights, module.name + ".bias", {1, module.outputs}, memory);
  }

  [[nodiscard]] cbq::Result<Norm> norm(const ChangedWeights& weights, const std::string& name, Memory& memory) const {
    const auto gain = keep(weights, name + ".weight", {1, config_.hidden}, memory);
    if (!gain) return gain.error();
    if constexpr (A == Architecture::llama) {
      return Norm(*gain, config_.norm_epsilon);
    } else {
      const auto added = keep(weights, name + ".bias", {1, config_.hidden}, memory);
      if (!added) return added.error();
      return Norm(*gain, *added, config_.norm_epsilon);
    }
  }

  /// Module names of the norms, two per block, then the final one.
  [[nodiscard]] std::vector<std::string> norm_names() const { return cbq_llama::norm_names(config_); }

 private:
  struct Shape {
    std::size_t rows = 0;
    std::size_t columns = 0;
  };

  explicit BlockOpener(const ModelConfig& config) : config_(config) {}

  [[nodiscard]] static cbq::Result<std::span<const float>> keep(const ChangedWeights& weights, const std::string& name,
                                                                const Shape& shape, Memory& memory) {
    cbq::Result<FloatMatrix> matrix = weights.read_matrix(name, shape.rows, shape.columns);
    if (!matrix) return matrix.error();
    memory.push_back(*std::move(matrix));
    return std::span<const float>(memory.back().memory.data(), memory.back().memory.size());
  }

  ModelConfig config_;
  cbq::RotaryTable rotary_;
  std::vector<float> slopes_;  // of BLOOM
};

/// The scheme that `plan` has for a module. Errc::unsupported where it stays in floating point.
[[nodiscard]] inline cbq::Result<cbq::Scheme> scheme_of(std::span<const ModuleReport> plan,
                                                        const MatrixModule& module) {
  for (const ModuleReport& entry : plan) {
    if (entry.module.name == module.name && entry.scheme) return *entry.scheme;
  }
  return cbq::Error{cbq::Errc::unsupported, "this method needs a scheme for every linear layer of the blocks",
                    module.name};
}

/// The site of queries, keys and values. Errc::unsupported.
[[nodiscard]] inline cbq::Result<Site> head_site(const QuantizationOptions& options) {
  const cbq::Result<cbq::Grid> grid = cbq::attention_grid(options.attention_bits);
  if (!grid) return grid.error();
  auto site = cbq::ActivationSite<float>::create(*grid);
  if (!site) return site.error();
  return Site(*std::move(site));
}

/// The site before a module of the float model, rotated as `plan` says.
[[nodiscard]] inline Site float_site_of(std::span<const ModuleReport> plan, const MatrixModule& module) {
  for (const ModuleReport& entry : plan) {
    if (entry.module.name == module.name) return Site({}, entry.rotation);
  }
  return Site();
}

/// The site before a module of this scheme, on the grid that calibration fixed, if any. Clips of 8-bit grids stay 1:
/// learning them gains nothing.
[[nodiscard]] inline cbq::Result<Site> site_of(std::span<const ModuleReport> plan, const MatrixModule& module,
                                               cbq::ClipMultiplier clip = cbq::ClipMultiplier::fixed) {
  const cbq::Result<cbq::Scheme> scheme = scheme_of(plan, module);
  if (!scheme) return scheme.error();
  const bool learned = scheme->activation.bits == 4;
  auto site = cbq::ActivationSite<float>::create(scheme->activation, learned ? clip : cbq::ClipMultiplier::fixed);
  if (!site) return site.error();
  for (const ModuleReport& entry : plan) {
    if (entry.module.name != module.name || !entry.inputs) continue;
    if (const cbq::Status fixed = site->fix_activations(entry.inputs->grid); !fixed) return fixed.error();
  }
  return Site(*std::move(site), float_site_of(plan, module).rotation());
}

}  // namespace cbq_llama
