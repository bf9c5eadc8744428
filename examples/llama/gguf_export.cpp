// SPDX-License-Identifier: Apache-2.0
#include "gguf_export.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/gguf_encoding.hpp>
#include <cbq/io/gguf_writer.hpp>
#include <cbq/io/quantization_config.hpp>

#include "gguf_names.hpp"
#include "gguf_vocabulary.hpp"
#include "interrupt.hpp"
#include "model.hpp"
#include "model_layout.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::GgufType;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

// Codes of a matrix are taken apart and put together again this many at a time, or a row.
constexpr std::size_t piece = std::size_t{1} << 20;

Status check_model(const ModelSource& source, const cbq::QuantizationRecord& record) {
  const ModelConfig& config = source.config();
  if (config.architecture != Architecture::llama) {
    return Error{Errc::unsupported, "only LLaMA models are written as GGUF", source.path(),
                 architecture_name(config.architecture), "llama"};
  }
  if (!record.rotations.empty()) {
    return Error{Errc::unsupported, "GGUF cannot say that a layer's input is rotated", record.rotations.front().module};
  }
  if (!record.clips.empty()) {
    return Error{Errc::unsupported, "GGUF cannot say that a layer's activations are clipped",
                 record.clips.front().module};
  }
  return {};
}

// A tensor of the file.
struct Entry {
  std::string name;                          // of the tensor or module in the folder
  cbq::GgufTensorPlan plan;                  // with GGUF's name
  const cbq::ModuleScheme* codes = nullptr;  // null: floating point
  std::size_t head_width = 0;                // not 0: GGUF has its rows in another order

  // Which row of the folder's tensor is row `row` of the file's.
  [[nodiscard]] std::size_t source_row(std::size_t row) const {
    return head_width == 0 ? row : row_of_gguf(row, head_width);
  }
};

Result<GgufType> float_type(const cbq::TensorView& tensor) {
  switch (tensor.dtype) {
    case cbq::Dtype::f32:
      return GgufType::f32;
    case cbq::Dtype::f16:
      return GgufType::f16;
    case cbq::Dtype::bf16:
      return GgufType::bf16;
    default:
      return Error{Errc::unsupported, "a matrix in floating point is F32, F16 or BF16", tensor.name,
                   cbq::dtype_name(tensor.dtype)};
  }
}

// llama.cpp's number for files whose matrices are mostly of that type.
std::uint32_t file_type(GgufType type) {
  switch (type) {
    case GgufType::f16:
      return 1;
    case GgufType::q4_0:
      return 2;
    case GgufType::q4_1:
      return 3;
    case GgufType::q8_0:
      return 7;
    case GgufType::q5_0:
      return 8;
    case GgufType::bf16:
      return 32;
    default:
      return 0;
  }
}

// Scales and zero points of a whole matrix, in the order of the file's rows.
struct Parameters {
  cbq::AlignedBuffer<float> scale_memory;
  cbq::AlignedBuffer<std::uint8_t> zero_memory;
  MatrixView<float> scales;
  MatrixView<std::uint8_t> zeros;  // empty for symmetric grids

  static Result<Parameters> read(const cbq::StoredTensors& stored, const cbq::Grid& grid, const Entry& entry) {
    const std::size_t groups = cbq::group_count(grid, stored.inputs);
    const bool affine = grid.zero == cbq::Zero::affine;
    const Result<std::size_t> count = cbq::checked_product(stored.outputs, groups);
    if (!count) return count.error();
    auto scales = cbq::AlignedBuffer<float>::allocate(*count);
    if (!scales) return scales.error();
    auto zeros = cbq::AlignedBuffer<std::uint8_t>::allocate(affine ? *count : 0);
    if (!zeros) return zeros.error();
    Parameters read;
    read.scale_memory = *std::move(scales);
    read.zero_memory = *std::move(zeros);
    read.scales = cbq::matrix_view(read.scale_memory.data(), stored.outputs, groups);
    if (affine) read.zeros = cbq::matrix_view(read.zero_memory.data(), stored.outputs, groups);
    const Status done = cbq::read_parameters(stored, grid, read.scales, read.zeros);
    if (!done) return done.error();
    if (entry.head_width == 0) return read;
    permute(read.scales, entry);
    if (affine) permute(read.zeros, entry);
    return read;
  }

