// SPDX-License-Identifier: Apache-2.0
#include "command_line.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include <sys/resource.h>
#include <unistd.h>

#include "examples/llama/engine_fixture.hpp"
#include "examples/llama/run_apart.hpp"
#include "interrupt.hpp"

using cbq::Json;
using engine_fixture::pocket_llama;
using engine_fixture::run_apart;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using engine_fixture::unwrap;

namespace {

// One line, starting with the tool's name, that contains `part`.
bool is_one_message(const std::string& err, const std::string& part) {
  CAPTURE(err, part);
  CHECK(err.starts_with("cbq-llama: "));
  CHECK(err.find('\n') == err.size() - 1);
  return err.find(part) != std::string::npos;
}

const std::vector<std::string> json_keys = {"perplexity",
                                            "nll",
                                            "nll_stderr",
                                            "windows",
                                            "tokens",
                                            "context",
                                            "kl_mean",
                                            "kl_p99",
                                            "top1_agreement",
                                            "isa",
                                            "bits_per_weight",
                                            "file_bytes",
                                            "peak_memory_bytes",
                                            "model",
                                            "prompt_tokens_per_second",
                                            "new_tokens_per_second",
                                            "scheme",
                                            "method",
                                            "threads",
                                            "seed",
                                            "calibration_tokens",
                                            "kv_scheme",
                                            "kv_bytes_per_token",
                                            "kv_rope",
                                            "kv_sinks",
                                            "kv_recent",
                                            "attention",
                                            "softmax",
                                            "seconds",
                                            "probability_error_rms"};

}  // namespace

TEST_CASE("wrong command lines end with 2 and say why in a line") {
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"fly"},
      {"info"},
      {"info", pocket_llama(), "--what"},
      {"info", pocket_llama(), "--isa", "mmx"},
      {"info", pocket_llama(), "--threads", "-1"},
      {"quantize", pocket_llama()},
      {"quantize", pocket_llama(), "-o", "/nowhere/x", "--scheme", "w4b8"},
      {"quantize", pocket_llama(), "-o", "/nowhere/x", "--scheme", "w4a8", "--head-bits", "5"},
      {"quantize", pocket_llama(), "-o", "/nowhere/x", "--scheme", "w4a8", "--method", "magic"},
      {"quantize", pocket_llama(), "-o", "/nowhere/x", "--scheme", "w4a8", "--range", "wide"},
      {"generate", pocket_llama()},
      {"generate", pocket_llama(), "--prompt", "x", "--temperature", "-1"},
      {"perplexity", pocket_llama(), "--context", "many"},
      {"perplexity", pocket_llama(), "--kv", "kv5"},
      {"generate", pocket_llama(), "--prompt", "x", "--kv", "kv4_past_2d"},
      {"bench", pocket_llama(), "--kv", "f32_past"},
      {"passkey", pocket_llama(), "--items", "0"},
      {"compare", pocket_llama(), "--schemes", "w4a8,nothing"},
  };
  for (const auto& arguments : wrong) {
    CAPTURE(arguments);
    const ToolRun run = run_tool(arguments);
    CHECK(run.code == 2);
    CHECK(run.out.empty());
    CHECK(is_one_message(run.err, "--help"));
  }
}

TEST_CASE("help and version end with 0") {
  CHECK(run_tool({"--help"}).out.find("perplexity") != std::string::npos);
  CHECK(run_tool({"quantize", "--help"}).out.find("--head-bits") != std::string::npos);
  const ToolRun version = run_tool({"--version"});
  CHECK(version.code == 0);
  CHECK(version.out.starts_with("cbq-llama "));
}

