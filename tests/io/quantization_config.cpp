// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/quantization_config.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <string>
#include <string_view>
#include <vector>

#include "support/files.hpp"

using Catch::Matchers::ContainsSubstring;
using cbq::Errc;
using cbq::Json;
using cbq::ModuleKind;
using cbq::QuantizationRecord;
using support::message;

namespace {

cbq::Scheme scheme(const char* name) {
  return *cbq::parse_scheme(name);
}

Json written(const QuantizationRecord& record) {
  Json config = {{"model_type", "llama"}, {"hidden_size", 64}};
  REQUIRE(cbq::add_quantization(config, record));
  return *cbq::parse_json(cbq::json_text(config));
}

QuantizationRecord two_linears(const char* first, const char* second) {
  QuantizationRecord record;
  record.modules = {{"m.0", scheme(first)}, {"m.1", scheme(second)}};
  record.ignore = {"lm_head"};
  return record;
}

std::string outcome(const Json& config, const std::vector<std::string_view>& packed) {
  return message(cbq::parse_quantization(config, packed));
}

// What another program writes: one group for all linear modules.
Json foreign() {
  return *cbq::parse_json(R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null,
      "weights": {"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 128,
                  "dynamic": false, "actorder": null}}},
    "ignore": ["lm_head"]}})");
}

}  // namespace

TEST_CASE("one scheme for all linears is one group of the class") {
  const Json config = written(two_linears("w4a8_g128", "w4a8_g128"));
  CHECK(config["model_type"] == "llama");
  const Json& quantization = config["quantization_config"];
  CHECK(quantization["quant_method"] == "compressed-tensors");
  CHECK(quantization["format"] == "pack-quantized");
  CHECK(quantization["ignore"] == Json{"lm_head"});
  REQUIRE(quantization["config_groups"].size() == 1);
  const Json& group = quantization["config_groups"]["group_0"];
  CHECK(group["targets"] == Json{"Linear"});
  CHECK(group["weights"]["num_bits"] == 4);
  CHECK(group["weights"]["symmetric"] == true);
  CHECK(group["weights"]["strategy"] == "group");
  CHECK(group["weights"]["group_size"] == 128);
  CHECK(group["input_activations"]["num_bits"] == 8);
  CHECK(group["input_activations"]["strategy"] == "token");
  CHECK(group["input_activations"]["dynamic"] == true);
  CHECK(config["cbq"]["schemes"] == Json{{"m.0", "w4a8_g128"}, {"m.1", "w4a8_g128"}});
}

TEST_CASE("activations per group have the strategy and the groups of the weights") {
  const QuantizationRecord record = two_linears("w4a8_g128_act_group", "w4a8_g128_act_group");
  Json config = written(record);
  const Json inputs = config["quantization_config"]["config_groups"]["group_0"]["input_activations"];
  CHECK(inputs["strategy"] == "group");
  CHECK(inputs["group_size"] == 128);
  CHECK(inputs["dynamic"] == true);
  CHECK(config["cbq"]["schemes"]["m.0"] == "w4a8_g128_act_group");
  const std::vector<std::string_view> packed = {"m.0", "m.1"};
  // From the exact names, and from what other programs read.
  CHECK(cbq::parse_quantization(config, packed)->modules[1].scheme == scheme("w4a8_g128_act_group"));
  config.erase("cbq");
  CHECK(cbq::parse_quantization(config, packed)->modules[1].scheme == scheme("w4a8_g128_act_group"));
  Json& read = config["quantization_config"]["config_groups"]["group_0"]["input_activations"];
  for (const auto& [key, bad] : std::vector<std::pair<std::string, Json>>{{"group_size", 64},
                                                                          {"group_size", nullptr},
                                                                          {"group_size", 0},
                                                                          {"num_bits", 4},
                                                                          {"symmetric", false},
                                                                          {"dynamic", false}}) {
    CAPTURE(key, bad.dump());
    read = inputs;
    read[key] = bad;
    CHECK(outcome(config, packed) != "success");
  }
  QuantizationRecord other = two_linears("w4a8_g128_act_group", "w4a8_g64");
  other.modules[0].scheme.activation.group = 64;
  Json refused = Json::object();
  CHECK(cbq::add_quantization(refused, other).error().code == Errc::unsupported);
  other = two_linears("w8a8", "w8a8");
  other.modules[0].scheme.activation = scheme("w4a8_g128_act_group").activation;
  CHECK(cbq::add_quantization(refused, other).error().code == Errc::unsupported);
}

