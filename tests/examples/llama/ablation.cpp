// SPDX-License-Identifier: Apache-2.0
#include "ablation.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "examples/llama/engine_fixture.hpp"
#include "interrupt.hpp"

using namespace cbq_llama;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using engine_fixture::unwrap;

namespace {

const std::string calibration = pocket_llama() + "-calibration.txt";

// A run of a few rows with a few steps. Options of `more`, which all have values or none, take the place of these.
std::vector<std::string> ablate(const std::string& output, const std::string& only,
                                const std::vector<std::string>& more = {}) {
  std::vector<std::string> all = {"ablate", pocket_llama(), "-o", output};
  const std::pair<const char*, std::string> options[] = {{"--text", engine_fixture::evaluation_text()},
                                                         {"--calibration", calibration},
                                                         {"--only", only},
                                                         {"--schemes", "w2a16_g64_asym"},
                                                         {"--steps", "2"},
                                                         {"--options", "--samples 4 --sequence 32 --batch 2"},
                                                         {"--context", "64"},
                                                         {"--windows", "2"},
                                                         {"--threads", "1"}};
  for (const auto& [name, value] : options) {
    if (std::find(more.begin(), more.end(), name) != more.end()) continue;
    all.insert(all.end(), {name, value});
  }
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::size_t lines(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

TEST_CASE("rows are data: names are unique, and every option is one of quantize") {
  AblationSelection selection;
  std::set<std::pair<std::string, std::string>> seen;
  std::set<std::string> names;
  std::vector<AblationRow> rows = ablation_rows(selection);
  const std::vector<AblationRow> agile = ablation_rows({.settings = {"agile"}});
  const std::vector<AblationRow> kv = ablation_rows({.settings = {"kv"}});
  rows.insert(rows.end(), agile.begin() + 1, agile.end());
  rows.insert(rows.end(), kv.begin() + 1, kv.end());
  for (const AblationRow& row : rows) {
    CAPTURE(row.name, row.scheme);
    CHECK(seen.emplace(row.name, row.scheme).second);
    names.insert(row.name);
  }
  for (const char* name : {"float", "rtn_minmax", "rtn_mse", "gptq", "smoothquant", "adaround", "cbq", "cbq_paper",
                           "paper/no_cfp", "paper/cfp_scaling", "default/window_3_2", "paper/rank_64",
                           "default/homologous", "paper/loss_l2", "agile/w4a8_mixed", "kv/kv2_kivi_past_hadamard"}) {
    CHECK(names.contains(name));
  }
  // --list parses the options of every row.
  const support::ScratchFolder scratch;
  const ToolRun list = run_tool(ablate(scratch / "none", "*", {"--list"}));
  CHECK(list.err.empty());
  CHECK(list.code == 0);
  CHECK(lines(list.out) == ablation_rows({.schemes = {"w2a16_g64_asym"}}).size());
  std::vector<std::string> arguments = ablate(scratch / "none", "*", {"--list", "--settings", "agile"});
  CHECK(run_tool(arguments).code == 2);  // with schemes of others
  const auto schemes = std::find(arguments.begin(), arguments.end(), "--schemes");
  arguments.erase(schemes, schemes + 2);
  const ToolRun list_agile = run_tool(arguments);
  CHECK(list_agile.err.empty());
  CHECK(lines(list_agile.out) == agile.size());
  arguments.back() = "kv";
  const ToolRun list_kv = run_tool(arguments);
  CHECK(list_kv.err.empty());
  CHECK(lines(list_kv.out) == kv.size());
  arguments.back() += ",default";
  CHECK(run_tool(arguments).code == 2);
  CHECK_FALSE(std::filesystem::exists(scratch / "none"));
}

TEST_CASE("rows are selected by name, scheme, setting and seed") {
  const auto count = [](const AblationSelection& selection) { return ablation_rows(selection).size() - 1; };
  CHECK(count({.only = {"rtn*"}, .schemes = {"w4a16", "w4a8"}}) == 4);
  CHECK(count({.only = {"rtn*", "gptq"}, .schemes = {"w4a16"}, .seeds = 3}) == 5);
  CHECK(count({.only = {"*/window_1_0"}, .schemes = {"w4a16"}}) == ablation_settings().size());
  CHECK(count({.only = {"*/window_1_0"}, .schemes = {"w4a16"}, .settings = {"paper"}}) == 1);
  CHECK(count({.only = {"*/no_rotation"}, .schemes = {"w4a16", "w4a4_asym"}}) == 1);
  CHECK(count({.only = {"nothing"}}) == 0);
  const auto seeds = ablation_rows({.only = {"cbq"}, .schemes = {"w4a16"}, .seeds = 2});
  REQUIRE(seeds.size() == 3);
  CHECK(seeds[2].seed == 1);
}

TEST_CASE("ablate measures packed models, keeps what is finished and writes a table and plots") {
  const support::ScratchFolder scratch;
  const std::string output = scratch / "results";
  support::write_text(scratch / "items.jsonl",
                      R"({"prompt": "The history of the", "choices": [" city", " xqzv"], "answer": 0})");
  const std::vector<std::string> items = {"--items", scratch / "items.jsonl"};
  const ToolRun first = run_tool(ablate(output, "rtn_mse", items));
  INFO(first.err);
  REQUIRE(first.code == 0);
  CHECK(lines(first.out) == 2);  // float, rtn_mse
  const std::string kept = support::read_text(output + "/results.jsonl");
  CHECK(lines(kept) == 2);

  // A run that died while it wrote, and whoever else put something there, lose nothing.
  support::write_text(output + "/results.jsonl", kept + "{\"key\": \"ab");
  const ToolRun second = run_tool(ablate(output, "rtn_mse,cbq,default/rounding_lora", items));
  INFO(second.err);
  REQUIRE(second.code == 0);
  CHECK(lines(second.out) == 2);  // the two that were not there
  const std::string all = support::read_text(output + "/results.jsonl");
  CHECK(all.starts_with(kept));
  CHECK(lines(all) == 4);

  const cbq::Json last = unwrap(cbq::parse_json(all.substr(all.rfind('\n', all.size() - 2) + 1)));
  CHECK(last.at("name") == "default/rounding_lora");
  CHECK(last.at("scheme") == "w2a16_g64_asym");
  CHECK(last.at("texts")[0].at("kl_mean").get<double>() > 0);
  CHECK(last.at("texts")[0].at("windows") == 2);
  CHECK(last.at("accuracy").get<double>() >= 0);
  CHECK(last.at("trained_parameters").get<std::size_t>() > 0);
  CHECK(last.at("reconstruction").size() == 4);
  CHECK(last.at("seconds").get<double>() > 0);

  const std::string table = support::read_text(output + "/results.md");
  for (const char* name : {"| float |", "| rtn_mse |", "| cbq |", "| default/rounding_lora |", "### w2a16_g64_asym"}) {
    CHECK(table.find(name) != std::string::npos);
  }
  for (const char* plot : {"/perplexity.svg", "/windows.svg", "/outliers.svg"}) {
    const std::string svg = support::read_text(output + plot);
    CHECK(svg.starts_with("<svg"));
    CHECK(svg.ends_with("</svg>\n"));
  }
  CHECK_FALSE(std::filesystem::exists(output + "/.ablate-work"));

  const ToolRun list = run_tool(ablate(output, "rtn_m*", {"--list", items[0], items[1]}));
  CHECK(list.out.find("done  w2a16_g64_asym rtn_mse") != std::string::npos);
  CHECK(list.out.find("      w2a16_g64_asym rtn_minmax") != std::string::npos);
  // Measured in another way: another result.
  CHECK(run_tool(ablate(output, "rtn_mse", {"--list"})).out.find("done") == std::string::npos);
}

TEST_CASE("a result is that of the same command in one piece") {
  const support::ScratchFolder scratch;
  REQUIRE(run_tool(ablate(scratch / "results", "default/cfp_scaling")).code == 0);
  const std::string all = support::read_text(scratch / "results/results.jsonl");
  const cbq::Json result = unwrap(cbq::parse_json(all.substr(all.find('\n') + 1)));
  REQUIRE(run_tool({"quantize",
                    pocket_llama(),
                    "-o",
                    scratch / "model",
                    "--scheme",
                    "w2a16_g64_asym",
                    "--method",
                    "cbq",
                    "--preprocess",
                    "cfp_scaling",
                    "--head-bits",
                    "16",
                    "--steps",
                    "2",
                    "--samples",
                    "4",
                    "--sequence",
                    "32",
                    "--batch",
                    "2",
                    "--calibration",
                    calibration,
                    "--threads",
                    "1"})
              .code == 0);
  const cbq::Json alone =
      unwrap(cbq::parse_json(run_tool({"perplexity", scratch / "model", "--reference", pocket_llama(), "--context",
                                       "64", "--windows", "2", "--threads", "1", "--json", "-"})
                                 .out));
  CHECK(result.at("texts")[0].at("kl_mean") == alone.at("kl_mean"));
  CHECK(result.at("bits_per_weight") == alone.at("bits_per_weight"));
}

TEST_CASE("rows that differ in how they are run share a model, and are what perplexity says of it") {
  const support::ScratchFolder scratch;
  const std::vector<std::string> common = {
      "--text", engine_fixture::evaluation_text(), "--context", "128", "--windows", "2", "--threads", "1"};
  const auto run = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), common.begin(), common.end());
    return run_tool(arguments);
  };
  const auto ablate_rows = [&](const std::string& settings, const std::string& only) {
    return run({"ablate", pocket_llama(), "-o", scratch / settings, "--calibration", calibration, "--settings",
                settings, "--options", "--samples 4 --sequence 32 --weights rtn", "--only", only});
  };
  const auto figures = [&](const std::string& settings) {
    std::vector<cbq::Json> rows;
    const std::string all = support::read_text(scratch / settings + "/results.jsonl");
    for (std::size_t at = 0; at < all.size(); at = all.find('\n', at) + 1) {
      rows.push_back(unwrap(cbq::parse_json(all.substr(at, all.find('\n', at) - at))));
    }
    return rows;
  };
  const auto measured = [&](const std::string& model, const std::vector<std::string>& options) {
    std::vector<std::string> arguments = {"perplexity", model, "--reference", pocket_llama(), "--json", "-"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return unwrap(cbq::parse_json(run(arguments).out));
  };
  const ToolRun agile = ablate_rows("agile", "agile/w8a8,agile/w8a8_log2,agile/w8a8_mixed");
  INFO(agile.err);
  REQUIRE(agile.code == 0);
  REQUIRE(run_tool({"quantize",
                    pocket_llama(),
                    "-o",
                    scratch / "model",
                    "--method",
                    "agile",
                    "--scheme",
                    "w8a8",
                    "--weights",
                    "rtn",
                    "--head-bits",
                    "16",
                    "--samples",
                    "4",
                    "--sequence",
                    "32",
                    "--calibration",
                    calibration,
                    "--threads",
                    "1"})
              .code == 0);
  const std::vector<cbq::Json> rows = figures("agile");
  REQUIRE(rows.size() == 4);
  const std::vector<std::string> options[] = {{}, {}, {"--softmax", "log2_normalized"}, {"--low-bit-tokens", "0.25"}};
  for (std::size_t i = 1; i < rows.size(); ++i) {
    CAPTURE(i);
    CHECK(rows[i].at("texts")[0].at("kl_mean") == measured(scratch / "model", options[i]).at("kl_mean"));
    CHECK(rows[i].at("seconds") == rows[1].at("seconds"));  // of the one model
    CHECK((i == 1 || rows[i].at("texts")[0].at("kl_mean") > rows[1].at("texts")[0].at("kl_mean")));
  }

  const ToolRun kv = ablate_rows("kv", "kv/kv4_past,kv/kv8");
  INFO(kv.err);
  REQUIRE(kv.code == 0);
  const cbq::Json past = figures("kv").at(2);
  const cbq::Json alone = measured(pocket_llama(), {"--kv", "kv4_past"});
  CHECK(past.at("texts")[0].at("kl_mean") == alone.at("kl_mean"));
  CHECK(past.at("kv_bytes_per_token") == alone.at("kv_bytes_per_token"));
  const std::string table = support::read_text(scratch / "kv/results.md");
  CHECK(table.find("### the model as it is") != std::string::npos);
  CHECK(table.find("| kv/kv4_past |") != std::string::npos);
}

TEST_CASE("a run that is killed goes on where it was, to the same figures") {
  const support::ScratchFolder scratch;
  const std::string output = scratch / "cut";
  const auto arguments = ablate(output, "rtn_mse,cbq", {"--steps", "4"});
  REQUIRE(run_tool(ablate(scratch / "whole", "rtn_mse,cbq", {"--steps", "4"})).code == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) ::_exit(run_tool(arguments).code);
  const auto has_state = [&] {
    std::error_code ignored;
    const std::filesystem::directory_iterator work(output + "/.ablate-work", ignored);
    return std::any_of(begin(work), end(work),
                       [](const auto& entry) { return entry.path().extension() == ".checkpoint"; });
  };
  while (!has_state() && ::waitpid(child, nullptr, WNOHANG) == 0) ::usleep(1000);
  ::kill(child, SIGKILL);
  (void)::waitpid(child, nullptr, 0);
  REQUIRE(has_state());
  const ToolRun rest = run_tool(arguments);
  CHECK(rest.code == 0);
  CHECK(lines(rest.out) == 1);  // the float model and rtn_mse were finished
  const auto figures = [&](const std::string& folder) {
    const std::string all = support::read_text(folder + "/results.jsonl");
    return unwrap(cbq::parse_json(all.substr(all.rfind('\n', all.size() - 2) + 1)));
  };
  CHECK(figures(output).at("texts") == figures(scratch / "whole").at("texts"));
  CHECK(figures(output).at("resumed") == true);
  CHECK_FALSE(std::filesystem::exists(output + "/.ablate-work"));
}

TEST_CASE("an interrupt ends a run and leaves only finished rows") {
  const support::ScratchFolder scratch;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    catch_interrupts();
    (void)std::raise(SIGINT);
    ::_exit(run_tool(ablate(scratch / "cut", "rtn_mse")).code);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WEXITSTATUS(status) == 128 + SIGINT);
  CHECK_FALSE(std::filesystem::exists(scratch / "cut/results.jsonl"));
}

TEST_CASE("a row that fails is named, and the others run") {
  const support::ScratchFolder scratch;
  const ToolRun run = run_tool(
      ablate(scratch / "results", "rtn_mse,cbq", {"--options", "--samples 4 --sequence 32 --batch 2 --overlap 2"}));
  CHECK(run.code == 1);
  CHECK(run.err.find("w2a16_g64_asym cbq, seed 0: ") != std::string::npos);
  CHECK(run.err.find("1 of 3 failed") != std::string::npos);
  CHECK(lines(support::read_text(scratch / "results/results.jsonl")) == 2);
  CHECK(support::read_text(scratch / "results/results.md").find("| rtn_mse |") != std::string::npos);

  CHECK(run_tool(ablate(scratch / "r", "nothing")).err.find("--list") != std::string::npos);
  CHECK(run_tool(ablate(scratch / "r", "cbq", {"--options", "--rounding guess"})).err.find("cbq: ") !=
        std::string::npos);
  CHECK(run_tool(ablate(scratch / "r", "cbq", {"--context", "100000"})).code == 1);
  CHECK(run_tool({"ablate", pocket_llama(), "-o", scratch / "r"}).code == 2);
  CHECK_FALSE(std::filesystem::exists(scratch / "r"));
}