TEST_CASE("errors end with 1 and say in a line what and where") {
  const support::ScratchFolder scratch;
  const std::string missing = scratch / "missing";
  support::write_text(scratch / "short.txt", "too short");
  const std::string text = engine_fixture::evaluation_text();
  struct Case {
    std::vector<std::string> arguments;
    std::string part;
  };
  const Case cases[] = {
      {{"info", missing}, "No such file"},
      {{"perplexity", missing, "--text", text}, missing},
      {{"perplexity", pocket_llama(), "--text", missing}, missing},
      {{"perplexity", pocket_llama(), "--text", scratch.path()}, "not a regular file"},
      {{"perplexity", pocket_llama(), "--text", scratch / "short.txt"}, "shorter than one window"},
      {{"perplexity", pocket_llama(), "--text", text, "--context", "1"}, "context"},
      {{"perplexity", pocket_llama(), "--text", text, "--context", "4096"}, "2 to 1024"},
      {{"perplexity", pocket_llama(), "--windows", "1", "--json", missing + "/x.json"}, missing},
      {{"quantize", pocket_llama(), "-o", missing + "/deep/q", "--scheme", "w4a8_g32"}, missing},
      {{"quantize", pocket_llama(), "-o", scratch.path(), "--scheme", "w4a8_g32"}, "not empty"},
      {{"quantize", pocket_llama(), "-o", scratch / "q", "--scheme", "w5a8"}, "no packed kernel"},
      {{"quantize", pocket_llama(), "-o", scratch / "q", "--scheme", "w4a8_g48"}, "no packed kernel"},
      {{"quantize", pocket_llama(), "-o", scratch / "q", "--scheme", "w4a16", "--method", "cbq", "--calibration", text,
        "--samples", "18446744073709551615", "--sequence", "18446744073709551615"},
       "more calibration tokens"},
      {{"quantize", pocket_llama(), "-o", scratch / "q", "--scheme", "w4a16", "--method", "gptq", "--calibration", text,
        "--samples", "1000000000000"},
       "more calibration tokens"},
      {{"quantize", pocket_llama(), "-o", scratch / "q", "--scheme", "w4a16", "--method", "cbq", "--calibration", text,
        "--samples", "2", "--sequence", "16", "--batch", "1", "--epochs", "18446744073709551615"},
       "--epochs"},
      {{"generate", pocket_llama(), "--prompt", ""}, "prompt"},
      {{"generate", pocket_llama(), "--prompt", "a", "--pre-tokenizer", "gpt-2"}, "tokenizer.json"},
      {{"bench", pocket_llama(), "--prompt-tokens", "2000"}, "1024"},
      {{"bench", pocket_llama(), "--kv", "kv4", "--calibration", text}, "_2d"},
      {{"perplexity", pocket_llama(), "--kv", "kv4_2d", "--calibration", missing}, missing},
      {{"generate", pocket_llama(), "--prompt", "a", "--kv", "kv4_2d", "--calibration", scratch / "short.txt"},
       "shorter than one sequence"},
      {{"sample", pocket_llama(), "-o", missing + "/x.txt", "--tokens", "10"}, missing},
  };
  for (const Case& one : cases) {
    CAPTURE(one.arguments);
    const ToolRun run = run_tool(one.arguments);
    CHECK(run.code == 1);
    CHECK(is_one_message(run.err, one.part));
  }
  CHECK(scratch.entries() == 1);  // the text alone: nothing half-written
}

TEST_CASE("a machine without an instruction set does not pretend to have it") {
  for (const cbq::Isa isa : cbq::all_isas) {
    CAPTURE(cbq::isa_name(isa));
    CHECK(run_tool({"info", pocket_llama(), "--isa", cbq::isa_name(isa)}).code == (cbq::capped(isa) == isa ? 0 : 1));
  }
}

