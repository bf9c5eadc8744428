// SPDX-License-Identifier: Apache-2.0
#include "kv_training.hpp"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "examples/llama/engine_fixture.hpp"
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

std::string smoothing_name(std::size_t layer, const std::string& vector) {
  return "model.layers." + std::to_string(layer) + ".self_attn.kv." + vector;
}

// Sets an entry of an F32 tensor in the files of a model.
void set_entry(const std::string& folder, const std::string& tensor, std::size_t index, float value) {
  std::string bytes = support::read_text(folder + "/model.safetensors");
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const cbq::Json json = unwrap(cbq::parse_json(bytes.substr(8, header)));
  const std::size_t first = json.at(tensor).at("data_offsets").at(0).get<std::size_t>();
  std::memcpy(bytes.data() + 8 + header + first + index * sizeof value, &value, sizeof value);
  support::write_text(folder + "/model.safetensors", bytes);
}

// Gives a tensor another name of the same length.
void rename_tensor(const std::string& folder, const std::string& tensor) {
  std::string bytes = support::read_text(folder + "/model.safetensors");
  const std::size_t at = bytes.find('"' + tensor + '"');
  REQUIRE(at != std::string::npos);
  bytes[at + 1] = '_';
  support::write_text(folder + "/model.safetensors", bytes);
}

// The message of read_smoothing() where it refuses a copy of `model` that `change` changed.
template <class Change>
std::string refusal(const std::string& model, const Change& change) {
  const ScratchFolder scratch;
  std::filesystem::copy(model, scratch / "copy");
  change(scratch / "copy");
  const auto read = cbq_llama::read_smoothing(unwrap(ModelSource::open(scratch / "copy")));
  REQUIRE_FALSE(read);
  return support::message(read.error());
}

bool contains(const std::string& text, const std::string& part) {
  CAPTURE(text, part);
  return text.find(part) != std::string::npos;
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
  const double good = divergence(scratch / "model", "kv4_2d_past");
  CHECK(good > 0.0);
  set_entry(scratch / "model", smoothing_name(0, "value_scale"), 3, 1e-3f);  // this channel takes all codes
  CHECK(divergence(scratch / "model", "kv4_2d_past") > 1.2 * good);
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
  // What queries weigh is stored for caches that heed it; but factors of rotated heads are no others'.
  const auto smoothing = unwrap(cbq_llama::read_smoothing(unwrap(ModelSource::open(scratch / "1"))));
  REQUIRE(smoothing);
  const cbq::AlignedBuffer<float>& weights = smoothing->front().key_weights;
  CHECK(*std::max_element(weights.begin(), weights.end()) > 1.5f);
  const ToolRun refused = run_tool({"perplexity", scratch / "1", "--reference", pocket_llama(), "--kv", "kv4_2d_past"});
  CHECK(refused.code == 1);
  CHECK(contains(refused.err, "--calibration TEXT finds it anew"));
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

TEST_CASE("Files with damaged smoothing are refused") {
  const ScratchFolder scratch;
  const std::string model = scratch / "model";
  run_well(train(model, {"--method", "wkvquant", "--scheme", "w16a16", "--smoothing-rate", "0", "--threads", "1"}));
  const auto with = [&](std::size_t layer, const char* vector, float value) {
    return refusal(model,
                   [&](const std::string& folder) { set_entry(folder, smoothing_name(layer, vector), 3, value); });
  };
  constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(contains(with(0, "key_scale", 0), "factor must be positive"));
  CHECK(contains(with(1, "value_scale", -1), "factor must be positive"));
  CHECK(contains(with(1, "key_weight", -1), "weight of keys must not be negative"));
  for (const float wrong : {infinity, nan}) {
    for (const char* vector : {"key_scale", "key_offset", "key_weight", "value_scale", "value_offset"}) {
      const std::string message = with(1, vector, wrong);
      CHECK(contains(message, smoothing_name(1, vector)));
    }
  }
  for (const std::string& name : {smoothing_name(0, "key_scale"), smoothing_name(1, "key_weight")}) {
    const std::string message = refusal(model, [&](const std::string& folder) { rename_tensor(folder, name); });
    CHECK(contains(message, "whole smoothing"));
    CHECK(contains(message, name));
  }
}

TEST_CASE("What wkvquant does not heed is refused, and training nothing is") {
  const ScratchFolder scratch;
  const auto refuses = [&](const std::vector<std::string>& more, const std::string& part) {
    std::vector<std::string> all = {"--method", "wkvquant"};
    all.insert(all.end(), more.begin(), more.end());
    const ToolRun run = run_tool(train(scratch / "model", all));
    CHECK(run.code == 2);
    return contains(run.err, part);
  };
  const auto four_bits = [&](const std::string& option, const std::string& value) {
    return refuses({"--scheme", "w4a16_g32_asym", option, value}, option);
  };
  CHECK(four_bits("--overlap", "0"));
  CHECK(four_bits("--ends", "growing"));
  CHECK(four_bits("--clip-rate", "0.1"));
  CHECK(four_bits("--preset", "paper"));
  for (const char* cache : {"f16", "f32", "kv4_past"}) {
    CHECK(refuses({"--scheme", "w16a16", "--kv", cache}, std::string(cache) + " has nothing to train"));
  }
}

TEST_CASE("Training for a cache that is cut off continues to the same bytes") {
  const ScratchFolder scratch;
  const std::string state = scratch / "cut.checkpoint";
  const std::vector<std::string> more = {"--method", "wkvquant", "--scheme", "w16a16", "--threads", "1"};
  run_well(train(scratch / "whole", more));
  std::vector<std::string> arguments = train(scratch / "cut", more);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) ::_exit(run_tool(arguments).code);
  while (!std::filesystem::exists(state) && ::waitpid(child, nullptr, WNOHANG) == 0) ::usleep(1000);
  ::kill(child, SIGKILL);
  (void)::waitpid(child, nullptr, 0);
  REQUIRE(std::filesystem::exists(state));
  REQUIRE_FALSE(std::filesystem::exists(scratch / "cut"));
  arguments.push_back("--resume");
  std::vector<std::string> other = arguments;
  other.insert(other.end(), {"--kv", "kv3_2d_past"});
  CHECK(contains(run_tool(other).err, "another model"));
  run_well(arguments);
  for (const char* file : {"/model.safetensors", "/config.json"}) {
    CHECK(support::read_text(scratch / "cut" + file) == support::read_text(scratch / "whole" + file));
  }
}
