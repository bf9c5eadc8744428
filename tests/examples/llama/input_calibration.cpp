// SPDX-License-Identifier: Apache-2.0
#include "input_calibration.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <cbq/io/stored_input_grid.hpp>

#include "examples/llama/engine_fixture.hpp"
#include "preprocessing.hpp"

using namespace cbq_llama;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::WithinAbs;
using engine_fixture::evaluation_text;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::unwrap;

namespace {

QuantizationOptions options_of(const char* scheme, int largest_exponent) {
  QuantizationOptions options;
  options.rules = {{"*", unwrap(cbq::parse_scheme(scheme))}};
  options.rotation = Rotation::none;
  options.activations = {.fixed = true, .largest_exponent = largest_exponent};
  options.calibration.texts = {pocket_llama() + "-calibration.txt"};
  options.calibration.samples = 4;
  options.calibration.sequence = 64;
  return options;
}

struct Calibrated {
  explicit Calibrated(const ModelSource& source, const QuantizationOptions& options)
      : plan(unwrap(plan_quantization(source.config(), options))),
        ids(unwrap(calibration_tokens(source, options.calibration))),
        weights(source) {
    tokens = {ids, options.calibration.sequence};
    before = unwrap(input_sizes(tokens, options, weights));
    REQUIRE(calibrate_inputs(plan, tokens, options, weights));
    after = unwrap(input_sizes(tokens, options, weights));
  }
  [[nodiscard]] const ModuleReport& entry(const std::string& module) const {
    for (const ModuleReport& one : plan) {
      if (one.module.name == module) return one;
    }
    FAIL(module);
    return plan.front();
  }

  std::vector<ModuleReport> plan;
  std::vector<std::int32_t> ids;
  CalibrationTokens tokens;
  ChangedWeights weights;
  std::vector<ChannelSizes> before, after;  // largest magnitudes of channels
};

// Multiplies the scale that a written file has for the input of `module`.
void multiply_stored_scale(const std::string& file, const std::string& module, float factor) {
  std::string bytes = support::read_text(file);
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const cbq::Json json = unwrap(cbq::parse_json(bytes.substr(sizeof header, header)));
  const std::size_t first = json[module + ".input_scale"]["data_offsets"][0];
  char* const at = bytes.data() + sizeof header + header + first;
  float scale = 0;
  std::memcpy(&scale, at, sizeof scale);
  scale *= factor;
  std::memcpy(at, &scale, sizeof scale);
  support::write_text(file, bytes);
}

double perplexity(const std::string& model, const char* operators) {
  const auto run = run_tool({"perplexity", model, "--text", evaluation_text(), "--context", "64", "--windows", "2",
                             "--operators", operators, "--json", "-"});
  INFO(run.err);
  REQUIRE(run.code == 0);
  return unwrap(cbq::parse_json(run.out))["perplexity"];
}

}  // namespace

TEST_CASE("a static grid spans what a layer reads, and layers with one input share it") {
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  QuantizationOptions options = options_of("w4a4_act_tensor", 0);
  options.activations.percentile = 100;
  const Calibrated made(source, options);
  for (const ChannelSizes& input : made.before) {
    CAPTURE(input.module);
    float largest = 0;
    for (const float size : input.magnitudes) largest = std::max(largest, size);
    const ModuleReport& entry = made.entry(input.module);
    REQUIRE(entry.inputs);
    CHECK(entry.inputs->grid == cbq::StaticGrid{largest / 7.0f, 0});
    CHECK(entry.inputs->channels.empty());
    CHECK(entry.inputs->error == entry.inputs->plain_error);
  }
  for (std::size_t layer = 0; layer < source.config().layers; ++layer) {
    const auto modules = block_modules(source.config(), layer);
    for (std::size_t i = 0; i < modules.size(); ++i) {
      const ModuleReport& first = made.entry(modules[first_reader(i, source.config().architecture)].name);
      CHECK(made.entry(modules[i].name).inputs->grid == first.inputs->grid);
    }
  }
}