  // Brings the rows of each head into the file's order.
  template <class T>
  static void permute(const MatrixView<T>& matrix, const Entry& entry) {
    std::vector<T> old(entry.head_width * matrix.columns);
    for (std::size_t first = 0; first < matrix.rows; first += entry.head_width) {
      std::copy_n(row(matrix, first), old.size(), old.begin());
      for (std::size_t r = 0; r < entry.head_width; ++r) {
        const std::size_t from = entry.source_row(first + r) - first;
        std::copy_n(old.data() + from * matrix.columns, matrix.columns, row(matrix, first + r));
      }
    }
  }
};

class Exporter {
 public:
  Exporter(const ModelSource& source, const cbq::QuantizationRecord& record) : source_(source), record_(record) {}

  Result<ExportReport> write(const std::string& output) {
    if (const Status planned = plan(); !planned) return planned.error();
    cbq::GgufKeys keys;
    if (const Status added = add_metadata(keys); !added) return added.error();
    std::vector<cbq::GgufTensorPlan> tensors;
    for (const Entry& entry : entries_) tensors.push_back(entry.plan);
    Result<cbq::GgufWriter> writer = cbq::GgufWriter::create(output, std::move(keys), tensors);
    if (!writer) return writer.error();
    for (const Entry& entry : entries_) {
      if (const Status ok = check_interrupt(); !ok) return ok.error();
      const Status ok = entry.codes != nullptr              ? write_codes(entry, *writer)
                        : entry.name == rotary_factors_name ? write_rotary_factors(*writer)
                        : entry.plan.shape.rank == 1        ? write_vector(entry, *writer)
                                                            : write_floats(entry, *writer);
      if (!ok) return cbq::in_context(ok.error(), entry.name);
      release(entry);
    }
    report_.bytes_read = source_.file_bytes();
    report_.bytes_written = writer->file_size();
    if (const Status same = source_.check_unchanged(); !same) return same.error();
    if (const Status ok = writer->commit(); !ok) return ok.error();
    return std::move(report_);
  }

 private:
  Status plan() {
    const ModelConfig& config = source_.config();
    const std::vector<FloatTensor> norms = norm_tensors(config);
    if (const Status ok = plan_matrix(embedding_module(config)); !ok) return ok;
    if (const Status ok = plan_norm(norms.back()); !ok) return ok;
    plan_rotary_factors();
    if (!config.tied) {
      if (const Status ok = plan_matrix(head_module(config)); !ok) return ok;
    }
    const std::size_t first_matrix = entries_.size();
    for (std::size_t layer = 0; layer < config.layers; ++layer) {
      for (const MatrixModule& module : block_modules(config, layer)) {
        if (const Status ok = plan_matrix(module); !ok) return ok;
        if (module.has_bias) plan_bias(module);
      }
      for (std::size_t i = 2 * layer; i < 2 * layer + 2; ++i) {
        if (const Status ok = plan_norm(norms[i]); !ok) return ok;
      }
    }
    main_type_ = entries_[first_matrix].plan.type;
    return {};
  }

  Status plan_norm(const FloatTensor& tensor) {
    Entry entry;
    entry.name = tensor.name;
    entry.plan = {gguf_name(tensor.name), GgufType::f32, {.rank = 1, .sizes = {tensor.columns}}};
    entries_.push_back(std::move(entry));
    return {};
  }

  void plan_bias(const MatrixModule& module) {
    Entry entry;
    entry.name = module.name + ".bias";
    entry.plan = {gguf_name(entry.name), GgufType::f32, {.rank = 1, .sizes = {module.outputs}}};
    if (has_gguf_row_order(entry.name)) entry.head_width = source_.config().head_width;
    entries_.push_back(std::move(entry));
  }

  // GGUF has a key for linear scaling, and for no other that the engine knows.
  void plan_rotary_factors() {
    const ModelConfig& config = source_.config();
    const cbq::RotaryScaling scaling = config.rotary.scaling;
    if (scaling != cbq::RotaryScaling::llama3 && scaling != cbq::RotaryScaling::per_pair) return;
    Entry entry;
    entry.name = rotary_factors_name;
    entry.plan = {entry.name, GgufType::f32, {.rank = 1, .sizes = {config.head_width / 2}}};
    entries_.push_back(std::move(entry));
  }

