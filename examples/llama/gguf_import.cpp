// SPDX-License-Identifier: Apache-2.0
#include "gguf_import.hpp"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <cbq/io/atomic_folder.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/gguf_encoding.hpp>
#include <cbq/io/quantization_config.hpp>
#include <cbq/quant/recoding.hpp>

#include "gguf_names.hpp"
#include "gguf_vocabulary.hpp"
#include "interrupt.hpp"
#include "model_layout.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::GgufTensor;
using cbq::GgufType;
using cbq::Grid;
using cbq::QuantizedMatrix;
using cbq::Result;
using cbq::Status;

namespace {

// What the exporter said of the model, or an empty record.
Result<cbq::QuantizationRecord> read_description(const cbq::GgufMetadata& metadata) {
  if (metadata.value(gguf_quantization_key) == nullptr) return cbq::QuantizationRecord{};
  const Result<std::string_view> text = metadata.text_value(gguf_quantization_key);
  if (!text) return text.error();
  const Result<cbq::Json> own = cbq::parse_json(*text);
  if (!own) return cbq::in_context(own.error(), gguf_quantization_key);
  std::vector<std::string> names;
  const cbq::Json* schemes = cbq::json_find(*own, "schemes");
  if (schemes != nullptr && schemes->is_object()) {
    for (const auto& item : schemes->items()) names.push_back(item.key());
  }
  const std::vector<std::string_view> modules(names.begin(), names.end());
  Result<cbq::QuantizationRecord> record = cbq::parse_quantization(cbq::Json{{"cbq", *own}}, modules);
  if (!record) return cbq::in_context(record.error(), gguf_quantization_key);
  return record;
}

// A matrix of the model on its way.
struct Matrix {
  MatrixModule module;
  const GgufTensor* tensor = nullptr;
  std::size_t head_width = 0;          // not 0: the file has its rows in another order
  std::optional<cbq::Scheme> scheme;   // nothing: floating point
  cbq::Dtype dtype = cbq::Dtype::f16;  // of floating point

  // Which row of the file is row `row` of the folder's tensor.
  [[nodiscard]] std::size_t file_row(std::size_t row) const {
    return head_width == 0 ? row : gguf_row(row, head_width);
  }
};

std::optional<cbq::Dtype> float_dtype(GgufType type) {
  switch (type) {
    case GgufType::f32:
      return cbq::Dtype::f32;
    case GgufType::f16:
      return cbq::Dtype::f16;
    case GgufType::bf16:
      return cbq::Dtype::bf16;
    default:
      return std::nullopt;
  }
}

// Codes of a tensor on the blocks' own grid, rows in the folder's order.
Result<QuantizedMatrix> read_blocks(const Matrix& matrix) {
  const Result<Grid> grid = cbq::gguf_codes_grid(matrix.tensor->type);
  if (!grid) return grid.error();
  Result<QuantizedMatrix> codes = QuantizedMatrix::allocate(matrix.module.outputs, matrix.module.inputs, *grid);
  if (!codes) return codes;
  const std::size_t row_bytes = matrix.tensor->bytes.size() / std::max<std::size_t>(matrix.module.outputs, 1);
  for (std::size_t r = 0; r < matrix.module.outputs; ++r) {
    const auto blocks = matrix.tensor->bytes.subspan(matrix.file_row(r) * row_bytes, row_bytes);
    const cbq::MatrixView<std::uint8_t> zeros =
        grid->zero == cbq::Zero::affine ? cbq::rows(codes->zeros(), r, 1) : cbq::MatrixView<std::uint8_t>{};
    const Status done = cbq::decode_gguf_codes(matrix.tensor->type, blocks, cbq::rows(codes->codes(), r, 1),
                                               cbq::rows(codes->scales(), r, 1), zeros);
    if (done) continue;
    Error error = done.error();  // names row 0 of this call
    error.where = ErrorText("row ") << r;
    return error;
  }
  return codes;
}

class Importer {
 public:
  Importer(const ModelSource& source, cbq::QuantizationRecord description)
      : source_(source), description_(std::move(description)) {}

  Result<ExportReport> write(const std::string& output) {
    if (const Status planned = plan(); !planned) return planned.error();
    const Result<bool> replaces = cbq::is_quantized_folder(output);
    if (!replaces) return replaces.error();
    const cbq::Existing existing = *replaces ? cbq::Existing::replace : cbq::Existing::refuse;
    Result<cbq::AtomicFolder> folder = cbq::AtomicFolder::create(output, existing);
    if (!folder) return folder.error();
    if (const Status ok = write_tensors(folder->file("model.safetensors")); !ok) return ok.error();
    if (const Status ok = write_config(folder->file("config.json")); !ok) return ok.error();
    const Result<cbq::Json> vocabulary = source_.vocabulary_json();
    if (!vocabulary) return vocabulary.error();
    const Status written = cbq::write_file(folder->file(vocabulary_file), cbq::json_text(*vocabulary));
    if (!written) return written.error();
    if (const Status ok = check_interrupt(); !ok) return ok.error();
    if (const Status same = source_.check_unchanged(); !same) return same.error();
    if (const Status ok = folder->commit(); !ok) return ok.error();
    report_.bytes_read = source_.file_bytes();
    return std::move(report_);
  }