TEST_CASE("mixed schemes name their modules") {
  QuantizationRecord record = two_linears("w4a16_g32_asym", "w8a8");
  record.modules.push_back({"m.2", scheme("w8a8")});
  const Json groups = written(record)["quantization_config"]["config_groups"];
  REQUIRE(groups.size() == 2);
  CHECK(groups["group_0"]["targets"] == Json{"m.0"});
  CHECK(groups["group_0"]["input_activations"] == nullptr);
  CHECK(groups["group_0"]["weights"]["symmetric"] == false);
  CHECK(groups["group_1"]["targets"] == Json{"m.1", "m.2"});
  CHECK(groups["group_1"]["weights"]["strategy"] == "channel");
  CHECK(groups["group_1"]["weights"]["group_size"] == nullptr);
}

TEST_CASE("an embedding has a group of its own beside the class") {
  QuantizationRecord record = two_linears("w8a16", "w8a16");
  record.modules.push_back({"model.embed_tokens", scheme("w8a16"), ModuleKind::embedding});
  const Json groups = written(record)["quantization_config"]["config_groups"];
  REQUIRE(groups.size() == 2);
  CHECK(groups["group_0"]["targets"] == Json{"Linear"});
  CHECK(groups["group_1"]["targets"] == Json{"model.embed_tokens"});
}

TEST_CASE("a record is read back as it was written") {
  QuantizationRecord record;
  record.method = "gptq";
  record.head_bits = 8;
  record.ignore = {"lm_head", "other"};
  record.notes = {{"seed", 3}, {"calibration_tokens", 65536}};
  const char* names[] = {"w2a8_g64_asym", "w3a16_g128_asym",        "w4a4", "w4a4_g32_asym", "w5a16", "w8a8",
                         "w4a8_g999",     "w4a8_g32_asym_act_group"};
  std::vector<std::string_view> packed = {"embed"};
  record.modules.push_back({"embed", scheme("w8a16"), ModuleKind::embedding});
  std::vector<std::string> modules;
  for (const char* name : names) modules.push_back(std::string("m.") + name);
  for (std::size_t i = 0; i < modules.size(); ++i) {
    record.modules.push_back({modules[i], scheme(names[i])});
    packed.push_back(modules[i]);
  }
  const auto read = cbq::parse_quantization(written(record), packed);
  REQUIRE(read);
  CHECK(read->method == "gptq");
  CHECK(read->head_bits == 8);
  CHECK(read->ignore == record.ignore);
  CHECK(read->notes == record.notes);
  REQUIRE(read->modules.size() == record.modules.size());
  for (const cbq::ModuleScheme& entry : record.modules) {
    const cbq::ModuleScheme* found = cbq::find_module(*read, entry.module);
    REQUIRE(found != nullptr);
    CHECK(found->scheme == entry.scheme);
    CHECK(found->kind == entry.kind);
  }
  CHECK(cbq::find_module(*read, "lm_head") == nullptr);
}

TEST_CASE("online rotations are read back, and told to other programs in their words") {
  QuantizationRecord record = two_linears("w4a4", "w4a4");
  record.rotations = {{"m.1", 512}, {"lm_head", 64}};
  const Json config = written(record);
  CHECK(config["cbq"]["version"] == 2);
  CHECK(written(two_linears("w4a4", "w4a4"))["cbq"]["version"] == 1);
  const Json& groups = config["quantization_config"]["transform_config"]["config_groups"];
  CHECK(groups.size() == 2);
  CHECK(groups["hadamard_512"] == *cbq::parse_json(R"({"type": "hadamard", "head_dim": 512, "apply": [
      {"targets": ["m.1"], "location": "input"},
      {"targets": ["m.1"], "location": "weight_input", "inverse": true}]})"));
  const auto read = cbq::parse_quantization(config, std::vector<std::string_view>{"m.0", "m.1"});
  REQUIRE(read);
  REQUIRE(read->rotations.size() == 2);
  REQUIRE(cbq::find_rotation(*read, "m.1") != nullptr);
  CHECK(cbq::find_rotation(*read, "m.1")->block == 512);
  CHECK(cbq::find_rotation(*read, "lm_head")->block == 64);
  CHECK(cbq::find_rotation(*read, "m.0") == nullptr);
  CHECK(read->notes == record.notes);

  const auto with = [&](const char* key, const Json& value) {
    Json changed = config;
    changed["cbq"][key] = value;
    return outcome(changed, {"m.0", "m.1"});
  };
  CHECK(with("input_rotations", Json::object()) == "success");
  CHECK_THAT(with("version", 1), ContainsSubstring("rotations need version 2"));
  CHECK_THAT(with("input_rotations", 3), ContainsSubstring("no object"));
  CHECK_THAT(with("input_rotations", {{"m.1", {{"type", "fourier"}, {"block", 4}}}}), ContainsSubstring("m.1"));
  for (const Json& bad : {Json(0), Json(6), Json(-4), Json("4"), Json(nullptr)}) {
    CHECK(with("input_rotations", {{"m.1", {{"type", "hadamard"}, {"block", bad}}}}) != "success");
  }
  for (const Json& bad : {Json(3), Json("hadamard"), Json::object()}) {
    CHECK(with("input_rotations", {{"m.1", bad}}) != "success");
  }
}