  Status plan_matrix(const MatrixModule& module) {
    Entry entry;
    entry.name = module.name;
    const std::string weight = module.name + ".weight";
    entry.plan = {gguf_name(weight), GgufType::f32, {.rank = 2, .sizes = {module.outputs, module.inputs}}};
    if (has_gguf_row_order(weight)) entry.head_width = source_.config().head_width;
    for (const cbq::ModuleScheme& scheme : record_.modules) {
      if (scheme.module == module.name) entry.codes = &scheme;
    }
    const Result<GgufType> type = entry.codes != nullptr ? codes_type(entry) : floats_type(entry);
    if (!type) return cbq::in_context(type.error(), module.name);
    entry.plan.type = *type;
    entries_.push_back(std::move(entry));
    return {};
  }

  Result<GgufType> floats_type(const Entry& entry) const {
    const cbq::TensorView* tensor = source_.checkpoint()->find(entry.name + ".weight");
    if (tensor == nullptr) return Error{Errc::bad_file, "the model has no such tensor", "weight", source_.path()};
    if (!cbq::same_shape(tensor->shape, entry.plan.shape)) {
      return Error{Errc::bad_shape, "a tensor has the wrong shape", "weight", cbq::shape_text(tensor->shape),
                   cbq::shape_text(entry.plan.shape)};
    }
    return float_type(*tensor);
  }

  Result<GgufType> codes_type(const Entry& entry) {
    const cbq::Grid& grid = entry.codes->scheme.weight;
    const Result<cbq::StoredTensors> stored = find(entry);
    if (!stored) return stored.error();
    const Result<Parameters> parameters = Parameters::read(*stored, grid, entry);
    if (!parameters) return parameters.error();
    const Result<GgufType> type =
        cbq::gguf_type_for(grid, stored->inputs, cbq::as_const(parameters->scales), cbq::as_const(parameters->zeros));
    if (type) note_type(entry, *type);
    return type;
  }

  Result<cbq::StoredTensors> find(const Entry& entry) const {
    const Result<cbq::StoredTensors> stored =
        cbq::find_stored(*source_.checkpoint(), entry.name, entry.codes->scheme.weight);
    if (!stored) return stored;
    if (stored->outputs == entry.plan.shape.sizes[0] && stored->inputs == entry.plan.shape.sizes[1]) return stored;
    return Error{Errc::bad_shape, "a tensor has the wrong shape", "weight_shape",
                 ErrorText("[") << stored->outputs << ", " << stored->inputs << "]", cbq::shape_text(entry.plan.shape)};
  }

  // One note for each pair of a grid and blocks that differ in bits or in their groups.
  void note_type(const Entry& entry, GgufType type) {
    const cbq::Grid& grid = entry.codes->scheme.weight;
    const char* name = cbq::gguf_layout(static_cast<std::uint32_t>(type))->name;
    const bool same_bits = type == GgufType::q8_0 ? grid.bits == 8 : type != GgufType::q5_0 && grid.bits == 4;
    const bool repeated = grid.granularity == cbq::Granularity::per_channel || grid.group != 32;
    const bool moved = grid.zero == cbq::Zero::affine && type != GgufType::q4_1;
    if (same_bits && !repeated && !moved) return;
    std::string note = std::to_string(grid.bits) + "-bit codes ";
    note += grid.granularity == cbq::Granularity::per_channel ? "per channel"
                                                              : "in groups of " + std::to_string(grid.group);
    note += std::string(" written as ") + name;
    if (repeated) note += ", each scale repeated for every 32 weights";
    if (moved) note += ", zero points taken into the codes";
    add_note(note + "; every weight keeps its value");
  }

  void add_note(std::string note) {
    std::vector<std::string>& notes = report_.notes;
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(std::move(note));
  }

