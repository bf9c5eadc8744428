// SPDX-License-Identifier: Apache-2.0
#include "checkpoint_export.hpp"

#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <sys/resource.h>

#include <cbq/io/checkpoint.hpp>

#include "checkpoint_import.hpp"
#include "examples/llama/engine_fixture.hpp"
#include "examples/llama/run_apart.hpp"
#include "gguf_export.hpp"
#include "gguf_import.hpp"
#include "interrupt.hpp"

using cbq::Json;
using cbq_llama::ModelSource;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using engine_fixture::unwrap;

namespace {

void quantize(const std::string& output, std::vector<std::string> options) {
  std::vector<std::string> arguments = {"quantize", pocket_llama(), "-o",    output, "--threads",
                                        "2",        "--range",      "minmax"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  const ToolRun run = run_tool(arguments);
  INFO(run.err);
  REQUIRE(run.code == 0);
}

ToolRun export_to(const std::string& model, const std::string& format, const std::string& output,
                  const std::vector<std::string>& options = {}) {
  std::vector<std::string> arguments = {"export", model, "--format", format, "-o", output};
  arguments.insert(arguments.end(), options.begin(), options.end());
  return run_tool(arguments);
}

Json config_of(const std::string& folder) {
  return unwrap(cbq::read_json_file(folder + "/config.json"));
}

// How many tensors of `first` the folder `second` has with the same type, shape and bytes; those that end in `but`
// aside.
void check_same_tensors(const std::string& first, const std::string& second, const std::string& but) {
  const cbq::Checkpoint a = unwrap(cbq::Checkpoint::open(first)), b = unwrap(cbq::Checkpoint::open(second));
  std::size_t compared = 0;
  for (const cbq::TensorView& tensor : a.tensors()) {
    if (tensor.name.find(but) != std::string_view::npos) continue;
    CAPTURE(tensor.name);
    const cbq::TensorView* other = b.find(tensor.name);
    REQUIRE(other != nullptr);
    CHECK(other->dtype == tensor.dtype);
    CHECK(cbq::same_shape(other->shape, tensor.shape));
    REQUIRE(other->bytes.size() == tensor.bytes.size());
    CHECK(std::memcmp(other->bytes.data(), tensor.bytes.data(), tensor.bytes.size()) == 0);
    ++compared;
  }
  CHECK(compared > 100);
}

void check_same_schemes(const std::string& first, const std::string& second) {
  Json a = config_of(first)["cbq"]["schemes"];
  a.erase("model.embed_tokens");
  CHECK(a == config_of(second)["cbq"]["schemes"]);
}

}  // namespace

TEST_CASE("what is exported and imported again has the same codes, scales and zero points") {
  struct Trip {
    const char* scheme;
    const char* format;
    std::vector<std::string> options;
  };
  const std::vector<Trip> trips = {{"w4a16_g128", "compressed-tensors", {"--shard-size", "500K"}},
                                   {"w3a16_g128_asym", "compressed-tensors", {}},
                                   {"w4a8_g32", "compressed-tensors", {}},
                                   {"w8a8", "compressed-tensors", {}},
                                   {"w4a16_g128", "gptq", {}},
                                   {"w4a16_g32", "gptq", {"--gptq-version", "2"}},
                                   {"w3a16_g128_asym", "gptq", {"--shard-size", "500K"}},
                                   {"w2a16_g64_asym", "gptq", {}},
                                   {"w8a16", "gptq", {}},
                                   {"w4a16_g128", "awq", {}},
                                   {"w4a16_g32_asym", "awq", {}}};
  for (const Trip& trip : trips) {
    CAPTURE(trip.scheme, trip.format);
    const support::ScratchFolder folder;
    quantize(folder / "own", {"--scheme", trip.scheme});
    const ToolRun out = export_to(folder / "own", trip.format, folder / "out", trip.options);
    INFO(out.err);
    REQUIRE(out.code == 0);
    CHECK(out.out.find("note: model.embed_tokens: codes of 8 bits written as F16") != std::string::npos);
    CHECK(std::filesystem::exists(folder / "out/tokenizer.json"));
    CHECK(std::filesystem::exists(folder / "out/model.safetensors") ==
          !std::filesystem::exists(folder / "out/model.safetensors.index.json"));
    CHECK_FALSE(config_of(folder / "out").contains("cbq"));
    const ToolRun in = run_tool({"import", folder / "out", "-o", folder / "back"});
    INFO(in.err);
    REQUIRE(in.code == 0);
    check_same_tensors(folder / "own", folder / "back", "embed_tokens");
    check_same_schemes(folder / "own", folder / "back");
  }
}

TEST_CASE("an export says what it read, wrote and changed") {
  const support::ScratchFolder folder;
  quantize(folder / "own", {"--scheme", "w4a8_g128"});
  const ToolRun run = export_to(folder / "own", "gptq", folder / "out", {"--json", "-"});
  REQUIRE(run.code == 0);
  const Json json = unwrap(cbq::parse_json(run.out));
  CHECK(json["format"] == "gptq");
  CHECK(json["bytes_written"] == std::filesystem::file_size(folder / "out/model.safetensors"));
  CHECK(json["bytes_read"] > 1000000);
  CHECK(json["peak_memory_bytes"] > 0);
  REQUIRE(json["notes"].size() == 2);
  CHECK(json["notes"][1] == "activations of 35 modules stay in floating point: the form has weights only");
  CHECK(config_of(folder / "out")["quantization_config"]["group_size"] == 128);
  CHECK(config_of(folder / "out")["quantization_config"] ==
        unwrap(cbq::read_json_file(folder / "out/quantize_config.json")));
  CHECK(run_tool({"export", folder / "own", "--format", "tar", "-o", folder / "x"}).code == 2);
}

TEST_CASE("modules of several schemes are described one by one") {
  const support::ScratchFolder folder;
  support::write_text(folder / "recipe.json", R"({"scheme": "w4a16_g128", "schemes": [
      {"pattern": "*.0.mlp.down_proj", "scheme": "w8a16"}, {"pattern": "*.1.mlp.down_proj", "scheme": "w16a16"}]})");
  quantize(folder / "own", {"--recipe", folder / "recipe.json"});
  REQUIRE(export_to(folder / "own", "gptq", folder / "out").code == 0);
  CHECK(config_of(folder / "out")["quantization_config"]["dynamic"].size() == 2);
  REQUIRE(run_tool({"import", folder / "out", "-o", folder / "back"}).code == 0);
  check_same_tensors(folder / "own", folder / "back", "embed_tokens");
  check_same_schemes(folder / "own", folder / "back");
  const ToolRun awq = export_to(folder / "own", "awq", folder / "x");
  CHECK(awq.code == 1);
  CHECK(awq.err.find("model.layers.0.mlp.down_proj") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(folder / "x"));
}

