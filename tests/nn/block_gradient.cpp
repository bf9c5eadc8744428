// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/block_gradient.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <cbq/nn/activation_site.hpp>
#include <cbq/nn/dense_linear.hpp>

#include "support/kernels.hpp"
#include "support/random_model.hpp"
#include "support/trained_linear.hpp"

using namespace cbq;
using support::TrainedLinear;

namespace {

template <class T>
using Linear = TrainedLinear<T>;
template <class T>
using Site = ActivationSite<T>;

template <class T>
Linear<T> trained(const support::Weights& w) {
  return {w.outputs, w.inputs, w.values, w.bias};
}

template <class T>
std::vector<T> as(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

template <class T>
SelfAttentionGradient<Linear<T>, Site<T>> attention_of(const support::Layer& layer, const AttentionShape& heads,
                                                       const AttentionPositions& positions) {
  return *SelfAttentionGradient<Linear<T>, Site<T>>::create(
      heads, positions,
      {trained<T>(layer.query), trained<T>(layer.key), trained<T>(layer.value), trained<T>(layer.output)});
}

// A LLaMA layer with all that it refers to.
template <class T>
struct Llama {
  using Block = LlamaBlockGradient<Linear<T>, Site<T>>;
  explicit Llama(const support::RandomLlama& model)
      : layer(model.layers[0]),
        rotary(*RotaryTable::create(model.config.rotary, model.config.attention.width, 512)),
        first(as<T>(layer.first_norm)),
        second(as<T>(layer.second_norm)),
        block({first, static_cast<double>(model.config.norm_epsilon)},
              attention_of<T>(layer, model.config.attention, &rotary),
              {second, static_cast<double>(model.config.norm_epsilon)},
              *GatedMlpGradient<Linear<T>, Site<T>>::create(
                  {trained<T>(layer.gate), trained<T>(layer.up), trained<T>(layer.down)})) {}
  Llama(const Llama&) = delete;
  Llama& operator=(const Llama&) = delete;

  const support::Layer& layer;
  RotaryTable rotary;
  std::vector<T> first, second;
  Block block;
};

template <class T>
struct Opt {
  using Block = OptBlockGradient<Linear<T>, Site<T>>;
  explicit Opt(const support::RandomOpt& model)
      : layer(model.layers[0]),
        first(as<T>(layer.first_norm)),
        second(as<T>(layer.second_norm)),
        first_bias(as<T>(layer.first_bias)),
        second_bias(as<T>(layer.second_bias)),
        block({first, first_bias, static_cast<double>(model.config.norm_epsilon)},
              attention_of<T>(layer, attention_shape(model.config), placed(model)),
              {second, second_bias, static_cast<double>(model.config.norm_epsilon)},
              *PlainMlpGradient<Linear<T>, Site<T>>::create({trained<T>(layer.up), trained<T>(layer.down)},
                                                            model.config.activation)) {}
  Opt(const Opt&) = delete;
  Opt& operator=(const Opt&) = delete;

  static AttentionPositions placed(const support::RandomOpt& model) {
    AttentionPositions positions(nullptr);
    positions.slopes = model.slopes;
    return positions;
  }

  const support::Layer& layer;
  std::vector<T> first, second, first_bias, second_bias;
  Block block;
};

// L = sum of y o weights for fixed weights.
template <class Block>
struct Problem {
  using T = typename Block::Scalar;
  Block& block;
  std::size_t hidden;
  std::size_t length;
  std::vector<T> x;
  std::vector<T> slopes;

  template <class E>
  std::vector<T> forward(ExecutionContext<E>& context, typename Block::Tape& tape) const {
    std::vector<T> y(x.size());
    const auto in = matrix_view<const T>(x.data(), x.size() / hidden, hidden);
    REQUIRE(block.forward(in, length, matrix_view(y.data(), in.rows, hidden), tape, context));
    return y;
  }
  [[nodiscard]] double loss() const {
    const SerialExecutor serial;
    ExecutionContext<> context(serial);
    typename Block::Tape tape;
    const std::vector<T> y = forward(context, tape);
    double sum = 0;
    for (std::size_t i = 0; i < y.size(); ++i) sum += static_cast<double>(y[i] * slopes[i]);
    return sum;
  }
  template <class E>
  std::vector<T> backward(ExecutionContext<E>& context) const {
    typename Block::Tape tape;
    (void)forward(context, tape);
    std::vector<T> dx(x.size());
    const std::size_t rows = x.size() / hidden;
    REQUIRE(block.backward(matrix_view<const T>(slopes.data(), rows, hidden),
                           matrix_view<const T>(x.data(), rows, hidden), length, tape,
                           matrix_view(dx.data(), rows, hidden), context));
    CHECK(tape.bytes() > 4 * x.size() * sizeof(T));
    return dx;
  }
};

template <class Block>
Problem<Block> problem(Block& block, std::size_t hidden, std::size_t sequences, std::size_t length) {
  using T = typename Block::Scalar;
  const std::size_t count = sequences * length * hidden;
  return {block, hidden, length, as<T>(support::normal(count, 5)), as<T>(support::normal(count, 6))};
}

// Central differences at some places of `values` against `gradient`.
template <class Block>
void check_differences(Problem<Block>& problem, std::vector<double>& values, const std::vector<double>& gradient,
                       std::size_t step) {
  REQUIRE(values.size() == gradient.size());
  for (std::size_t i = 0; i < values.size(); i += step) {
    const double kept = values[i];
    constexpr double h = 1e-5;
    values[i] = kept + h;
    const double above = problem.loss();
    values[i] = kept - h;
    const double below = problem.loss();
    values[i] = kept;
    const double difference = (above - below) / (2 * h);
    CAPTURE(i);
    CHECK(gradient[i] == Catch::Approx(difference).epsilon(1e-6).margin(1e-7));
  }
}

template <class Block>
void check_gradients(Block& block, std::size_t hidden) {
  Problem<Block> of = problem(block, hidden, 2, 7);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const std::vector<double> dx = of.backward(context);
  check_differences(of, of.x, dx, 13);
  block.for_each_linear([&](const char* name, TrainedLinear<double>& linear) {
    CAPTURE(name);
    check_differences(of, linear.weights, linear.gradient, 97);
  });
}

}  // namespace

TEST_CASE("Gradients of a LLaMA block equal central differences") {
  const support::RandomLlama model(true);
  Llama<double> llama(model);
  check_gradients(llama.block, model.config.shape.hidden);
}

TEST_CASE("Gradients of an OPT block equal central differences") {
  const support::RandomOpt model;
  Opt<double> opt(model);
  check_gradients(opt.block, model.config.shape.hidden);
}

TEST_CASE("Gradients of a BLOOM block equal central differences") {
  support::RandomBloom model;
  model.config.activation = GENERATE(Activation::gelu_tanh, Activation::gelu_erf);
  Opt<double> bloom(model);
  check_gradients(bloom.block, model.config.shape.hidden);
}

TEST_CASE("The forward pass for calibration is that of the model") {
  const support::RandomLlama model(false);
  Llama<float> llama(model);
  const std::size_t hidden = model.config.shape.hidden;
  const auto one = problem(llama.block, hidden, 1, 40);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  Llama<float>::Block::Tape tape;
  const std::vector<float> y = one.forward(context, tape);
  const auto wanted = model.reference(model.layers[0], oracle::Matrix(40, hidden, one.x));
  CHECK(oracle::distance(y, wanted) < 2e-6);
}

TEST_CASE("The forward pass of OPT and BLOOM blocks for calibration is that of the model") {
  for (const support::RandomOpt& model : {support::RandomOpt(), support::RandomOpt(support::RandomBloom())}) {
    Opt<float> opt(model);
    const std::size_t hidden = model.config.shape.hidden;
    const auto one = problem(opt.block, hidden, 1, 40);
    const SerialExecutor serial;
    ExecutionContext<> context(serial);
    Opt<float>::Block::Tape tape;
    const std::vector<float> y = one.forward(context, tape);
    const auto wanted = model.reference(model.layers[0], oracle::Matrix(40, hidden, one.x));
    CHECK(oracle::distance(y, wanted) < 2e-6);
  }
}

TEST_CASE("Sequences do not see one another, and floats follow doubles over several blocks of queries") {
  const support::RandomLlama model(true);
  const std::size_t hidden = model.config.shape.hidden;
  Llama<float> single(model);
  Llama<double> exact(model);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const std::size_t length : {1u, 127u, 129u, 300u}) {
    CAPTURE(length);
    const auto few = problem(single.block, hidden, 2, length);
    const auto many = problem(exact.block, hidden, 2, length);
    const std::vector<float> dx = few.backward(context);
    const std::vector<double> wanted = many.backward(context);
    double error = 0, norm = 0;
    for (std::size_t i = 0; i < dx.size(); ++i) {
      error += (static_cast<double>(dx[i]) - wanted[i]) * (static_cast<double>(dx[i]) - wanted[i]);
      norm += wanted[i] * wanted[i];
    }
    CHECK(error < 1e-10 * norm);
    // The second sequence alone has the same gradient.
    Problem<Llama<float>::Block> alone{
        single.block,
        hidden,
        length,
        {few.x.begin() + static_cast<std::ptrdiff_t>(dx.size() / 2), few.x.end()},
        {few.slopes.begin() + static_cast<std::ptrdiff_t>(dx.size() / 2), few.slopes.end()}};
    const std::vector<float> second = alone.backward(context);
    for (std::size_t i = 0; i < second.size(); i += 7) {
      CHECK(second[i] == Catch::Approx(dx[dx.size() / 2 + i]).epsilon(1e-4).margin(1e-4));
    }
  }
}

