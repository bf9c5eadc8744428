// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/causal_model.hpp>

#include <catch2/catch_test_macros.hpp>
#include <limits>

#include <cbq/nn/any_linear.hpp>

#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/random_model.hpp"
#include "support/rounded.hpp"

using namespace cbq;

namespace {

using Variant = VariantLinear<DenseLinear<float>, FakeQuantizedLinear, PackedLinear<schemes::w4a8_g32>,
                              PackedLinear<schemes::w8a8>, PackedLinear<make_scheme(4, 8, 32, Zero::affine)>>;

Variant dense(const support::Weights& w) {
  return *DenseLinear<float>::create(support::input(w.values, w.inputs), w.bias);
}
/// A model of mixed schemes: some matrices 8 bits, some 4, some affine.
Scheme mixed_scheme(const support::Weights& w) {
  if (w.outputs == 61) return schemes::w8a8;
  return w.outputs == 48 ? make_scheme(4, 8, 32, Zero::affine) : schemes::w4a8_g32;
}
Variant packed(const support::Weights& w) {
  const Scheme scheme = mixed_scheme(w);
  return *Variant::packed(support::rounded(w.values, w.inputs, scheme.weight).view(), scheme, w.bias);
}
Variant fake(const support::Weights& w) {
  const Scheme scheme = mixed_scheme(w);
  return *FakeQuantizedLinear::create(support::rounded(w.values, w.inputs, scheme.weight).view(), scheme, w.bias);
}

std::vector<std::uint32_t> some_tokens(std::size_t count) {
  std::vector<std::uint32_t> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<std::uint32_t>((i * i + 5 * i + 3) % 61);
  return tokens;
}

/// Logits of all tokens, fed in pieces of the given size.
template <class Model, class E>
std::vector<float> run(const Model& model, const std::vector<std::uint32_t>& tokens, std::size_t piece,
                       ExecutionContext<E>& context) {
  auto cache = model.make_cache(tokens.size());
  REQUIRE(cache);
  std::vector<float> hidden(tokens.size() * 48), logits(tokens.size() * 61);
  for (std::size_t first = 0; first < tokens.size(); first += piece) {
    const std::size_t count = std::min(piece, tokens.size() - first);
    const auto rows_of = rows(support::view(hidden, 48), first, count);
    REQUIRE(model.forward_hidden(std::span(tokens).subspan(first, count), *cache, rows_of, context));
    REQUIRE(model.logits(as_const(rows_of), rows(support::view(logits, 61), first, count), context));
  }
  REQUIRE(cache->size() == tokens.size());
  return logits;
}

}  // namespace

TEST_CASE("A model equals the definition in double; pieces and single tokens equal one prompt") {
  const SerialExecutor serial;
  const support::RandomLlama llama;
  const auto model = llama.model(dense);
  CHECK(model.tied());
  const auto tokens = some_tokens(45);
  const auto wanted = llama.reference_logits(tokens);
  for (const Isa isa : support::machine_isas()) {
    ExecutionContext<> context(serial, isa);
    for (const std::size_t piece : {45u, 16u, 7u, 1u}) {
      CAPTURE(isa_name(isa), piece);
      CHECK(oracle::distance(run(model, tokens, piece, context), wanted) < 5e-6);
    }
  }
}

TEST_CASE("A packed model of mixed schemes computes what its fake-quantized one does, with any executor") {
  const SerialExecutor serial;
  const support::ThreadExecutor threads;
  const support::RandomLlama llama(true);
  const auto packed_model = llama.model(packed), fake_model = llama.model(fake);
  const auto tokens = some_tokens(40);
  const oracle::Matrix exact = llama.reference_logits(tokens);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    ExecutionContext<> context(serial, isa);
    ExecutionContext<support::ThreadExecutor> threaded(threads, isa);
    const auto y = run(packed_model, tokens, 40, context);
    // A float sum that differs in its last bit can move one activation to the next code, so the two are not as close as
    // single operators are; but far closer than either is to the model before quantization.
    const double damage = oracle::distance(y, exact);
    CHECK(damage > 0.03);
    CHECK(oracle::distance(y, oracle::Matrix(40, 61, run(fake_model, tokens, 40, context))) < 0.2 * damage);
    CHECK(run(packed_model, tokens, 40, threaded) == y);
  }
}

