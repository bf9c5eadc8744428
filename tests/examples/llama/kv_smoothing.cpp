// SPDX-License-Identifier: Apache-2.0
#include "kv_smoothing.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "evaluation.hpp"
#include "examples/llama/engine_fixture.hpp"

using namespace cbq_llama;
using cbq::Errc;
using engine_fixture::pocket_llama;
using engine_fixture::unwrap;

namespace {

constexpr cbq::KvScheme scheme = {.bits = 4, .smoothed = true, .past_only = true};

struct Loaded {
  ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  Model model = unwrap(Model::load(source));
  std::vector<std::int32_t> tokens;

  explicit Loaded(std::size_t count) {
    tokens = unwrap(unwrap(source.tokenizer()).encode(support::read_text(engine_fixture::evaluation_text())));
    tokens.resize(count);
  }
};

bool same(const cbq::AlignedBuffer<float>& a, const cbq::AlignedBuffer<float>& b) {
  return std::vector<float>(a.begin(), a.end()) == std::vector<float>(b.begin(), b.end());
}

double kl_mean(const Loaded& loaded, const std::string& name) {
  const cbq::KvScheme of = unwrap(cbq::parse_kv_scheme(name));
  std::vector<cbq::KvSmoothing> smoothing;
  std::vector<cbq::RowTransform> transforms;
  if (of.smoothed) smoothing = unwrap(find_smoothing(loaded.model, {loaded.tokens, 128}, of, {.threads = 1}));
  for (const cbq::KvSmoothing& layer : smoothing) transforms.push_back(layer.transform(of));
  EvaluationOptions options;
  options.context = 128;
  options.machine = {.threads = 1};
  options.kv = {
      .scheme = of, .operators = Operators::fake_quantized, .use = KvUse::teacher_forcing, .transforms = transforms};
  return unwrap(evaluate(loaded.model, &loaded.model, loaded.tokens, options)).divergence->kl_mean;
}

}  // namespace

TEST_CASE("smoothing of a model: factors per layer, of mean 1 per head, for any number of threads") {
  const Loaded loaded(2 * 64 + 10);  // the rest is left out
  const std::span<const std::int32_t> tokens(loaded.tokens);
  const auto found = unwrap(find_smoothing(loaded.model, {tokens, 64}, scheme, {.threads = 1}));
  const auto again = unwrap(find_smoothing(loaded.model, {tokens.first(2 * 64), 64}, scheme, {.threads = 2}));
  const auto other = unwrap(find_smoothing(loaded.model, {tokens.first(2 * 64), 128}, scheme, {.threads = 1}));
  const ModelConfig& config = loaded.model.config();
  REQUIRE(found.size() == config.layers);
  for (std::size_t i = 0; i < found.size(); ++i) {
    INFO("layer " << i);
    CHECK(same(found[i].key_scales, again[i].key_scales));
    CHECK(same(found[i].key_weights, again[i].key_weights));
    CHECK(same(found[i].value_offsets, again[i].value_offsets));
    if (i > 0) CHECK_FALSE(same(found[i].key_scales, other[i].key_scales));  // longer contexts
    REQUIRE(found[i].key_scales.size() == config.kv_heads * config.head_width);
    for (std::size_t head = 0; head < config.kv_heads; ++head) {
      double logs = 0, weights = 0;
      for (std::size_t c = head * config.head_width; c < (head + 1) * config.head_width; ++c) {
        logs += std::log(static_cast<double>(found[i].key_scales[c]));
        weights += static_cast<double>(found[i].key_weights[c]);
      }
      CHECK(std::fabs(logs) < 1e-4);
      CHECK(std::fabs(weights / static_cast<double>(config.head_width) - 1) < 1e-5);
    }
  }
}

TEST_CASE("a text shorter than a sequence is one sequence; no text and unknown tokens are errors") {
  Loaded loaded(20);
  CHECK(find_smoothing(loaded.model, {loaded.tokens, 512}, scheme, {.threads = 1}));
  CHECK(find_smoothing(loaded.model, {{}, 512}, scheme, {.threads = 1}).error().code == Errc::bad_argument);
  CHECK(find_smoothing(loaded.model, {loaded.tokens, 0}, scheme, {.threads = 1}).error().code == Errc::bad_argument);
  loaded.tokens[3] = -1;
  CHECK(find_smoothing(loaded.model, {loaded.tokens, 512}, scheme, {.threads = 1}).error().code == Errc::bad_argument);
}

TEST_CASE("smoothing lowers the divergence of 4-bit keys and values") {
  const Loaded loaded(4 * 128);
  const double plain = kl_mean(loaded, "kv4_past");
  const double smoothed = kl_mean(loaded, "kv4_2d_past");
  CAPTURE(plain, smoothed);
  CHECK(smoothed < 0.6 * plain);
  CHECK(kl_mean(loaded, "kv4_2d_past_hadamard") < kl_mean(loaded, "kv4_past_hadamard"));
}
