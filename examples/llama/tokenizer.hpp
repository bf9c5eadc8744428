// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tokenizer of a LLaMA, OPT or BLOOM checkpoint: byte-level BPE and SentencePiece-style BPE with byte fallback,
// read from a Hugging Face tokenizer.json or from GGUF metadata. Text to ids, ids to text, and text of a growing list
// of ids.
//
// Text need not be UTF-8: ill-formed bytes end a word, become the tokens of these bytes, and decode to them again (if
// the vocabulary has all bytes: a few lack bytes that never occur in text). Unicode normalization NFC, which some
// tokenizer files ask for, is not applied: text is taken as it is, which is the same for ASCII and for text already in
// NFC (nearly all text met in practice).
//
// Encoding costs O(n log n) per word and remembers words within a call.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/result.hpp>

namespace cbq_llama {

struct TokenizerParts;  // tokenizer_parts.hpp

/// What GGUF metadata says of a tokenizer (keys `tokenizer.ggml.*`); absent keys leave a member empty.
struct GgufVocabulary {
  std::string model;                ///< `model`: "gpt2" (byte-level BPE) or "llama" (SentencePiece-style BPE)
  std::string pre;                  ///< `pre`: name of the pre-tokenizer, for gpt2
  std::vector<std::string> tokens;  ///< `tokens`
  std::vector<std::int32_t>
      token_types;                  ///< `token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<float> scores;        ///< `scores`, for llama
  std::vector<std::string> merges;  ///< `merges`: "left right", for gpt2
  std::optional<std::int64_t> bos;  ///< `bos_token_id`
  std::optional<std::int64_t> eos;  ///< `eos_token_id`
  std::optional<std::int64_t> unknown;   ///< `unknown_token_id`
  std::optional<bool> add_bos;           ///< `add_bos_token`
  std::optional<bool> add_eos;           ///< `add_eos_token`
  std::optional<bool> add_space_prefix;  ///< `add_space_prefix`, for llama
  std::string chat_template;             ///< `tokenizer.chat_template`; not read here
};

/// Ids that stand in a checkpoint's config.json, not in its tokenizer.json.
struct SpecialIds {
  std::optional<std::int64_t> bos;
  std::optional<std::int64_t> eos;
};

struct EncodeOptions {
  enum class Special {
    as_text,   ///< "<s>" in the text is text like any other
    as_tokens  ///< "<s>" in the text is the control token
  };
  enum class Frame {
    added,   ///< the tokens that the tokenizer puts before and after a text (BOS, rarely EOS), if any
    omitted  ///< the text alone
  };
  Special special = Special::as_text;
  Frame frame = Frame::added;
};

/// Whether control tokens appear in decoded text.
enum class ShowSpecial { no, yes };

class Tokenizer {
 public:
  /// From the content of a tokenizer.json. Errors: bad_file naming the member that is missing, of a wrong type or
  /// contradicts another; unsupported for models other than BPE and for unknown normalizers, pre-tokenizers, decoders.
  [[nodiscard]] static cbq::Result<Tokenizer> from_json(std::string_view json, SpecialIds ids = {});

  /// From GGUF metadata. Errors: as from_json.
  [[nodiscard]] static cbq::Result<Tokenizer> from_gguf(const GgufVocabulary& vocabulary);

  /// Token ids of a text. A character that the vocabulary cannot express (neither as tokens nor as bytes) becomes the
  /// unknown token; where there is none it is left out, as in the implementations that such models were trained with.
  /// Errors: bad_argument when the text exceeds 1 GiB, an expression of the tokenizer file backtracks without end, or
  /// the file's steps make the text more than 16 times longer (and more than a MiB).
  [[nodiscard]] cbq::Result<std::vector<std::int32_t>> encode(std::string_view text, EncodeOptions options = {}) const;

  /// Text of token ids: UTF-8 whenever the ids came from UTF-8, otherwise the bytes that the ids stand for. The space
  /// that SentencePiece puts before a text is taken off again. Ids that the vocabulary skips give no text. Errors:
  /// bad_argument for an id below 0 or not below vocabulary_size().
  [[nodiscard]] cbq::Result<std::string> decode(std::span<const std::int32_t> ids,
                                                ShowSpecial show = ShowSpecial::yes) const;

  /// Bytes that one id adds to a decoded text. Errors: as decode.
  [[nodiscard]] cbq::Result<std::string_view> bytes(std::int32_t id) const;

  /// One more than the largest id.
  [[nodiscard]] std::size_t vocabulary_size() const;
  [[nodiscard]] std::optional<std::int32_t> bos() const;
  [[nodiscard]] std::optional<std::int32_t> eos() const;
  [[nodiscard]] std::optional<std::int32_t> unknown() const;
  /// The id of a token by its text as the file spells it ("<s>", "Ġthe"), if there is one.
  [[nodiscard]] std::optional<std::int32_t> find(std::string_view token) const;
  /// Whether an id steers the model (BOS, EOS, ...) rather than standing for text.
  [[nodiscard]] bool is_special(std::int32_t id) const;
  /// Ids that encode() puts before a text (Frame::added).
  [[nodiscard]] std::span<const std::int32_t> prefix() const;
  /// Whether decode() takes one space off the start of a text.
  [[nodiscard]] bool strips_first_space() const;

 private:
  struct State;
  class Encoding;
  explicit Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}
  [[nodiscard]] static cbq::Result<Tokenizer> assemble(TokenizerParts parts);

  std::shared_ptr<const State> state_;  // immutable: copies share it, and threads may use it together
};

/// Text of ids that arrive one by one. Never ends inside a UTF-8 sequence: bytes wait until their character is
/// complete.
class StreamDecoder {
 public:
  /// Where the stream starts: at the start of a text, where SentencePiece's space is taken off, or after other ids.
  enum class Start { of_text, continues };

  explicit StreamDecoder(Tokenizer tokenizer, Start start = Start::of_text, ShowSpecial show = ShowSpecial::yes)
      : tokenizer_(std::move(tokenizer)),
        strips_space_(start == Start::of_text && tokenizer_.strips_first_space()),
        show_(show) {}

  /// Text that `id` completes, perhaps none. Errors: as Tokenizer::decode.
  [[nodiscard]] cbq::Result<std::string> push(std::int32_t id);
  /// What still waits: empty unless the ids end inside a character.
  [[nodiscard]] std::string finish();

 private:
  Tokenizer tokenizer_;
  std::string waiting_;
  bool strips_space_;
  ShowSpecial show_;
};

}  // namespace cbq_llama
