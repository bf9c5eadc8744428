// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/pruned_layer.hpp>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>

#include <cbq/nn/dense_linear.hpp>

#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/random_model.hpp"
#include "support/rounded.hpp"

using namespace cbq;

namespace {

using Indices = std::vector<std::uint32_t>;

DenseLinear<float> dense(const support::Weights& w) {
  return *DenseLinear<float>::create(support::input(w.values, w.inputs), w.bias);
}

Indices some_tokens(std::size_t count) {
  Indices tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<std::uint32_t>((i * i + 5 * i + 3) % 61);
  return tokens;
}

/// A policy of a host: layer 0 drops every third token, layer 1 another one; notes what it was shown.
struct EveryThird {
  PrunedPositions where = PrunedPositions::original;
  Importance kind = Importance::first_token;
  std::vector<std::vector<float>>* seen = nullptr;

  [[nodiscard]] bool drops(std::size_t, std::size_t tokens) const noexcept { return tokens > 5; }
  [[nodiscard]] Importance importance() const noexcept { return kind; }
  [[nodiscard]] PrunedPositions positions() const noexcept { return where; }
  static bool dropped(std::size_t layer, std::uint32_t position) noexcept {
    return layer == 0 ? position % 3 == 1 : position == 6;
  }
  [[nodiscard]] Result<std::size_t> select(const PruningStep& step, std::span<std::uint32_t> to) const noexcept {
    if (seen != nullptr) seen->emplace_back(step.importance.begin(), step.importance.end());
    std::size_t count = 0;
    for (std::uint32_t t = 0; t < step.positions.size(); ++t) {
      if (!dropped(step.layer, step.positions[t])) to[count++] = t;
    }
    return count;
  }
};
static_assert(TokenPruning<EveryThird>);

/// The random model over tokens of which the first `prompt` are pruned by EveryThird.
struct Expected {
  Indices behind_first, behind_second;  ///< tokens that the halves behind layers 0 and 1 have
  oracle::Matrix hidden;                ///< of the latter, before the final norm
};

Expected expected(const support::RandomLlama& llama, const Indices& tokens, std::size_t prompt, PrunedPositions where) {
  Expected e;
  for (std::uint32_t t = 0; t < tokens.size(); ++t) {
    if (t < prompt && EveryThird::dropped(0, t)) continue;
    if (t >= prompt || !EveryThird::dropped(1, t)) {
      e.behind_second.push_back(static_cast<std::uint32_t>(e.behind_first.size()));
    }
    e.behind_first.push_back(t);
  }
  oracle::Matrix h(tokens.size(), 48);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    for (std::size_t c = 0; c < 48; ++c) h(t, c) = static_cast<double>(llama.head.values[tokens[t] * 48 + c]);
  }
  // Feed-forward layers work row by row: dropping rows before or behind them is the same.
  h = llama.reference(llama.layers[0], h);
  if (where == PrunedPositions::compacted) {
    h = llama.reference(llama.layers[1], oracle::gather(h, e.behind_first));
  } else {
    h = llama.reference(llama.layers[1], h, e.behind_first);
  }
  e.hidden = oracle::gather(h, e.behind_second);
  for (std::uint32_t& index : e.behind_second) index = e.behind_first[index];
  return e;
}

}  // namespace

TEST_CASE("A pruned prompt and what follows it equal the definition, with original and with compacted positions") {
  const SerialExecutor serial;
  const support::RandomLlama llama;
  const auto model = llama.model(dense);
  const Indices tokens = some_tokens(45);
  for (const PrunedPositions where : {PrunedPositions::original, PrunedPositions::compacted}) {
    const Expected e = expected(llama, tokens, 40, where);
    const oracle::Matrix wanted =
        oracle::rms_norm(e.hidden, support::doubles(llama.final_norm), static_cast<double>(llama.config.norm_epsilon));
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(isa_name(isa), static_cast<int>(where));
      ExecutionContext<> context(serial, isa);
      auto cache = *model.make_cache(45);
      std::vector<float> hidden(40 * 48), next(48), got;
      Indices survivors(40);
      const auto left = model.forward_pruned(std::span(tokens).first(40), cache, {support::view(hidden, 48), survivors},
                                             EveryThird{where}, context);
      REQUIRE(left);
      REQUIRE(*left == e.behind_second.size() - 5);
      CHECK(std::equal(survivors.begin(), survivors.begin() + static_cast<std::ptrdiff_t>(*left),
                       e.behind_second.begin()));
      CHECK(cache.size() == 40);
      CHECK(cache.layer(1).size() == e.behind_first.size() - 5);
      CHECK((cache.holds(0, 1) && !cache.holds(1, 1) && cache.holds(1, 6)));
      got.assign(hidden.begin(), hidden.begin() + static_cast<std::ptrdiff_t>(*left * 48));
      for (std::size_t t = 40; t < 45; ++t) {
        REQUIRE(model.forward_hidden(std::span(tokens).subspan(t, 1), cache, support::view(next, 48), context));
        got.insert(got.end(), next.begin(), next.end());
      }
      CHECK(oracle::distance(got, wanted) < 5e-6);
    }
  }
}