TEST_CASE("perplexity reports every key, and with --json - nothing else") {
  const ToolRun run = run_tool({"perplexity", pocket_llama(), "--windows", "2", "--context", "64", "--reference",
                                pocket_llama(), "--json", "-", "--threads", "1", "--isa", "scalar"});
  REQUIRE(run.code == 0);
  CHECK(run.err.empty());
  const Json json = unwrap(cbq::parse_json(run.out));
  CHECK(json.size() == json_keys.size());
  for (const std::string& key : json_keys) {
    CAPTURE(key);
    CHECK(json.contains(key));
  }
  CHECK(json.at("windows") == 2);
  CHECK(json.at("tokens") == 126);
  CHECK(json.at("context") == 64);
  CHECK(json.at("scheme") == "f16");
  CHECK(json.at("method") == "none");
  CHECK(json.at("isa") == "scalar");
  CHECK(json.at("threads") == 1);
  CHECK(json.at("bits_per_weight") == 16.0);
  CHECK(json.at("kl_mean") == 0.0);
  CHECK(json.at("file_bytes") == std::filesystem::file_size(pocket_llama() + "/model.safetensors"));
  CHECK(json.at("perplexity").get<double>() > 2);
  CHECK(json.at("new_tokens_per_second").is_null());
}

TEST_CASE("quantize writes a folder that perplexity, generate and info read") {
  const support::ScratchFolder scratch;
  const std::string folder = scratch / "q";
  const std::vector<std::string> quantize = {"quantize", pocket_llama(), "-o",       folder,
                                             "--scheme", "w4a8_g32",     "--explain"};
  const ToolRun made = run_tool(quantize);
  REQUIRE(made.code == 0);
  CHECK(made.out.find("model.layers.4.mlp.down_proj") != std::string::npos);
  CHECK(made.out.find("model.embed_tokens") != std::string::npos);
  CHECK(scratch.entries() == 1);
  const Json config = unwrap(cbq::read_json_file(folder + "/config.json"));
  CHECK(config.at("quantization_config").at("quant_method") == "compressed-tensors");
  CHECK(config.at("quantization_config").at("ignore") == Json{"lm_head"});
  CHECK(config.at("cbq").at("head_bits") == 8);
  CHECK(config.at("model_type") == "llama");
  CHECK(support::read_text(folder + "/tokenizer.json") == support::read_text(pocket_llama() + "/tokenizer.json"));

  auto with_budget = quantize;  // its own folder it may replace
  with_budget.insert(with_budget.end(), {"--memory-budget", "1G"});
  const ToolRun again = run_tool(with_budget);
  CHECK(again.code == 0);
  CHECK(is_one_message(again.err, "--memory-budget is not used"));
  CHECK(run_tool({"info", folder}).out.find("w4a8_g32") != std::string::npos);
  CHECK(run_tool({"quantize", folder, "-o", scratch / "r", "--scheme", "w8a8"}).code == 1);  // quantized already
  const ToolRun text = run_tool({"generate", folder, "--prompt", "The history of", "-n", "5"});
  CHECK(text.code == 0);
  CHECK(text.out.starts_with("The history of"));
  const Json json = unwrap(cbq::parse_json(run_tool({"perplexity", folder, "--reference", pocket_llama(), "--windows",
                                                     "2", "--context", "64", "--json", "-"})
                                               .out));
  CHECK(json.at("scheme") == "w4a8_g32");
  CHECK(json.at("method") == "rtn");
  CHECK(json.at("calibration_tokens") == 0);
  CHECK(json.at("kl_mean").get<double>() > 0.0);
  CHECK(json.at("top1_agreement").get<double>() > 0.5);
  CHECK(json.at("bits_per_weight").get<double>() > 4.5);
  CHECK(json.at("bits_per_weight").get<double>() < 5.0);

  // Broken afterwards: an error, not a crash.
  Json clipped = config;
  clipped["cbq"]["version"] = 2;
  clipped["cbq"]["activation_clips"]["model.layers.9.mlp.up_proj"] = 0.5;
  support::write_text(folder + "/config.json", cbq::json_text(clipped));
  CHECK(is_one_message(run_tool({"generate", folder, "--prompt", "The"}).err, "model.layers.9.mlp.up_proj"));
  std::filesystem::resize_file(folder + "/model.safetensors", 100'000);
  CHECK(run_tool({"info", folder}).code == 1);
}

TEST_CASE("compare prints a line per scheme, a sample of each, a chart and JSON") {
  const support::ScratchFolder scratch;
  const ToolRun run =
      run_tool({"compare", pocket_llama(), "--schemes", "w8a8,w4a16_g128", "--windows", "1", "--threads", "1",
                "--context", "128", "--svg", scratch / "c.svg", "--json", scratch / "c.json"});
  CAPTURE(run.err);
  REQUIRE(run.code == 0);
  CHECK(run.out.find("\nw8a8 ") != std::string::npos);
  CHECK(run.out.find("\nw4a16_g128 ") != std::string::npos);
  CHECK(run.out.find("\nfloat (F16) ") != std::string::npos);
  CHECK(support::read_text(scratch / "c.svg").find("w4a16_g128") != std::string::npos);
  const Json json = unwrap(cbq::read_json_file(scratch / "c.json"));
  REQUIRE(json.at("results").size() == 3);
  CHECK(json.at("results")[0].at("kl_mean").is_null());
  CHECK(json.at("results")[2].at("kl_mean").get<double>() > json.at("results")[1].at("kl_mean").get<double>());
  for (const Json& result : json.at("results")) {
    CHECK(result.at("prompt_tokens_per_second").get<double>() > 0);
    CHECK(result.at("new_tokens_per_second").get<double>() > 0);
    CHECK_FALSE(result.at("generated").get<std::string>().empty());
  }
}

TEST_CASE("bench measures and tells where time goes") {
  const ToolRun run = run_tool({"bench", pocket_llama(), "--prompt-tokens", "16", "--new-tokens", "4", "--runs", "2",
                                "--profile", "--threads", "1", "--json", "-"});
  REQUIRE(run.code == 0);
  const Json json = unwrap(cbq::parse_json(run.out));
  CHECK(json.at("load_seconds").get<double>() > 0);
  for (const char* phase : {"prompt", "new_tokens"}) {
    const Json& times = json.at("profile").at(phase);
    double sum = 0;
    for (const char* part : {"attention_projections", "mlp_projections", "head", "cache_writes", "attention", "rest"}) {
      CHECK(times.at(part).get<double>() > 0);
      sum += times.at(part).get<double>();
    }
    CHECK(sum <= 1.000001 * times.at("seconds").get<double>());
  }
}

TEST_CASE("an interrupt leaves nothing behind") {
  const support::ScratchFolder scratch;
  const auto interrupted = [] {
    cbq_llama::catch_interrupts();
    (void)std::raise(SIGINT);
  };
  const std::vector<std::vector<std::string>> commands = {
      {"quantize", pocket_llama(), "-o", scratch / "q", "--scheme", "w4a8_g32", "--threads", "1"},
      {"perplexity", pocket_llama(), "--threads", "1", "--json", scratch / "p.json"},
      {"sample", pocket_llama(), "-o", scratch / "s.txt", "--threads", "1"},
      {"compare", pocket_llama(), "--threads", "1", "--svg", scratch / "c.svg"},
  };
  for (const auto& command : commands) {
    CAPTURE(command);
    CHECK(run_apart(command, interrupted) == 128 + SIGINT);
  }
  CHECK(scratch.entries() == 0);
}

TEST_CASE("a full disk is an error and leaves nothing behind") {
  const support::ScratchFolder scratch;
  // A limit on the size of files stands for the disk: writes fail in the same place.
  const auto small_disk = [] {
    (void)std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {100'000, 100'000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(99);
  };
  CHECK(run_apart({"quantize", pocket_llama(), "-o", scratch / "q", "--scheme", "w4a8_g32", "--threads", "1"},
                  small_disk) == 1);
  CHECK(scratch.entries() == 0);
}