TEST_CASE("Untied embeddings are a matrix of their own") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const support::RandomLlama llama;
  using Block = LlamaBlock<Variant>;
  const auto create = [&](std::optional<Variant> embedding) {
    std::vector<Block> blocks;
    for (const auto& l : llama.layers) blocks.push_back(llama.block(l, dense));
    return CausalModel<Block>::create(llama.config,
                                      {std::move(embedding), *RotaryPositions::create(llama.config), std::move(blocks),
                                       *RmsNorm::create(llama.final_norm, 1e-5f), dense(llama.head)});
  };
  const auto tokens = some_tokens(6);
  const auto tied = run(*create(std::nullopt), tokens, 6, context);
  CHECK(run(*create(dense(llama.head)), tokens, 6, context) == tied);
  CHECK(run(*create(packed(llama.head)), tokens, 6, context) != tied);
  CHECK(create(dense(llama.layers[0].query)).error().code == Errc::bad_shape);
}

TEST_CASE("A cache rolls back to any position, and an error leaves it as it was") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const support::RandomLlama llama;
  const auto model = llama.model(dense);
  const auto tokens = some_tokens(30);
  const auto wanted = run(model, tokens, 30, context);
  auto cache = *model.make_cache(30);
  std::vector<float> hidden(30 * 48), last(61);
  const auto feed = [&](std::size_t first, std::size_t count) {
    return model.forward_hidden(std::span(tokens).subspan(first, count), cache, matrix_view(hidden.data(), count, 48),
                                context);
  };
  REQUIRE(feed(0, 12));
  REQUIRE(feed(3, 10));  // not what follows
  cache.truncate(12);
  REQUIRE(feed(12, 17));
  CHECK_FALSE(feed(0, 2));  // only one position is left
  CHECK(cache.size() == 29);
  std::vector<std::uint32_t> beyond = {61};
  CHECK(model.forward_hidden(beyond, cache, matrix_view(hidden.data(), 1, 48), context).error().code ==
        Errc::bad_argument);
  CHECK(cache.size() == 29);
  REQUIRE(feed(29, 1));
  REQUIRE(model.logits(matrix_view<const float>(hidden.data(), 1, 48), support::view(last, 61), context));
  const std::vector<float> end(wanted.end() - 61, wanted.end());
  CHECK(oracle::distance(last, oracle::Matrix(1, 61, end)) < 5e-6);

  auto long_cache = *model.make_cache(200);
  std::vector<float> more(81 * 48);
  CHECK(model.forward_hidden(some_tokens(81), long_cache, support::view(more, 48), context).error().code ==
        Errc::bad_argument);
  ModelCache<> none;
  CHECK(model.forward_hidden(tokens, none, support::view(hidden, 48), context).error().code == Errc::bad_shape);
}

TEST_CASE("An activation that is not finite is an error of the layer that meets it") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  support::RandomLlama llama;
  llama.layers[1].first_norm[3] = std::numeric_limits<float>::infinity();
  const auto model = llama.model(packed);
  auto cache = *model.make_cache(10);
  std::vector<float> hidden(4 * 48);
  const Status failed = model.forward_hidden(some_tokens(4), cache, support::view(hidden, 48), context);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::not_finite);
  CHECK(std::string(failed.error().where.c_str()).find("layer 1") != std::string::npos);
  CHECK(cache.size() == 0);
}

TEST_CASE("The observer sees the embeddings and every layer; later passes allocate nothing") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const support::RandomLlama llama;
  const auto model = llama.model(packed);
  auto cache = *model.make_cache(20);
  std::vector<float> hidden(20 * 48);
  const auto tokens = some_tokens(20);
  std::vector<std::size_t> seen;
  std::size_t bytes = 0;
  for (int pass = 0; pass < 4; ++pass) {
    seen.clear();
    cache.reset();
    REQUIRE(model.forward_hidden(tokens, cache, support::view(hidden, 48), context,
                                 [&](std::size_t layer, const MatrixView<const float>& h) {
                                   seen.push_back(layer);
                                   CHECK((h.rows == 20 && h.columns == 48));
                                 }));
    if (pass == 2) bytes = context.workspace().bytes();
  }
  CHECK(seen == std::vector<std::size_t>{0, 1, 2});
  CHECK(context.workspace().bytes() == bytes);
}
