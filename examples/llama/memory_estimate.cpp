// SPDX-License-Identifier: Apache-2.0
#include "memory_estimate.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include <cbq/nn/attention_gradient.hpp>
#include <cbq/nn/products.hpp>
#include <cbq/reconstruct/rounding_choice.hpp>

#include "input_calibration.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Result;
using cbq::Status;

namespace {

constexpr std::size_t program = std::size_t{12} << 20;
constexpr std::size_t logits_rows = 512;  // of the loss on logits

std::size_t weights_of(const MatrixModule& module) {
  return module.outputs * module.inputs;
}

// Of one block.
struct BlockSize {
  std::size_t weights = 0;
  std::size_t scales = 0;
  std::size_t parameters = 0;  // trained
  std::size_t rounding = 0;    // bytes
  std::size_t largest = 0;     // of its matrices
  std::size_t widest = 0;      // most outputs of a layer
  bool activations = false;    // some are quantized
};

std::size_t trained(const MatrixModule& module, std::size_t groups, const cbq::RoundingChoiceOptions& options) {
  using Method = cbq::RoundingMethod;
  const std::size_t sides = module.outputs + module.inputs, given = options.rank;
  switch (options.method) {
    case Method::straight_through_low_rank:
      return groups + sides * (given != 0 ? given : cbq::StraightThroughLowRank<float>::Options{}.rank);
    case Method::lora:
      return groups + sides * (given != 0 ? given : cbq::LoraRounding<float>::Options{}.rank);
    case Method::nearest:
      return groups;
    case Method::clipping:
      return 2 * groups;
    case Method::straight_through:
    case Method::ada:
      break;
  }
  return groups + weights_of(module);
}

// The largest of each over all blocks, whose schemes may differ.
BlockSize largest_block(const ModelConfig& config, std::span<const ModuleReport> plan,
                        const QuantizationOptions& options) {
  BlockSize most;
  const std::size_t count = block_modules(config, 0).size();
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    BlockSize block;
    for (const ModuleReport& entry : plan.subspan(layer * count, count)) {
      const MatrixModule& module = entry.module;
      block.weights += weights_of(module);
      block.largest = std::max(block.largest, weights_of(module));
      block.widest = std::max(block.widest, module.outputs);
      if (!entry.scheme) continue;
      const cbq::Grid& grid = entry.scheme->weight;
      const std::size_t groups = module.outputs * cbq::group_count(grid, module.inputs);
      block.scales += groups;
      block.activations = block.activations || entry.scheme->activation.bits < 16;
      block.parameters += trained(module, groups, options.reconstruction.rounding);
      block.rounding +=
          cbq::RoundingChoice<float>::bytes_for(module.outputs, module.inputs, grid, options.reconstruction.rounding);
    }
    most.weights = std::max(most.weights, block.weights);
    most.scales = std::max(most.scales, block.scales);
    most.parameters = std::max(most.parameters, block.parameters);
    most.rounding = std::max(most.rounding, block.rounding);
    most.largest = std::max(most.largest, block.largest);
    most.widest = std::max(most.widest, block.widest);
    most.activations = most.activations || block.activations;
  }
  return most;
}

// What the forward pass of a block leaves for the backward pass, bytes per token.
std::size_t tape_bytes(const ModelConfig& config, bool quantized_inputs) {
  const std::size_t q = config.heads * config.head_width, kv = config.kv_heads * config.head_width;
  const bool llama = config.architecture == Architecture::llama, relu = config.activation == cbq::Activation::relu;
  const std::size_t inner = config.intermediate, gated = llama ? 3 : relu ? 1 : 2;
  std::size_t floats = 3 * config.hidden + 2 * (q + kv) + gated * inner;
  if (quantized_inputs) floats += 2 * config.hidden + q + inner;
  return floats * sizeof(float);
}

// Of the backward pass of a batch, whose parts follow each other.
std::size_t working_bytes(const ModelConfig& config, const BlockSize& block, std::size_t tokens, std::size_t length) {
  const std::size_t q = config.heads * config.head_width, kv = config.kv_heads * config.head_width;
  const auto outer = [](std::size_t rows, std::size_t outputs) {
    const Result<std::size_t> floats = cbq::products::outer_workspace(rows, outputs);
    return floats ? *floats : std::size_t{0};
  };
  constexpr std::size_t queries = cbq::attention_gradient::block_queries;
  const std::size_t task = 2 * queries * length + outer(queries, length);
  const std::size_t products = outer(tokens, block.widest);
  const std::size_t gated = config.architecture == Architecture::llama ? 2 : 1;
  const std::size_t mlp = tokens * gated * config.intermediate + products;
  const std::size_t attention = 2 * tokens * (q + kv) + std::max(tokens / length * config.kv_heads * task, products);
  const std::size_t rows = std::min(logits_rows, tokens);
  const std::size_t logits = rows * (3 * config.vocabulary + config.hidden);
  return sizeof(float) * std::max(tokens * config.hidden + std::max(mlp, attention), logits);
}

