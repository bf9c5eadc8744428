// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/pruned_layer.hpp>

#include <algorithm>
#include <catch2/catch_all.hpp>
#include <cmath>

#include <cbq/nn/dense_linear.hpp>

#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/random_model.hpp"

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
      for (std::uint32_t& index : to) index = 2;
      return mode == 1 ? std::size_t{0} : to.size();  // nothing; the same token again and again
    }
  };
  const auto rest = std::span(tokens).subspan(20, 20);
  const PrunedOutput part{matrix_view(hidden.data(), 20, 48), survivors};
  for (std::size_t mode = 0; mode < 3; ++mode) {
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
