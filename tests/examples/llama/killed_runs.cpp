// SPDX-License-Identifier: Apache-2.0

// Runs that are killed at random points and continued, and runs on other numbers of threads: the same bytes. Those of
// calibration take a minute and run with CBQ_LONG_TESTS only; reconstruction.cpp has one such run.
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "examples/llama/engine_fixture.hpp"
#include "examples/llama/generated_model.hpp"

using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::write_model;
using support::ScratchFolder;

namespace {

#if defined(CBQ_LONG_TESTS)
constexpr bool long_tests = true;
#else
constexpr bool long_tests = false;
#endif

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

TEST_CASE("Exports killed at random points leave nothing or all, and the next writes the same bytes") {
  const ScratchFolder scratch;
  const std::string model = scratch / "model", quantized = scratch / "quantized", output = scratch / "output";
  write_model(model);
  REQUIRE(run_tool({"quantize", model, "-o", quantized, "--scheme", "w4a16_g32", "--threads", "1"}).code == 0);
  const auto exported = [&](const std::string& folder) {
    return std::vector<std::string>{"export",       quantized, "-o",        folder, "--format", "compressed-tensors",
                                    "--shard-size", "20K",     "--threads", "1"};
  };
  const auto start = std::chrono::steady_clock::now();
  REQUIRE(run_tool(exported(scratch / "whole")).code == 0);
  const double whole = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto wanted = files(scratch / "whole");
  std::mt19937 random(21);
  std::uniform_real_distribution<double> point(0.0, 1.0);
  constexpr int runs = long_tests ? 40 : 8;
  int killed = 0;
  for (int run = 0; run < runs; ++run) {
    killed += ended_within(exported(output), whole * point(random)) ? 0 : 1;
    if (std::filesystem::exists(output)) {  // killed after the rename
      CHECK(files(output) == wanted);
      std::filesystem::remove_all(output);
    }
    REQUIRE(run_tool(exported(output)).code == 0);
    CHECK(files(output) == wanted);
    std::filesystem::remove_all(output);
  }
  CHECK(killed >= runs / 8);
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