TEST_CASE("learned clips are read back") {
  QuantizationRecord record = two_linears("w4a4", "w4a4");
  record.clips = {{"m.1", 0.7f}};
  const Json config = written(record);
  CHECK(config["cbq"]["version"] == 2);
  const auto read = cbq::parse_quantization(config, std::vector<std::string_view>{"m.0", "m.1"});
  REQUIRE(read);
  REQUIRE(cbq::find_clip(*read, "m.1") != nullptr);
  CHECK(cbq::find_clip(*read, "m.1")->clip == 0.7f);
  CHECK(cbq::find_clip(*read, "m.0") == nullptr);
  CHECK(read->notes == record.notes);
  const auto with = [&](const char* key, const Json& value) {
    Json changed = config;
    changed["cbq"][key] = value;
    return outcome(changed, {"m.0", "m.1"});
  };
  CHECK(with("activation_clips", Json::object()) == "success");
  CHECK_THAT(with("version", 1), ContainsSubstring("clips need version 2"));
  CHECK_THAT(with("activation_clips", Json::array()), ContainsSubstring("no object"));
  for (const Json& bad : {Json(0), Json(-1), Json(1.25), Json("1"), Json(nullptr)}) {
    CHECK_THAT(with("activation_clips", {{"m.1", bad}}), ContainsSubstring("m.1"));
  }
}

TEST_CASE("static activations are read back, and told to other programs in their words") {
  QuantizationRecord record = two_linears("w4a4_act_tensor", "w4a4_act_tensor");
  record.modules[1].ranges = cbq::ActivationRanges::fixed;
  const Json config = written(record);
  CHECK(config["cbq"]["version"] == 2);
  const Json& groups = config["quantization_config"]["config_groups"];
  REQUIRE(groups.size() == 2);  // one is dynamic
  CHECK(groups["group_0"]["input_activations"]["dynamic"] == true);
  CHECK(groups["group_1"]["input_activations"]["dynamic"] == false);
  CHECK(groups["group_1"]["input_activations"]["strategy"] == "tensor");
  CHECK(groups["group_1"]["targets"] == Json{"m.1"});
  const std::vector<std::string_view> packed = {"m.0", "m.1"};
  const auto read = cbq::parse_quantization(config, packed);
  REQUIRE(read);
  CHECK(cbq::find_module(*read, "m.0")->ranges == cbq::ActivationRanges::dynamic);
  CHECK(cbq::find_module(*read, "m.1")->ranges == cbq::ActivationRanges::fixed);
  CHECK(read->notes == record.notes);

  // The same from the description that other programs read.
  Json theirs = config;
  theirs.erase("cbq");
  const auto foreign = cbq::parse_quantization(theirs, packed);
  REQUIRE(foreign);
  for (const char* module : {"m.0", "m.1"}) {
    CHECK(cbq::find_module(*foreign, module)->ranges == cbq::find_module(*read, module)->ranges);
    CHECK(cbq::find_module(*foreign, module)->scheme == scheme("w4a4_act_tensor"));
  }
  const auto with = [&](const char* key, const Json& value) {
    Json changed = config;
    changed["cbq"][key] = value;
    return outcome(changed, packed);
  };
  CHECK_THAT(with("version", 1), ContainsSubstring("static activations need version 2"));
  CHECK_THAT(with("static_activations", 3), ContainsSubstring("no list of modules"));
  CHECK_THAT(with("static_activations", Json{3}), ContainsSubstring("no text"));
  CHECK_THAT(with("static_activations", {"m.1", "m.2"}),
             ContainsSubstring("m.2") && ContainsSubstring("without a scheme"));
  CHECK_THAT(with("schemes", {{"m.0", "w4a4"}, {"m.1", "w4a4"}}), ContainsSubstring("per tensor"));
  record.modules[1].scheme = scheme("w4a4");
  Json refused = Json::object();
  CHECK_THAT(message(cbq::add_quantization(refused, record)), ContainsSubstring("per tensor"));
}