// What large buffers take beyond their size: they begin and end in huge pages. Of the tapes of `blocks` blocks and
// `more` matrices of hidden states.
std::size_t alignment_bytes(const ModelConfig& config, std::size_t tokens, std::size_t blocks, std::size_t more) {
  constexpr std::size_t large = std::size_t{4} << 20, matrices_of_tape = 9;
  const bool aligned = tokens * config.hidden * sizeof(float) >= large;
  return aligned ? large * (blocks * matrices_of_tape + more) : 0;
}

struct Sizes {
  std::size_t tokens = 0;  // of a batch
  std::size_t streams = 0;
  std::size_t embedding = 0;
  std::size_t codes = 0;    // of all blocks
  std::size_t changed = 0;  // by preprocessing and rotation
};

Sizes sizes_of(const ModelConfig& config, const BlockSize& block, const QuantizationOptions& options) {
  const CalibrationSettings& calibration = options.calibration;
  Sizes sizes;
  sizes.tokens = std::min(options.reconstruction.batch, calibration.samples) * calibration.sequence;
  sizes.streams = calibration.samples * calibration.sequence * config.hidden * sizeof(float);
  sizes.embedding = config.vocabulary * config.hidden * sizeof(float);
  sizes.codes = config.layers * (block.weights + 5 * block.scales);
  const std::size_t blocks = config.layers * block.weights * sizeof(float);
  const bool preprocessed = options.preprocessing != Preprocessing::none;
  if (preprocessed || options.activations.largest_exponent != 0) sizes.changed = blocks;
  // The whole model, and before it what was preprocessed, behind it the float model in the same basis.
  if (rotation_of(config, options) != Rotation::none) {
    sizes.changed = (preprocessed ? 2 : 1) * (blocks + 2 * sizes.embedding);
  }
  return sizes;
}

MemoryEstimate estimate_reconstruction(const ModelConfig& config, const BlockSize& block,
                                       const QuantizationOptions& options) {
  const ReconstructionSettings& settings = options.reconstruction;
  const Sizes sizes = sizes_of(config, block, options);
  const std::size_t blocks = std::min(settings.windows.size, config.layers);
  const std::size_t open = settings.trained == cbq::TrainedBlocks::all ? blocks : 1;  // the others stay in float
  // What is left of keys and values, and gradients of those that are exact.
  const std::size_t cached = cbq::is_float(options.cache.scheme) ? 0 : 4 * config.kv_heads * config.head_width;
  const std::size_t tape = sizes.tokens * (tape_bytes(config, block.activations) + sizeof(float) * cached);
  MemoryEstimate estimate;
  estimate.weights = open * (2 * sizeof(float) * block.weights + block.rounding - sizeof(float) * block.parameters) +
                     (blocks - open) * sizeof(float) * block.weights;
  estimate.gradients = open * sizeof(float) * (block.weights + block.parameters);
  // Not there while a float block passes the targets on, or while the state is written.
  const std::size_t teacher = sizeof(float) * block.weights + tape + sizes.tokens * config.hidden * sizeof(float);
  const std::size_t state = 2 * sizes.codes;
  estimate.optimizer = std::max({3 * sizeof(float) * open * block.parameters, teacher, state});
  estimate.activations = 2 * sizes.streams;
  estimate.batch = blocks * tape + (blocks + 4) * sizes.tokens * config.hidden * sizeof(float) +
                   working_bytes(config, block, sizes.tokens, options.calibration.sequence) +
                   alignment_bytes(config, sizes.tokens, blocks + 1, blocks + 4);
  // Head, and the embedding while it is looked up; codes for the result and for the state.
  estimate.rest = program + 2 * sizes.embedding + 5 * sizes.codes / 2 + sizes.changed;
  if (settings.same_input_weight > 0) estimate.rest += sizes.streams;  // a third, which goes to no file
  return estimate;
}

// Block by block, without gradients: gptq, and outliers before other methods.
MemoryEstimate estimate_walk(const ModelConfig& config, const BlockSize& block, const QuantizationOptions& options) {
  const Sizes sizes = sizes_of(config, block, options);
  const std::size_t length = options.calibration.sequence;
  const std::size_t tokens = length * (length < 4096 ? 4096 / length : 1);
  MemoryEstimate estimate;
  estimate.weights = sizeof(float) * (block.weights + block.largest);
  estimate.activations = 2 * sizes.streams;
  estimate.batch = tokens * (tape_bytes(config, block.activations) + config.hidden * sizeof(float)) +
                   working_bytes(config, block, tokens, length) / 2 + alignment_bytes(config, tokens, 1, 2);
  estimate.rest = program + 2 * sizes.embedding + sizes.codes + sizes.changed;
  const std::size_t q = config.heads * config.head_width;
  const std::size_t inputs[] = {config.hidden, q, config.hidden, config.intermediate};
  if (options.activations.fixed) {
    const std::size_t rows = std::min(input_sample_rows, options.calibration.samples * length);
    for (const std::size_t width : inputs) estimate.batch += rows * width * sizeof(float);
  }
  if (options.method == "gptq") {
    std::size_t most = 0;
    for (const std::size_t width : inputs) {
      estimate.rest += width * width * sizeof(double);
      most = std::max(most, width);
    }
    estimate.optimizer = 3 * most * most * sizeof(double);
  }
  return estimate;
}