  Status add_metadata(cbq::GgufKeys& keys) {
    add_sizes(keys);
    const ModelConfig& config = source_.config();
    const Result<GgufVocabulary> vocabulary = source_.vocabulary();
    if (!vocabulary) return vocabulary.error();
    if (vocabulary->tokens.size() != config.vocabulary) {
      return Error{Errc::bad_file, "the vocabulary does not fit the embedding", source_.path(),
                   vocabulary->tokens.size(), config.vocabulary};
    }
    add_keys(*vocabulary, keys);
    if (config.eos.size() > 1) add_note("of several tokens that end a text GGUF names the first");
    return record_.modules.empty() ? Status() : add_description(keys);
  }

  void add_sizes(cbq::GgufKeys& keys) const {
    const ModelConfig& config = source_.config();
    const auto size = [&keys](const char* key, std::size_t value) { keys.add(key, static_cast<std::uint32_t>(value)); };
    keys.add("general.architecture", "llama");
    keys.add("general.type", "model");
    keys.add("general.name", model_name());
    keys.add("general.file_type", file_type(main_type_));
    keys.add("general.quantization_version", std::uint32_t{2});
    size("llama.block_count", config.layers);
    size("llama.context_length", config.context);
    size("llama.embedding_length", config.hidden);
    size("llama.feed_forward_length", config.intermediate);
    size("llama.attention.head_count", config.heads);
    size("llama.attention.head_count_kv", config.kv_heads);
    size("llama.attention.key_length", config.head_width);
    size("llama.attention.value_length", config.head_width);
    size("llama.rope.dimension_count", config.head_width);
    size("llama.vocab_size", config.vocabulary);
    keys.add("llama.attention.layer_norm_rms_epsilon", static_cast<float>(config.norm_epsilon));
    keys.add("llama.rope.freq_base", static_cast<float>(config.rotary.base));
    if (config.rotary.scaling == cbq::RotaryScaling::linear) {
      keys.add("llama.rope.scaling.type", "linear");
      keys.add("llama.rope.scaling.factor", static_cast<float>(config.rotary.factor));
    }
  }

  [[nodiscard]] std::string model_name() const {
    std::string path = source_.path();
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    return path.substr(path.rfind('/') + 1);
  }

  Status add_description(cbq::GgufKeys& keys) {
    cbq::Json config = cbq::Json::object();
    if (const Status ok = cbq::add_quantization(config, record_); !ok) return ok;
    keys.add(gguf_quantization_key, config["cbq"].dump(-1, ' ', false, cbq::Json::error_handler_t::replace));
    for (const cbq::ModuleScheme& entry : record_.modules) {
      if (entry.scheme.activation.bits == 16) continue;
      add_note(entry.ranges == cbq::ActivationRanges::fixed
                   ? "grids of static activations are not carried: what runs the file chooses its own"
                   : "activations are what runs the file makes of them, whatever their bits here");
    }
    if (record_.notes.contains(attention_bits_key)) {
      add_note("queries, keys and values are what runs the file makes of them, whatever their bits here");
    }
    return {};
  }

  // A norm's weight or a bias.
  Status write_vector(const Entry& entry, cbq::GgufWriter& writer) const {
    const Result<FloatMatrix> values = source_.read_matrix(entry.name, 1, entry.plan.shape.sizes[0]);
    if (!values) return values.error();
    std::vector<float> ordered(values->memory.size());
    for (std::size_t i = 0; i < ordered.size(); ++i) ordered[i] = values->memory[entry.source_row(i)];
    return writer.write(entry.plan.name, std::span<const float>(ordered));
  }

  Status write_rotary_factors(cbq::GgufWriter& writer) const {
    const ModelConfig& config = source_.config();
    std::vector<float> factors(config.head_width / 2);
    for (std::size_t i = 0; i < factors.size(); ++i) {
      const double factor = cbq::rotary_factor(config.rotary, config.head_width, i);
      factors[i] = static_cast<float>(factor);
      if (factors[i] > 0 && std::isfinite(factors[i])) continue;
      return Error{Errc::unsupported, "a rotary factor lies outside float32", ErrorText("factor ") << i,
                   cbq::Json(factor).dump()};
    }
    return writer.write(rotary_factors_name, std::span<const float>(factors));
  }

