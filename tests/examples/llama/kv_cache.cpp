// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.hpp"

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <cbq/kv/attention.hpp>

#include "evaluation.hpp"
#include "examples/llama/engine_fixture.hpp"
#include "rounded_kv_cache.hpp"

using namespace cbq_llama;
using cbq::Errc;
using cbq::Json;
using cbq::MatrixView;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::unwrap;

namespace {

struct Loaded {
  ModelSource source = unwrap(ModelSource::open(pocket_llama()));
  Model model = unwrap(Model::load(source));
  std::vector<std::int32_t> tokens;

  explicit Loaded(std::size_t count) {
    tokens = unwrap(unwrap(source.tokenizer()).encode(support::read_text(engine_fixture::evaluation_text())));
    tokens.resize(count);
  }
};

KvOptions kv_options(const std::string& scheme, Operators operators, KvUse use) {
  return {.scheme = unwrap(cbq::parse_kv_scheme(scheme)), .operators = operators, .use = use};
}

std::vector<float> copy(const MatrixView<const float>& x) {
  std::vector<float> out;
  for (std::size_t r = 0; r < x.rows; ++r) out.insert(out.end(), cbq::row(x, r), cbq::row(x, r) + x.columns);
  return out;
}

double relative_rms(const std::vector<float>& found, const std::vector<float>& wanted) {
  double difference = 0;
  double magnitude = 0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    difference += std::pow(static_cast<double>(found[i]) - static_cast<double>(wanted[i]), 2);
    magnitude += std::pow(static_cast<double>(wanted[i]), 2);
  }
  return std::sqrt(difference / magnitude);
}

Json perplexity(std::vector<std::string> options, const std::string& windows = "3",
                const std::string& context = "160") {
  options.insert(options.begin(), {"perplexity", pocket_llama(), "--windows", windows, "--context", context,
                                   "--threads", "1", "--reference", pocket_llama(), "--json", "-"});
  const engine_fixture::ToolRun run = run_tool(options);
  CAPTURE(run.err, options);
  REQUIRE(run.code == 0);
  return unwrap(cbq::parse_json(run.out));
}

// Rows of one head whose elements are all of one size.
std::vector<float> some_rows(std::size_t rows, std::size_t columns) {
  std::vector<float> values(rows * columns);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i * 37 + i / 5 * 11) % 64) / 16 - 2;
  return values;
}

}  // namespace

TEST_CASE("fewer bits lose more, and f32 is the cache without the option, bit for bit") {
  const std::string operators = GENERATE("packed", "fake_quantized");
  CAPTURE(operators);
  const auto kl = [&](const std::string& scheme) {
    const Json json = perplexity({"--kv", scheme, "--operators", operators});
    CHECK(json.at("kv_scheme") == scheme);
    return json.at("kl_mean").get<double>();
  };
  const double eight = kl("kv8");
  const double four = kl("kv4");
  CHECK(kl("f16") < eight);
  CHECK(eight < 0.01 * four);
  CHECK(four < 0.2 * kl("kv2"));
  CHECK(kl("kv4_past") < four);
  CHECK(kl("kv4_hadamard") < four);
  CHECK(kl("kv4_kivi_past") < 0.5 * four);
  CHECK(kl("kv4_2d_past_hadamard") < 0.6 * kl("kv4_past"));
  const Json recent = perplexity({"--kv", "kv4_past", "--kv-recent", "32", "--operators", operators});
  CHECK(recent.at("kl_mean").get<double>() < 0.5 * kl("kv4_past"));
  CHECK(recent.at("kv_recent") == 32);
  CHECK(recent.at("kv_sinks") == 1);
  const Json with = perplexity({"--kv", "f32", "--operators", operators});
  const Json without = perplexity({"--operators", operators});
  CHECK(with.at("nll") == without.at("nll"));
  CHECK(with.at("kl_mean") == 0.0);
  CHECK(without.at("kv_scheme") == "f32");
}

TEST_CASE("reports count a cache's bytes with its scales, offsets and padding") {
  const auto bytes = [](const std::string& scheme) {
    return perplexity({"--kv", scheme}, "1", "8").at("kv_bytes_per_token");
  };
  // 5 layers, keys and values of 2 heads of 64.
  CHECK(bytes("f32") == 5 * 2 * 2 * 64 * 4);
  CHECK(bytes("f16") == 5 * 2 * 2 * 64 * 2);
  CHECK(bytes("kv4") == 5 * 2 * 2 * (64 / 2 + 4));
  CHECK(bytes("kv3_past") == 5 * 2 * 2 * (64 * 3 / 8 + 4));
}

