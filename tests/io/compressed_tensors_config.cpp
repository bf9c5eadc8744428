// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/compressed_tensors_config.hpp>

#include <catch2/catch_test_macros.hpp>

#include <string_view>
#include <vector>

#include "support/files.hpp"

using cbq::Json;
using support::message;

namespace {

cbq::QuantizationRecord record_of(std::vector<const char*> schemes) {
  cbq::QuantizationRecord record;
  for (std::size_t i = 0; i < schemes.size(); ++i) {
    record.modules.push_back({"m" + std::to_string(i), *cbq::parse_scheme(schemes[i])});
  }
  return record;
}

}  // namespace

TEST_CASE("each group has the format that its activations ask for") {
  const Json weights = cbq::compressed_tensors_config(record_of({"w4a16_g128", "w4a16_g128"}));
  CHECK(weights["format"] == "pack-quantized");
  CHECK(weights["config_groups"]["group_0"]["targets"] == Json{"Linear"});
  CHECK(weights["kv_cache_scheme"].is_null());
  const Json integers = cbq::compressed_tensors_config(record_of({"w4a8_g128"}));
  CHECK(integers["format"] == "int-quantized");
  CHECK(integers["config_groups"]["group_0"]["format"] == "int-quantized");
  const Json mixed = cbq::compressed_tensors_config(record_of({"w4a16_g128", "w8a8", "w3a16_g128_asym"}));
  CHECK(mixed["format"] == "mixed-precision");
  CHECK(mixed["config_groups"].size() == 3);
  CHECK(mixed["config_groups"]["group_0"]["format"] == "pack-quantized");
  CHECK(mixed["config_groups"]["group_1"]["format"] == "int-quantized");
  CHECK(mixed["config_groups"]["group_1"]["targets"] == Json{"m1"});
}

TEST_CASE("schemes come back, of both formats and of 3 bits") {
  cbq::QuantizationRecord record = record_of({"w4a16_g128", "w8a8", "w3a16_g128_asym", "w4a8_act_tensor"});
  record.modules[3].ranges = cbq::ActivationRanges::fixed;
  const Json config = cbq::compressed_tensors_config(record);
  const std::vector<std::string_view> packed = {"m0", "m2"}, integers = {"m1", "m3"};
  const auto read = cbq::parse_compressed_tensors(config, packed, integers);
  REQUIRE(message(read) == "success");
  REQUIRE(read->modules.size() == 4);
  for (const cbq::ModuleScheme& module : record.modules) {
    const cbq::ModuleScheme* found = cbq::find_module(*read, module.module);
    REQUIRE(found != nullptr);
    CHECK(found->scheme == module.scheme);
    CHECK(found->ranges == module.ranges);
  }
  CHECK_FALSE(cbq::parse_compressed_tensors(config, packed, std::vector<std::string_view>{"m9"}));
  Json other = config;
  other["config_groups"]["group_0"]["format"] = "marlin-24";
  CHECK(message(cbq::parse_compressed_tensors(other, packed, integers)).find("marlin-24") != std::string::npos);
  other = config;
  other["transform_config"] = {{"config_groups", {{"u", Json::object()}}}};
  CHECK_FALSE(cbq::parse_compressed_tensors(other, packed, integers));
  CHECK_FALSE(cbq::parse_compressed_tensors(Json::object(), packed, integers));
}
