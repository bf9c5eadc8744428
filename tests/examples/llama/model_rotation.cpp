// SPDX-License-Identifier: Apache-2.0
#include "model_rotation.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <optional>
#include <string>
#include <vector>

#include "evaluation.hpp"
#include "examples/llama/engine_fixture.hpp"
#include "model.hpp"

using namespace cbq_llama;
using cbq::Json;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using engine_fixture::unwrap;
using support::ScratchFolder;

namespace {

const std::string scheme = "w4a4_channel_asym";
const std::string calibration = pocket_llama() + "-calibration.txt";

ToolRun run_well(std::vector<std::string> arguments, const std::vector<std::string>& more) {
  arguments.insert(arguments.end(), more.begin(), more.end());
  ToolRun run = run_tool(arguments);
  INFO(run.err);
  REQUIRE(run.code == 0);
  return run;
}

ToolRun quantize(const std::string& output, const std::vector<std::string>& more) {
  return run_well({"quantize", pocket_llama(), "-o", output, "--threads", "1"}, more);
}

double divergence(const std::string& model, const std::string& reference = pocket_llama(),
                  const std::string& operators = "packed") {
  const ToolRun run = run_well({"perplexity", model, "--reference", reference, "--windows", "2", "--context", "128",
                                "--json", "-", "--text", engine_fixture::evaluation_text(), "--operators", operators},
                               {});
  return unwrap(cbq::parse_json(run.out))["kl_mean"].get<double>();
}

Json config(const std::string& model) {
  return unwrap(cbq::read_json_file(model + "/config.json"));
}

// A model whose weights stay in floating point, in another basis.
double divergence_of_rotated(const std::string& model, Rotation rotation) {
  const ScratchFolder scratch;
  QuantizationOptions options;
  options.rules = {{"*", cbq::Scheme{}}};
  options.head_bits = 16;
  options.rotation = rotation;
  options.calibration.seed = 5;
  const ModelSource source = unwrap(ModelSource::open(model));
  const QuantizationReport report = unwrap(quantize(source, scratch / "rotated", options));
  CHECK(report.rotation == rotation);
  CHECK((config(scratch / "rotated")["cbq"].contains("input_rotations")) == (rotation == Rotation::full));
  return divergence(scratch / "rotated", model);
}

}  // namespace

TEST_CASE("A rotated model computes the same function") {
  const Rotation rotation = GENERATE(Rotation::none, Rotation::offline, Rotation::full);
  CHECK(divergence_of_rotated(pocket_llama(), rotation) < 1e-5);
  const auto models = engine_fixture::environment("CBQ_TEST_MODELS");
  if (models) CHECK(divergence_of_rotated(*models + "/pocket-opt", rotation) < 1e-5);
}

TEST_CASE("Activations of 4 bits are rotated unless told otherwise, and that helps") {
  const ScratchFolder scratch;
  const std::vector<std::string> four = {"--scheme", scheme, "--head-bits", "16", "--explain"};
  const ToolRun by_default = quantize(scratch / "full", four);
  CHECK(by_default.out.find("rotation full") != std::string::npos);
  CHECK(by_default.out.find("default") != std::string::npos);
  const ToolRun none = quantize(scratch / "none", {"--scheme", scheme, "--head-bits", "16", "--rotate", "none"});
  CHECK(divergence(scratch / "full") < 0.7 * divergence(scratch / "none"));
  // Rounding to 4 bits makes much of the last bit of a float sum, so that packed and fake-quantized runs part.
  CHECK_THAT(divergence(scratch / "full", pocket_llama(), "fake_quantized"),
             Catch::Matchers::WithinRel(divergence(scratch / "full"), 0.05));

  const Json rotated = config(scratch / "full");
  CHECK(rotated["cbq"]["version"] == 2);
  CHECK(rotated["cbq"]["rotation"] == "full");
  CHECK(rotated["cbq"]["input_rotations"].size() == 5);
  CHECK(rotated["cbq"]["input_rotations"]["model.layers.3.mlp.down_proj"] ==
        Json{{"type", "hadamard"}, {"block", 512}});
  CHECK(rotated["tie_word_embeddings"] == false);
  CHECK(config(scratch / "none")["cbq"]["version"] == 1);
  CHECK(config(scratch / "none")["tie_word_embeddings"] == true);

  const ToolRun eight = quantize(scratch / "eight", {"--scheme", "w4a8_g128", "--json", "-"});
  CHECK(unwrap(cbq::parse_json(eight.out))["rotation"] == "none");
  CHECK_FALSE(config(scratch / "eight")["cbq"].contains("rotation"));
}

TEST_CASE("Rotation goes with preprocessing and every method, and repeats") {
  const ScratchFolder scratch;
  const std::vector<std::string> options = GENERATE(
      std::vector<std::string>{"--method", "gptq"}, std::vector<std::string>{"--method", "gptq", "--preprocess", "cfp"},
      std::vector<std::string>{"--method", "cbq", "--steps", "2", "--preprocess", "smoothquant"});
  std::vector<std::string> all = {"--scheme",      scheme,      "--rotate",  "full", "--seed",     "7",
                                  "--calibration", calibration, "--samples", "4",    "--sequence", "32",
                                  "--head-bits",   "8"};
  all.insert(all.end(), options.begin(), options.end());
  quantize(scratch / "one", all);
  CHECK(divergence(scratch / "one") < 0.6);
  all.insert(all.end(), {"--threads", "2"});
  run_well({"quantize", pocket_llama(), "-o", scratch / "two"}, all);
  CHECK(support::read_text(scratch / "one" + "/model.safetensors") ==
        support::read_text(scratch / "two" + "/model.safetensors"));
}

TEST_CASE("A packed cache of a rotated model runs rotated") {
  const ScratchFolder scratch;
  quantize(scratch / "model", {"--scheme", scheme});
  const std::vector<std::string> generate = {"generate", scratch / "model", "--prompt", "The", "-n", "12"};
  const std::string text = run_well(generate, {}).out;
  for (int i = 0; i < 2; ++i) CHECK(run_well(generate, {"--packed-cache", scratch / "cache"}).out == text);
}

TEST_CASE("Rotations that the engine does not know are refused") {
  CHECK(run_tool({"quantize", pocket_llama(), "-o", "/nowhere/x", "--scheme", scheme, "--rotate", "sideways"}).code ==
        2);
  const ScratchFolder scratch;
  quantize(scratch / "model", {"--scheme", scheme});
  const Json good = config(scratch / "model");
  const auto refused = [&](const Json& rotations) {
    Json changed = good;
    changed["cbq"]["input_rotations"] = rotations;
    support::write_text(scratch / "model" + "/config.json", cbq::json_text(changed));
    return run_tool({"info", scratch / "model"}).code == 1 ||
           run_tool({"generate", scratch / "model", "--prompt", "x", "-n", "1"}).code == 1;
  };
  CHECK_FALSE(refused(good["cbq"]["input_rotations"]));
  CHECK(refused({{"model.layers.0.mlp.down_proj", {{"type", "hadamard"}, {"block", 256}}}}));
  CHECK(refused({{"model.layers.7.mlp.down_proj", {{"type", "hadamard"}, {"block", 512}}}}));
  CHECK(refused({{"model.layers.0.mlp.down_proj", {{"type", "fourier"}, {"block", 512}}}}));
}