TEST_CASE("one pass computes what decoding token by token computes") {
  const std::string scheme = GENERATE("kv4", "kv4_past_hadamard", "kv8_kivi_past", "kv4_kivi", "kv4_past");
  const Operators operators = GENERATE(Operators::fake_quantized, Operators::packed);
  CAPTURE(scheme, operators);
  const Loaded loaded(150);
  KvOptions options = kv_options(scheme, operators, KvUse::teacher_forcing);
  if (scheme == "kv4_past" && operators == Operators::packed) options.policy = {.recent = 20, .sinks = 3};
  Session pass = unwrap(Session::create(loaded.model, loaded.tokens.size(), {}, options));
  const std::vector<float> wanted = copy(unwrap(pass.forward(loaded.tokens)));
  options.use = KvUse::decoding;
  Session decoding = unwrap(Session::create(loaded.model, loaded.tokens.size(), {}, options));
  std::vector<float> found;
  for (const std::int32_t& token : loaded.tokens) {
    const std::vector<float> hidden = copy(unwrap(decoding.forward({&token, 1})));
    found.insert(found.end(), hidden.begin(), hidden.end());
  }
  // Matrix products of one row and of many differ in last bits, which now and then move a code.
  Session exact = unwrap(Session::create(loaded.model, loaded.tokens.size(), {}));
  const double loss = relative_rms(copy(unwrap(exact.forward(loaded.tokens))), wanted);
  CHECK(relative_rms(found, wanted) < 0.2 * loss);
}

TEST_CASE("long prompts are read in pieces, of which the earlier ones are past") {
  const Loaded loaded(700);
  const KvOptions options = kv_options("kv4_past", Operators::packed, KvUse::decoding);
  Session whole = unwrap(Session::create(loaded.model, loaded.tokens.size(), {}, options));
  const auto all = unwrap(whole.next_logits(loaded.tokens));
  const std::vector<float> wanted(all.begin(), all.end());
  Session pieces = unwrap(Session::create(loaded.model, loaded.tokens.size(), {}, options));
  const std::span<const std::int32_t> tokens(loaded.tokens);
  REQUIRE(pieces.forward(tokens.first(kv_prompt_piece)));
  const auto last = unwrap(pieces.next_logits(tokens.subspan(kv_prompt_piece)));
  CHECK(std::vector<float>(last.begin(), last.end()) == wanted);
  CHECK(whole.size() == loaded.tokens.size());
  CHECK_FALSE(whole.next_logits(tokens.first(1)));  // full
  CHECK(whole.size() == loaded.tokens.size());
  whole.reset();
  const auto again = unwrap(whole.next_logits(loaded.tokens));
  CHECK(std::vector<float>(again.begin(), again.end()) == wanted);
}

TEST_CASE("generate and bench run with a quantized cache") {
  const std::string scheme = GENERATE("f16", "kv4_past", "kv3_kivi_hadamard");
  CAPTURE(scheme);
  const auto generated = run_tool({"generate", pocket_llama(), "--prompt", "The history of", "-n", "8", "--threads",
                                   "1", "--kv", scheme, "--json", "-"});
  REQUIRE(generated.code == 0);
  CHECK(unwrap(cbq::parse_json(generated.out)).at("kv_scheme") == scheme);
  const auto measured = run_tool({"bench", pocket_llama(), "--prompt-tokens", "80", "--new-tokens", "2", "--runs", "1",
                                  "--threads", "1", "--kv", scheme});
  REQUIRE(measured.code == 0);
  CHECK(measured.out.find("cache       " + scheme + ", ") != std::string::npos);
}

TEST_CASE("rounded rows settle when they are past, and a rollback forgets what came after") {
  constexpr std::size_t columns = 2 * 8;
  cbq::QuantizedKvOptions options{
      .scheme = unwrap(cbq::parse_kv_scheme("kv2_past")), .heads = 2, .width = 8, .capacity = 6, .largest_append = 6};
  RoundedKvCache cache = unwrap(RoundedKvCache::create(options, {}));
  const std::vector<float> values = some_rows(6, columns);
  const auto all = cbq::matrix_view(values.data(), 6, columns);
  const std::vector<float> q(columns, 0.25f);
  const cbq::SerialExecutor executor;
  cbq::ExecutionContext<> context(executor);
  const auto attended = [&] {
    std::vector<float> out(columns);
    REQUIRE(attend(cbq::matrix_view(q.data(), 1, columns), cache.floats(), 1.0f,
                   cbq::matrix_view(out.data(), 1, columns), context));
    return out;
  };
  REQUIRE(cache.append(cbq::rows(all, 0, 1), cbq::rows(all, 0, 1)));
  CHECK(attended() == std::vector<float>(values.begin(), values.begin() + columns));  // its own position is exact
  REQUIRE(cache.append(cbq::rows(all, 1, 2), cbq::rows(all, 1, 2)));
  const std::vector<float> three = attended();
  REQUIRE(cache.append(cbq::rows(all, 3, 3), cbq::rows(all, 3, 3)));
  CHECK(cache.append(cbq::rows(all, 0, 1), cbq::rows(all, 0, 1)).error().code == Errc::bad_shape);
  CHECK(cache.size() == 6);
  cache.truncate(1);
  REQUIRE(cache.append(cbq::rows(all, 1, 2), cbq::rows(all, 1, 2)));
  CHECK(attended() == three);

  std::vector<float> bad(columns, 1.0f);
  bad[3] = std::numeric_limits<float>::quiet_NaN();
  const auto bad_row = cbq::matrix_view<const float>(bad.data(), 1, columns);
  options.scheme.past_only = false;
  RoundedKvCache full = unwrap(RoundedKvCache::create(options, {}));
  REQUIRE(full.append(cbq::rows(all, 0, 1), cbq::rows(all, 0, 1)));
  CHECK(full.append(bad_row, bad_row).error().code == Errc::not_finite);
  CHECK(full.size() == 1);
}

