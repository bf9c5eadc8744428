// SPDX-License-Identifier: Apache-2.0
#include "model.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "evaluation.hpp"
#include "examples/llama/engine_fixture.hpp"
#include "generation.hpp"

using namespace cbq_llama;
using cbq::Json;
using cbq::MatrixView;
using engine_fixture::unwrap;

namespace {

struct Loaded {
  ModelSource source;
  Model model;
  Tokenizer tokenizer;
};

Loaded load(const std::string& path, const LoadOptions& options = {}) {
  ModelSource source = unwrap(ModelSource::open(path));
  Model model = unwrap(Model::load(source, options));
  Tokenizer tokenizer = unwrap(source.tokenizer());
  return {std::move(source), std::move(model), std::move(tokenizer)};
}

double rms(const MatrixView<const float>& x) {
  double sum = 0;
  for (std::size_t r = 0; r < x.rows; ++r) {
    for (std::size_t c = 0; c < x.columns; ++c) sum += std::pow(static_cast<double>(cbq::row(x, r)[c]), 2);
  }
  return std::sqrt(sum / static_cast<double>(x.rows * x.columns));
}

// A model against the results of another implementation in reference.json: token ids, logits of a probe in double
// precision, magnitudes of the hidden states, greedy text.
void check_reference(const Loaded& loaded, const Json& reference) {
  const Json& probe = reference.at("probe");
  const std::vector<std::int32_t> ids = unwrap(loaded.tokenizer.encode(probe.at("text").get<std::string>()));
  REQUIRE(ids == probe.at("ids").get<std::vector<std::int32_t>>());

  Session session = unwrap(Session::create(loaded.model, ids.size(), {.threads = 2}));
  const std::vector<double> magnitudes = probe.at("hidden_rms_by_layer").get<std::vector<double>>();
  const auto last_layer = loaded.model.config().layers;
  std::vector<double> found(last_layer + 1);
  const MatrixView<const float> hidden =
      unwrap(session.forward(ids, [&](std::size_t layer, const auto& x) { found.at(layer) = rms(x); }));
  found.back() = rms(hidden);  // the reference lists the last block after the final norm
  REQUIRE(magnitudes.size() == found.size());
  for (std::size_t layer = 0; layer < found.size(); ++layer) {
    CAPTURE(layer);
    CHECK_THAT(found[layer], Catch::Matchers::WithinRel(magnitudes[layer], 1e-4));
  }

  std::vector<float> logits(loaded.model.config().vocabulary);
  const auto out = cbq::matrix_view(logits.data(), 1, logits.size());
  REQUIRE(session.logits(cbq::rows(hidden, ids.size() - 1, 1), out));
  const std::vector<double> wanted = probe.at("last_logits_first16").get<std::vector<double>>();
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    CAPTURE(i);
    CHECK_THAT(static_cast<double>(logits[i]), Catch::Matchers::WithinAbs(wanted[i], 1e-3));
  }
  const auto top = std::max_element(logits.begin(), logits.end()) - logits.begin();
  CHECK(top == probe.at("argmax").get<std::ptrdiff_t>());
  if (!reference.contains("greedy")) return;
  const Json& greedy = reference.at("greedy");
  const std::string prompt = greedy.at("prompt").get<std::string>();
  const std::vector<std::int32_t> prompt_ids = unwrap(loaded.tokenizer.encode(prompt));
  const std::vector<std::int32_t> all = greedy.at("ids").get<std::vector<std::int32_t>>();
  GenerationOptions options;
  options.new_tokens = all.size() - prompt_ids.size();
  std::string text = prompt;
  const Generation done = unwrap(
      generate(loaded.model, loaded.tokenizer, prompt_ids, options, [&](std::string_view piece) { text += piece; }));
  std::vector<std::int32_t> continued = prompt_ids;
  continued.insert(continued.end(), done.tokens.begin(), done.tokens.end());
  CHECK(continued == all);
  // The token that ends a text is part of the reference's text, not of ours.
  CHECK(greedy.at("text").get<std::string>().starts_with(text));
}

Json read_json(const std::string& path) {
  return unwrap(cbq::read_json_file(path));
}

std::vector<std::int32_t> evaluation_tokens(const Loaded& loaded, std::size_t count) {
  std::vector<std::int32_t> tokens =
      unwrap(loaded.tokenizer.encode(support::read_text(engine_fixture::evaluation_text())));
  REQUIRE(tokens.size() >= count);
  tokens.resize(count);
  return tokens;
}

