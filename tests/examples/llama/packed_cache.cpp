// SPDX-License-Identifier: Apache-2.0
#include "packed_cache.hpp"

#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <cbq/io/packed_file_writer.hpp>

#include "examples/llama/engine_fixture.hpp"

using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;

namespace {

namespace fs = std::filesystem;

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

bool contains(const std::string& text, const std::string& part) {
  CAPTURE(text, part);
  return text.find(part) != std::string::npos;
}

// The embedded model, quantized into `folder`.
std::string quantized(const support::ScratchFolder& scratch, const std::string& name) {
  const std::string folder = scratch / name;
  const ToolRun run = run_tool({"quantize", pocket_llama(), "-o", folder, "--scheme", "w4a8_g32", "--range", "minmax"});
  CAPTURE(run.err);
  REQUIRE(run.code == 0);
  return folder;
}

ToolRun generate(const std::string& model, const std::string& cache = {}) {
  std::vector<std::string> arguments = {"generate", model, "--prompt", "The", "-n", "12"};
  if (!cache.empty()) arguments.insert(arguments.end(), {"--packed-cache", cache});
  return run_tool(arguments);
}

}  // namespace

TEST_CASE("a packed cache is written once, gives the same text, and is written again when it does not fit the model") {
  const support::ScratchFolder scratch;
  const std::string model = quantized(scratch, "model");
  const std::string cache = scratch / "cache";
  const std::string text = generate(model).out;
  const auto runs_and_says = [&](const std::string& notice) {
    const ToolRun run = generate(model, cache);
    CHECK(run.code == 0);
    CHECK(run.out == text);
    CHECK(notice.empty() == run.err.empty());
    CHECK(contains(run.err, notice));
  };
  runs_and_says("packing the model into " + cache + "\n");
  const std::string packed = content(cache);
  runs_and_says("");
  CHECK(content(cache) == packed);

  SECTION("a damaged number") {
    std::string damaged = packed;
    damaged[packed.size() / 2] ^= 1;
    write(cache, damaged);
    runs_and_says("checksum");
  }
  SECTION("a file cut off") {
    write(cache, packed.substr(0, packed.size() / 2));
    runs_and_says("size");
  }
  SECTION("another version of the layout") {
    std::string other = packed;
    other[12] = 99;
    write(cache, other);
    runs_and_says("layout");
  }
  SECTION("files of the model that changed") {
    fs::last_write_time(model + "/config.json", fs::file_time_type::clock::now() - std::chrono::hours(1));
    const ToolRun run = generate(model, cache);
    CHECK(run.out == text);
    CHECK(contains(run.err, "other files"));
    runs_and_says("");
    return;
  }
  CHECK(content(cache) == packed);
  runs_and_says("");
}

TEST_CASE("a folder of packed caches has a file for each model") {
  const support::ScratchFolder scratch;
  const std::string model = quantized(scratch, "model");
  fs::create_directories(scratch / "elsewhere");
  fs::create_directories(scratch / "caches");
  fs::copy(model, scratch / "elsewhere/model", fs::copy_options::recursive);
  for (const std::string& one : {model, scratch / "elsewhere/model"}) {
    CHECK(generate(one, scratch / "caches").err != "");
    CHECK(generate(one, scratch / "caches").err == "");
  }
  std::size_t files = 0;
  for (const auto& entry : fs::directory_iterator(scratch / "caches")) {
    CHECK(entry.path().filename().string().starts_with("model-"));
    CHECK(entry.path().extension() == ".cbqpack");
    ++files;
  }
  CHECK(files == 2);
}

TEST_CASE("a packed cache overwrites nothing that is none, and is for quantized models") {
  const support::ScratchFolder scratch;
  const std::string model = quantized(scratch, "model");
  const std::string cache = scratch / "cache";
  const auto is_refused = [](const ToolRun& run, const std::string& part) {
    CHECK(run.code == 1);
    CHECK(run.out == "");
    CHECK(contains(run.err, part));
  };
  write(cache, "my notes");
  is_refused(generate(model, cache), "not a packed cache");
  CHECK(content(cache) == "my notes");
  {
    auto writer = cbq::PackedFileWriter::create(cache, "of another program");
    REQUIRE(writer);
    REQUIRE(writer->commit());
  }
  const std::string other = content(cache);
  is_refused(generate(model, cache), "not a packed cache");
  CHECK(content(cache) == other);
  is_refused(generate(model, scratch / "missing/cache"), "missing/cache");
  is_refused(generate(pocket_llama(), scratch / "float"), "quantized");
  CHECK(!fs::exists(scratch / "float"));
  is_refused(run_tool({"perplexity", model, "--text", engine_fixture::evaluation_text(), "--windows", "1",
                       "--operators", "fake_quantized", "--packed-cache", scratch / "fake"}),
             "packed operators");
  const ToolRun bench = run_tool({"bench", model, "--prompt-tokens", "4", "--new-tokens", "1", "--runs", "1",
                                  "--packed-cache", scratch / "bench"});
  CHECK(bench.code == 0);
  CHECK(fs::exists(scratch / "bench"));
  write(scratch / "items.jsonl", R"({"prompt": "The", "choices": [" city", " of"], "answer": 0})");
  CHECK(run_tool({"choose", model, "--items", scratch / "items.jsonl", "--packed-cache", scratch / "choose"}).code ==
        0);
  CHECK(content(scratch / "choose") == content(scratch / "bench"));
}
