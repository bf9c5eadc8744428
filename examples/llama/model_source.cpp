// SPDX-License-Identifier: Apache-2.0
#include "model_source.hpp"

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

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

// Hugging Face's name of a tensor in GGUF's words; empty when GGUF has no such tensor.
std::string gguf_name(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 9> parts = {{
      {"input_layernorm", "attn_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
  }};
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  constexpr std::string_view layers = "model.layers.";
  if (!name.starts_with(layers)) return {};
  name.remove_prefix(layers.size());
  const std::size_t dot = name.find('.');
  const std::size_t last = name.rfind('.');
  if (dot == std::string_view::npos || last <= dot) return {};
  const std::string_view middle = name.substr(dot + 1, last - dot - 1);
  for (const auto& [ours, theirs] : parts) {
    if (middle == ours) {
      return std::string("blk.").append(name.substr(0, dot)).append(".").append(theirs).append(name.substr(last));
    }
  }
  return {};
}

// GGUF turns each head's rows of Q and K from two halves into pairs: its row 2 i + j is row j d / 2 + i.
std::size_t gguf_row(std::size_t row, std::size_t head_width) {
  const std::size_t head = row / head_width;
  const std::size_t inside = row % head_width;
  const std::size_t half = head_width / 2;
  return head * head_width + 2 * (inside % half) + inside / half;
}

GgufVocabulary read_vocabulary(const cbq::GgufMetadata& metadata) {
  GgufVocabulary vocabulary;
  const auto text = [&](const char* key) {
    const auto value = metadata.text_value(key);
    return value ? std::string(*value) : std::string();
  };
  const auto texts = [&](const char* key) {
    std::vector<std::string> copies;
    if (const auto values = metadata.text_array(key)) copies.assign(values->begin(), values->end());
    return copies;
  };
  const auto number = [&](const char* key) -> std::optional<std::int64_t> {
    const auto value = metadata.unsigned_value(key);
    if (!value || *value > INT32_MAX) return std::nullopt;
    return static_cast<std::int64_t>(*value);
  };
  const auto boolean = [&](const char* key) -> std::optional<bool> {
    const auto value = metadata.boolean_value(key);
    if (!value) return std::nullopt;
    return *value;
  };
  vocabulary.model = text("tokenizer.ggml.model");
  vocabulary.pre = text("tokenizer.ggml.pre");
  vocabulary.tokens = texts("tokenizer.ggml.tokens");
  vocabulary.merges = texts("tokenizer.ggml.merges");
  if (const auto types = metadata.integer_array("tokenizer.ggml.token_type")) {
    for (const std::int64_t type : *types) vocabulary.token_types.push_back(static_cast<std::int32_t>(type));
  }
  if (auto scores = metadata.float_array("tokenizer.ggml.scores")) vocabulary.scores = *std::move(scores);
  vocabulary.bos = number("tokenizer.ggml.bos_token_id");
  vocabulary.eos = number("tokenizer.ggml.eos_token_id");
  vocabulary.unknown = number("tokenizer.ggml.unknown_token_id");
  vocabulary.add_bos = boolean("tokenizer.ggml.add_bos_token");
  vocabulary.add_eos = boolean("tokenizer.ggml.add_eos_token");
  vocabulary.add_space_prefix = boolean("tokenizer.ggml.add_space_prefix");
  return vocabulary;
}

template <class T>
cbq::Json optional_json(const std::optional<T>& value) {
  return value ? cbq::Json(*value) : cbq::Json(nullptr);
}

// Reads the members of a vocabulary; what is absent or of another type stays empty, and Tokenizer::from_gguf judges.
GgufVocabulary vocabulary_from_json(const cbq::Json& json) {
  GgufVocabulary vocabulary;
  const auto text = [](const cbq::Json* value) {
    return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
  };
  const auto list = [&](const char* key, auto& target, auto is, auto get) {
    const cbq::Json* values = cbq::json_find(json, key);
    if (values == nullptr || !values->is_array()) return;
    for (const cbq::Json& value : *values) {
      if (is(value)) target.push_back(get(value));
    }
  };
  const auto is_text = [](const cbq::Json& value) { return value.is_string(); };
  const auto is_number = [](const cbq::Json& value) { return value.is_number(); };
  const auto get_text = [](const cbq::Json& value) { return value.get<std::string>(); };
  const auto integer = [&](const char* key) -> std::optional<std::int64_t> {
    const cbq::Json* value = cbq::json_find(json, key);
    if (value == nullptr || !value->is_number_integer()) return std::nullopt;
    return value->get<std::int64_t>();
  };
  const auto boolean = [&](const char* key) -> std::optional<bool> {
    const cbq::Json* value = cbq::json_find(json, key);
    if (value == nullptr || !value->is_boolean()) return std::nullopt;
    return value->get<bool>();
  };
  vocabulary.model = text(cbq::json_find(json, "model"));
  vocabulary.pre = text(cbq::json_find(json, "pre"));
  list("tokens", vocabulary.tokens, is_text, get_text);
  list("merges", vocabulary.merges, is_text, get_text);
  list("token_type", vocabulary.token_types, is_number,
       [](const cbq::Json& value) { return value.get<std::int32_t>(); });
  list("scores", vocabulary.scores, is_number, [](const cbq::Json& value) { return value.get<float>(); });
  vocabulary.bos = integer("bos_token_id");
  vocabulary.eos = integer("eos_token_id");
  vocabulary.unknown = integer("unknown_token_id");
  vocabulary.add_bos = boolean("add_bos_token");
  vocabulary.add_eos = boolean("add_eos_token");
  vocabulary.add_space_prefix = boolean("add_space_prefix");
  return vocabulary;
}

}  // namespace

