// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/bloom_block.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_floating_point.hpp>
#include <set>

#include <cbq/nn/dense_linear.hpp>

#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/random_model.hpp"

using namespace cbq;

namespace {

DenseLinear<float> dense(const support::Weights& w) {
  return *DenseLinear<float>::create(support::input(w.values, w.inputs), w.bias);
}

using Block = BloomBlock<DenseLinear<float>>;

}  // namespace

TEST_CASE("Slopes halve from head to head; heads beyond a power of two lie between") {
  for (std::size_t h = 0; h < 8; ++h) CHECK(alibi_slope(h, 8) == std::ldexp(1.0f, -static_cast<int>(h) - 1));
  CHECK(alibi_slope(0, 1) == std::ldexp(1.0f, -8));
  const float of_six[] = {0.25f, 0.0625f, 0.015625f, 0.00390625f, 0.5f, 0.125f};
  for (std::size_t h = 0; h < 6; ++h) CHECK(alibi_slope(h, 6) == of_six[h]);
  CHECK_THAT(alibi_slope(1, 16), Catch::Matchers::WithinRel(0.5f, 1e-6f));
  CHECK_THAT(alibi_slope(16, 17), Catch::Matchers::WithinRel(std::pow(2.0f, -0.25f), 1e-6f));
  BloomConfig config;
  CHECK(AlibiPositions::create(config).error().code == Errc::bad_shape);
}

TEST_CASE("Rows of the fused projection are taken apart head by head") {
  CHECK(fused_projection_row(FusedPart::query, 0, 4) == 0);
  CHECK(fused_projection_row(FusedPart::key, 1, 4) == 5);
  CHECK(fused_projection_row(FusedPart::value, 6, 4) == 22);
  std::set<std::size_t> rows;
  for (const FusedPart part : {FusedPart::query, FusedPart::key, FusedPart::value}) {
    for (std::size_t r = 0; r < 15; ++r) rows.insert(fused_projection_row(part, r, 5));
  }
  CHECK(rows.size() == 45);
  CHECK(*rows.rbegin() == 44);
}

TEST_CASE("A BLOOM block equals the definition in double, at once and token by token") {
  const SerialExecutor serial;
  const support::RandomBloom bloom;
  const Block block = bloom.block<AlibiPositions>(bloom.layers[0], dense);
  const auto alibi = AlibiPositions::create(bloom.config);
  REQUIRE(alibi);
  CHECK(alibi->max_positions() == 50);
  auto h = support::normal(40 * 40, 3);
  const auto wanted = bloom.reference(bloom.layers[0], oracle::Matrix(40, 40, h));
  std::vector<std::uint32_t> positions(40);
  for (std::size_t t = 0; t < 40; ++t) positions[t] = static_cast<std::uint32_t>(t);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    ExecutionContext<> context(serial, isa);
    for (const std::size_t piece : {40u, 1u}) {
      auto states = h;
      auto cache = block.make_cache(40);
      for (std::size_t t = 0; t < 40; t += piece) {
        const auto part = rows(support::view(states, 40), t, piece);
        REQUIRE(block.forward(part, *alibi, std::span(positions).subspan(t, piece), *cache, context));
      }
      CHECK(oracle::distance(states, wanted) < 2e-6);
    }
  }
}

TEST_CASE("Embeddings pass the norm of a model that has one") {
  const support::RandomBloom bloom;
  const support::Weights head(33, 40, 5, false);
  const support::Layer& l = bloom.layers[0];
  const auto create = [&](std::size_t norm_width) {
    std::vector<Block> blocks;
    for (const support::Layer& layer : bloom.layers) blocks.push_back(bloom.block<AlibiPositions>(layer, dense));
    const std::span<const float> gain(l.first_norm.data(), norm_width), bias(l.first_bias.data(), norm_width);
    return CausalModel<Block>::create(
        bloom.config,
        {std::nullopt, *AlibiPositions::create(bloom.config), std::move(blocks),
         *LayerNorm::create(l.second_norm, l.second_bias, 1e-5f), dense(head), *LayerNorm::create(gain, bias, 1e-5f)});
  };
  CHECK(create(39).error().code == Errc::bad_shape);
  const auto model = create(40);
  REQUIRE(model);
  const std::vector<std::uint32_t> tokens = {32, 0, 7};
  oracle::Matrix embeddings(3, 40);
  for (std::size_t i = 0; i < 120; ++i)
    embeddings.values[i] = static_cast<double>(head.values[tokens[i / 40] * 40 + i % 40]);
  const auto wanted =
      oracle::layer_norm(embeddings, support::doubles(l.first_norm), support::doubles(l.first_bias), 1e-5);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  auto cache = model->make_cache(3);
  std::vector<float> hidden(120), seen;
  const auto observer = [&](std::size_t layer, const MatrixView<const float>& x) {
    if (layer == 0) seen.assign(x.data, x.data + 120);
  };
  REQUIRE(model->forward_hidden(tokens, *cache, support::view(hidden, 40), context, observer));
  CHECK(oracle::distance(seen, wanted) < 2e-6);
}

TEST_CASE("Tokens that stay when others are dropped have the positions that a model can have, or are refused") {
  const support::RandomBloom bloom;
  const support::RandomOpt opt;
  const support::Weights head(33, 40, 5, false);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto check = [&]<class P>(const auto& parts, P positions, PrunedPositions possible) {
    using Pruned = OptBlock<DenseLinear<float>, P>;
    std::vector<Pruned> blocks;
    for (const support::Layer& layer : parts.layers) blocks.push_back(parts.template block<P>(layer, dense));
    const support::Layer& l = parts.layers[0];
    const auto model = CausalModel<Pruned>::create(
        parts.config, {std::nullopt, std::move(positions), std::move(blocks),
                       *LayerNorm::create(l.second_norm, l.second_bias, 1e-5f), dense(head)});
    REQUIRE(model);
    const std::vector<std::uint32_t> tokens(40, 7);
    std::vector<float> hidden(40 * 40);
    std::vector<std::uint32_t> survivors(40);
    for (const PrunedPositions where : {PrunedPositions::original, PrunedPositions::compacted}) {
      const auto policy = ScheduledPruning::create(
          {.schedule = *with_sparsity(quarter_schedule(2), 0.2), .positions = where, .fewest_tokens = 8});
      REQUIRE(policy);
      auto cache = *model->make_cache(40);
      const auto left = model->forward_pruned(tokens, cache, {support::view(hidden, 40), survivors}, *policy, context);
      REQUIRE(left.has_value() == (where == possible));
      if (left) {
        CHECK(*left < 40);
      } else {
        CHECK(left.error().code == Errc::unsupported);
        CHECK(cache.size() == 0);
      }
    }
  };
  check(bloom, *AlibiPositions::create(bloom.config), PrunedPositions::compacted);
  check(opt, *LearnedPositions::create(support::input(opt.positions, 40)), PrunedPositions::original);
}