// Streams that no address space holds are refused here, so that nothing below needs to count in more than 64 bits.
Status check_streams(const ModelConfig& config, const CalibrationSettings& settings) {
  constexpr std::size_t most = std::size_t{1} << 47;
  const Result<std::size_t> bytes =
      cbq::checked_product(settings.samples, settings.sequence, config.hidden, sizeof(float));
  if (bytes && *bytes <= most) return {};
  return Error{Errc::bad_argument, "more calibration tokens than memory can address", "--samples, --sequence",
               ErrorText(settings.samples) << " x " << settings.sequence,
               ErrorText("at most ") << most / sizeof(float) / config.hidden << " tokens"};
}

MemoryEstimate spilled(MemoryEstimate estimate) {
  estimate.spilled = true;
  estimate.spilled_bytes = estimate.activations;
  estimate.activations = 0;
  return estimate;
}

// Settings that take less and fit, as options; empty where none do.
std::string smaller_settings(const ModelConfig& config, std::span<const ModuleReport> plan,
                             QuantizationOptions options) {
  const std::size_t budget = options.memory_budget;
  std::string text;
  const auto fits = [&](const char* change) {
    text += text.empty() ? change : std::string(" ") + change;
    return spilled(estimate_memory(config, plan, options)).total() <= budget;
  };
  if (options.reconstruction.batch > 1) {
    options.reconstruction.batch = 1;
    if (fits("--batch 1")) return text;
  }
  if (options.reconstruction.windows.size > 1) {
    options.reconstruction.windows = {.size = 1, .overlap = 0};
    if (fits("--window 1 --overlap 0")) return text;
  }
  if (options.preprocessing != Preprocessing::none) {
    options.preprocessing = Preprocessing::none;
    if (fits("--preprocess none")) return text;
  }
  options.reconstruction.rounding = {.method = cbq::RoundingMethod::straight_through_low_rank};
  return fits("--rounding straight_through_low_rank") ? text : std::string();
}

}  // namespace

MemoryEstimate estimate_memory(const ModelConfig& config, std::span<const ModuleReport> plan,
                               const QuantizationOptions& options) {
  const BlockSize block = largest_block(config, plan, options);
  const MemoryEstimate walk = estimate_walk(config, block, options);
  if (!reconstructs(options.method)) return walk;
  const MemoryEstimate loop = estimate_reconstruction(config, block, options);
  const bool walks = options.preprocessing != Preprocessing::none || options.activations.fixed;
  return walks && walk.total() > loop.total() ? walk : loop;
}

Result<MemoryEstimate> plan_memory(const ModelConfig& config, std::span<const ModuleReport> plan,
                                   const QuantizationOptions& options) {
  if (const Status possible = check_streams(config, options.calibration); !possible) return possible.error();
  const MemoryEstimate estimate = estimate_memory(config, plan, options);
  if (options.memory_budget == 0 || estimate.total() <= options.memory_budget) return estimate;
  const MemoryEstimate smallest = spilled(estimate);
  if (smallest.total() <= options.memory_budget) return smallest;
  ErrorText wanted;
  wanted << budget_text(smallest.total());
  if (reconstructs(options.method)) {
    const std::string settings = smaller_settings(config, plan, options);
    if (!settings.empty()) wanted << ", or " << settings;
  }
  return Error{Errc::out_of_memory, "the budget is too small for these settings, even with the activations in a file",
               "--memory-budget", budget_text(options.memory_budget), wanted};
}

Result<std::size_t> parse_size(const std::string& text) {
  std::size_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [last, failed] = std::from_chars(text.data(), end, value);
  std::size_t unit = 1;
  if (last != end) {
    unit = *last == 'K' ? std::size_t{1} << 10 : *last == 'M' ? std::size_t{1} << 20 : std::size_t{1} << 30;
  }
  const bool suffix = last == end || (last + 1 == end && (*last == 'K' || *last == 'M' || *last == 'G'));
  const Result<std::size_t> bytes = cbq::checked_product(value, unit);
  if (failed == std::errc() && suffix && bytes && *bytes != 0) return *bytes;
  return Error{Errc::bad_argument, "not a size", "", text, "a whole number, and K, M or G"};
}

std::string budget_text(std::size_t bytes) {
  constexpr std::size_t mega = std::size_t{1} << 20;
  return std::to_string(cbq::divide_up(bytes, mega)) + "M";
}

}  // namespace cbq_llama
