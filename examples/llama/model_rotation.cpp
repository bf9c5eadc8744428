// SPDX-License-Identifier: Apache-2.0
#include "model_rotation.hpp"

#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model_layout.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

namespace {

// All weights of a model, to be changed in place.
class ModelTensors {
 public:
  static Result<ModelTensors> read(const ChangedWeights& weights) {
    const ModelConfig& config = weights.config();
    ModelTensors all;
    Status done;
    const auto add = [&](const std::string& name, const std::string& from, std::size_t rows, std::size_t columns) {
      if (!done) return;
      Result<FloatMatrix> matrix = weights.read_matrix(from, rows, columns);
      if (!matrix) {
        done = matrix.error();
        return;
      }
      all.tensors_.emplace(name, *std::move(matrix));
    };
    for (const MatrixModule& module : all_block_modules(config)) {
      add(module.name + ".weight", module.name + ".weight", module.outputs, module.inputs);
      if (module.has_bias) add(module.name + ".bias", module.name + ".bias", 1, module.outputs);
    }
    const MatrixModule embedding = embedding_module(config), head = head_module(config);
    const std::string& from = config.tied ? embedding.name : head.name;
    add(embedding.name + ".weight", embedding.name + ".weight", embedding.outputs, embedding.inputs);
    add(head.name + ".weight", from + ".weight", head.outputs, head.inputs);
    for (const FloatTensor& tensor : norm_tensors(config)) add(tensor.name, tensor.name, 1, tensor.columns);
    const FloatTensor positions = position_tensor(config);
    if (!positions.name.empty()) add(positions.name, positions.name, positions.rows, positions.columns);
    if (!done) return done.error();
    return all;
  }

  [[nodiscard]] cbq::MatrixView<float> matrix(const std::string& name) {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? cbq::MatrixView<float>() : found->second.view;
  }
  [[nodiscard]] cbq::LinearWeights<float> linear(const MatrixModule& module) {
    return {matrix(module.name + ".weight"), vector(module.name + ".bias")};
  }
  [[nodiscard]] cbq::NormWeights<float> norm(const std::string& name) {
    return {vector(name + ".weight"), vector(name + ".bias")};
  }
  void store(ChangedWeights& weights) && {
    for (auto& [name, matrix] : tensors_) weights.replace(name, std::move(matrix));
  }

 private:
  [[nodiscard]] std::span<float> vector(const std::string& name) {
    const cbq::MatrixView<float> found = matrix(name);
    return {found.data, found.rows * found.columns};
  }

  std::map<std::string, FloatMatrix> tensors_;
};

std::vector<cbq::DecoderLayerWeights<float>> layers_of(const ModelConfig& config, const std::vector<std::string>& norms,
                                                       ModelTensors& tensors) {
  std::vector<cbq::DecoderLayerWeights<float>> layers;
  for (std::size_t i = 0; i < config.layers; ++i) {
    const std::vector<MatrixModule> modules = block_modules(config, i);
    cbq::DecoderLayerWeights<float> layer;
    layer.attention_norm = tensors.norm(norms[2 * i]);
    layer.query = tensors.linear(modules[0]);
    layer.key = tensors.linear(modules[1]);
    layer.value = tensors.linear(modules[2]);
    layer.output = tensors.linear(modules[3]);
    layer.mlp_norm = tensors.norm(norms[2 * i + 1]);
    if (modules.size() == 7) layer.gate = tensors.linear(modules[4]);  // LLaMA
    layer.up = tensors.linear(modules[modules.size() - 2]);
    layer.down = tensors.linear(modules.back());
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace

Status rotate_model(Rotation rotation, std::uint64_t seed, const ToolExecutor& executor, ChangedWeights& weights) {
  if (rotation == Rotation::none) return {};
  const ModelConfig& config = weights.config();
  Result<ModelTensors> tensors = ModelTensors::read(weights);
  if (!tensors) return tensors.error();
  const std::vector<std::string> norms = norm_names(config);
  const auto layers = layers_of(config, norms, *tensors);
  const cbq::DecoderWeights<float> views = {.embedding = tensors->matrix(embedding_module(config).name + ".weight"),
                                            .positions = tensors->matrix(position_tensor(config).name),
                                            .layers = layers,
                                            .final_norm = tensors->norm(norms.back()),
                                            .head = tensors->linear(head_module(config)),
                                            .value_heads = {config.heads, config.kv_heads, config.head_width}};
  const cbq::DecoderRotationOptions options = {
      .norms = config.architecture == Architecture::llama ? cbq::NormKind::rms : cbq::NormKind::layer,
      .parts = rotation == Rotation::full ? cbq::RotationParts::residual_values_and_down
                                          : cbq::RotationParts::residual_and_values,
      .seed = seed};
  if (const Status done = cbq::rotate_decoder(views, options, executor); !done) return done;
  (*std::move(tensors)).store(weights);
  weights.untie();
  return {};
}

}  // namespace cbq_llama