std::vector<float> last_logits(const Model& model, std::span<const std::int32_t> tokens, std::size_t threads) {
  Session session = unwrap(Session::create(model, tokens.size(), {.threads = threads}));
  const auto logits = unwrap(session.next_logits(tokens));
  return {logits.begin(), logits.end()};
}

}  // namespace

TEST_CASE("the embedded model computes what another implementation computes") {
  check_reference(load(engine_fixture::pocket_llama()), read_json(engine_fixture::pocket_llama() + "/reference.json"));
}

TEST_CASE("a BLOOM model computes what another implementation computes") {
  const std::string path = CBQ_SOURCE_DIR "/tests/data/bloom";
  const Loaded loaded = load(path);
  check_reference(loaded, read_json(path + "/reference.json"));
  // Keys and values of 8 bits count the same distances.
  const std::vector<std::int32_t> tokens = evaluation_tokens(loaded, 200);
  const std::vector<float> exact = last_logits(loaded.model, tokens, 2);
  Session session = unwrap(Session::create(loaded.model, 200, {}, {.scheme = {.bits = 8}}));
  double difference = 0, total = 0;
  const auto logits = unwrap(session.next_logits(tokens));
  for (std::size_t i = 0; i < logits.size(); ++i) {
    difference += std::pow(static_cast<double>(logits[i] - exact[i]), 2);
    total += std::pow(static_cast<double>(exact[i]), 2);
  }
  CHECK(difference < 1e-3 * total);
}

TEST_CASE("a BLOOM model is calibrated, quantized, and runs packed as it was rounded") {
  const support::ScratchFolder scratch;
  const std::string model = CBQ_SOURCE_DIR "/tests/data/bloom", out = scratch / "bloom-gptq";
  const auto tool = [](std::vector<std::string> arguments) {
    const auto run = engine_fixture::run_tool(std::move(arguments));
    CAPTURE(run.err);
    CHECK(run.code == 0);
    return run.out;
  };
  (void)tool({"quantize", model, "-o", out, "--method", "gptq", "--scheme", "w8a8", "--samples", "4", "--sequence",
              "64", "--calibration", engine_fixture::evaluation_text()});
  const Loaded exact = load(model), packed = load(out), rounded = load(out, {.operators = Operators::fake_quantized});
  const std::vector<std::int32_t> tokens = evaluation_tokens(exact, 512);
  EvaluationOptions options;
  options.context = 256;
  const double nll = unwrap(evaluate(exact.model, nullptr, tokens, options)).nll;
  const double as_packed = unwrap(evaluate(packed.model, nullptr, tokens, options)).nll;
  CHECK_THAT(as_packed, Catch::Matchers::WithinAbs(nll, 0.03));
  CHECK_THAT(unwrap(evaluate(rounded.model, nullptr, tokens, options)).nll,
             Catch::Matchers::WithinAbs(as_packed, 0.003));
  const auto run =
      engine_fixture::run_tool({"quantize", model, "-o", out + "2", "--scheme", "w8a8", "--rotate", "full"});
  CHECK(run.code != 0);
  CHECK(run.err.find("--rotate") != std::string::npos);
}

TEST_CASE("an OPT model computes what another implementation computes") {
  const auto models = engine_fixture::environment("CBQ_TEST_MODELS");
  if (!models) SKIP("CBQ_TEST_MODELS names no folder of models");
  const std::string path = *models + "/pocket-opt";
  check_reference(load(path), read_json(path + "/reference.json"));
}

TEST_CASE("a GGUF model computes what another implementation computes") {
  const auto models = engine_fixture::environment("CBQ_TEST_MODELS");
  const auto file = engine_fixture::environment("CBQ_TEST_SMOLLM2");
  if (!models || !file) SKIP("CBQ_TEST_MODELS and CBQ_TEST_SMOLLM2 name no model");
  check_reference(load(*file), read_json(*models + "/smollm2-135m/reference.json"));
}

