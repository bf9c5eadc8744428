// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/llama_block.hpp>

#include <catch2/catch_test_macros.hpp>
#include <numeric>

#include <cbq/nn/dense_linear.hpp>
#include <cbq/nn/packed_linear.hpp>

#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/random_model.hpp"
#include "support/rounded.hpp"

using namespace cbq;

namespace {

constexpr Scheme weight_only = schemes::w4a16_g32;

DenseLinear<float> dense(const support::Weights& w) {
  return *DenseLinear<float>::create(support::input(w.values, w.inputs), w.bias);
}

/// Runs a block on all rows of h at once.
template <class Block, class E>
std::vector<float> run(const Block& block, const LlamaConfig& config, std::vector<float> h,
                       ExecutionContext<E>& context) {
  const auto positions_table = RotaryPositions::create(config);
  std::vector<std::uint32_t> positions(h.size() / config.shape.hidden);
  std::iota(positions.begin(), positions.end(), 0u);
  auto cache = block.make_cache(positions.size());
  REQUIRE(cache);
  REQUIRE(block.forward(support::view(h, config.shape.hidden), *positions_table, positions, *cache, context));
  REQUIRE(cache->size() == positions.size());
  return h;
}

}  // namespace

TEST_CASE("A LLaMA block equals the definition in double, with and without biases") {
  const SerialExecutor serial;
  for (const bool biases : {false, true}) {
    const support::RandomLlama llama(biases);
    const auto block = llama.block(llama.layers[0], dense);
    for (const Isa isa : support::machine_isas()) {
      ExecutionContext<> context(serial, isa);
      for (const std::size_t tokens : {1u, 5u, 40u}) {
        CAPTURE(biases, isa_name(isa), tokens);
        const auto h = support::normal(tokens * 48, 3);
        const auto wanted = llama.reference(llama.layers[0], oracle::Matrix(tokens, 48, h));
        CHECK(oracle::distance(run(block, llama.config, h, context), wanted) < 2e-6);
      }
    }
  }
}

TEST_CASE("Queries, keys and values can have a grid per token and head") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto h = support::normal(7 * 48, 3);
  support::RandomLlama llama;
  const auto plain = llama.reference(llama.layers[0], oracle::Matrix(7, 48, h));
  for (const int bits : {4, 8, 16}) {
    CAPTURE(bits);
    llama.config.head_grid = *attention_grid(bits);
    const auto y = run(llama.block(llama.layers[0], dense), llama.config, h, context);
    CHECK(oracle::distance(y, llama.reference(llama.layers[0], oracle::Matrix(7, 48, h))) < 2e-6);
    CHECK((oracle::distance(y, plain) > 1e-5) == (bits != 16));
  }
  for (const int bits : {-4, 0, 3, 5, 32}) {
    const auto grid = attention_grid(bits);
    REQUIRE_FALSE(grid);
    CHECK(grid.error().code == Errc::unsupported);
  }
}

TEST_CASE("A packed block computes what the fake-quantized one does") {
  const SerialExecutor serial;
  const support::ThreadExecutor threads;
  ExecutionContext<> context(serial);
  ExecutionContext<support::ThreadExecutor> threaded(threads);
  const support::RandomLlama llama;
  const auto packed = llama.block(llama.layers[0], [](const support::Weights& w) {
    return *PackedLinear<weight_only>::create(support::rounded(w.values, w.inputs, weight_only.weight).view(), w.bias);
  });
  const auto fake = llama.block(llama.layers[0], [](const support::Weights& w) {
    return *FakeQuantizedLinear::create(support::rounded(w.values, w.inputs, weight_only.weight).view(), weight_only,
                                        w.bias);
  });
  const auto h = support::normal(33 * 48, 3);
  const auto y = run(packed, llama.config, h, context);
  CHECK(oracle::distance(y, oracle::Matrix(33, 48, run(fake, llama.config, h, context))) < 2e-6);
  CHECK(run(packed, llama.config, h, threaded) == y);
  CHECK(oracle::distance(y, llama.reference(llama.layers[0], oracle::Matrix(33, 48, h))) > 1e-3);  // it is quantized
}

TEST_CASE("A block refuses parts that do not fit its configuration") {
  const support::RandomLlama llama;
  const auto create = [&](LlamaConfig config, const support::Layer& l) {
    LlamaBlockParts<DenseLinear<float>> parts{*RmsNorm::create(l.first_norm, 1e-5f),
                                              {dense(l.query), dense(l.key), dense(l.value), dense(l.output)},
                                              *RmsNorm::create(l.second_norm, 1e-5f),
                                              {dense(l.gate), dense(l.up), dense(l.down)}};
    return LlamaBlock<DenseLinear<float>>::create(config, std::move(parts));
  };
  CHECK(create(llama.config, llama.layers[0]));
  LlamaConfig config = llama.config;
  config.intermediate = 71;
  CHECK(create(config, llama.layers[0]).error().code == Errc::bad_shape);
  config = llama.config;
  config.shape.hidden = 47;
  CHECK(create(config, llama.layers[0]).error().code == Errc::bad_shape);
  config = llama.config;
  config.attention.kv_heads = 4;
  const auto wrong = create(config, llama.layers[0]);
  REQUIRE_FALSE(wrong);
  CHECK(std::string(wrong.error().where.c_str()) == "key projection");
  config.attention.kv_heads = 3;
  CHECK(create(config, llama.layers[0]).error().code == Errc::bad_shape);
}