 private:
  Status plan() {
    const ModelConfig& config = source_.config();
    if (config.rotary.scaling == cbq::RotaryScaling::per_pair) {
      report_.notes.push_back(std::string(rotary_factors_name) +
                              ": factors of no rule that cbq knows, written as longrope");
    }
    for (const MatrixModule& module : all_block_modules(config)) {
      if (const Status ok = plan_matrix(module, Part::block); !ok) return ok;
    }
    if (const Status ok = plan_matrix(embedding_module(config), Part::ends); !ok) return ok;
    return config.tied ? Status() : plan_matrix(head_module(config), Part::ends);
  }

  enum class Part { block, ends };

  Status plan_matrix(const MatrixModule& module, Part part) {
    const std::string weight = module.name + ".weight";
    Matrix matrix;
    matrix.module = module;
    matrix.tensor = source_.gguf()->find(gguf_name(weight));
    if (matrix.tensor == nullptr) return Error{Errc::bad_file, "the model has no such tensor", gguf_name(weight)};
    const cbq::TensorShape wanted = {.rank = 2, .sizes = {module.outputs, module.inputs}};
    if (!cbq::same_shape(matrix.tensor->shape, wanted)) {
      return Error{Errc::bad_shape, "a tensor has the wrong shape", matrix.tensor->name,
                   cbq::shape_text(matrix.tensor->shape), cbq::shape_text(wanted)};
    }
    if (has_gguf_row_order(weight)) matrix.head_width = source_.config().head_width;
    if (const auto dtype = float_dtype(matrix.tensor->type)) {
      matrix.dtype = *dtype;
    } else if (part == Part::block || has_codes(matrix)) {
      const Result<cbq::Scheme> scheme = scheme_of(matrix);
      if (!scheme) return cbq::in_context(scheme.error(), matrix.tensor->name);
      matrix.scheme = *scheme;
    } else {
      const auto layout = cbq::gguf_layout(static_cast<std::uint32_t>(matrix.tensor->type));
      report_.notes.push_back(module.name + ": " + (layout ? layout->name : "blocks") + " dequantized to float16");
    }
    matrices_.push_back(std::move(matrix));
    return {};
  }

  // Whether the blocks of an embedding or head have codes that cbq packs.
  [[nodiscard]] bool has_codes(const Matrix& matrix) const {
    if (!cbq::gguf_codes_grid(matrix.tensor->type) || !scheme_of(matrix)) return false;
    return matrix.tensor->type != GgufType::q4_1 || read_blocks(matrix);
  }

  [[nodiscard]] Result<cbq::Scheme> scheme_of(const Matrix& matrix) const {
    for (const cbq::ModuleScheme& entry : description_.modules) {
      if (entry.module == matrix.module.name) return entry.scheme;
    }
    const Result<Grid> grid = cbq::gguf_grid(matrix.tensor->type);
    if (!grid) return grid.error();
    return cbq::make_scheme(grid->bits, 16, grid->group, grid->zero);
  }

  // The codes of a matrix on the grid of its scheme.
  static Result<QuantizedMatrix> read_codes(const Matrix& matrix) {
    Result<QuantizedMatrix> codes = read_blocks(matrix);
    if (!codes || codes->grid() == matrix.scheme->weight) return codes;
    Result<QuantizedMatrix> recoded = cbq::recode(codes->view(), codes->grid(), matrix.scheme->weight);
    if (recoded || recoded.error().code != Errc::unsupported) return recoded;
    Error error = recoded.error();  // a program that quantized the file anew and kept the key
    error.what = "cbq.quantization does not describe these blocks";
    return error;
  }