TEST_CASE("a sequence is the same token by token, in pieces, and after a reset") {
  const Loaded loaded = load(engine_fixture::pocket_llama());
  const std::vector<std::int32_t> tokens = evaluation_tokens(loaded, 50);
  const std::vector<float> whole = last_logits(loaded.model, tokens, 1);
  Session session = unwrap(Session::create(loaded.model, tokens.size(), {}));
  for (const std::size_t piece : {std::size_t{1}, std::size_t{7}, tokens.size()}) {
    CAPTURE(piece);
    session.reset();
    CHECK(session.size() == 0);
    std::span<const float> logits;
    for (std::size_t i = 0; i < tokens.size(); i += piece) {
      logits = unwrap(session.next_logits(std::span(tokens).subspan(i, std::min(piece, tokens.size() - i))));
    }
    CHECK(session.size() == tokens.size());
    for (std::size_t i = 0; i < whole.size(); ++i) {
      REQUIRE_THAT(static_cast<double>(logits[i]), Catch::Matchers::WithinAbs(static_cast<double>(whole[i]), 2e-3));
    }
  }
  CHECK(session.next_logits(std::span(tokens).first(1)).error().code != cbq::Errc::interrupted);  // full
  CHECK_FALSE(session.forward(std::vector<std::int32_t>{-1}));
  CHECK_FALSE(session.forward(std::vector<std::int32_t>{1024}));
  CHECK_FALSE(Session::create(loaded.model, 0, {}));
  CHECK_FALSE(Session::create(loaded.model, 1025, {}));
}

TEST_CASE("evaluation gives the same digits for any number of threads") {
  const Loaded loaded = load(engine_fixture::pocket_llama());
  const std::size_t windows = GENERATE(1u, 5u);
  const std::vector<std::int32_t> tokens = evaluation_tokens(loaded, windows * 100 + 30);
  EvaluationOptions options;
  options.context = 100;
  options.machine.threads = 1;
  const Evaluation one = unwrap(evaluate(loaded.model, &loaded.model, tokens, options));
  CHECK(one.windows == windows);
  CHECK(one.tokens == windows * 99);
  CHECK(one.nll_stderr.has_value() == (windows > 1));
  CHECK(one.divergence->kl_mean == 0.0);
  CHECK(one.divergence->top1_agreement == 1.0);
  CHECK(one.divergence->probability_error_rms == 0.0);
  for (const std::size_t threads : {2u, 3u}) {
    options.machine.threads = threads;
    const Evaluation many = unwrap(evaluate(loaded.model, nullptr, tokens, options));
    CHECK(many.nll == one.nll);
    CHECK(many.nll_stderr == one.nll_stderr);
  }
}

TEST_CASE("perplexity is that of the windows' tokens") {
  const Loaded loaded = load(engine_fixture::pocket_llama());
  const std::vector<std::int32_t> tokens = evaluation_tokens(loaded, 130);
  EvaluationOptions options;
  options.context = 64;
  const Evaluation evaluation = unwrap(evaluate(loaded.model, nullptr, tokens, options));
  double nll = 0;
  for (const std::size_t start : {0u, 64u}) {
    for (std::size_t i = 1; i < 64; ++i) {
      const std::vector<float> logits = last_logits(loaded.model, std::span(tokens).subspan(start, i), 1);
      double sum = 0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
      nll += std::log(sum) - static_cast<double>(logits[static_cast<std::size_t>(tokens[start + i])]);
    }
  }
  CHECK_THAT(evaluation.nll, Catch::Matchers::WithinRel(nll / 126, 1e-5));
  CHECK_THAT(evaluation.perplexity, Catch::Matchers::WithinRel(std::exp(nll / 126), 1e-5));
  options.context = 131;
  CHECK(evaluate(loaded.model, nullptr, tokens, options).error().code == cbq::Errc::bad_argument);
  options.context = 1025;
  CHECK(evaluate(loaded.model, nullptr, tokens, options).error().code == cbq::Errc::bad_argument);
}

