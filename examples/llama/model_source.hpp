// SPDX-License-Identifier: Apache-2.0
#pragma once

// The files of a model: a Hugging Face folder (float, or quantized by cbq) or a GGUF file, seen the same way. Tensors
// go by their Hugging Face names; GGUF names are mapped, and the row order that GGUF gives query and key weights is
// undone, so that the half-split rotary positions fit. BLOOM's fused projection is taken apart: its parts go by the
// names q_proj, k_proj and v_proj. Nothing is copied before it is read.

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include <cbq/core/aligned.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/io/checkpoint.hpp>
#include <cbq/io/gguf.hpp>
#include <cbq/nn/bloom_block.hpp>

#include "model_config.hpp"
#include "tokenizer.hpp"

namespace cbq_llama {

/// The vocabulary of a GGUF file as JSON, in folders that `quantize` made of one: cbq's own form, exact for both kinds
/// of tokenizer.
inline constexpr const char* vocabulary_file = "gguf_vocabulary.json";

/// How a checkpoint stores a tensor.
struct StoredTensor {
  cbq::TensorShape shape;
  const char* type = "";  ///< "F16", "Q4_1"
  std::size_t bytes = 0;
};

/// A matrix read from a checkpoint.
struct FloatMatrix {
  cbq::AlignedBuffer<float> memory;
  cbq::MatrixView<float> view;
};

class ModelSource {
 public:
  /// Opens a folder or a `.gguf` file and reads its configuration. `pre_tokenizer`, if not empty, takes the place of
  /// the one that GGUF metadata names. Errc::io, Errc::bad_file, Errc::unsupported.
  [[nodiscard]] static cbq::Result<ModelSource> open(const std::string& path, const std::string& pre_tokenizer = {},
                                                     cbq::FileMode mode = cbq::FileMode::map);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] bool is_gguf() const { return std::holds_alternative<cbq::GgufFile>(files_); }
  /// The config.json of a folder, targets by their names (target_patterns.hpp); null for GGUF.
  [[nodiscard]] const cbq::Json& json() const { return json_; }
  /// The safetensors of a folder; null for GGUF.
  [[nodiscard]] const cbq::Checkpoint* checkpoint() const { return std::get_if<cbq::Checkpoint>(&files_); }
  /// The GGUF file; null for a folder.
  [[nodiscard]] const cbq::Gguf* gguf() const {
    const auto* file = std::get_if<cbq::GgufFile>(&files_);
    return file == nullptr ? nullptr : &file->content;
  }
  /// cbq::FileBytes::check_unchanged() of the files that hold the weights: what was read from mapped files may be
  /// relied on if this is true afterwards.
  [[nodiscard]] cbq::Status check_unchanged() const;
  /// Bytes of the files that hold the weights.
  [[nodiscard]] std::size_t file_bytes() const;

  /// The tokenizer that belongs to the model. Errc::io, Errc::bad_file, Errc::unsupported; Errc::bad_argument when a
  /// pre-tokenizer was named for a tokenizer.json, which describes its own.
  [[nodiscard]] cbq::Result<Tokenizer> tokenizer() const;

  /// The tokenizer in GGUF's words, with the chat template of the model: from GGUF metadata, `vocabulary_file` or a
  /// tokenizer.json. Errc::io; of a tokenizer.json those of vocabulary_of_json().
  [[nodiscard]] cbq::Result<GgufVocabulary> vocabulary() const;
  /// The same of a GGUF file, for `vocabulary_file`. Errc::bad_argument for a folder.
  [[nodiscard]] cbq::Result<cbq::Json> vocabulary_json() const;

  /// Shape and type of the tensor `name`, or nothing.
  [[nodiscard]] std::optional<StoredTensor> find(std::string_view name) const;
  /// The same; Errc::bad_file when there is none.
  [[nodiscard]] cbq::Result<StoredTensor> tensor(std::string_view name) const;

  /// The tensor `name` as float into `out`, whose shape it must have; every number must be finite.
  /// Errc::bad_file (missing), Errc::bad_shape, Errc::unsupported (type), Errc::not_finite.
  [[nodiscard]] cbq::Status read(std::string_view name, const cbq::MatrixView<float>& out) const;
  [[nodiscard]] cbq::Status read(std::string_view name, std::span<float> out) const;
  /// The same into memory of its own, which is taken only when the file has such a tensor of this shape; a vector is a
  /// matrix of one row. Errc::out_of_memory too.
  [[nodiscard]] cbq::Result<FloatMatrix> read_matrix(const std::string& name, std::size_t rows,
                                                     std::size_t columns) const;

 private:
  ModelSource(std::string path, std::string pre_tokenizer)
      : path_(std::move(path)), pre_tokenizer_(std::move(pre_tokenizer)) {}

  [[nodiscard]] const cbq::TensorView* find_stored(std::string_view name) const;
  /// A tensor of BLOOM's fused projection, of which `name` is a part.
  struct Fused {
    const cbq::TensorView* tensor = nullptr;  ///< null: there is none
    cbq::FusedPart part = cbq::FusedPart::query;
  };
  [[nodiscard]] Fused find_fused(std::string_view name) const;
  [[nodiscard]] cbq::Status read_fused(const Fused& fused, const cbq::MatrixView<float>& out) const;
  [[nodiscard]] const cbq::GgufTensor* find_gguf(std::string_view name) const;
  [[nodiscard]] cbq::Status read_gguf(std::string_view name, const cbq::MatrixView<float>& out) const;
  [[nodiscard]] SpecialIds special_ids() const;
  [[nodiscard]] cbq::Result<std::string> read_chat_template() const;
  [[nodiscard]] cbq::Result<Tokenizer> tokenizer_of(GgufVocabulary vocabulary, const std::string& file) const;

  std::string path_;
  std::string pre_tokenizer_;
  std::variant<std::monostate, cbq::Checkpoint, cbq::GgufFile> files_;
  cbq::Json json_;
  ModelConfig config_;
};

}  // namespace cbq_llama