TEST_CASE("A pruned cache rolls back to any position, and an error leaves it as it was") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const support::RandomLlama llama;
  const auto model = llama.model(dense);
  const Indices tokens = some_tokens(45);
  auto cache = *model.make_cache(45);
  std::vector<float> hidden(40 * 48);
  Indices survivors(40);
  const PrunedOutput out{support::view(hidden, 48), survivors};
  const auto prompt = std::span(tokens).first(40);
  REQUIRE(model.forward_pruned(prompt, cache, out, EveryThird{}, context));
  cache.truncate(20);
  CHECK(cache.size() == 20);
  CHECK(cache.layer(1).size() == 13);
  CHECK(cache.holds(1, 22));

  struct Wrong : EveryThird {
    std::size_t mode = 0;
    Result<std::size_t> select(const PruningStep& step, std::span<std::uint32_t> to) const noexcept {
      if (step.layer == 0) return EveryThird::select(step, to);
      if (mode == 0) return Error{Errc::not_finite, "no"};
      for (std::uint32_t t = 0; t < to.size(); ++t) to[t] = mode == 3 ? t : 2;
      if (mode == 3) return to.size() + 1;
      return mode == 1 ? std::size_t{0} : to.size();  // nothing; the same token again and again
    }
  };
  const auto rest = std::span(tokens).subspan(20, 20);
  const PrunedOutput part{matrix_view(hidden.data(), 20, 48), survivors};
  for (std::size_t mode = 0; mode < 4; ++mode) {
    CAPTURE(mode);
    Wrong wrong;
    wrong.mode = mode;
    const auto failed = model.forward_pruned(rest, cache, part, wrong, context);
    REQUIRE_FALSE(failed);
    CHECK(failed.error().code == (mode == 0 ? Errc::not_finite : Errc::bad_argument));
    CHECK(std::string(failed.error().where.c_str()).starts_with("layer 1"));
    CHECK((cache.size() == 20 && cache.layer(1).size() == 13 && cache.holds(1, 22)));
  }
  const EveryThird compacted{PrunedPositions::compacted};
  CHECK(model.forward_pruned(rest, cache, part, compacted, context).error().code == Errc::bad_argument);
  const PrunedOutput narrow{part.hidden, std::span(survivors).first(19)};
  CHECK(model.forward_pruned(rest, cache, narrow, EveryThird{}, context).error().code == Errc::bad_shape);
  CHECK(cache.size() == 20);

  // What comes after the rollback is what comes without it.
  const Expected e = expected(llama, some_tokens(40), 20, PrunedPositions::original);
  REQUIRE(model.forward_hidden(rest, cache, part.hidden, context));
  const std::vector<float> got(hidden.begin(), hidden.begin() + 20 * 48);
  const oracle::Matrix normed =
      oracle::rms_norm(e.hidden, support::doubles(llama.final_norm), static_cast<double>(llama.config.norm_epsilon));
  Indices last(20);
  for (std::uint32_t i = 0; i < 20; ++i) last[i] = static_cast<std::uint32_t>(normed.rows - 20 + i);
  CHECK(oracle::distance(got, oracle::gather(normed, last)) < 5e-6);

  cache.reset();
  CHECK(model.forward_pruned(prompt, cache, out, compacted, context));
}

TEST_CASE("Policies see the weights of their layer's attention") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const support::RandomLlama llama;
  const auto model = llama.model(dense);
  const Indices tokens = some_tokens(40);
  for (const Importance kind : {Importance::first_token, Importance::column_sums}) {
    std::vector<std::vector<float>> seen;
    auto cache = *model.make_cache(40);
    std::vector<float> hidden(40 * 48);
    Indices survivors(40);
    const EveryThird policy{PrunedPositions::original, kind, &seen};
    REQUIRE(model.forward_pruned(tokens, cache, {support::view(hidden, 48), survivors}, policy, context));
    REQUIRE(seen.size() == 2);
    CHECK(seen[0].size() == 40);
    CHECK(seen[1].size() == 27);
    // In layer 0 each row of the map of attention sums to 1 per head.
    double sum = 0;
    for (const float value : seen[0]) sum += static_cast<double>(value);
    if (kind == Importance::column_sums) CHECK(std::fabs(sum - 40 * 4) < 1e-4);
    if (kind == Importance::first_token) CHECK(std::fabs(static_cast<double>(seen[0][0]) - 4) < 1e-5);
  }
}

