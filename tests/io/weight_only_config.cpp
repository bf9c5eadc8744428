// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/weight_only_config.hpp>

#include <catch2/catch_test_macros.hpp>

#include <string>
#include <vector>

#include "support/files.hpp"
#include "support/stored_matrices.hpp"

using cbq::GptqZeros;
using cbq::Json;
using cbq::Zero;
using support::grid_of;
using support::message;

TEST_CASE("a GPTQ folder says the common grid, and what single modules have of their own") {
  const std::vector<cbq::QuantizedMatrixPlan> matrices = {
      {"model.layers.0.a", 8, 64, grid_of(4, 64, Zero::symmetric), cbq::Dtype::f16},
      {"model.layers.0.b_proj", 8, 64, grid_of(8, 0, Zero::affine), cbq::Dtype::f16},
      {"model.layers.1.a", 8, 64, grid_of(4, 64, Zero::symmetric), cbq::Dtype::f16}};
  const std::vector<std::string> floats = {"model.layers.1.b", "lm_head"};
  const Json config = cbq::gptq_config(matrices, floats, GptqZeros::v1);
  CHECK(config["quant_method"] == "gptq");
  CHECK(config["bits"] == 4);
  CHECK(config["group_size"] == 64);
  CHECK(config["sym"] == true);
  CHECK(config["desc_act"] == false);
  CHECK(config["checkpoint_format"] == "gptq");
  CHECK(config["dynamic"] ==
        Json{{"+:^model\\.layers\\.0\\.b_proj$", {{"bits", 8}, {"group_size", -1}, {"sym", false}}},
             {"-:^model\\.layers\\.1\\.b$", Json::object()}});
  const auto read = cbq::parse_gptq_config(config);
  REQUIRE(read);
  CHECK(read->group == 64);
  CHECK(read->zeros == GptqZeros::v1);
  const std::vector<cbq::QuantizedMatrixPlan> one = {matrices[1]};
  const Json plain = cbq::gptq_config(one, std::vector<std::string>{"lm_head"}, GptqZeros::v2);
  CHECK_FALSE(plain.contains("dynamic"));
  CHECK(cbq::parse_gptq_config(plain)->group == 0);
  CHECK(cbq::parse_gptq_config(plain)->zeros == GptqZeros::v2);
}

TEST_CASE("an AWQ folder says its group and what stayed in floating point") {
  const Json plain = cbq::awq_config(32, std::vector<std::string>{"lm_head"});
  CHECK(plain["modules_to_not_convert"].is_null());
  CHECK(plain["version"] == "gemm");
  CHECK(plain["zero_point"] == true);
  CHECK(cbq::parse_awq_config(plain)->group == 32);
  const Json others = cbq::awq_config(64, std::vector<std::string>{"model.layers.0.a", "lm_head"});
  CHECK(others["modules_to_not_convert"] == Json{"model.layers.0.a", "lm_head"});
}

TEST_CASE("descriptions of other layouts are refused, and of none too") {
  const auto outcome = [](bool gptq, const char* key, const Json& value) {
    Json config = {{"bits", 4}, {"group_size", 128}};
    config[key] = value;
    return gptq ? message(cbq::parse_gptq_config(config)) : message(cbq::parse_awq_config(config));
  };
  CHECK(outcome(true, "bits", 4) == "success");
  CHECK(outcome(true, "checkpoint_format", nullptr) == "success");
  CHECK(outcome(true, "checkpoint_format", "gptq_p") != "success");
  CHECK(outcome(true, "checkpoint_format", 2) != "success");
  CHECK(outcome(true, "pack_dtype", "int64") != "success");
  for (const Json& group : {Json(0), Json(-2), Json("128"), Json(1.5), Json(nullptr), Json(1 << 25)}) {
    CHECK(outcome(true, "group_size", group) != "success");
    CHECK(outcome(false, "group_size", group) != "success");
  }
  CHECK(outcome(false, "bits", 4) == "success");
  CHECK(outcome(false, "bits", 8) != "success");
  CHECK(outcome(false, "bits", "4") != "success");
  CHECK(outcome(false, "version", "gemv") != "success");
  CHECK(outcome(false, "version", "GEMM") == "success");
}