TEST_CASE("Gradients have the same bits for any executor") {
  const support::RandomLlama model(true);
  const std::size_t hidden = model.config.shape.hidden;
  Llama<float> one(model);
  Llama<float> other(model);
  const SerialExecutor serial;
  const support::ThreadExecutor threads;
  ExecutionContext<> alone(serial);
  ExecutionContext<support::ThreadExecutor> together(threads);
  CHECK(problem(one.block, hidden, 3, 150).backward(alone) == problem(other.block, hidden, 3, 150).backward(together));
  CHECK(one.block.mlp().parts().down.gradient == other.block.mlp().parts().down.gradient);
  CHECK(one.block.attention().parts().key.gradient == other.block.attention().parts().key.gradient);
}

TEST_CASE("Quantized inputs are those of the packed path, and their gradients pass straight through") {
  const support::RandomLlama model(true);
  const std::size_t hidden = model.config.shape.hidden;
  Llama<float> llama(model);
  const Grid grid = schemes::w4a8_g128.activation;
  const auto site = ActivationSite<float>::create(grid);
  REQUIRE(site);
  llama.block.mlp().parts().input_site = *site;
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const auto quantized = problem(llama.block, hidden, 1, 9);
  Llama<float>::Block::Tape tape;
  (void)quantized.forward(context, tape);
  std::vector<float> wanted(9 * hidden);
  REQUIRE(fake_quantize_activations(tape.mlp_input.constant(), grid, support::view(wanted, hidden)));
  const auto seen = tape.mlp.input.constant();
  for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(seen.data[i] == wanted[i]);
}

