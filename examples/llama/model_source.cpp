// SPDX-License-Identifier: Apache-2.0
#include "model_source.hpp"

#include <cstdint>
#include <utility>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

#include "gguf_names.hpp"
#include "gguf_vocabulary.hpp"
#include "target_patterns.hpp"
#include "vocabulary_reader.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::GgufTensor;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;
using cbq::TensorView;

namespace {

// A bias in GGUF's order of elements, into one row.
Status read_turned_bias(const GgufTensor& tensor, std::size_t head_width, const MatrixView<float>& out) {
  if (out.rows != 1 || out.columns % head_width != 0) {
    return Error{Errc::bad_shape, "a tensor has the wrong shape", tensor.name, cbq::shape_text(tensor.shape),
                 ErrorText("[") << out.rows << ", " << out.columns << "]"};
  }
  std::vector<float> values(out.columns);
  if (const Status read = cbq::copy_to_float(tensor, std::span<float>(values)); !read) return read;
  for (std::size_t i = 0; i < values.size(); ++i) out.data[i] = values[gguf_row(i, head_width)];
  return {};
}

// Modules of a folder that are stored as codes in a compressed-tensors form.
std::vector<std::string_view> coded_modules(const cbq::Checkpoint& files) {
  std::vector<std::string_view> modules;
  for (const TensorView& tensor : files.tensors()) {
    const std::string_view ending = tensor.dtype == cbq::Dtype::i8 ? ".weight" : ".weight_packed";
    if (tensor.name.ends_with(ending)) modules.push_back(tensor.name.substr(0, tensor.name.size() - ending.size()));
  }
  return modules;
}

}  // namespace

Result<ModelSource> ModelSource::open(const std::string& path, const std::string& pre_tokenizer, cbq::FileMode mode) {
  ModelSource source(path, pre_tokenizer);
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) return cbq::system_error("cannot open the model", path, errno);
  if (!S_ISDIR(status.st_mode)) {
    if (!path.ends_with(".gguf")) {
      return Error{Errc::unsupported, "a model is a folder or a .gguf file", path};
    }
    Result<cbq::GgufFile> file = cbq::GgufFile::open(path, mode);
    if (!file) return file.error();
    Result<ModelConfig> config = read_config(file->content);
    if (!config) return cbq::in_context(config.error(), path);
    source.config_ = *std::move(config);
    source.files_ = *std::move(file);
    return source;
  }
  Result<cbq::Json> json = cbq::read_json_file(path + "/config.json");
  if (!json) return json.error();
  Result<ModelConfig> config = read_config(*json);
  if (!config) return cbq::in_context(config.error(), path + "/config.json");
  Result<cbq::Checkpoint> checkpoint = cbq::Checkpoint::open(path, mode);
  if (!checkpoint) return checkpoint.error();
  if (const Status ok = resolve_target_patterns(*json, coded_modules(*checkpoint)); !ok) {
    return cbq::in_context(ok.error(), path + "/config.json");
  }
  source.json_ = *std::move(json);
  source.config_ = *std::move(config);
  source.files_ = *std::move(checkpoint);
  return source;
}

Status ModelSource::check_unchanged() const {
  if (const auto* file = std::get_if<cbq::GgufFile>(&files_)) return file->file.check_unchanged(path_);
  const cbq::Checkpoint* files = checkpoint();
  return files == nullptr ? Status() : files->check_unchanged();
}

std::size_t ModelSource::file_bytes() const {
  if (const auto* file = std::get_if<cbq::GgufFile>(&files_)) return file->file.bytes().size();
  return checkpoint()->file_bytes();
}

Result<Tokenizer> ModelSource::tokenizer_of(GgufVocabulary vocabulary, const std::string& file) const {
  if (!pre_tokenizer_.empty()) vocabulary.pre = pre_tokenizer_;
  Result<Tokenizer> tokenizer = Tokenizer::from_gguf(vocabulary);
  if (!tokenizer) return cbq::in_context(tokenizer.error(), file);
  return tokenizer;
}

SpecialIds ModelSource::special_ids() const {
  SpecialIds ids;
  ids.bos = config_.bos;
  if (!config_.eos.empty()) ids.eos = config_.eos.front();
  return ids;
}