  Status write_floats(const Entry& entry, cbq::GgufWriter& writer) const {
    const cbq::TensorView& tensor = *source_.checkpoint()->find(entry.name + ".weight");  // planned
    const std::size_t rows = entry.plan.shape.sizes[0];
    const std::size_t row_bytes = tensor.bytes.size() / std::max<std::size_t>(rows, 1);
    const std::size_t most =
        entry.head_width != 0 ? 1 : std::max<std::size_t>(piece / std::max<std::size_t>(row_bytes, 1), 1);
    for (std::size_t r = 0; r < rows;) {
      const std::size_t count = std::min(most, rows - r);
      const auto bytes = tensor.bytes.subspan(entry.source_row(r) * row_bytes, count * row_bytes);
      if (const Status ok = writer.write(entry.plan.name, bytes); !ok) return ok;
      r += count;
    }
    return {};
  }

  Status write_codes(const Entry& entry, cbq::GgufWriter& writer) const {
    const cbq::Grid& grid = entry.codes->scheme.weight;
    const Result<cbq::StoredTensors> stored = find(entry);
    if (!stored) return stored.error();
    const Result<Parameters> parameters = Parameters::read(*stored, grid, entry);
    if (!parameters) return parameters.error();
    const std::size_t row_bytes = cbq::packed_words(stored->inputs, grid.bits) * 4;
    const std::size_t most = std::clamp<std::size_t>(piece / std::max<std::size_t>(stored->inputs, 1), 1,
                                                     std::max<std::size_t>(stored->outputs, 1));
    auto codes = cbq::AlignedBuffer<std::uint8_t>::allocate(most * stored->inputs);
    if (!codes) return codes.error();
    const Result<std::size_t> row_blocks = cbq::gguf_bytes(entry.plan.type, {.rank = 1, .sizes = {stored->inputs}});
    if (!row_blocks) return row_blocks.error();
    auto blocks = cbq::AlignedBuffer<std::byte>::allocate(most * *row_blocks);
    if (!blocks) return blocks.error();
    for (std::size_t first = 0; first < stored->outputs; first += most) {
      const std::size_t count = std::min(most, stored->outputs - first);
      const auto view = cbq::matrix_view(codes->data(), count, stored->inputs);
      for (std::size_t r = 0; r < count; ++r) {
        const auto words = stored->packed->bytes.subspan(entry.source_row(first + r) * row_bytes, row_bytes);
        if (const Status ok = cbq::unpack_rows(words, grid.bits, cbq::rows(view, r, 1)); !ok) return ok;
      }
      const MatrixView<std::uint8_t> zeros =
          grid.zero == cbq::Zero::affine ? cbq::rows(parameters->zeros, first, count) : MatrixView<std::uint8_t>{};
      const std::span<std::byte> made(blocks->data(), count * *row_blocks);
      const Status encoded = cbq::encode_gguf(
          {cbq::as_const(view), cbq::as_const(cbq::rows(parameters->scales, first, count)), cbq::as_const(zeros)}, grid,
          entry.plan.type, made);
      if (!encoded) return encoded;
      if (const Status ok = writer.write(entry.plan.name, made); !ok) return ok;
    }
    return {};
  }

  // What was written need not stay in memory.
  void release(const Entry& entry) const {
    const cbq::Checkpoint& files = *source_.checkpoint();
    for (const char* part : {".weight", ".weight_packed", ".weight_scale", ".weight_zero_point"}) {
      if (const cbq::TensorView* tensor = files.find(entry.name + part)) files.release(*tensor);
    }
  }

  const ModelSource& source_;
  const cbq::QuantizationRecord& record_;
  std::vector<Entry> entries_;
  GgufType main_type_ = GgufType::f32;
  ExportReport report_;
};

}  // namespace

Result<ExportReport> export_gguf(const ModelSource& source, const std::string& output) {
  if (source.is_gguf()) {
    return Error{Errc::bad_argument, "the model is a GGUF file already", source.path(), "", "a folder"};
  }
  if (!output.ends_with(".gguf")) {
    return Error{Errc::bad_argument, "the name of a GGUF file ends in .gguf", output};
  }
  const auto modules = cbq::packed_modules(*source.checkpoint());
  const Result<cbq::QuantizationRecord> record = cbq::parse_quantization(source.json(), modules);
  if (!record) return cbq::in_context(record.error(), source.path());
  if (const Status ok = check_model(source, *record); !ok) return ok.error();
  return Exporter(source, *record).write(output);
}

}  // namespace cbq_llama