Result<ModelSource> ModelSource::open(const std::string& path, const std::string& pre_tokenizer) {
  ModelSource source(path, pre_tokenizer);
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) return cbq::system_error("cannot open the model", path, errno);
  if (!S_ISDIR(status.st_mode)) {
    if (!path.ends_with(".gguf")) {
      return Error{Errc::unsupported, "a model is a folder or a .gguf file", path};
    }
    Result<cbq::GgufFile> file = cbq::GgufFile::open(path);
    if (!file) return file.error();
    Result<ModelConfig> config = read_config(file->content.metadata());
    if (!config) return cbq::in_context(config.error(), path);
    if (file->content.find("rope_freqs.weight") != nullptr) {
      return Error{Errc::unsupported, "rotary factors in a tensor are not supported", "rope_freqs.weight", path,
                   "the Hugging Face folder of this model"};
    }
    for (const GgufTensor& tensor : file->content.tensors()) {
      if (tensor.name.starts_with("blk.") && tensor.name.ends_with(".bias")) {
        return Error{Errc::unsupported, "biases in GGUF files are not supported", tensor.name, path,
                     "the Hugging Face folder of this model"};
      }
    }
    config->tied = file->content.find("output.weight") == nullptr;
    source.config_ = *std::move(config);
    source.files_ = *std::move(file);
    return source;
  }
  Result<cbq::Json> json = cbq::read_json_file(path + "/config.json");
  if (!json) return json.error();
  Result<ModelConfig> config = read_config(*json);
  if (!config) return cbq::in_context(config.error(), path + "/config.json");
  Result<cbq::Checkpoint> checkpoint = cbq::Checkpoint::open(path);
  if (!checkpoint) return checkpoint.error();
  source.json_ = *std::move(json);
  source.config_ = *std::move(config);
  source.files_ = *std::move(checkpoint);
  return source;
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

Result<Tokenizer> ModelSource::tokenizer() const {
  if (const auto* file = std::get_if<cbq::GgufFile>(&files_)) {
    return tokenizer_of(read_vocabulary(file->content.metadata()), path_);
  }
  const std::string own = path_ + "/" + vocabulary_file;
  if (::access(own.c_str(), F_OK) == 0) {
    const Result<cbq::Json> json = cbq::read_json_file(own);
    if (!json) return json.error();
    return tokenizer_of(vocabulary_from_json(*json), own);
  }
  const std::string file = path_ + "/tokenizer.json";
  if (!pre_tokenizer_.empty()) {
    return Error{Errc::bad_argument, "only a GGUF vocabulary can have another pre-tokenizer", "pre-tokenizer",
                 pre_tokenizer_, file};
  }
  const Result<cbq::FileBytes> bytes = cbq::FileBytes::open(file, cbq::FileMode::read, std::size_t{1} << 28);
  if (!bytes) return bytes.error();
  const std::string_view text(reinterpret_cast<const char*>(bytes->bytes().data()), bytes->bytes().size());
  SpecialIds ids;
  ids.bos = config_.bos;
  if (!config_.eos.empty()) ids.eos = config_.eos.front();
  Result<Tokenizer> tokenizer = Tokenizer::from_json(text, ids);
  if (!tokenizer) return cbq::in_context(tokenizer.error(), file);
  return tokenizer;
}

Result<cbq::Json> ModelSource::vocabulary_json() const {
  const auto* file = std::get_if<cbq::GgufFile>(&files_);
  if (file == nullptr) return Error{Errc::bad_argument, "the model is no GGUF file", path_};
  GgufVocabulary vocabulary = read_vocabulary(file->content.metadata());
  if (!pre_tokenizer_.empty()) vocabulary.pre = pre_tokenizer_;
  return cbq::Json{{"model", vocabulary.model},
                   {"pre", vocabulary.pre},
                   {"tokens", vocabulary.tokens},
                   {"token_type", vocabulary.token_types},
                   {"scores", vocabulary.scores},
                   {"merges", vocabulary.merges},
                   {"bos_token_id", optional_json(vocabulary.bos)},
                   {"eos_token_id", optional_json(vocabulary.eos)},
                   {"unknown_token_id", optional_json(vocabulary.unknown)},
                   {"add_bos_token", optional_json(vocabulary.add_bos)},
                   {"add_eos_token", optional_json(vocabulary.add_eos)},
                   {"add_space_prefix", optional_json(vocabulary.add_space_prefix)}};
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
  const bool turned = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
  const bool matrix = tensor->shape.rank == 2 && tensor->shape.sizes[0] == out.rows;
  if (!turned || !matrix) return cbq::copy_to_float(*tensor, out);
  for (std::size_t r = 0; r < out.rows; ++r) {
    const Status read = cbq::copy_rows_to_float(*tensor, gguf_row(r, config_.head_width), cbq::rows(out, r, 1));
    if (!read) return read;
  }
  return {};
}

}  // namespace cbq_llama