TEST_CASE("a note on the bits of attention makes the version 2, and is read from either") {
  QuantizationRecord record = two_linears("w4a4", "w4a4");
  record.notes["attention_bits"] = 4;
  Json config = written(record);
  CHECK(config["cbq"]["version"] == 2);
  for (const int version : {2, 1}) {
    config["cbq"]["version"] = version;
    const auto read = cbq::parse_quantization(config, std::vector<std::string_view>{"m.0", "m.1"});
    REQUIRE(read);
    CHECK(read->notes == record.notes);
  }
}

TEST_CASE("schemes that the form cannot hold are refused") {
  Json config = Json::object();
  CHECK_FALSE(cbq::add_quantization(config, two_linears("w16a16", "w8a8")));
  QuantizationRecord per_tensor = two_linears("w8a8", "w8a8");
  per_tensor.modules[0].scheme.weight.granularity = cbq::Granularity::per_tensor;
  CHECK_FALSE(cbq::add_quantization(config, per_tensor));
  QuantizationRecord twice = two_linears("w8a8", "w8a8");
  twice.modules[1].module = "m.0";
  CHECK_FALSE(cbq::add_quantization(config, twice));
  Json list = Json::array();
  CHECK_FALSE(cbq::add_quantization(list, two_linears("w8a8", "w8a8")));
}

TEST_CASE("config and checkpoint must name the same modules") {
  const Json config = written(two_linears("w8a8", "w8a8"));
  CHECK(outcome(config, {"m.1", "m.0"}) == "success");
  CHECK_THAT(outcome(config, {"m.0"}), ContainsSubstring("m.1: the checkpoint lacks a quantized module"));
  CHECK_THAT(outcome(config, {"m.0", "m.1", "m.2"}), ContainsSubstring("m.2: a packed module without a scheme"));
  CHECK_THAT(outcome(config, {"m.0", "m.2"}), ContainsSubstring("m.1"));
  CHECK(outcome({{"model_type", "llama"}}, {}) == "success");
  CHECK_THAT(outcome({{"model_type", "llama"}}, {"m.0"}), ContainsSubstring("no quantization_config"));
}

TEST_CASE("a broken description of ours is refused") {
  const Json good = written(two_linears("w8a8", "w8a8"));
  const auto with = [&](const char* key, const Json& value) {
    Json config = good;
    config["cbq"][key] = value;
    return outcome(config, {"m.0", "m.1"});
  };
  CHECK(with("extra", 1) == "success");
  CHECK_THAT(with("version", 3), ContainsSubstring("later form"));
  for (const Json& bad : {Json(1.0), Json("1"), Json(-1), Json(nullptr)}) CHECK(with("version", bad) != "success");
  for (const Json& bad : {Json(1), Json(9), Json(17), Json("8"), Json(~0ull)})
    CHECK(with("head_bits", bad) != "success");
  CHECK(with("method", 3) != "success");
  CHECK(with("embeddings", 3) != "success");
  CHECK(with("embeddings", Json{3}) != "success");
  CHECK_THAT(with("embeddings", {"m.2"}), ContainsSubstring("m.2") && ContainsSubstring("without a scheme"));
  CHECK(with("schemes", Json::array()) != "success");
  for (const char* name : {"", "w4", "w16a16", "w9a8", "w4a8_g0", "nonsense"}) {
    CAPTURE(name);
    CHECK(with("schemes", {{"m.0", name}, {"m.1", "w8a8"}}) != "success");
  }
  CHECK(with("schemes", {{"m.0", 4}, {"m.1", "w8a8"}}) != "success");
  for (const Json& own : {Json(3), Json::array(), Json::object()}) CHECK(outcome({{"cbq", own}}, {}) != "success");
}