TEST_CASE("calibration that drops tokens sees what later layers are left") {
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  QuantizationOptions options = options_of("w4a4_act_tensor", 3);
  const auto scales_of = [&](std::size_t length, double sparsity) {
    options.calibration.sequence = length;
    options.prune.sparsity = sparsity;
    const Calibrated made(source, options);
    std::vector<double> scales;
    for (const ModuleReport& entry : made.plan) {
      if (entry.inputs) scales.push_back(entry.inputs->grid.scale);
    }
    return scales;
  };
  // Short sequences keep all their tokens, so both ways see the same.
  const std::vector<double> all = scales_of(32, 0), kept = scales_of(32, 0.25);
  REQUIRE(all.size() == all_block_modules(source.config()).size());
  REQUIRE(kept.size() == all.size());
  for (std::size_t i = 0; i < all.size(); ++i) CHECK_THAT(kept[i], Catch::Matchers::WithinRel(all[i], 1e-4));
  const std::vector<double> whole = scales_of(128, 0), pruned = scales_of(128, 0.25);
  REQUIRE(pruned.size() == whole.size());
  for (std::size_t i = 0; i < 4; ++i) CHECK_THAT(pruned[i], Catch::Matchers::WithinRel(whole[i], 1e-4));
  std::size_t changed = 0;  // layers whose largest value is of a token that all layers keep stay as they were
  for (std::size_t i = 4; i < whole.size(); ++i) changed += std::abs(pruned[i] - whole[i]) > 1e-3 * whole[i] ? 1u : 0u;
  CHECK(changed > 0);
}

TEST_CASE("an input whose first reader stays in floating point is calibrated for the others") {
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  QuantizationOptions options = options_of("w4a4_act_tensor", 3);
  const Calibrated all(source, options);
  for (const char* pattern : {"*.q_proj", "*.gate_proj"}) options.rules.insert(options.rules.begin(), {pattern, {}});
  const Calibrated made(source, options);
  for (const char* module : {"self_attn.q_proj", "mlp.gate_proj"}) {
    CHECK_FALSE(made.entry(std::string("model.layers.0.") + module).inputs);
  }
  for (const char* module : {"self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"}) {
    const std::string name = std::string("model.layers.0.") + module;
    CAPTURE(name);
    REQUIRE(made.entry(name).inputs);
    CHECK(made.entry(name).inputs->grid == all.entry(name).inputs->grid);
  }
  options.rules.insert(options.rules.begin(), {"*.k_proj", unwrap(cbq::parse_scheme("w4a4"))});
  CHECK(plan_quantization(source.config(), options).error().code == cbq::Errc::unsupported);
}

TEST_CASE("a percentile that leaves nothing but zero is refused where it was asked for") {
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  QuantizationOptions options = options_of("w4a4_act_tensor", 0);
  auto plan = unwrap(plan_quantization(source.config(), options));
  const auto ids = unwrap(calibration_tokens(source, options.calibration));
  const CalibrationTokens tokens = {ids, options.calibration.sequence};
  const MatrixModule up = block_modules(source.config(), 0)[5];
  REQUIRE(up.name == "model.layers.0.mlp.up_proj");
  const auto calibrate = [&](double percentile) {
    ChangedWeights weights(source);
    FloatMatrix values = unwrap(weights.read_matrix(up.name + ".weight", up.outputs, up.inputs));
    for (std::size_t r = 1; r < up.outputs; ++r) std::fill_n(cbq::row(values.view, r), up.inputs, 0.0f);
    weights.replace(up.name + ".weight", std::move(values));  // one channel of down_proj's input is left
    options.activations.percentile = percentile;
    return calibrate_inputs(plan, tokens, options, weights);
  };
  CHECK(calibrate(100));
  const cbq::Status refused = calibrate(99);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == cbq::Errc::bad_argument);
  CHECK_THAT(support::message(refused.error()),
             ContainsSubstring("model.layers.0.mlp.down_proj") && ContainsSubstring("--percentile"));
}

TEST_CASE("a default percentile that would leave nothing but zero gives way to the extremes") {
  std::vector<float> values(4000, 0.0f);
  auto range = unwrap(cbq::ActivationRange::create(100, input_sample_rows));
  const cbq::Grid grid = {.bits = 4, .granularity = cbq::Granularity::per_tensor};
  values[7] = -3;
  REQUIRE(range.add(cbq::matrix_view(std::as_const(values).data(), 40, 100)));
  const cbq::Interval all = unwrap(static_interval(range, grid, {}));
  CHECK((all.low == -3 && all.high == 3));
  CHECK(static_interval(range, grid, 99.9).error().code == cbq::Errc::bad_argument);
  std::fill_n(values.begin(), 40, 1.0f);
  REQUIRE(range.add(cbq::matrix_view(std::as_const(values).data(), 40, 100)));
  const cbq::Interval most = unwrap(static_interval(range, grid, {}));
  CHECK((most.low == -1 && most.high == 1));
}

