// SPDX-License-Identifier: Apache-2.0
#include "target_patterns.hpp"

#include <catch2/catch_test_macros.hpp>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "examples/llama/engine_fixture.hpp"

using cbq::Errc;
using cbq::Json;
using engine_fixture::run_tool;
using engine_fixture::unwrap;

namespace {

const std::vector<std::string_view> modules = {"lm_head", "model.layers.0.mlp.up_proj",
                                               "model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.q_proj",
                                               "model.layers.10.self_attn.q_proj"};

/// A config.json with groups a, b ... of these targets.
Json config_with(const std::vector<Json>& targets) {
  Json config;
  char name = 'a';
  for (const Json& list : targets)
    config["quantization_config"]["config_groups"][std::string(1, name++)]["targets"] = list;
  return config;
}

/// The targets of group a.
Json resolved(const std::vector<Json>& targets) {
  Json config = config_with(targets);
  const cbq::Status done = cbq_llama::resolve_target_patterns(config, modules);
  if (!done) FAIL(support::message(done.error()));
  return config["quantization_config"]["config_groups"]["a"]["targets"];
}

cbq::Error refused(const std::vector<Json>& targets) {
  Json config = config_with(targets);
  const cbq::Status done = cbq_llama::resolve_target_patterns(config, modules);
  REQUIRE_FALSE(done);
  return done.error();
}

}  // namespace

TEST_CASE("patterns become the names of the modules that they match from the start") {
  const Json attention = {modules[2], modules[3], modules[4]};
  CHECK(resolved({Json{"re:.*self_attn.*"}}) == attention);
  CHECK(resolved({Json{"re:.*self_attn"}}) == attention);  // a match need not reach the end
  CHECK(resolved({Json{"re:self_attn"}}) == Json::array());
  CHECK(resolved({Json{"re:.*q_proj$"}}) == Json{modules[3], modules[4]});
  CHECK(resolved({Json{R"(re:model\.layers\.\d\.self_attn\.(q|k)_proj)"}}) == Json{modules[2], modules[3]});
  CHECK(resolved({Json{"re:^(?!lm_head).*"}}) == Json{modules[1], modules[2], modules[3], modules[4]});
  CHECK(resolved({Json{"re:"}}).size() == modules.size());  // the empty match
  CHECK(resolved({Json{"re:x?"}}).size() == modules.size());
}

TEST_CASE("names stay, win over patterns, and stand once") {
  CHECK(resolved({Json{"Linear", "re:lm_.*", modules[1]}}) == Json{"Linear", modules[0], modules[1]});
  CHECK(resolved({Json{"re:.*_proj", "re:.*q_proj", modules[2]}}) ==
        Json{modules[1], modules[3], modules[4], modules[2]});
  CHECK(resolved({Json{"re:.*"}, Json{modules[0], modules[1]}}) == Json{modules[2], modules[3], modules[4]});
  // Nothing to do, or nothing that could be done.
  CHECK(resolved({Json{"Linear"}}) == Json{"Linear"});
  CHECK(resolved({Json("re:.*")}) == "re:.*");
  CHECK(resolved({Json{1, "re:lm_head", nullptr}}) == Json{1, "lm_head", nullptr});
  for (Json config : {Json(), Json{{"quantization_config", nullptr}},
                      Json{{"quantization_config", {{"config_groups", Json::array()}}}},
                      Json{{"quantization_config", {{"config_groups", {{"a", 3}}}}}}}) {
    const Json before = config;
    CHECK(cbq_llama::resolve_target_patterns(config, modules));
    CHECK(config == before);
  }
}

TEST_CASE("patterns that cannot be meant are refused with group and expression") {
  const cbq::Error broken = refused({Json{"re:.*("}});
  CHECK(broken.code == Errc::bad_file);
  CHECK(support::message(broken).find(".*(") != std::string::npos);
  CHECK(support::message(broken).find("config_groups") != std::string::npos);
  const cbq::Error both = refused({Json{"re:.*q_proj"}, Json{"re:.*self_attn.*"}});
  CHECK(both.code == Errc::bad_file);
  CHECK(support::message(both).find("model.layers.0.self_attn.q_proj") != std::string::npos);
  CHECK(refused({Json(std::vector<std::string>(300, "re:lm_head"))}).code == Errc::unsupported);
}

TEST_CASE("a pattern that is exponential on a name ends with an error") {
  const std::string name = 'b' + std::string(60, 'a') + 'c';
  const std::vector<std::string_view> one = {name};
  Json config = config_with({Json{"re:b(a|aa)+$"}});
  const cbq::Status done = cbq_llama::resolve_target_patterns(config, one);
  REQUIRE_FALSE(done);
  CHECK(done.error().code == Errc::unsupported);
  // What std::regex would recurse on for each character.
  const std::string long_name(1u << 20, 'a');
  const std::vector<std::string_view> longer = {long_name};
  config = config_with({Json{"re:(a|b)*"}});
  const cbq::Status long_done = cbq_llama::resolve_target_patterns(config, longer);
  CHECK((long_done || long_done.error().code == Errc::unsupported));
}

TEST_CASE("a folder whose targets are patterns is imported as with names") {
  const support::ScratchFolder folder;
  const auto tool = [](const std::vector<std::string>& arguments) {
    const auto run = run_tool(arguments);
    INFO(run.err);
    REQUIRE(run.code == 0);
  };
  support::write_text(folder / "recipe.json", R"({"method": "rtn", "scheme": "w4a16_g32",
      "schemes": [{"pattern": "*.mlp.*", "scheme": "w8a16_g32"}]})");
  tool({"quantize", engine_fixture::pocket_llama(), "-o", folder / "own", "--recipe", folder / "recipe.json"});
  tool({"export", folder / "own", "--format", "compressed-tensors", "-o", folder / "out"});
  tool({"import", folder / "out", "-o", folder / "named"});
  Json config = unwrap(cbq::read_json_file(folder / "out/config.json"));
  Json& quantization = config["quantization_config"];
  CHECK(quantization["config_groups"].size() == 2);
  for (auto& group : quantization["config_groups"]) {
    group["targets"] = {group["weights"]["num_bits"] == 8 ? "re:.*mlp.*" : "re:.*self_attn\\.[qkvo]_proj$"};
  }
  quantization["ignore"] = {"re:.*lm_head"};
  support::write_text(folder / "out/config.json", cbq::json_text(config));
  tool({"import", folder / "out", "-o", folder / "matched"});
  const Json named = unwrap(cbq::read_json_file(folder / "named/config.json"));
  const Json matched = unwrap(cbq::read_json_file(folder / "matched/config.json"));
  CHECK(matched.at("cbq") == named.at("cbq"));
  CHECK(matched.at("cbq").at("schemes").at("model.layers.4.mlp.up_proj") == "w8a16_g32");
  CHECK(matched.at("cbq").at("schemes").at("model.layers.4.self_attn.o_proj") == "w4a16_g32");
  CHECK(support::read_text(folder / "matched/model.safetensors") ==
        support::read_text(folder / "named/model.safetensors"));

  quantization["config_groups"]["group_0"]["targets"] = {"re:["};
  support::write_text(folder / "out/config.json", cbq::json_text(config));
  const auto run = run_tool({"import", folder / "out", "-o", folder / "not"});
  CHECK(run.code == 1);
  INFO(run.err);
  CHECK(run.err.find("group_0") != std::string::npos);
  CHECK(run.err.find("config.json") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(folder / "not"));
}