namespace {

/// Lowers the tokens that `low` names in layer 0, and notes in layer 1 whether bits are still those of their tokens;
/// drops as EveryThird from layer `dropping_from` on.
struct LowersSome : EveryThird {
  std::vector<std::uint8_t> low = {};
  std::size_t dropping_from = 2;
  std::size_t* kept = nullptr;
  [[nodiscard]] bool drops(std::size_t layer, std::size_t) const noexcept { return layer >= dropping_from; }
  [[nodiscard]] bool lowers(std::size_t layer, std::size_t) const noexcept { return layer == 0 || kept != nullptr; }
  [[nodiscard]] Status lower(const PruningStep& step, std::span<std::uint32_t>,
                             std::span<std::uint8_t> bits) const noexcept {
    for (std::size_t t = 0; t < bits.size(); ++t) {
      if (step.layer == 0) bits[t] = low[step.positions[t]];
      if (step.layer == 1) *kept += bits[t] == low[step.positions[t]] ? 1u : 0u;
    }
    return {};
  }
};
static_assert(TokenLowering<LowersSome>);

/// Lowers all tokens, but in layer 1 only.
struct LowersLater : LowersSome {
  [[nodiscard]] bool lowers(std::size_t layer, std::size_t) const noexcept { return layer == 1; }
  [[nodiscard]] Status lower(const PruningStep&, std::span<std::uint32_t>,
                             std::span<std::uint8_t> bits) const noexcept {
    std::fill(bits.begin(), bits.end(), std::uint8_t{4});
    return {};
  }
};
static_assert(TokenLowering<LowersLater>);

/// Layers of fake-quantized operators with activations of 8 bits, but of 4 where `lowered` says so.
template <class Lowered>
auto rounded_model(const support::RandomLlama& llama, const Lowered& lowered) {
  return llama.model([&](const support::Weights& w) {
    Scheme scheme = schemes::w8a8;
    if (lowered(w)) scheme.activation = {.bits = 4, .granularity = Granularity::per_token, .zero = Zero::affine};
    const QuantizedMatrix matrix = support::rounded(w.values, w.inputs, scheme.weight);
    return *FakeQuantizedLinear::create(matrix.view(), scheme, w.bias);
  });
}

}  // namespace

TEST_CASE("Tokens of fewer bits stay so behind the layer that lowers them, in one pass with the others") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const support::RandomLlama llama;
  const auto model = rounded_model(llama, [](const support::Weights&) { return false; });
  // With all tokens lowered in layer 0, everything behind its attention has 4 bits, but the head.
  const support::Layer& first = llama.layers[0];
  const auto low_model = rounded_model(llama, [&](const support::Weights& w) {
    return &w != &llama.head && &w != &first.query && &w != &first.key && &w != &first.value && &w != &first.output;
  });
  const Indices tokens = some_tokens(40);
  const auto run = [&](const auto& one, const auto& policy) {
    auto cache = *one.make_cache(40);
    std::vector<float> hidden(40 * 48);
    Indices survivors(40);
    const auto left = one.forward_pruned(tokens, cache, {support::view(hidden, 48), survivors}, policy, context);
    REQUIRE(left);
    hidden.resize(*left * 48);
    return hidden;
  };
  LowersSome policy;
  policy.low.assign(40, 4);
  std::vector<float> plain(40 * 48), low(40 * 48);
  auto cache = *model.make_cache(40), low_cache = *low_model.make_cache(40);
  REQUIRE(model.forward_hidden(tokens, cache, support::view(plain, 48), context));
  REQUIRE(low_model.forward_hidden(tokens, low_cache, support::view(low, 48), context));
  CHECK(run(model, policy) == low);
  policy.low.assign(40, 8);
  CHECK(run(model, policy) == plain);
  CHECK(plain != low);
  // The second half lowered: the first, which sees no later token, is as without.
  std::fill(policy.low.begin() + 20, policy.low.end(), std::uint8_t{4});
  const auto mixed = run(model, policy);
  CHECK(std::equal(plain.begin(), plain.begin() + 20 * 48, mixed.begin()));
  CHECK_FALSE(std::equal(plain.begin() + 20 * 48, plain.end(), mixed.begin() + 20 * 48));
  // Bits move with tokens that stay.
  std::size_t kept = 0;
  policy.dropping_from = 0;
  policy.kept = &kept;
  for (std::size_t t = 0; t < 40; ++t) policy.low[t] = t % 5 < 2 ? 4 : 8;
  const std::size_t left = run(model, policy).size() / 48;
  CHECK(left == 26);
  CHECK(kept == left);
}

TEST_CASE("A policy may begin to lower bits in any layer") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const support::RandomLlama llama;
  const auto model = rounded_model(llama, [](const support::Weights&) { return false; });
  const support::Layer& last = llama.layers[1];
  const auto low_model = rounded_model(
      llama, [&](const support::Weights& w) { return &w == &last.gate || &w == &last.up || &w == &last.down; });
  const Indices tokens = some_tokens(40);
  std::vector<float> got(40 * 48), wanted(40 * 48);
  Indices survivors(40);
  auto cache = *model.make_cache(40), low_cache = *low_model.make_cache(40);
  const PrunedOutput out{support::view(got, 48), survivors};
  REQUIRE(model.forward_pruned(tokens, cache, out, LowersLater{}, context));
  REQUIRE(low_model.forward_hidden(tokens, low_cache, support::view(wanted, 48), context));
  CHECK(got == wanted);
}