TEST_CASE("ranges of 4 bits leave a thousandth of the values out unless something else is asked for") {
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  for (const char* scheme : {"w4a4_act_tensor", "w8a8_act_tensor"}) {
    CAPTURE(scheme);
    QuantizationOptions options = options_of(scheme, 0);
    const Calibrated made(source, options);
    options.activations.percentile = 100;
    const Calibrated extremes(source, options);
    options.activations.percentile = 99.9;
    const Calibrated clipped(source, options);
    const std::string module = "model.layers.3.mlp.down_proj";  // which massive activations enter
    const bool four_bits = scheme[1] == '4';
    CHECK((clipped.entry(module).inputs->grid.scale < 0.5f * extremes.entry(module).inputs->grid.scale));
    CHECK(made.entry(module).inputs->grid == (four_bits ? clipped : extremes).entry(module).inputs->grid);
  }
}

TEST_CASE("channel factors are folded into what makes an input, and make the grid finer") {
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  constexpr int exponent = 3;
  const Calibrated made(source, options_of("w4a4_act_tensor", exponent));
  const Calibrated plain(source, options_of("w4a4_act_tensor", 0));
  REQUIRE(made.before.size() == made.after.size());
  std::size_t finer = 0;
  for (std::size_t i = 0; i < made.before.size(); ++i) {
    const std::string& module = made.before[i].module;
    CAPTURE(module);
    const StaticInput& input = *made.entry(module).inputs;
    CHECK(input.grid.scale == plain.entry(module).inputs->grid.scale / (1 << exponent));
    CHECK(input.error <= input.plain_error);
    finer += input.error < 0.5 * input.plain_error ? 1 : 0;
    std::vector<std::size_t> channels(exponent + 1, 0);
    for (std::size_t c = 0; c < made.before[i].magnitudes.size(); ++c) {
      const double before = made.before[i].magnitudes[c], after = made.after[i].magnitudes[c];
      if (before == 0) continue;
      const double found = std::log2(before / after);
      const double nearest = std::round(found);
      CHECK_THAT(found, WithinAbs(nearest, 1e-3));
      REQUIRE((nearest >= 0 && nearest <= exponent));
      ++channels[static_cast<std::size_t>(nearest)];
    }
    CHECK(channels == input.channels);
  }
  CHECK(finer > 0);
}

TEST_CASE("a folder of static activations runs packed as it was quantized") {
  const support::ScratchFolder scratch;
  const std::string scheme = GENERATE("w4a4_trip_asym", "w8a8");
  CAPTURE(scheme);
  const auto quantized = run_tool({"quantize",
                                   pocket_llama(),
                                   "-o",
                                   scratch / "model",
                                   "--method",
                                   "agile",
                                   "--scheme",
                                   scheme,
                                   "--activations",
                                   "static",
                                   "--weights",
                                   "rtn",
                                   "--calibration",
                                   pocket_llama() + "-calibration.txt",
                                   "--samples",
                                   "8",
                                   "--sequence",
                                   "64",
                                   "--percentile",
                                   "99.99",
                                   "--explain"});
  INFO(quantized.err);
  REQUIRE(quantized.code == 0);
  CHECK_THAT(quantized.out, ContainsSubstring("static input of"));
  const cbq::Json config = unwrap(cbq::read_json_file(scratch / "model/config.json"));
  CHECK(config["cbq"]["method"] == "agile");
  const ModelSource written = unwrap(ModelSource::open(scratch / "model"));
  const cbq::Grid grid = {.bits = scheme == "w8a8" ? 8 : 4,
                          .granularity = cbq::Granularity::per_tensor,
                          .zero = scheme == "w4a4_trip_asym" ? cbq::Zero::affine : cbq::Zero::symmetric};
  CHECK(unwrap(cbq::read_input_grid(*written.checkpoint(), "model.layers.0.mlp.up_proj", grid)).scale > 0);
  const double packed = perplexity(scratch / "model", "packed");
  // A code that a last bit moves to its neighbour moves others behind it: with 4 bits, losses of single tokens differ.
  const double tolerance = scheme == "w8a8" ? 0.02 : 0.3;
  CHECK_THAT(perplexity(scratch / "model", "fake_quantized"), WithinAbs(packed, tolerance * packed));
  if (scheme == "w8a8") CHECK(packed < 2 * perplexity(pocket_llama(), "packed"));
  multiply_stored_scale(scratch / "model/model.safetensors", "model.layers.0.mlp.down_proj", 4);
  CHECK(perplexity(scratch / "model", "packed") != packed);
}