TEST_CASE("keys are rounded as they were before rotary embedding") {
  constexpr std::size_t heads = 2, width = 8, rows = 5, columns = heads * width;
  const cbq::QuantizedKvOptions options{.scheme = unwrap(cbq::parse_kv_scheme("kv3")),
                                        .heads = heads,
                                        .width = width,
                                        .capacity = 8,
                                        .largest_append = 8};
  auto rotary = std::make_shared<const cbq::RotaryTable>(unwrap(cbq::RotaryTable::create({.base = 100}, width, 8)));
  const cbq::SerialExecutor executor;
  cbq::ExecutionContext<> context(executor);
  const std::vector<std::uint32_t> positions = {0, 1, 2, 3, 4};
  const std::vector<float> given = some_rows(rows, columns);
  std::vector<float> rotated = given;
  REQUIRE(rotary->rotate(cbq::matrix_view(rotated.data(), rows, columns), positions, context));
  RoundedKvCache before = unwrap(RoundedKvCache::create(options, {}, rotary));
  RoundedKvCache plain = unwrap(RoundedKvCache::create(options, {}));
  const auto unturned = cbq::matrix_view(given.data(), rows, columns);
  const auto turned = cbq::matrix_view<const float>(rotated.data(), rows, columns);
  REQUIRE(before.append(cbq::rows(turned, 0, 3), cbq::rows(turned, 0, 3)));
  REQUIRE(before.append(cbq::rows(turned, 3, 2), cbq::rows(turned, 3, 2)));
  REQUIRE(plain.append(unturned, unturned));
  for (std::size_t position = 0; position < rows; ++position) {
    for (std::size_t head = 0; head < heads; ++head) {
      float found[width], wanted[width];
      before.floats().copy_key(head, position, found);
      plain.floats().copy_key(head, position, wanted);
      REQUIRE(rotary->rotate(cbq::matrix_view(wanted, 1, width), {&positions[position], 1}, context));
      for (std::size_t i = 0; i < width; ++i) CHECK(found[i] == Catch::Approx(wanted[i]).margin(2e-3));
    }
  }
}

TEST_CASE("--kv-rope pre measures rounding before rotary embedding, and runs nothing packed") {
  const auto loss = [](const char* rope, const char* scheme) {
    return perplexity({"--kv", scheme, "--kv-rope", rope, "--operators", "fake_quantized"}, "1")
        .at("kl_mean")
        .get<double>();
  };
  const double before = loss("pre", "kv2_past"), after = loss("post", "kv2_past");
  CHECK(before > 0.05);
  CHECK(before != after);
  CHECK(loss("pre", "kv2_2d_past") < before);  // factors of keys before the embedding
  const auto refused = run_tool({"perplexity", pocket_llama(), "--windows", "1", "--kv", "kv4", "--kv-rope", "pre"});
  CHECK(refused.code != 0);
  CHECK(refused.err.find("fake_quantized") != std::string::npos);
  const auto pointless = run_tool({"perplexity", pocket_llama(), "--windows", "1", "--kv-rope", "pre"});
  CHECK(pointless.code != 0);
  CHECK(pointless.err.find("--kv-rope") != std::string::npos);
}

TEST_CASE("INT8 attention loses little, log2 weights more; neither goes with quantized caches") {
  const auto kl = [](const Json& report) { return report["kl_mean"].get<double>(); };
  for (const char* attention : {"int8", "int8_static"}) {
    const Json report = perplexity({"--attention", attention});
    CHECK(report["attention"] == attention);
    CHECK(report["kv_scheme"] == attention);
    CHECK(report["kv_bytes_per_token"] == 1280);
    CHECK(kl(report) > 0);
    CHECK(kl(report) < 0.004);
  }
  for (const char* attention : {"float", "int8"}) {
    const Json report = perplexity({"--attention", attention, "--softmax", "log2"});
    const Json normalized = perplexity({"--attention", attention, "--softmax", "log2_normalized"});
    CHECK(report["softmax"] == "log2");
    CHECK(kl(report) > 0.01);
    CHECK(kl(report) < 0.1);
    CHECK(kl(normalized) > 0.001);
    CHECK(kl(normalized) < kl(report) / 2);
  }
  const auto refused = [](const std::vector<std::string>& options) {
    std::vector<std::string> all = {"generate", pocket_llama(), "--prompt", "The", "-n", "2"};
    all.insert(all.end(), options.begin(), options.end());
    return run_tool(all).code != 0;
  };
  CHECK_FALSE(refused({"--attention", "int8", "--softmax", "log2"}));
  CHECK(refused({"--kv", "kv8", "--softmax", "log2"}));
  CHECK(refused({"--kv", "kv8", "--attention", "int8"}));
  CHECK(refused({"--kv", "f16", "--attention", "int8"}));
  CHECK(refused({"--attention", "int4"}));
}