TEST_CASE("what a form cannot say is refused by module, and nothing is left") {
  const support::ScratchFolder folder;
  quantize(folder / "own", {"--scheme", "w4a4", "--rotate", "full"});
  for (const char* format : {"compressed-tensors", "gptq", "awq"}) {
    const ToolRun run = export_to(folder / "own", format, folder / "out");
    CHECK(run.code == 1);
    CHECK(run.err.find("model.layers.0.mlp.down_proj: its input is rotated") != std::string::npos);
  }
  CHECK(export_to(pocket_llama(), "gptq", folder / "out").err.find("not quantized") != std::string::npos);
  CHECK(run_tool({"import", pocket_llama(), "-o", folder / "out"}).err.find("floating point") != std::string::npos);
  CHECK(run_tool({"import", folder / "own", "-o", folder / "out"}).err.find("own form") != std::string::npos);
  CHECK(folder.entries() == 1);
  support::write_text(folder / "taken", "");
  CHECK(export_to(folder / "own", "gptq", folder / "taken").code == 1);
  CHECK(folder.entries() == 2);
}

TEST_CASE("affine weights become GPTQ v2, or v1 where that is asked for") {
  const support::ScratchFolder folder;
  quantize(folder / "own", {"--scheme", "w2a16_g64_asym"});
  const auto form_of = [&](const char* out) {
    return unwrap(cbq::read_json_file(folder / out + "/config.json"))["quantization_config"]["checkpoint_format"];
  };
  const ToolRun usual = export_to(folder / "own", "gptq", folder / "usual");
  CHECK(usual.code == 0);
  CHECK(usual.out.find("checkpoint_format gptq_v2") != std::string::npos);
  CHECK(form_of("usual") == "gptq_v2");
  CHECK(export_to(folder / "own", "gptq", folder / "asked", {"--gptq-version", "1"}).code == 0);
  CHECK(form_of("asked") == "gptq");
  CHECK(export_to(folder / "own", "gptq", folder / "third", {"--gptq-version", "3"}).code == 2);
}

TEST_CASE("an export or import that is cut off leaves nothing behind") {
  const support::ScratchFolder folder;
  quantize(folder / "own", {"--scheme", "w4a16_g128"});
  REQUIRE(export_to(folder / "own", "gptq", folder / "out").code == 0);
  const auto interrupted = [] {
    cbq_llama::catch_interrupts();
    (void)std::raise(SIGINT);
  };
  // A limit on the size of files stands for a full disk: writes fail in the same place.
  const auto small_disk = [] {
    (void)std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {100000, 100000};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  };
  for (const auto& command : std::vector<std::vector<std::string>>{
           {"export", folder / "own", "--format", "compressed-tensors", "-o", folder / "x"},
           {"export", folder / "own", "--format", "awq", "-o", folder / "x", "--shard-size", "300K"},
           {"import", folder / "out", "-o", folder / "x"}}) {
    CAPTURE(command);
    CHECK(engine_fixture::run_apart(command, interrupted) == 128 + SIGINT);
    CHECK(engine_fixture::run_apart(command, small_disk) == 1);
    CHECK(folder.entries() == 2);
  }
}

TEST_CASE("an export or import of files that were written to meanwhile is refused, and nothing is left") {
  const support::ScratchFolder folder;
  quantize(folder / "own", {"--scheme", "w4a16_g128"});
  REQUIRE(export_to(folder / "own", "gptq", folder / "gptq").code == 0);
  REQUIRE(export_to(folder / "own", "gguf", folder / "own.gguf").code == 0);
  const auto touched = [&](const std::string& model, const std::string& file) {
    ModelSource source = unwrap(ModelSource::open(model));
    const auto time = std::filesystem::last_write_time(file);
    std::filesystem::last_write_time(file, time + std::chrono::seconds(1));
    return source;
  };
  const auto refused = [&](const cbq::Result<cbq_llama::ExportReport>& done) {
    REQUIRE_FALSE(done);
    CHECK(done.error().code == cbq::Errc::bad_file);
    CHECK(support::message(done.error()).find("the file was written to while it was in use") != std::string::npos);
    CHECK(folder.entries() == 3);
  };
  const ModelSource own = touched(folder / "own", folder / "own/model.safetensors");
  refused(cbq_llama::export_checkpoint(own, folder / "x", {}));
  refused(cbq_llama::export_gguf(own, folder / "x.gguf"));
  refused(cbq_llama::import_checkpoint(touched(folder / "gptq", folder / "gptq/model.safetensors"), folder / "x"));
  refused(cbq_llama::import_gguf(touched(folder / "own.gguf", folder / "own.gguf"), folder / "x"));
}