TEST_CASE("what is quantized in memory, what is read back, and what fake quantization says agree") {
  const char* name = GENERATE("w4a8_g128", "w4a16_g128", "w3a16_g128_asym", "w8a8");
  CAPTURE(name);
  const support::ScratchFolder scratch;
  const ModelSource source = unwrap(ModelSource::open(engine_fixture::pocket_llama()));
  QuantizationOptions options;
  options.rules = {{"*", unwrap(cbq::parse_scheme(name))}};
  const QuantizationReport report = unwrap(quantize(source, scratch / "q", options));
  CHECK(report.modules.size() == 5 * 7 + 1);

  QuantizationOnLoad on_load;
  for (const ModuleReport& entry : report.modules) {
    REQUIRE(entry.scheme.has_value());
    CHECK(entry.relative_error > 0);
    CHECK(entry.relative_error < 0.35);
    on_load.record.modules.push_back({entry.module.name, *entry.scheme, cbq::ModuleKind::linear});
  }
  on_load.quantize = [&](const MatrixModule& module, const cbq::Grid& grid) {
    return quantize_module(source, module, grid, options);
  };
  LoadOptions in_memory;
  in_memory.on_load = &on_load;
  const Model direct = unwrap(Model::load(source, in_memory));
  const Loaded packed = load(scratch / "q");
  LoadOptions simulated;
  simulated.operators = Operators::fake_quantized;
  const Loaded fake = load(scratch / "q", simulated);
  CHECK(packed.model.scheme() == name);
  CHECK(packed.model.method() == "rtn");
  CHECK(packed.model.weight_bytes() < fake.model.weight_bytes() / 3);

  const std::vector<std::int32_t> tokens = evaluation_tokens(packed, 16 * 128);
  CHECK(last_logits(packed.model, std::span(tokens).first(33), 1) ==
        last_logits(direct, std::span(tokens).first(33), 2));
  EvaluationOptions evaluation;
  evaluation.context = 128;
  evaluation.machine.threads = 2;
  const Evaluation runs = unwrap(evaluate(packed.model, &fake.model, tokens, evaluation));
  const Evaluation wanted = unwrap(evaluate(fake.model, nullptr, tokens, evaluation));
  CHECK_THAT(runs.perplexity, Catch::Matchers::WithinRel(wanted.perplexity, 3e-3));
  CHECK(runs.divergence->kl_mean < 2e-3);
}

TEST_CASE("bits per weight count scales, zero points, embedding and head") {
  const support::ScratchFolder scratch;
  const ModelSource source = unwrap(ModelSource::open(engine_fixture::pocket_llama()));
  CHECK(unwrap(bits_per_weight(source)) == 16.0);
  QuantizationOptions options;
  options.head_bits = GENERATE(16, 8, 4);
  options.rules = {{"*.mlp.down_proj", unwrap(cbq::parse_scheme("w8a8"))},
                   {"*.mlp.*", unwrap(cbq::parse_scheme("w2a16_g64_asym"))},
                   {"*.self_attn.o_proj", cbq::Scheme{}},
                   {"*", unwrap(cbq::parse_scheme("w4a16_g128"))}};
  const QuantizationReport report = unwrap(quantize(source, scratch / "q", options));
  const auto kilo = [](double outputs, double inputs) { return outputs * inputs; };
  const double down = kilo(256, 512);
  const double gate_and_up = 2 * kilo(512, 256);
  const double query_key_value = kilo(256 + 128 + 128, 256);
  const double output = kilo(256, 256);
  const double head = kilo(1024, 256);
  // 2 bits: a scale of 16 bits and a zero point of 2 bits per 64 weights.
  const double block_bits =
      8 * down + 16 * 256 + (2 + 18.0 / 64) * gate_and_up + (4 + 16.0 / 128) * query_key_value + 16 * output;
  const double head_bits = options.head_bits == 16  ? 16 * head
                           : options.head_bits == 8 ? 8 * head + 16 * 1024
                                                    : 4.5 * head;
  const double weights = 5 * (down + gate_and_up + query_key_value + output) + head;
  CHECK_THAT(report.bits_per_weight, Catch::Matchers::WithinRel((5 * block_bits + head_bits) / weights, 1e-9));
  const Loaded mixed = load(scratch / "q");
  CHECK(mixed.model.scheme() == "mixed");
  CHECK(last_logits(mixed.model, std::vector<std::int32_t>{1, 2, 3}, 1).size() == 1024);
}

TEST_CASE("texts drawn from the model are the same for any number of threads") {
  const Loaded loaded = load(engine_fixture::pocket_llama());
  SamplingOptions options;
  options.tokens = 150;
  options.context = 40;
  options.seed = 7;
  const std::string one = unwrap(sample_text(loaded.model, loaded.tokenizer, options));
  options.machine.threads = 3;
  CHECK(unwrap(sample_text(loaded.model, loaded.tokenizer, options)) == one);
  options.seed = 8;
  CHECK(unwrap(sample_text(loaded.model, loaded.tokenizer, options)) != one);
  CHECK(one.size() > 150);
}
