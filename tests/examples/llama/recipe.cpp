// SPDX-License-Identifier: Apache-2.0
#include "recipe.hpp"

#include <catch2/catch_test_macros.hpp>

#include <filesystem>
#include <string>
#include <vector>

#include <cbq/io/quantization_config.hpp>

#include "examples/llama/engine_fixture.hpp"

using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using engine_fixture::unwrap;
using support::ScratchFolder;

namespace {

const std::string calibration = pocket_llama() + "-calibration.txt";

std::vector<std::string> quantize(const std::string& output, const std::string& recipe,
                                  const std::vector<std::string>& more = {}) {
  std::vector<std::string> all = {"quantize", pocket_llama(), "-o", output, "--recipe", recipe, "--threads", "2"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

// Runs a recipe that has a fault; true when the message has both parts.
bool refused(const std::string& text, const std::string& key, const std::string& reason) {
  const ScratchFolder scratch;
  const std::string path = scratch / "wrong.json";
  support::write_text(path, text);
  const ToolRun run = run_tool(quantize(scratch / "model", path));
  CAPTURE(text, run.err);
  CHECK(run.code == 1);
  CHECK(run.err.find("wrong.json") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(scratch / "model"));
  return run.err.find(key) != std::string::npos && run.err.find(reason) != std::string::npos;
}

// What a model's config.json has under "cbq".
cbq::Json record_of(const std::string& folder) {
  return unwrap(cbq::read_json_file(folder + "/config.json")).at("cbq");
}

}  // namespace

TEST_CASE("A recipe gives options and the schemes of single layers") {
  const ScratchFolder scratch;
  const std::string path = scratch / "recipe.json";
  support::write_text(path, R"({"method": "rtn", "range": "minmax", "head-bits": 4, "explain": false,
    "scheme": "w2a16_g64",
    "schemes": [{"pattern": "*.layers.0.mlp.*", "scheme": "w8a8"}, {"pattern": "*.layers.0.*", "scheme": "w4a16_g32"},
                {"pattern": "*.down_proj", "scheme": "w16a16"}]})");
  const ToolRun run = run_tool(quantize(scratch / "model", path, {"--head-bits", "8"}));
  INFO(run.err);
  REQUIRE(run.code == 0);
  CHECK(run.out.find("mixed") != std::string::npos);
  const cbq::Json record = record_of(scratch / "model");
  CHECK(record.at("head_bits") == 8);  // the command line goes before the file
  CHECK(record.at("range") == "minmax");
  const cbq::Json& schemes = record.at("schemes");
  CHECK(schemes.at("model.layers.0.mlp.down_proj") == "w8a8");  // the first pattern counts
  CHECK(schemes.at("model.layers.0.self_attn.q_proj") == "w4a16_g32");
  CHECK(schemes.at("model.layers.1.mlp.up_proj") == "w2a16_g64");
  CHECK_FALSE(schemes.contains("model.layers.1.mlp.down_proj"));
  const std::string text = engine_fixture::evaluation_text();
  CHECK(run_tool({"perplexity", scratch / "model", "--text", text, "--windows", "1", "--context", "64"}).code == 0);
}

TEST_CASE("The recipe of the documentation reconstructs a model") {
  const ScratchFolder scratch;
  const ToolRun run = run_tool(
      quantize(scratch / "model", CBQ_SOURCE_DIR "/examples/llama/recipes/important_blocks.json",
               {"--calibration", calibration, "--samples", "4", "--sequence", "32", "--batch", "2", "--epochs", "1"}));
  INFO(run.err);
  REQUIRE(run.code == 0);
  const cbq::Json record = record_of(scratch / "model");
  CHECK(record.at("method") == "cbq");
  CHECK(record.at("calibration_tokens") == 4 * 32);
  CHECK(record.at("schemes").at("model.layers.0.mlp.down_proj") == "w4a16_g64_asym");
  CHECK(record.at("schemes").at("model.layers.3.mlp.down_proj") == "w3a16_g64_asym");
  CHECK(record.at("schemes").at("model.layers.3.mlp.up_proj") == "w2a16_g64_asym");
}

TEST_CASE("Patterns match whole names, and many stars at once") {
  using cbq_llama::matches;
  CHECK(matches("", ""));
  CHECK_FALSE(matches("", "a"));
  CHECK(matches("*", ""));
  CHECK(matches("a.b", "a.b"));
  CHECK_FALSE(matches("a.b", "a.bc"));
  CHECK(matches("a*", "a"));
  CHECK(matches("*ab", "aab"));
  CHECK(matches("*ab*ab", "ababab"));
  CHECK_FALSE(matches("*ab*ab", "aab"));
  CHECK(matches("*.layers.1.*_proj", "model.layers.1.mlp.up_proj"));
  CHECK_FALSE(matches("*.layers.1.*_proj", "model.layers.11.mlp.up_proj"));
  const std::string name(256, 'a');
  CHECK_FALSE(matches("******************x", name));
  CHECK_FALSE(matches("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*ax", name));
  CHECK(matches("******************x", name + "x"));
}

TEST_CASE("Faults of a recipe name key and file") {
  CHECK(refused("[]", "", "object of options"));
  CHECK(refused("{", "", "not valid JSON"));
  CHECK(refused(R"({"scheme": "w4a16", "scheme": "w4a16"})", "scheme", "twice"));
  CHECK(refused(R"({"scheme": "w4a16", "schemas": []})", "schemas", "does not have"));
  CHECK(refused(R"({"scheme": "w4a16", "recipe": "x"})", "recipe in", "does not have"));
  CHECK(refused(R"({"scheme": "w4a16", "help": true})", "help", "does not have"));
  CHECK(refused(R"({"scheme": 4})", "scheme", "got number, wanted text"));
  CHECK(refused(R"({"scheme": "w4a16", "samples": "many"})", "samples", "got string, wanted a number"));
  CHECK(refused(R"({"scheme": "w4a16", "samples": [1, 2]})", "samples", "one value"));
  CHECK(refused(R"({"scheme": "w4a16", "samples": 0})", "samples", "refuses"));
  CHECK(refused(R"({"scheme": "w4a16", "samples": 2.5})", "samples", "refuses"));
  CHECK(refused(R"({"scheme": "w4a16", "resume": 1})", "resume", "wanted true or false"));
  CHECK(refused(R"({"scheme": "w4a16", "steps": 1, "epochs": 1})", "steps", "excludes"));
  CHECK(refused(R"({"scheme": "w9a16"})", "scheme", "refuses"));
  CHECK(refused(R"({"schemes": {}})", "schemes", "wanted a list"));
  CHECK(refused(R"({"schemes": ["w4a16"]})", "schemes[0]", "wanted an object"));
  CHECK(refused(R"({"schemes": [{"pattern": "*"}]})", "schemes[0]", "a key is missing"));
  CHECK(refused(R"({"schemes": [{"pattern": "*", "bits": 4}]})", "schemes[0].bits", "unknown key"));
  CHECK(refused(R"({"schemes": [{"pattern": "*", "scheme": "w4"}]})", "schemes[0].scheme", "w4"));
  CHECK(refused(R"({"schemes": [{"pattern": "*", "scheme": null}]})", "schemes[0].scheme", "wanted text"));
  CHECK(
      refused(R"({"schemes": [{"pattern": "*.layers.7.*", "scheme": "w4a16"}]})", "schemes[0].pattern", "matches no"));
  CHECK(refused(R"({"schemes": [{"pattern": "*", "scheme": "w4a16"}, {"pattern": "*.q_proj", "scheme": "w4a16"}]})",
                "schemes[1].pattern", "match earlier ones"));
  CHECK(refused(R"({"scheme": "w4a16", "calibration": [[["x"]]]})", "", "nested too deeply"));
  CHECK(refused(std::string(std::size_t{1} << 20, ' ') + "{}", "", "too large"));
}

TEST_CASE("The command line goes before a recipe also where options exclude each other") {
  const ScratchFolder scratch;
  const std::string path = scratch / "recipe.json";
  support::write_text(path, R"({"scheme": "w4a16_g32", "steps": 100000, "preset": "best"})");
  const ToolRun run = run_tool(quantize(scratch / "model", path,
                                        {"--method", "cbq", "--calibration", calibration, "--samples", "2",
                                         "--sequence", "16", "--epochs", "1", "--batch", "2"}));
  INFO(run.err);
  CHECK(run.code == 0);  // at once: one step per window
}

TEST_CASE("Calibrated layers that read the same input quantize it alike") {
  const ScratchFolder scratch;
  const std::string path = scratch / "recipe.json";
  support::write_text(path, R"({"scheme": "w4a8", "schemes": [{"pattern": "*.k_proj", "scheme": "w4a16"}]})");
  CHECK(run_tool(quantize(scratch / "rtn", path)).code == 0);
  const ToolRun run = run_tool(quantize(scratch / "gptq", path, {"--method", "gptq", "--calibration", calibration}));
  CHECK(run.code == 1);
  CHECK(run.err.find("model.layers.0.self_attn.k_proj: layers with the same input") != std::string::npos);
}
