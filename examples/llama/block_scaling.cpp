// SPDX-License-Identifier: Apache-2.0
#include "block_scaling.hpp"

#include <utility>

#include <cbq/transform/channel_scaling.hpp>

namespace cbq_llama {

using cbq::LinearWeights;
using cbq::Result;
using cbq::Status;

bool scales_last_input(const ModelConfig& config) {
  return config.architecture == Architecture::llama ||
         (config.architecture == Architecture::opt && config.activation == cbq::Activation::relu);
}

Result<BlockWeights> BlockWeights::read(const ChangedWeights& weights, std::size_t layer) {
  BlockWeights block;
  block.config_ = weights.config();
  const ModelConfig& config = block.config_;
  const std::vector<MatrixModule> modules = block_modules(config, layer);
  for (const MatrixModule& module : modules) {
    if (const Status done = block.add(weights, module.name + ".weight", module.outputs, module.inputs); !done)
      return done.error();
    if (!module.has_bias) continue;
    if (const Status done = block.add(weights, module.name + ".bias", 1, module.outputs); !done) return done.error();
  }
  const std::vector<std::string> names = norm_names(config);
  for (const FloatTensor& tensor : norm_tensors(config)) {
    const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
    if (module != names[2 * layer] && module != names[2 * layer + 1]) continue;
    if (const Status done = block.add(weights, tensor.name, 1, config.hidden); !done) return done.error();
  }
  for (const MatrixModule& module : modules) {
    block.linears_.push_back({block.tensors_.at(module.name + ".weight").view, block.vector(module.name + ".bias")});
  }
  for (const std::string& name : {names[2 * layer], names[2 * layer + 1]}) {
    block.norms_.push_back({block.vector(name + ".weight"), block.vector(name + ".bias")});
  }
  return block;
}

Status BlockWeights::add(const ChangedWeights& weights, const std::string& name, std::size_t rows,
                         std::size_t columns) {
  Result<FloatMatrix> matrix = weights.read_matrix(name, rows, columns);
  if (!matrix) return matrix.error();
  tensors_.emplace(name, *std::move(matrix));
  return {};
}

std::span<float> BlockWeights::vector(const std::string& name) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return {};
  return {found->second.memory.data(), found->second.memory.size()};
}

Status BlockWeights::scale_inputs(const InputFactors& factors) {
  const std::span<const LinearWeights<float>> all(linears_);
  const std::size_t down = all.size() - 1;
  const auto scale = [&](std::size_t reader, const auto& producer,
                         std::span<const LinearWeights<float>> readers) -> Status {
    const Result<std::vector<float>> found = factors(reader, readers);
    if (!found) return found.error();
    return found->empty() ? Status() : cbq::scale_channels(producer, readers, std::span<const float>(*found));
  };
  if (const Status done = scale(0, norms_[0], all.first(3)); !done) return done;
  if (const Status done = scale(4, norms_[1], all.subspan(4, down - 4)); !done) return done;
  // What makes the input of the last matrix is the matrix before it: up, or fc1.
  if (scales_last_input(config_)) {
    if (const Status done = scale(down, all[down - 1], all.last(1)); !done) return done;
  }
  Result<std::vector<float>> values = factors(3, all.subspan(3, 1));
  if (!values) return values.error();
  if (values->empty()) return {};
  const cbq::ValueHeads heads = {config_.heads, config_.kv_heads, config_.head_width};
  return cbq::scale_value_channels(all[2], all[3], heads, std::span<float>(*values));
}

void BlockWeights::store(ChangedWeights& weights) && {
  for (auto& [name, matrix] : tensors_) weights.replace(name, std::move(matrix));
}

}  // namespace cbq_llama