TEST_CASE("a learned clip of a static grid is stored as a finer step") {
  const support::ScratchFolder scratch;
  QuantizationOptions options = options_of("w4a4_act_tensor", 0);
  options.calibration.sequence = 32;
  const ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  const Calibrated calibrated(source, options);
  const auto run = run_tool({"quantize",
                             pocket_llama(),
                             "-o",
                             scratch / "model",
                             "--method",
                             "agile",
                             "--scheme",
                             "w4a4",
                             "--weights",
                             "cbq",
                             "--calibration",
                             options.calibration.texts[0],
                             "--steps",
                             "2",
                             "--samples",
                             "4",
                             "--sequence",
                             "32",
                             "--batch",
                             "2",
                             "--clip-rate",
                             "0.05",
                             "--window",
                             "1",
                             "--overlap",
                             "0",
                             "--logits-weight",
                             "0"});
  INFO(run.err);
  REQUIRE(run.code == 0);
  const cbq::Json config = unwrap(cbq::read_json_file(scratch / "model/config.json"));
  CHECK_FALSE(config["cbq"].contains("activation_clips"));
  const ModelSource written = unwrap(ModelSource::open(scratch / "model"));
  std::size_t finer = 0;
  for (const MatrixModule& module : all_block_modules(source.config())) {
    CAPTURE(module.name);
    const ModuleReport& entry = calibrated.entry(module.name);
    const cbq::StaticGrid stored =
        unwrap(cbq::read_input_grid(*written.checkpoint(), module.name, entry.scheme->activation));
    CHECK(stored.scale <= entry.inputs->grid.scale);
    if (stored.scale < entry.inputs->grid.scale) ++finer;
  }
  CHECK(finer > 0);
}

TEST_CASE("what makes no static activations is refused") {
  const support::ScratchFolder scratch;
  const auto run = [&](std::vector<std::string> more) {
    std::vector<std::string> all = {"quantize",
                                    pocket_llama(),
                                    "-o",
                                    scratch / "model",
                                    "--calibration",
                                    pocket_llama() + "-calibration.txt",
                                    "--samples",
                                    "2",
                                    "--sequence",
                                    "32"};
    all.insert(all.end(), more.begin(), more.end());
    return run_tool(all);
  };
  for (const char* percentile : {"0", "-1", "100.5", "nan", "x"}) {
    CHECK(run({"--method", "agile", "--scheme", "w4a4", "--percentile", percentile}).code == 2);
  }
  CHECK(run({"--method", "agile", "--scheme", "w4a4_trip", "--trip-exponent", "21"}).code == 2);
  CHECK(run({"--method", "gptq", "--scheme", "w4a4", "--percentile", "99"}).code == 2);
  CHECK_THAT(run({"--method", "gptq", "--scheme", "w4a4_trip"}).err, ContainsSubstring("--method agile"));
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a4_trip", "--activations", "dynamic"}).err,
             ContainsSubstring("static"));
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a16_trip"}).err, ContainsSubstring("4 or 8 bits"));
  for (const char* scheme : {"w4a4_trip_trip", "w4_tripa4", "w4a4_trip_g32", "_trip"}) {
    CAPTURE(scheme);
    CHECK(run({"--method", "agile", "--scheme", scheme}).code == 2);
  }
  CHECK(run({"--method", "agile", "--scheme", "w4a4", "--trip-exponent", "3"}).code == 2);
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a8", "--percentile", "99"}).err, ContainsSubstring("dynamic"));
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a16"}).err, ContainsSubstring("floating point"));
  CHECK(run({"--method", "gptq", "--scheme", "w4a4", "--prune", "0.25"}).code == 2);
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a8", "--prune", "0.25"}).err,
             ContainsSubstring("all are dynamic"));
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a4", "--prune", "0.25", "--rotate", "full"}).err,
             ContainsSubstring("no --rotate"));
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a4", "--prune", "1"}).err, ContainsSubstring("--prune"));
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a8_g32_act_group", "--activations", "static"}).err,
             ContainsSubstring("per group"));
  CHECK_THAT(run({"--method", "agile", "--scheme", "w4a8", "--weights", "rtn"}).err,
             ContainsSubstring("needs no calibration text"));
}