TEST_CASE("Attention refuses a simulated cache of other heads") {
  const support::RandomLlama model(true);
  const support::Layer& layer = model.layers[0];
  const AttentionShape& heads = model.config.attention;
  for (const std::size_t more : {0u, 1u}) {
    SelfAttentionGradientParts<Linear<float>, Site<float>> parts{trained<float>(layer.query), trained<float>(layer.key),
                                                                 trained<float>(layer.value),
                                                                 trained<float>(layer.output)};
    const std::vector<float> ones((heads.kv_heads + more) * heads.width, 1.0f);
    parts.cache.values = *KvSite<float>::create({.width = heads.width}, ones);
    const auto made = SelfAttentionGradient<Linear<float>, Site<float>>::create(heads, nullptr, std::move(parts));
    CHECK(static_cast<bool>(made) == (more == 0));
    if (!made) CHECK(made.error().code == Errc::bad_shape);
  }
}

TEST_CASE("A block on a simulated cache trains its factors, with the same bits for any executor") {
  const support::RandomLlama model(true);
  const std::size_t hidden = model.config.shape.hidden;
  const AttentionShape& heads = model.config.attention;
  const std::vector<float> ones(heads.kv_heads * heads.width, 1.0f);
  const auto gradients = [&]<class E>(const E& executor) {
    Llama<float> llama(model);
    auto keys = KvSite<float>::create({.bits = 2, .width = heads.width}, ones);
    auto values = KvSite<float>::create({.bits = 4, .width = heads.width}, ones);
    REQUIRE((keys && values));
    llama.block.attention().parts().cache = {*std::move(keys), *std::move(values)};
    ExecutionContext<E> context(executor);
    std::vector<float> all = problem(llama.block, hidden, 2, 20).backward(context);
    std::size_t sites = 0;
    llama.block.for_each_cache([&](const char*, KvSite<float>& site) {
      ++sites;
      for (const ParameterView<float>& view : site.parameters()) {
        float size = 0;
        for (std::size_t c = 0; c < view.size; ++c) size += std::fabs(view.gradients[c]);
        CHECK(size > 0);
        all.insert(all.end(), view.gradients, view.gradients + view.size);
      }
    });
    CHECK(sites == 2);
    return all;
  };
  const std::vector<float> all = gradients(SerialExecutor());
  CHECK(all == gradients(support::ThreadExecutor()));
  Llama<float> plain(model);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const std::vector<float> without = problem(plain.block, hidden, 2, 20).backward(context);
  CHECK_FALSE(std::equal(without.begin(), without.end(), all.begin()));
}