Result<Tokenizer> ModelSource::tokenizer() const {
  if (const auto* file = std::get_if<cbq::GgufFile>(&files_)) {
    Result<GgufVocabulary> vocabulary = read_vocabulary(file->content.metadata());
    if (!vocabulary) return cbq::in_context(vocabulary.error(), path_);
    return tokenizer_of(*std::move(vocabulary), path_);
  }
  const std::string own = path_ + "/" + vocabulary_file;
  if (::access(own.c_str(), F_OK) == 0) {
    const Result<cbq::Json> json = cbq::read_json_file(own);
    if (!json) return json.error();
    Result<GgufVocabulary> vocabulary = read_vocabulary(*json);
    if (!vocabulary) return cbq::in_context(vocabulary.error(), own);
    return tokenizer_of(*std::move(vocabulary), own);
  }
  const std::string file = path_ + "/tokenizer.json";
  if (!pre_tokenizer_.empty()) {
    return Error{Errc::bad_argument, "only a GGUF vocabulary can have another pre-tokenizer", "pre-tokenizer",
                 pre_tokenizer_, file};
  }
  const Result<cbq::FileBytes> bytes = cbq::FileBytes::open(file, cbq::FileMode::read, std::size_t{1} << 28);
  if (!bytes) return bytes.error();
  const std::string_view text(reinterpret_cast<const char*>(bytes->bytes().data()), bytes->bytes().size());
  Result<Tokenizer> tokenizer = Tokenizer::from_json(text, special_ids());
  if (!tokenizer) return cbq::in_context(tokenizer.error(), file);
  return tokenizer;
}

Result<GgufVocabulary> ModelSource::vocabulary() const {
  if (const cbq::Gguf* file = gguf()) {
    Result<GgufVocabulary> vocabulary = read_vocabulary(file->metadata());
    if (!vocabulary) return cbq::in_context(vocabulary.error(), path_);
    if (!pre_tokenizer_.empty()) vocabulary->pre = pre_tokenizer_;
    return vocabulary;
  }
  const std::string own = path_ + "/" + vocabulary_file;
  if (::access(own.c_str(), F_OK) == 0) {
    const Result<cbq::Json> json = cbq::read_json_file(own);
    if (!json) return json.error();
    Result<GgufVocabulary> vocabulary = read_vocabulary(*json);
    if (!vocabulary) return cbq::in_context(vocabulary.error(), own);
    return vocabulary;
  }
  const std::string file = path_ + "/tokenizer.json";
  const Result<cbq::FileBytes> bytes = cbq::FileBytes::open(file, cbq::FileMode::read, std::size_t{1} << 28);
  if (!bytes) return bytes.error();
  const std::string_view text(reinterpret_cast<const char*>(bytes->bytes().data()), bytes->bytes().size());
  Result<GgufVocabulary> vocabulary = vocabulary_of_json(text, special_ids(), config_.vocabulary);
  if (!vocabulary) return cbq::in_context(vocabulary.error(), file);
  const Result<std::string> chat = read_chat_template();
  if (!chat) return chat.error();
  vocabulary->chat_template = *chat;
  return vocabulary;
}

Result<cbq::Json> ModelSource::vocabulary_json() const {
  if (!is_gguf()) return Error{Errc::bad_argument, "the model is no GGUF file", path_};
  const Result<GgufVocabulary> own = vocabulary();
  if (!own) return own.error();
  return to_json(*own);
}

// Newer folders have a file for it, older ones a member of tokenizer_config.json.
Result<std::string> ModelSource::read_chat_template() const {
  const std::string own = path_ + "/chat_template.jinja";
  if (::access(own.c_str(), F_OK) == 0) {
    const Result<cbq::FileBytes> bytes = cbq::FileBytes::open(own, cbq::FileMode::read, std::size_t{1} << 24);
    if (!bytes) return bytes.error();
    return std::string(reinterpret_cast<const char*>(bytes->bytes().data()), bytes->bytes().size());
  }
  const std::string config = path_ + "/tokenizer_config.json";
  if (::access(config.c_str(), F_OK) != 0) return std::string();
  const Result<cbq::Json> json = cbq::read_json_file(config);
  if (!json) return json.error();
  const cbq::Json* chat = cbq::json_find(*json, "chat_template");
  return chat != nullptr && chat->is_string() ? chat->get<std::string>() : std::string();
}

const TensorView* ModelSource::find_stored(std::string_view name) const {
  const cbq::Checkpoint* files = checkpoint();
  if (files == nullptr) return nullptr;
  if (const TensorView* found = files->find(name)) return found;
  // Checkpoints of OPT and BLOOM of 2022 leave the prefix out.
  const std::string_view prefix = config_.architecture == Architecture::bloom ? "transformer." : "model.";
  return name.starts_with(prefix) ? files->find(name.substr(prefix.size())) : nullptr;
}

ModelSource::Fused ModelSource::find_fused(std::string_view name) const {
  if (config_.architecture != Architecture::bloom) return {};
  constexpr std::string_view parts[] = {".q_proj.", ".k_proj.", ".v_proj."};
  for (std::size_t i = 0; i < 3; ++i) {
    const std::size_t at = name.find(parts[i]);
    if (at == std::string_view::npos) continue;
    std::string whole(name.substr(0, at));
    whole.append(".query_key_value.").append(name.substr(at + parts[i].size()));
    const TensorView* tensor = find_stored(whole);
    const bool fits = tensor != nullptr && tensor->shape.rank > 0 && tensor->shape.sizes[0] == 3 * config_.hidden;
    return fits ? Fused{tensor, static_cast<cbq::FusedPart>(i)} : Fused{};
  }
  return {};
}

