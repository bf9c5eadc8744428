// SPDX-License-Identifier: Apache-2.0
#include "calibration.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include <cbq/nn/opt_block.hpp>
#include <cbq/quant/affine.hpp>

#include "commands.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

// Rows of the embedding, and learned positions, for all tokens.
class Embeddings {
 public:
  static Result<Embeddings> read(const ChangedWeights& weights, std::span<const ModuleReport> plan,
                                 const QuantizationOptions& options) {
    const ModelConfig& config = weights.config();
    const MatrixModule module = embedding_module(config);
    Embeddings result;
    Result<FloatMatrix> table = weights.read_matrix(module.name + ".weight", module.outputs, module.inputs);
    if (!table) return table.error();
    result.table_ = *std::move(table);
    const auto entry =
        std::find_if(plan.begin(), plan.end(), [&](const ModuleReport& e) { return e.module.name == module.name; });
    if (entry != plan.end() && entry->scheme) {
      const Result<cbq::QuantizedMatrix> codes = round_to_nearest(result.table_, entry->scheme->weight, options);
      if (!codes) return cbq::in_context(codes.error(), module.name);
      result.rounded_.resize(result.table_.memory.size());
      const auto out = cbq::matrix_view(result.rounded_.data(), module.outputs, module.inputs);
      if (const Status done = cbq::dequantize(codes->view(), entry->scheme->weight, out); !done) return done.error();
    }
    if (const FloatTensor positions = position_tensor(config); !positions.name.empty()) {
      Result<FloatMatrix> learned = weights.read_matrix(positions.name, positions.rows, positions.columns);
      if (!learned) return learned.error();
      result.positions_ = *std::move(learned);
    }
    if (const std::string name = embedding_norm_name(config); !name.empty()) {
      const Result<FloatMatrix> gain = weights.read_matrix(name + ".weight", 1, config.hidden);
      if (!gain) return gain.error();
      const Result<FloatMatrix> bias = weights.read_matrix(name + ".bias", 1, config.hidden);
      if (!bias) return bias.error();
      Result<cbq::LayerNorm> norm =
          cbq::LayerNorm::create({gain->memory.data(), config.hidden}, {bias->memory.data(), config.hidden},
                                 static_cast<float>(config.norm_epsilon));
      if (!norm) return norm.error();
      result.norm_ = *std::move(norm);
    }
    return result;
  }

  // What enters the first block of the float model, or of the quantized one.
  [[nodiscard]] Status look_up(std::span<const std::int32_t> tokens, std::size_t length, bool quantized,
                               const MatrixView<float>& out) const {
    const float* table = quantized && !rounded_.empty() ? rounded_.data() : table_.memory.data();
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      float* hidden = cbq::row(out, t);
      std::memcpy(hidden, table + static_cast<std::size_t>(tokens[t]) * out.columns, out.columns * sizeof(float));
      if (positions_.memory.size() == 0) continue;
      const float* learned = cbq::row(positions_.view, t % length + cbq::LearnedPositions::offset);
      for (std::size_t i = 0; i < out.columns; ++i) hidden[i] += learned[i];
    }
    if (!norm_) return {};
    const cbq::SerialExecutor serial;
    cbq::ExecutionContext<> context(serial);
    return norm_->forward(cbq::as_const(out), out, context);
  }

 private:
  FloatMatrix table_;
  FloatMatrix positions_;
  std::optional<cbq::LayerNorm> norm_;  // of BLOOM
  std::vector<float> rounded_;
};

}  // namespace

Result<StateMatrix> StateMatrix::create(std::size_t rows, std::size_t columns, const std::string& scratch) {
  StateMatrix states;
  const Result<std::size_t> size = cbq::checked_product(rows, columns);
  if (!size) return size.error();
  if (scratch.empty()) {
    Result<cbq::AlignedBuffer<float>> memory = cbq::AlignedBuffer<float>::allocate(*size);
    if (!memory) return memory.error();
    states.memory_ = *std::move(memory);
    states.view_ = cbq::matrix_view(states.memory_.data(), rows, columns);
    return states;
  }
  const Result<std::size_t> bytes = cbq::checked_product(*size, sizeof(float));
  if (!bytes) return bytes.error();
  Result<cbq::ScratchFile> file = cbq::ScratchFile::create(scratch, *bytes);
  if (!file) return file.error();
  states.file_ = *std::move(file);
  states.view_ = cbq::matrix_view(reinterpret_cast<float*>(states.file_.bytes().data()), rows, columns);
  return states;
}

Result<FirstStates> FirstStates::create(const ChangedWeights& weights, std::span<const ModuleReport> plan,
                                        const CalibrationTokens& tokens, const QuantizationOptions& options) {
  FirstStates states;
  for (StateMatrix* matrix : {&states.target, &states.student}) {
    Result<StateMatrix> made = StateMatrix::create(tokens.ids.size(), weights.config().hidden, tokens.scratch);
    if (!made) return made.error();
    *matrix = *std::move(made);
  }
  const Result<Embeddings> embeddings = Embeddings::read(weights, plan, options);
  if (!embeddings) return embeddings.error();
  for (const bool quantized : {false, true}) {
    const StateMatrix& matrix = quantized ? states.student : states.target;
    const Status done = embeddings->look_up(tokens.ids, tokens.length, quantized, matrix.view());
    if (!done) return done.error();
  }
  return states;
}

Result<std::vector<std::int32_t>> calibration_tokens(const ModelSource& source, const CalibrationSettings& settings) {
  if (settings.texts.empty()) {
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
  const std::size_t files = settings.texts.size();
  for (std::size_t f = 0; f < files; ++f) {
    const std::string& path = settings.texts[f];
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

}  // namespace cbq_llama