  Status write_tensors(const std::string& path) {
    std::vector<cbq::TensorPlan> plan;
    for (const Matrix& matrix : matrices_) {
      const MatrixModule& module = matrix.module;
      if (!matrix.scheme) {
        plan.push_back({module.name + ".weight", matrix.dtype, {.rank = 2, .sizes = {module.outputs, module.inputs}}});
        continue;
      }
      const Status ok =
          cbq::plan_tensors({module.name, module.outputs, module.inputs, matrix.scheme->weight, cbq::Dtype::f16}, plan);
      if (!ok) return ok;
    }
    std::vector<FloatTensor> vectors = norm_tensors(source_.config());
    for (const Matrix& matrix : matrices_) {
      if (matrix.module.has_bias) vectors.push_back({matrix.module.name + ".bias", 1, matrix.module.outputs});
    }
    for (const FloatTensor& vector : vectors) {
      plan.push_back({vector.name, cbq::Dtype::f32, {.rank = 1, .sizes = {vector.columns}}});
    }
    Result<cbq::SafetensorsWriter> writer = cbq::SafetensorsWriter::create(path, plan);
    if (!writer) return writer.error();
    for (const Matrix& matrix : matrices_) {
      if (const Status ok = check_interrupt(); !ok) return ok;
      const Status ok = matrix.scheme ? write_codes(matrix, *writer) : write_floats(matrix, *writer);
      if (!ok) return cbq::in_context(ok.error(), matrix.tensor->name);
    }
    for (const FloatTensor& vector : vectors) {
      const Result<FloatMatrix> values = source_.read_matrix(vector.name, 1, vector.columns);
      if (!values) return values.error();
      const std::span<const float> numbers(values->memory.data(), values->memory.size());
      if (const Status ok = writer->write(vector.name, numbers); !ok) return ok;
    }
    report_.bytes_written = writer->file_size();
    return writer->commit();
  }

  static Status write_codes(const Matrix& matrix, cbq::SafetensorsWriter& writer) {
    const Result<QuantizedMatrix> codes = read_codes(matrix);
    if (!codes) return codes.error();
    return cbq::write_quantized_matrix(writer, matrix.module.name, codes->view(), codes->grid());
  }

  static Status write_floats(const Matrix& matrix, cbq::SafetensorsWriter& writer) {
    const std::string name = matrix.module.name + ".weight";
    const std::size_t rows = matrix.module.outputs;
    const std::size_t row_bytes = matrix.tensor->bytes.size() / std::max<std::size_t>(rows, 1);
    const bool decoded = !float_dtype(matrix.tensor->type);
    std::vector<float> values(decoded ? matrix.module.inputs : 0);
    std::vector<cbq::half> halves(values.size());
    for (std::size_t r = 0; r < rows; ++r) {
      const std::size_t from = matrix.file_row(r);
      if (!decoded) {
        if (const Status ok = writer.write(name, matrix.tensor->bytes.subspan(from * row_bytes, row_bytes)); !ok)
          return ok;
        continue;
      }
      const auto out = cbq::matrix_view(values.data(), 1, values.size());
      if (const Status ok = cbq::copy_rows_to_float(*matrix.tensor, from, out); !ok) return ok;
      for (std::size_t k = 0; k < values.size(); ++k) {
        halves[k] = cbq::to_half(values[k]);
        if ((halves[k].bits & 0x7c00u) == 0x7c00u) {
          return Error{Errc::not_finite, "a number is too large for float16", ErrorText("row ") << r};
        }
      }
      if (const Status ok = writer.write(name, std::span<const cbq::half>(halves)); !ok) return ok;
    }
    return {};
  }

  Status write_config(const std::string& path) const {
    const ModelConfig& config = source_.config();
    cbq::Json json = to_json(config);
    cbq::QuantizationRecord record;
    record.method = description_.modules.empty() ? "gguf" : description_.method;
    record.notes = description_.notes;
    record.head_bits = 16;
    const std::string embedding = embedding_module(config).name;
    for (const Matrix& matrix : matrices_) {
      const std::string& name = matrix.module.name;
      if (matrix.scheme) {
        const bool looked_up = name == embedding;
        if (looked_up) record.head_bits = matrix.scheme->weight.bits;
        record.modules.push_back(
            {name, *matrix.scheme, looked_up ? cbq::ModuleKind::embedding : cbq::ModuleKind::linear});
      } else if (name != embedding) {
        record.ignore.push_back(name);
      }
    }
    if (config.tied) record.ignore.push_back(head_module(config).name);
    if (!record.modules.empty()) {
      if (const Status ok = cbq::add_quantization(json, record); !ok) return ok;
    }
    return cbq::write_file(path, cbq::json_text(json));
  }

  const ModelSource& source_;
  cbq::QuantizationRecord description_;
  std::vector<Matrix> matrices_;
  ExportReport report_;
};

}  // namespace

Result<ExportReport> import_gguf(const ModelSource& source, const std::string& output) {
  if (!source.is_gguf()) {
    return Error{Errc::bad_argument, "the model is no GGUF file", source.path(), "a folder", "a .gguf file"};
  }
  Result<cbq::QuantizationRecord> description = read_description(source.gguf()->metadata());
  if (!description) return cbq::in_context(description.error(), source.path());
  return Importer(source, *std::move(description)).write(output);
}

}  // namespace cbq_llama