TEST_CASE("another program's file is read where it is plain") {
  const auto read = cbq::parse_quantization(foreign(), std::vector<std::string_view>{"m.0", "m.1"});
  REQUIRE(read);
  CHECK(read->modules.size() == 2);
  CHECK(read->modules[0].scheme == scheme("w4a16_g128_asym"));
  CHECK(read->ignore == std::vector<std::string>{"lm_head"});

  Json named = foreign();
  Json& groups = named["quantization_config"]["config_groups"];
  groups["group_1"] = groups["group_0"];
  groups["group_1"]["targets"] = {"m.1"};
  groups["group_1"]["weights"]["num_bits"] = 8;
  const auto mixed = cbq::parse_quantization(named, std::vector<std::string_view>{"m.0", "m.1"});
  REQUIRE(mixed);
  CHECK(cbq::find_module(*mixed, "m.0")->scheme.weight.bits == 4);
  CHECK(cbq::find_module(*mixed, "m.1")->scheme.weight.bits == 8);
}

TEST_CASE("another program's file is refused where cbq would guess") {
  const auto with = [](const char* pointer, const Json& value) {
    Json config = foreign();
    config["quantization_config"][Json::json_pointer(pointer)] = value;
    return outcome(config, {"m.0"});
  };
  const std::string weights = "/config_groups/group_0/weights/";
  CHECK(with("/ignore", nullptr) == "success");
  CHECK_THAT(with("/quant_method", "gptq"), ContainsSubstring("does not read (got gptq"));
  CHECK_THAT(with("/config_groups/group_0/targets", Json{"re:.*"}), ContainsSubstring("pattern"));
  CHECK(with("/transform_config", nullptr) == "success");
  CHECK(with("/transform_config", {{"config_groups", Json::object()}}) == "success");
  CHECK_THAT(with("/transform_config", {{"config_groups", {{"down", 1}}}}), ContainsSubstring("transforms of another"));
  CHECK_THAT(with("/config_groups/group_0/targets", Json{"other"}), ContainsSubstring("no group for a packed module"));
  CHECK_THAT(with("/config_groups/group_1", foreign()["quantization_config"]["config_groups"]["group_0"]),
             ContainsSubstring("same target in two groups"));
  CHECK(with("/config_groups/group_0/targets", 3) != "success");
  CHECK(with("/config_groups/group_0/targets", Json{3}) != "success");
  CHECK(with("/config_groups/group_0/format", "int-quantized") != "success");
  CHECK(with("/config_groups/group_0", Json::array()) != "success");
  CHECK(with("/config_groups", Json::array()) != "success");
  CHECK(with("/ignore", Json{3}) != "success");
  CHECK(with((weights + "num_bits").c_str(), 3).find("another program") != std::string::npos);
  for (const Json& bad : {Json(0), Json(9), Json(4.0), Json("4"), Json(4294967300ull)}) {
    CHECK(with((weights + "num_bits").c_str(), bad) != "success");
  }
  for (const Json& bad : {Json(0), Json(-1), Json(4294967424ull), Json(nullptr)}) {
    CHECK(with((weights + "group_size").c_str(), bad) != "success");
  }
  CHECK(with((weights + "type").c_str(), "float") != "success");
  CHECK(with((weights + "strategy").c_str(), "block") != "success");
  CHECK(with((weights + "strategy").c_str(), "token") != "success");
  CHECK(with((weights + "actorder").c_str(), "group") != "success");
  CHECK(with((weights + "dynamic").c_str(), true) != "success");
  CHECK(with((weights + "symmetric").c_str(), 1) != "success");
  const Json inputs = {{"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
  CHECK(with("/config_groups/group_0/input_activations", inputs) == "success");
  for (const auto& [key, bad] : std::vector<std::pair<std::string, Json>>{
           {"dynamic", false}, {"dynamic", "local"}, {"strategy", "block"}, {"type", "float"}}) {
    Json changed = inputs;
    changed[key] = bad;
    CHECK(with("/config_groups/group_0/input_activations", changed) != "success");
  }
}

TEST_CASE("a folder of ours is told from others") {
  const support::ScratchFolder folder;
  CHECK_FALSE(*cbq::is_quantized_folder(folder.path()));
  support::write_text(folder / "config.json", cbq::json_text(foreign()));
  CHECK_FALSE(*cbq::is_quantized_folder(folder.path()));
  support::write_text(folder / "config.json", cbq::json_text(written(two_linears("w8a8", "w8a8"))));
  CHECK(*cbq::is_quantized_folder(folder.path()));
}
