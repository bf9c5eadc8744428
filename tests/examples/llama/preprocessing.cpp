// SPDX-License-Identifier: Apache-2.0
#include "preprocessing.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "examples/llama/engine_fixture.hpp"

using namespace cbq_llama;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::unwrap;

namespace {

QuantizationOptions options_of(Preprocessing preprocessing) {
  QuantizationOptions options;
  options.rules = {{"*", unwrap(cbq::parse_scheme("w2a16_g64_asym"))}};
  options.preprocessing = preprocessing;
  options.calibration.texts = {pocket_llama() + "-calibration.txt"};
  options.calibration.samples = 4;
  options.calibration.sequence = 64;
  return options;
}

// Largest magnitude over the median, per layer's input.
std::vector<double> peaks(const std::vector<ChannelSizes>& sizes) {
  std::vector<double> found;
  for (const ChannelSizes& entry : sizes) {
    std::vector<float> sorted = entry.magnitudes;
    std::sort(sorted.begin(), sorted.end());
    found.push_back(static_cast<double>(sorted.back()) / static_cast<double>(sorted[sorted.size() / 2]));
  }
  return found;
}

}  // namespace

TEST_CASE("the halves of CFP scale inputs, or truncate weights, and nothing else") {
  const Preprocessing half = GENERATE(Preprocessing::cfp_scaling, Preprocessing::cfp_truncation);
  const bool scales = half == Preprocessing::cfp_scaling;
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  const ModelConfig& config = source.config();
  const QuantizationOptions options = options_of(half);
  const auto plan = unwrap(plan_quantization(config, options));
  const auto ids = unwrap(calibration_tokens(source, options.calibration));
  const CalibrationTokens tokens = {ids, options.calibration.sequence};
  ChangedWeights weights(source);
  const std::vector<double> before = peaks(unwrap(input_sizes(tokens, options, weights)));
  REQUIRE(preprocess(plan, tokens, options, weights));
  const std::vector<double> after = peaks(unwrap(input_sizes(tokens, options, weights)));

  bool norms_changed = false;
  for (const FloatTensor& tensor : norm_tensors(config)) {
    const FloatMatrix was = unwrap(source.read_matrix(tensor.name, tensor.rows, tensor.columns));
    const FloatMatrix is = unwrap(weights.read_matrix(tensor.name, tensor.rows, tensor.columns));
    norms_changed = norms_changed || !std::equal(was.memory.begin(), was.memory.end(), is.memory.begin());
  }
  CHECK(norms_changed == scales);
  std::size_t smaller = 0;
  bool others = false;
  for (const MatrixModule& module : all_block_modules(config)) {
    const FloatMatrix was = unwrap(source.read_matrix(module.name + ".weight", module.outputs, module.inputs));
    const FloatMatrix is = unwrap(weights.read_matrix(module.name + ".weight", module.outputs, module.inputs));
    for (std::size_t i = 0; i < was.memory.size(); ++i) {
      const float a = was.memory[i], b = is.memory[i];
      if (a == b) continue;
      if (std::abs(b) < std::abs(a) && a * b > 0) ++smaller;
      others = others || std::abs(b) > std::abs(a) || a * b <= 0;
    }
  }
  CHECK(smaller > 0);
  CHECK(others == scales);
  REQUIRE(before.size() == 4 * config.layers);
  REQUIRE(after.size() == before.size());
  if (scales) {
    CHECK(*std::max_element(after.begin(), after.end()) < 0.7 * *std::max_element(before.begin(), before.end()));
  }
}

TEST_CASE("quantize takes the halves of CFP by name and notes them") {
  const support::ScratchFolder scratch;
  REQUIRE(run_tool({"quantize", pocket_llama(), "-o", scratch / "model", "--scheme", "w4a8_g32", "--preprocess",
                    "cfp_truncation", "--calibration", pocket_llama() + "-calibration.txt", "--samples", "2",
                    "--sequence", "32"})
              .code == 0);
  const cbq::Json config = unwrap(cbq::read_json_file(scratch / "model/config.json"));
  CHECK(config.dump().find("cfp_truncation") != std::string::npos);
  CHECK(run_tool({"quantize", pocket_llama(), "-o", scratch / "q", "--scheme", "w4a8_g32", "--preprocess", "half"})
            .code == 2);
}
