// SPDX-License-Identifier: Apache-2.0
#include "reconstruction.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "examples/llama/engine_fixture.hpp"

using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using support::ScratchFolder;

namespace {

const std::string calibration = pocket_llama() + "-calibration.txt";

// Options of the second list take the place of those of the first, which all have values.
std::vector<std::string> joined(std::vector<std::string> first, const std::vector<std::string>& second) {
  for (const std::string& option : second) {
    if (!option.starts_with("--")) continue;
    const auto same = std::find(first.begin(), first.end(), option);
    if (same != first.end()) first.erase(same, same + 2);
  }
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// A few steps on a few short sequences; `more` goes at the end.
std::vector<std::string> quantize(const std::string& output, const std::vector<std::string>& more = {}) {
  return joined({"quantize", pocket_llama(), "-o", output, "--scheme", "w2a16_g64_asym", "--calibration", calibration,
                 "--samples", "4", "--sequence", "32", "--batch", "2", "--threads", "1"},
                more);
}
std::vector<std::string> reconstruct(const std::string& output, const std::vector<std::string>& more = {}) {
  return quantize(output, joined({"--method", "cbq", "--steps", "2"}, more));
}

ToolRun run_well(const std::vector<std::string>& arguments) {
  ToolRun run = run_tool(arguments);
  INFO(run.err);
  REQUIRE(run.code == 0);
  return run;
}

// All files of a folder.
std::map<std::string, std::string> files(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    all[entry.path().filename()] = support::read_text(entry.path());
  }
  return all;
}

double divergence(const std::string& model) {
  const ToolRun run = run_well(
      {"perplexity", model, "--reference", pocket_llama(), "--windows", "2", "--context", "128", "--json", "-"});
  return engine_fixture::unwrap(cbq::parse_json(run.out))["kl_mean"].get<double>();
}

bool fails_with(const std::vector<std::string>& arguments, const std::string& part) {
  const ToolRun run = run_tool(arguments);
  CAPTURE(run.err, part);
  CHECK(run.code == 1);
  return run.err.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("A few steps of reconstruction beat rounding to nearest at 2 bits") {
  const ScratchFolder scratch;
  run_well(quantize(scratch / "rtn"));
  run_well(reconstruct(scratch / "cbq", {"--steps", "10", "--samples", "16", "--sequence", "64", "--batch", "4"}));
  CHECK(divergence(scratch / "cbq") < 0.8 * divergence(scratch / "rtn"));
  CHECK_FALSE(std::filesystem::exists(scratch / "cbq.checkpoint"));
}

TEST_CASE("Offsets move by 0.1 over the root of the steps unless their rate is named") {
  const ScratchFolder scratch;
  run_well(reconstruct(scratch / "default", {"--steps", "4"}));
  run_well(quantize(scratch / "epochs", {"--method", "cbq", "--epochs", "2"}));
  run_well(reconstruct(scratch / "named", {"--steps", "4", "--offset-rate", "0.05"}));
  run_well(reconstruct(scratch / "other", {"--steps", "4", "--offset-rate", "0.005"}));
  CHECK(files(scratch / "epochs") == files(scratch / "default"));
  CHECK(files(scratch / "named") == files(scratch / "default"));
  CHECK(files(scratch / "other") != files(scratch / "default"));
}

TEST_CASE("Threads do not change a byte of a reconstructed model") {
  const ScratchFolder scratch;
  run_well(reconstruct(scratch / "one"));
  run_well(reconstruct(scratch / "two", {"--threads", "2"}));
  CHECK(files(scratch / "one") == files(scratch / "two"));
}

TEST_CASE("Every method and preset writes a model that loads") {
  const ScratchFolder scratch;
  const std::vector<std::string> options = GENERATE(
      std::vector<std::string>{"--method", "cbq", "--rounding", "lora", "--rank", "2", "--loss", "l2+kl"},
      std::vector<std::string>{"--method", "cbq", "--rounding", "nearest", "--preprocess", "cfp", "--loss", "kl"},
      std::vector<std::string>{"--method", "cbq", "--preset", "paper", "--samples", "2", "--sequence", "16"},
      std::vector<std::string>{"--method", "adaround"}, std::vector<std::string>{"--method", "smoothquant"},
      std::vector<std::string>{"--method", "gptq"}, std::vector<std::string>{"--method", "gptq", "--act-order"},
      std::vector<std::string>{"--method", "gptq", "--range", "minmax", "--preprocess", "cfp"});
  const bool preset = options.size() > 2 && options[2] == "--preset";
  const bool trains = !preset && (options[1] == "cbq" || options[1] == "adaround");
  const std::vector<std::string> steps = trains ? std::vector<std::string>{"--steps", "2"} : std::vector<std::string>{};
  run_well(joined(
      joined({"quantize", pocket_llama(), "-o", scratch / "model", "--scheme", "w4a8_g32", "--calibration", calibration,
              "--threads", "2"},
             preset ? std::vector<std::string>{} : std::vector<std::string>{"--samples", "4", "--sequence", "32"}),
      joined(options, steps)));
  CHECK(divergence(scratch / "model") < 0.4);
}

TEST_CASE("A run that is cut off continues to the same bytes") {
  const ScratchFolder scratch;
  const std::string state = scratch / "cut.checkpoint";
  run_well(reconstruct(scratch / "whole", {"--steps", "4"}));
  const auto arguments = reconstruct(scratch / "cut", {"--steps", "4"});
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) ::_exit(run_tool(arguments).code);
  while (!std::filesystem::exists(state) && ::waitpid(child, nullptr, WNOHANG) == 0) ::usleep(1000);
  ::kill(child, SIGKILL);
  (void)::waitpid(child, nullptr, 0);
  REQUIRE(std::filesystem::exists(state));
  REQUIRE_FALSE(std::filesystem::exists(scratch / "cut"));

  CHECK(fails_with(arguments, "--resume continues it"));
  CHECK(fails_with(reconstruct(scratch / "cut", {"--steps", "3", "--resume"}), "another model"));
  CHECK(fails_with(reconstruct(scratch / "cut", {"--steps", "4", "--resume", "--loss", "kl"}), "another model"));
  CHECK(
      fails_with(reconstruct(scratch / "cut", {"--steps", "4", "--resume", "--attention-bits", "8"}), "another model"));
  CHECK(fails_with(reconstruct(scratch / "cut", {"--steps", "4", "--resume", "--clip-rate", "1"}), "another model"));
  CHECK(std::filesystem::exists(state));
  run_well(joined(arguments, {"--resume"}));
  CHECK(files(scratch / "cut") == files(scratch / "whole"));
  CHECK_FALSE(std::filesystem::exists(state));

  support::write_text(state, "something else");
  CHECK(fails_with(joined(arguments, {"--resume"}), "damaged"));
  std::filesystem::remove(state);
  run_well(joined(arguments, {"--resume"}));  // nothing to continue: from the start
}

TEST_CASE("Queries, keys and values of 4 bits are recorded, run and trained with") {
  const ScratchFolder scratch;
  const std::vector<std::string> four = {"--scheme", "w4a4_asym", "--rotate", "none", "--attention-bits", "4"};
  run_well(quantize(scratch / "rtn16", {"--scheme", "w4a4_asym", "--rotate", "none"}));
  run_well(quantize(scratch / "rtn", four));
  const cbq::Json config = engine_fixture::unwrap(cbq::read_json_file(scratch / "rtn/config.json"));
  CHECK(config.at("cbq").at("attention_bits") == 4);
  CHECK(divergence(scratch / "rtn") > divergence(scratch / "rtn16"));
  const std::vector<std::string> more = {"--steps", "8", "--samples", "8", "--sequence", "64", "--batch", "4"};
  run_well(reconstruct(scratch / "cbq", joined(four, more)));
  CHECK(divergence(scratch / "cbq") < divergence(scratch / "rtn"));
  run_well({"generate", scratch / "cbq", "--prompt", "Once", "-n", "4"});
  run_well(quantize(scratch / "gptq", joined(four, {"--method", "gptq"})));
  CHECK(divergence(scratch / "gptq") < 2 * divergence(scratch / "rtn"));

  cbq::Json wrong = config;
  for (const cbq::Json& bits : {cbq::Json(5), cbq::Json("4"), cbq::Json(1e30)}) {
    wrong["cbq"]["attention_bits"] = bits;
    support::write_text(scratch / "rtn/config.json", cbq::json_text(wrong));
    CHECK(fails_with({"generate", scratch / "rtn", "--prompt", "Once"}, "config.json"));
  }
}

TEST_CASE("Clip multipliers of quantized activations are learned, recorded and run packed") {
  const ScratchFolder scratch;
  const std::vector<std::string> options = {"--scheme",   "w4a4_asym", "--steps", "10", "--samples",     "8",
                                            "--sequence", "64",        "--batch", "4",  "--offset-rate", "0.005",
                                            "--rotate",   "none"};
  run_well(reconstruct(scratch / "fixed", joined(options, {"--clip-rate", "0"})));
  run_well(reconstruct(scratch / "learned", joined(options, {"--clip-rate", "0.02"})));
  const auto record = [](const std::string& folder) {
    return engine_fixture::unwrap(cbq::read_json_file(folder + "/config.json")).at("cbq");
  };
  CHECK_FALSE(record(scratch / "fixed").contains("activation_clips"));
  CHECK(record(scratch / "fixed").at("version") == 1);
  const cbq::Json learned = record(scratch / "learned");
  CHECK(learned.at("version") == 2);
  const cbq::Json& clips = learned.at("activation_clips");
  CHECK(clips.size() == 5 * 7);
  for (const cbq::Json& clip : clips) CHECK((clip.get<double>() >= 0.29 && clip.get<double>() < 1));
  CHECK(clips.at("model.layers.1.self_attn.q_proj") == clips.at("model.layers.1.self_attn.v_proj"));
  CHECK(clips.at("model.layers.1.mlp.gate_proj") == clips.at("model.layers.1.mlp.up_proj"));
  CHECK(clips.at("model.layers.1.mlp.gate_proj") != clips.at("model.layers.1.mlp.down_proj"));
  const double packed = divergence(scratch / "learned");
  CHECK(packed < divergence(scratch / "fixed"));
  const ToolRun fake = run_well({"perplexity", scratch / "learned", "--reference", pocket_llama(), "--windows", "2",
                                 "--context", "128", "--json", "-", "--operators", "fake_quantized"});
  const double simulated = engine_fixture::unwrap(cbq::parse_json(fake.out))["kl_mean"].get<double>();
  CHECK(packed < 1.02 * simulated);
  CHECK(simulated < 1.02 * packed);

  cbq::Json config = engine_fixture::unwrap(cbq::read_json_file(scratch / "learned/config.json"));
  config["cbq"]["activation_clips"]["model.layers.1.mlp.up_proj"] = 1.5;
  support::write_text(scratch / "learned/config.json", cbq::json_text(config));
  CHECK(fails_with({"generate", scratch / "learned", "--prompt", "Once"}, "model.layers.1.mlp.up_proj"));
}

TEST_CASE("What reconstruction cannot do is said") {
  const ScratchFolder scratch;
  const std::string output = scratch / "model";
  const std::string text = scratch / "short.txt";
  support::write_text(text, "Too short.");
  const std::vector<std::string> bare = {"quantize", pocket_llama(), "-o",       output,
                                         "--scheme", "w4a16_g32",    "--method", "cbq"};
  CHECK(fails_with(bare, "calibration text"));
  CHECK(fails_with(joined(bare, {"--calibration", text}), "shorter than one sequence"));
  CHECK(fails_with(joined(bare, {"--calibration", scratch / "none.txt"}), "none.txt"));
  CHECK(fails_with(reconstruct(output, {"--sequence", "100000"}), "--sequence"));
  CHECK(fails_with(reconstruct(output, {"--overlap", "2"}), "overlap"));
  CHECK(fails_with(reconstruct(output, {"--rounding", "lora", "--rank", "5000"}), "rank"));
  CHECK(fails_with(reconstruct("/proc/model"), "/proc"));
  CHECK_FALSE(std::filesystem::exists(output));
  CHECK_FALSE(std::filesystem::exists(output + ".checkpoint"));
}
