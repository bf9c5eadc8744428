// SPDX-License-Identifier: Apache-2.0

// Files of tests/data/malformed, each with one fault of a class in which parsers of model files were found wrong:
// expected.json says how each is refused. Those of config.json and tokenizers are in tests/examples.

#include <catch2/catch_test_macros.hpp>

#include <filesystem>
#include <string>
#include <string_view>

#include <cbq/io/checkpoint.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/gguf.hpp>

#include "support/files.hpp"
#include "support/malformed.hpp"

using cbq::Errc;
using cbq::Result;
using cbq::Status;
using support::message;

namespace {

Status read_numbers(const std::string& path) {
  const auto file = cbq::GgufFile::open(path);
  REQUIRE(file);
  const cbq::GgufMetadata& metadata = file->content.metadata();
  CHECK_FALSE(metadata.number_value(metadata.values().front().key));
  const auto number = metadata.unsigned_value(metadata.values().front().key);
  return number ? Status() : cbq::in_context(number.error(), path);
}

Status read_stored(const std::string& path) {
  const std::string content = support::read_text(path);
  const std::size_t end = content.find('\0');
  const auto config = cbq::parse_json(content.substr(0, end));
  REQUIRE(config);
  const auto file = cbq::Safetensors::parse(std::as_bytes(std::span(content).subspan(end + 1)));
  REQUIRE(file);
  const auto record = cbq::parse_quantization(*config, cbq::packed_modules(*file));
  REQUIRE(record);
  const cbq::ModuleScheme& module = record->modules.front();
  const auto matrix = cbq::StoredMatrix::read(*file, module.module, module.scheme.weight);
  return matrix ? Status() : cbq::in_context(matrix.error(), path);
}

Status read(const std::string& reader, const std::string& path) {
  const auto status = [](const auto& result) { return result ? Status() : Status(result.error()); };
  if (reader == "safetensors") return status(cbq::Checkpoint::open(path));
  if (reader == "gguf") return status(cbq::GgufFile::open(path));
  return reader == "stored" ? read_stored(path) : read_numbers(path);
}

}  // namespace

TEST_CASE("Files of each class of fault are refused with file, place, what was found and what was wanted") {
  for (const char* reader : {"safetensors", "gguf", "gguf_numbers", "stored"}) {
    support::check_malformed(reader, [&](const std::string& path) { return read(reader, path); });
  }
}

TEST_CASE("Nothing of a malformed file or of the fuzzing corpus is read beyond its end, whatever is cut off") {
  std::size_t files = 0;
  for (const std::string& folder : {support::malformed_folder(), std::string(CBQ_SOURCE_DIR "/tests/fuzz/corpus")}) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      if (!entry.is_regular_file()) continue;
      ++files;
      const std::string content = support::read_text(entry.path().string());
      for (std::size_t size = content.size(); size > 0; size = size * 3 / 4) {
        const support::GuardedBytes bytes(std::as_bytes(std::span(content).first(size)));
        const auto tensors = cbq::Safetensors::parse(bytes.bytes());
        const auto gguf = cbq::Gguf::parse(bytes.bytes());
        CHECK((!tensors || !gguf));
        (void)cbq::parse_json(content.substr(0, size));
      }
    }
  }
  CHECK(files > 200);
}

TEST_CASE("Every limit of a parser is a parameter that holds") {
  const std::string shard = support::malformed_folder() + "/shard.safetensors";
  using Limits = cbq::CheckpointLimits;
  CHECK(cbq::Checkpoint::open(shard));
  const auto refused = [&](const Limits& limits, std::string_view what) {
    const auto opened = cbq::Checkpoint::open(shard, cbq::FileMode::read, limits);
    INFO(message(opened));
    return !opened && opened.error().code != Errc::io && message(opened).find(what) != std::string::npos;
  };
  CHECK(refused({.tensors = 0}, "too many tensors in all shards"));
  CHECK(refused({.bytes = 10}, "too large"));
  CHECK(refused({.shard = {.header_bytes = 8}}, "the header is too long"));
  CHECK(refused({.shard = {.tensors = 0}}, "too many"));
  CHECK(refused({.shard = {.text_bytes = 4}}, "JSON text is too long"));
  CHECK(refused({.shard = {.dims = 0}}, "too many dimensions"));
  CHECK(refused({.shard = {.bytes = 8}}, "too large"));

  const std::string index = support::malformed_folder() + "/index_promises_more.safetensors.index.json";
  const auto refused_index = [&](const Limits& limits) {
    return message(cbq::Checkpoint::open(index, cbq::FileMode::read, limits));
  };
  CHECK(refused_index({.shards = 0}).find("too many shards (got 1, wanted at most 0)") != std::string::npos);
  CHECK(refused_index({.index = {.bytes = 8}}).find("too large") != std::string::npos);
  CHECK(refused_index({.index = {.values = 2}}).find("too many JSON values (got 3") != std::string::npos);
  CHECK(refused_index({.index = {.depth = 1}}).find("nested too deeply (got 2") != std::string::npos);

  const std::string gguf = support::malformed_folder() + "/gguf_template.gguf";
  CHECK(cbq::GgufFile::open(gguf));
  const auto refused_gguf = [&](const cbq::GgufLimits& limits, std::string_view what) {
    return message(cbq::GgufFile::open(gguf, cbq::FileMode::read, limits)).find(what) != std::string::npos;
  };
  CHECK(refused_gguf({.keys = 0}, "more keys"));
  CHECK(refused_gguf({.tensors = 0}, "more tensors"));
  CHECK(refused_gguf({.text_bytes = 3}, "a text is too long"));
  CHECK(refused_gguf({.key_bytes = 3}, "a text is too long"));
  CHECK(refused_gguf({.name_bytes = 0}, "a text is too long"));
  CHECK(refused_gguf({.dims = 0}, "too many dimensions"));
  CHECK(refused_gguf({.bytes = 16}, "too large"));
}
