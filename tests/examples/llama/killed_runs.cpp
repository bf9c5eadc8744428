// SPDX-License-Identifier: Apache-2.0

// Runs that are killed at random points and continued, and runs on other numbers of threads: the same bytes. Takes a
// minute, so it runs with CBQ_LONG_TESTS only; reconstruction.cpp has one such run.
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include <cbq/io/safetensors_writer.hpp>

#include "engine_fixture.hpp"
#include "model_layout.hpp"

using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::unwrap;
using support::ScratchFolder;

namespace {

#if defined(CBQ_LONG_TESTS)
constexpr bool long_tests = true;
#else
constexpr bool long_tests = false;
#endif

// A LLaMA of 6 blocks of width 64 with random weights and the tokenizer of the embedded model.
void write_model(const std::string& folder) {
  std::filesystem::create_directory(folder);
  std::filesystem::copy_file(pocket_llama() + "/tokenizer.json", folder + "/tokenizer.json");
  cbq::Json json = unwrap(cbq::read_json_file(pocket_llama() + "/config.json"));
  json["hidden_size"] = 64;
  json["intermediate_size"] = 96;
  json["head_dim"] = 16;
  json["num_hidden_layers"] = 6;
  support::write_text(folder + "/config.json", cbq::json_text(json));
  const cbq_llama::ModelConfig config = unwrap(cbq_llama::read_config(json));
  std::vector<cbq_llama::FloatTensor> tensors = cbq_llama::norm_tensors(config);
  std::vector<cbq_llama::MatrixModule> modules = cbq_llama::all_block_modules(config);
  modules.push_back(cbq_llama::embedding_module(config));
  for (const auto& module : modules) tensors.push_back({module.name + ".weight", module.outputs, module.inputs});
  std::vector<cbq::TensorPlan> plan;
  for (const auto& tensor : tensors) {
    cbq::TensorPlan entry{.name = tensor.name, .dtype = cbq::Dtype::f32, .shape = {}};
    entry.shape = tensor.rows == 1 ? cbq::TensorShape{.rank = 1, .sizes = {tensor.columns}}
                                   : cbq::TensorShape{.rank = 2, .sizes = {tensor.rows, tensor.columns}};
    plan.push_back(entry);
  }
  auto writer = unwrap(cbq::SafetensorsWriter::create(folder + "/model.safetensors", plan));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.15f);
  for (const auto& tensor : tensors) {
    std::vector<float> values(tensor.rows * tensor.columns);
    for (float& value : values) value = tensor.rows == 1 ? 1.0f + normal(random) : normal(random);
    REQUIRE(writer.write(tensor.name, std::span<const float>(values)));
  }
  REQUIRE(writer.commit());
}

std::vector<std::string> quantize(const std::string& model, const std::string& output, const std::string& threads) {
  return {"quantize",
          model,
          "-o",
          output,
          "--scheme",
          "w4a4_asym",
          "--method",
          "cbq",
          "--calibration",
          pocket_llama() + "-calibration.txt",
          "--samples",
          "16",
          "--sequence",
          "64",
          "--steps",
          "12",
          "--batch",
          "4",
          "--threads",
          threads,
          "--resume"};
}

std::map<std::string, std::string> files(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    all[entry.path().filename()] = support::read_text(entry.path());
  }
  return all;
}

// In a process of its own, killed after so many seconds; whether it had ended before.
bool ended_within(const std::vector<std::string>& arguments, double seconds) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) ::_exit(run_tool(arguments).code);
  ::usleep(static_cast<useconds_t>(seconds * 1e6));
  ::kill(child, SIGKILL);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST_CASE("Runs killed at twenty random points continue to the same bytes") {
  if (!long_tests) SKIP("takes a minute: CBQ_LONG_TESTS");
  const ScratchFolder scratch;
  const std::string model = scratch / "model", output = scratch / "output";
  write_model(model);
  const auto start = std::chrono::steady_clock::now();
  REQUIRE(run_tool(quantize(model, scratch / "whole", "1")).code == 0);
  double whole = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto wanted = files(scratch / "whole");
  std::mt19937 random(20);
  std::uniform_real_distribution<double> point(0.0, 1.0);
  int killed = 0, continued = 0;
  for (int run = 0; run < 60 && killed < 20; ++run) {
    const double seconds = whole * point(random);
    CAPTURE(run, seconds, whole);
    if (ended_within(quantize(model, output, "1"), seconds)) {
      whole = seconds;  // the machine is faster now
    } else {
      ++killed;
    }
    continued += std::filesystem::exists(output + ".checkpoint") ? 1 : 0;
    // Some of them twice.
    if (run % 4 == 0) (void)ended_within(quantize(model, output, "1"), 0.5 * whole * point(random));
    const auto done = run_tool(quantize(model, output, "1"));
    INFO(done.err);
    REQUIRE(done.code == 0);
    CHECK(files(output) == wanted);
    CHECK_FALSE(std::filesystem::exists(output + ".checkpoint"));
    std::filesystem::remove_all(output);
  }
  CHECK(killed == 20);
  CHECK(continued >= 5);  // the others had not finished a window, or had finished all
}

TEST_CASE("One, two and sixteen threads write the same bytes") {
  if (!long_tests) SKIP("takes a minute: CBQ_LONG_TESTS");
  const ScratchFolder scratch;
  write_model(scratch / "model");
  for (const char* threads : {"1", "2", "16"}) {
    const auto run = run_tool(quantize(scratch / "model", scratch / threads, threads));
    INFO(run.err);
    REQUIRE(run.code == 0);
  }
  CHECK(files(scratch / "2") == files(scratch / "1"));
  CHECK(files(scratch / "16") == files(scratch / "1"));
}
