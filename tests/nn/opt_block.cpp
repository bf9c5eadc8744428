// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/opt_block.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cbq/nn/dense_linear.hpp>

#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/random_model.hpp"

using namespace cbq;

namespace {

DenseLinear<float> dense(const support::Weights& w) {
  return *DenseLinear<float>::create(support::input(w.values, w.inputs), w.bias);
}

}  // namespace

TEST_CASE("An OPT block equals the definition in double") {
  const SerialExecutor serial;
  const support::RandomOpt opt;
  const auto block = opt.block(opt.layers[0], dense);
  const auto learned = LearnedPositions::create(support::input(opt.positions, 40));
  REQUIRE(learned);
  CHECK(learned->max_positions() == 50);
  for (const Isa isa : support::machine_isas()) {
    ExecutionContext<> context(serial, isa);
    for (const std::size_t tokens : {1u, 30u}) {
      CAPTURE(isa_name(isa), tokens);
      auto h = support::normal(tokens * 40, 3);
      const auto wanted = opt.reference(opt.layers[0], oracle::Matrix(tokens, 40, h));
      auto cache = block.make_cache(tokens);
      const std::vector<std::uint32_t> positions(tokens, 0);
      REQUIRE(block.forward(support::view(h, 40), *learned, positions, *cache, context));
      CHECK(oracle::distance(h, wanted) < 2e-6);
    }
  }
}

TEST_CASE("Learned positions are rows of the table from the third on") {
  const support::RandomOpt opt;
  const auto learned = LearnedPositions::create(support::input(opt.positions, 40));
  std::vector<float> h(3 * 40, 1.0f);
  const std::vector<std::uint32_t> positions = {0, 49, 7};
  REQUIRE(learned->add_to(support::view(h, 40), positions));
  for (std::size_t t = 0; t < 3; ++t) {
    for (std::size_t i = 0; i < 40; ++i) CHECK(h[t * 40 + i] == 1.0f + opt.positions[(positions[t] + 2) * 40 + i]);
  }
  const std::vector<std::uint32_t> beyond = {0, 50, 7};
  CHECK(learned->add_to(support::view(h, 40), beyond).error().code == Errc::bad_argument);
  CHECK(learned->add_to(matrix_view(h.data(), 3, 39), positions).error().code == Errc::bad_shape);
  CHECK(LearnedPositions::create(matrix_view<const float>(opt.positions.data(), 2, 40)).error().code ==
        Errc::bad_shape);
}

TEST_CASE("An OPT block refuses parts that do not fit its configuration") {
  const support::RandomOpt opt;
  const support::Layer& l = opt.layers[0];
  const auto create = [&](const OptConfig& config) {
    OptBlockParts<DenseLinear<float>> parts{*LayerNorm::create(l.first_norm, l.first_bias, 1e-5f),
                                            {dense(l.query), dense(l.key), dense(l.value), dense(l.output)},
                                            *LayerNorm::create(l.second_norm, l.second_bias, 1e-5f),
                                            {dense(l.up), dense(l.down)}};
    return OptBlock<DenseLinear<float>>::create(config, std::move(parts));
  };
  CHECK(create(opt.config));
  OptConfig config = opt.config;
  config.heads = 3;  // does not divide 40
  CHECK(create(config).error().code == Errc::bad_shape);
  config.heads = 0;
  CHECK(create(config).error().code == Errc::bad_shape);
  config = opt.config;
  config.intermediate = 65;
  CHECK(create(config).error().code == Errc::bad_shape);
}
