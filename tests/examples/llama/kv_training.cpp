// SPDX-License-Identifier: Apache-2.0
#include "kv_training.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "engine_fixture.hpp"
#include "kv_smoothing_files.hpp"

using cbq_llama::ModelSource;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using engine_fixture::unwrap;
using support::ScratchFolder;

namespace {

// A few steps on a few short sequences.
std::vector<std::string> train(const std::string& output, const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"quantize",
                                        pocket_llama(),
                                        "-o",
                                        output,
                                        "--calibration",
                                        pocket_llama() + "-calibration.txt",
                                        "--samples",
                                        "4",
                                        "--sequence",
                                        "32",
                                        "--steps",
                                        "3",
                                        "--head-bits",
                                        "16"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

ToolRun run_well(const std::vector<std::string>& arguments) {
  ToolRun run = run_tool(arguments);
  INFO(run.err);
  REQUIRE(run.code == 0);
  return run;
}

double divergence(const std::string& model, const std::string& scheme) {
  const ToolRun run = run_well({"perplexity", model, "--reference", pocket_llama(), "--windows", "1", "--context", "64",
                                "--kv", scheme, "--json", "-"});
  return unwrap(cbq::parse_json(run.out))["kl_mean"].get<double>();
}

}  // namespace

TEST_CASE("Smoothing that was trained is written beside float weights, and caches read it") {
  const ScratchFolder scratch;
  run_well(train(scratch / "model", {"--method", "wkvquant", "--scheme", "w16a16", "--threads", "1"}));
  const ModelSource source = unwrap(ModelSource::open(scratch / "model"));
  CHECK(source.json()["cbq"]["kv_scheme"] == "kv4_2d_past");
  CHECK(source.json()["cbq"]["method"] == "wkvquant");
  const auto smoothing = unwrap(cbq_llama::read_smoothing(source));
  REQUIRE(smoothing);
  REQUIRE(smoothing->size() == source.config().layers);
  for (const cbq::KvSmoothing& layer : *smoothing) {
    REQUIRE(layer.key_scales.size() == source.config().kv_heads * source.config().head_width);
    double logarithms = 0;
    for (const float s : layer.value_scales) logarithms += std::log(static_cast<double>(s));
    CHECK(std::fabs(logarithms / static_cast<double>(layer.value_scales.size())) < 0.05);  // as it began, nearly
  }
  CHECK(divergence(scratch / "model", "f32") == 0.0);
  CHECK(divergence(scratch / "model", "kv4_2d_past") > 0.0);
  CHECK_FALSE(unwrap(cbq_llama::read_smoothing(unwrap(ModelSource::open(pocket_llama())))));
}

TEST_CASE("Weights and cache are trained together, with the same bytes for any number of threads") {
  const ScratchFolder scratch;
  const std::vector<std::string> options = {"--method",       "wkvquant", "--scheme",
                                            "w4a16_g32_asym", "--kv",     "kv3_2d_past_hadamard"};
  for (const char* threads : {"1", "2"}) {
    std::vector<std::string> all = options;
    all.insert(all.end(), {"--threads", threads});
    run_well(train(scratch / threads, all));
  }
  CHECK(support::read_text(scratch / "1/model.safetensors") == support::read_text(scratch / "2/model.safetensors"));
  CHECK(divergence(scratch / "1", "kv3_2d_past_hadamard") > 0.0);
  // CBQ's roundings on a simulated cache, without smoothing.
  run_well(train(scratch / "cbq", {"--method", "cbq", "--scheme", "w4a16_g32_asym", "--kv", "kv4_past"}));
  CHECK_FALSE(unwrap(cbq_llama::read_smoothing(unwrap(ModelSource::open(scratch / "cbq")))));
}

TEST_CASE("Caches that cannot be trained are refused") {
  const ScratchFolder scratch;
  const ToolRun channels =
      run_tool(train(scratch / "a", {"--method", "wkvquant", "--scheme", "w16a16", "--kv", "kv4_kivi"}));
  CHECK(channels.code == 1);
  CHECK(channels.err.find("per channel are not trained") != std::string::npos);
  CHECK(run_tool(train(scratch / "b", {"--scheme", "w4a16_g32_asym", "--kv", "kv4_past"})).code == 2);
  CHECK(run_tool(train(scratch / "c", {"--method", "wkvquant", "--scheme", "w16a16", "--kv", "kv5"})).code == 2);
}