Status ModelSource::read_fused(const Fused& fused, const MatrixView<float>& out) const {
  const std::size_t width = config_.head_width;
  const bool vector = fused.tensor->shape.rank == 1;
  if ((vector ? out.columns : out.rows) != config_.hidden || (vector && out.rows != 1)) {
    return Error{Errc::bad_shape, "a tensor has the wrong shape", fused.tensor->name,
                 cbq::shape_text(fused.tensor->shape),
                 ErrorText("3 parts of [") << out.rows << ", " << out.columns << "]"};
  }
  const std::size_t row_bytes = fused.tensor->bytes.size() / fused.tensor->shape.sizes[0];
  for (std::size_t first = 0; first < config_.hidden; first += width) {
    TensorView head = *fused.tensor;
    const std::size_t offset = cbq::fused_projection_row(fused.part, first, width) * row_bytes;
    head.shape.sizes[0] = width;
    head.bytes = head.bytes.subspan(offset, width * row_bytes);
    head.offset += offset;
    const auto to = vector ? cbq::matrix_view(out.data + first, 1, width) : cbq::rows(out, first, width);
    if (const Status done = cbq::copy_to_float(head, to); !done) return done;
  }
  return {};
}

const GgufTensor* ModelSource::find_gguf(std::string_view name) const {
  const auto* file = std::get_if<cbq::GgufFile>(&files_);
  const std::string mapped = file != nullptr ? gguf_name(name) : std::string();
  return mapped.empty() ? nullptr : file->content.find(mapped);
}

std::optional<StoredTensor> ModelSource::find(std::string_view name) const {
  if (const TensorView* tensor = find_stored(name)) {
    return StoredTensor{tensor->shape, cbq::dtype_name(tensor->dtype), tensor->bytes.size()};
  }
  if (const Fused fused = find_fused(name); fused.tensor != nullptr) {
    StoredTensor part{fused.tensor->shape, cbq::dtype_name(fused.tensor->dtype), fused.tensor->bytes.size() / 3};
    part.shape.sizes[0] /= 3;
    return part;
  }
  if (const GgufTensor* tensor = find_gguf(name)) {
    const auto layout = cbq::gguf_layout(static_cast<std::uint32_t>(tensor->type));
    return StoredTensor{tensor->shape, layout ? layout->name : "unknown", tensor->bytes.size()};
  }
  return std::nullopt;
}

Result<StoredTensor> ModelSource::tensor(std::string_view name) const {
  const std::optional<StoredTensor> found = find(name);
  if (!found) return Error{Errc::bad_file, "the model has no such tensor", name, path_};
  return *found;
}

Status ModelSource::read(std::string_view name, const MatrixView<float>& out) const {
  if (const TensorView* tensor = find_stored(name)) return cbq::copy_to_float(*tensor, out);
  if (const Fused fused = find_fused(name); fused.tensor != nullptr) return read_fused(fused, out);
  return read_gguf(name, out);
}

Status ModelSource::read(std::string_view name, std::span<float> out) const {
  return read(name, cbq::matrix_view(out.data(), 1, out.size()));
}

Result<FloatMatrix> ModelSource::read_matrix(const std::string& name, std::size_t rows, std::size_t columns) const {
  const Result<std::size_t> size = cbq::checked_product(rows, columns);
  if (!size) return cbq::in_context(size.error(), name);
  const Result<StoredTensor> stored = tensor(name);
  if (!stored) return stored.error();
  const Result<std::size_t> elements = cbq::element_count(stored->shape);
  if (!elements || *elements != *size) {
    return Error{Errc::bad_shape, "a tensor has the wrong shape", name, cbq::shape_text(stored->shape),
                 ErrorText("[") << rows << ", " << columns << "]"};
  }
  Result<cbq::AlignedBuffer<float>> memory = cbq::AlignedBuffer<float>::allocate(*size);
  if (!memory) return cbq::in_context(memory.error(), name);
  FloatMatrix matrix;
  matrix.memory = *std::move(memory);
  matrix.view = cbq::matrix_view(matrix.memory.data(), rows, columns);
  if (const Status done = read(name, matrix.view); !done) return done.error();
  return matrix;
}

Status ModelSource::read_gguf(std::string_view name, const MatrixView<float>& out) const {
  const GgufTensor* tensor = find_gguf(name);
  if (tensor == nullptr) return Error{Errc::bad_file, "the model has no such tensor", name, path_};
  const bool turned = has_gguf_row_order(name);
  if (turned && tensor->shape.rank == 1) return read_turned_bias(*tensor, config_.head_width, out);
  const bool matrix = tensor->shape.rank == 2 && tensor->shape.sizes[0] == out.rows;
  if (!turned || !matrix) return cbq::copy_to_float(*tensor, out);
  for (std::size_t r = 0; r < out.rows; ++r) {
    const Status read = cbq::copy_rows_to_float(*tensor, gguf_row(r, config_.head_width), cbq::rows(out, r, 1));
    if (!read) return read;
  }
  return {};
}

}  // namespace cbq_llama
