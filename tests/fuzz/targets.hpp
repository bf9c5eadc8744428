// SPDX-License-Identifier: Apache-2.0
#pragma once

// What libFuzzer feeds: one function per parser, each given bytes that may be anything. A target traps where a parser
// accepts what contradicts itself; memory errors and undefined behaviour are for the sanitizers to find.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include <cbq/core/result.hpp>

namespace fuzz {

using Bytes = std::span<const std::byte>;

void safetensors(Bytes bytes);
void checkpoint_index(Bytes bytes);  // model.safetensors.index.json, a NUL, then the shard "a.safetensors"
void gguf(Bytes bytes);              // metadata by every getter
void gguf_decode(Bytes bytes);       // every tensor to float, and packed
void stored(Bytes bytes);            // config.json, a NUL, then safetensors: every module unpacked and packed
void model_config(Bytes bytes);      // config.json: sizes and quantization
void gguf_model(Bytes bytes);        // a GGUF file's model and tokenizer
void tokenizer(Bytes bytes);         // tokenizer.json, a NUL, then a text
void recipe(Bytes bytes);
void calibration_state(Bytes bytes);  // of a reconstruction that was cut off
void packed_file(Bytes bytes);
void saved_sequence(Bytes bytes);  // of a KV cache; the first byte chooses its scheme

/// Seeds that take cbq's own writers, as files in `folder`; make_seeds.py makes the others.
void calibration_state_seeds(const std::string& folder);
void packed_file_seeds(const std::string& folder);
void saved_sequence_seeds(const std::string& folder);
void write_seed(const std::string& path, Bytes bytes);

/// Prints what the parsers make of files; see describe.cpp.
void describe(std::span<char*> paths);

struct Target {
  const char* name;
  void (*run)(Bytes);
  void (*seeds)(const std::string& folder) = nullptr;
};

inline constexpr Target targets[] = {
    {"safetensors", safetensors},
    {"checkpoint_index", checkpoint_index},
    {"gguf", gguf},
    {"gguf_decode", gguf_decode},
    {"stored", stored},
    {"model_config", model_config},
    {"gguf_model", gguf_model},
    {"tokenizer", tokenizer},
    {"recipe", recipe},
    {"calibration_state", calibration_state, calibration_state_seeds},
    {"packed_file", packed_file, packed_file_seeds},
    {"saved_sequence", saved_sequence, saved_sequence_seeds},
};

/// Traps: a parser broke a promise.
inline void require(bool promise) {
  if (!promise) std::abort();
}

/// Whether `result` holds a value; an error must say something.
template <class R>
bool accepted(const R& result) {
  if (result) return true;
  std::string text;
  cbq::append_message(text, result.error());
  require(text.size() > 4);
  return false;
}

/// Memory beyond this is not taken for an input: honest files of this size do not need it.
inline constexpr std::size_t most_elements = std::size_t{1} << 22;

inline std::string_view text_of(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// What stands before and behind the first NUL.
struct TextAndBytes {
  std::string_view text;
  Bytes bytes;
};
inline TextAndBytes split(Bytes input) {
  const std::string_view all = text_of(input);
  const std::size_t end = all.find('\0');
  if (end == std::string_view::npos) return {all, {}};
  return {all.substr(0, end), input.subspan(end + 1)};
}

/// A regular file without a place in a folder, for parsers that take paths.
class MemoryFile {
 public:
  MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile();
  void write(Bytes bytes) const;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  int descriptor_ = -1;
  std::string path_;
};

}  // namespace fuzz
