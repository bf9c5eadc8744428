// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/decoded_attention_gradient.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cmath>
#include <vector>

#include "support/kernels.hpp"
#include "support/nn.hpp"

using namespace cbq;

namespace {

constexpr AttentionShape heads = {4, 2, 6};
constexpr std::size_t kv_width = 12, q_width = 24;

enum Operand : std::size_t { q, k, v, own_k, own_v, operands };

// Operands of attention, and slopes of its result.
template <class T>
struct Problem {
  std::size_t length = 0;
  std::array<std::vector<T>, operands> values;
  std::vector<T> slopes;

  Problem(std::size_t sequences, std::size_t tokens) : length(tokens) {
    for (std::size_t i = 0; i < operands; ++i) {
      const auto made =
          support::normal(sequences * length * (i == q ? q_width : kv_width), static_cast<unsigned>(i + 1));
      values[i] = {made.begin(), made.end()};
    }
    const auto made = support::normal(sequences * length * q_width, 20);
    slopes = {made.begin(), made.end()};
  }

  [[nodiscard]] SequenceAttention shape() const { return {heads, length, 0.4}; }
  [[nodiscard]] MatrixView<const T> view(Operand which) const {
    const std::size_t width = which == q ? q_width : kv_width;
    return matrix_view<const T>(values[which].data(), values[which].size() / width, width);
  }
  [[nodiscard]] AttentionOperands<const T> exact() const { return {view(q), view(k), view(v)}; }
  [[nodiscard]] AttentionOperands<const T> apart() const {
    return {view(q), view(k), view(v), view(own_k), view(own_v)};
  }
};

template <class T>
MatrixView<T> matrix(std::vector<T>& values, std::size_t width) {
  return matrix_view(values.data(), values.size() / width, width);
}

template <class T, class E = SerialExecutor>
std::vector<T> attend(const Problem<T>& problem, const AttentionOperands<const T>& given, const E& executor = {}) {
  ExecutionContext<E> context(executor);
  std::vector<T> out(problem.slopes.size());
  REQUIRE(attend_sequences(given, problem.shape(), matrix(out, q_width), context));
  return out;
}

template <class T, class E = SerialExecutor>
std::array<std::vector<T>, operands> gradients(const Problem<T>& problem, const E& executor = {}) {
  const std::vector<T> out = attend(problem, problem.apart(), executor);
  ExecutionContext<E> context(executor);
  std::array<std::vector<T>, operands> all = problem.values;  // to be overwritten
  const AttentionOperands<T> to{matrix(all[q], q_width), matrix(all[k], kv_width), matrix(all[v], kv_width),
                                matrix(all[own_k], kv_width), matrix(all[own_v], kv_width)};
  REQUIRE(attend_sequences_backward(
      problem.apart(), problem.shape(), matrix_view<const T>(out.data(), out.size() / q_width, q_width),
      matrix_view<const T>(problem.slopes.data(), out.size() / q_width, q_width), to, context));
  return all;
}

double loss(const Problem<double>& problem) {
  const std::vector<double> out = attend(problem, problem.apart());
  double sum = 0;
  for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * problem.slopes[i];
  return sum;
}

// The formula, token by token.
std::vector<double> oracle(const Problem<double>& problem) {
  std::vector<double> out(problem.slopes.size());
  const std::size_t tokens = out.size() / q_width;
  for (std::size_t t = 0; t < tokens; ++t) {
    const std::size_t start = t - t % problem.length;
    for (std::size_t h = 0; h < heads.heads; ++h) {
      const std::size_t group = h / (heads.heads / heads.kv_heads) * heads.width;
      std::vector<double> weights;
      double sum = 0;
      for (std::size_t j = start; j <= t; ++j) {
        const double* key = row(problem.view(j == t ? own_k : k), j) + group;
        double score = 0;
        for (std::size_t c = 0; c < heads.width; ++c) score += row(problem.view(q), t)[h * heads.width + c] * key[c];
        weights.push_back(std::exp(0.4 * score));
        sum += weights.back();
      }
      for (std::size_t j = start; j <= t; ++j) {
        const double* value = row(problem.view(j == t ? own_v : v), j) + group;
        for (std::size_t c = 0; c < heads.width; ++c) {
          out[t * q_width + h * heads.width + c] += weights[j - start] / sum * value[c];
        }
      }
    }
  }
  return out;
}

KvSite<float> site(int bits, unsigned seed) {
  std::vector<float> scales;
  for (const float s : support::normal(kv_width, seed, 0.3f)) scales.push_back(std::exp(s));
  return *KvSite<float>::create({.bits = bits, .width = heads.width}, scales, support::normal(kv_width, seed + 1));
}

}  // namespace

TEST_CASE("What a token sees at its own position can be another than what later ones see") {
  const Problem<double> problem(2, 9);
  const std::vector<double> out = attend(problem, problem.apart()), wanted = oracle(problem);
  for (std::size_t i = 0; i < out.size(); ++i) CHECK(out[i] == Catch::Approx(wanted[i]).margin(1e-12));
}

TEST_CASE("Gradients of past and own keys and values are central differences") {
  Problem<double> problem(2, 7);
  const auto all = gradients(problem);
  for (std::size_t which = 0; which < operands; ++which) {
    for (std::size_t i = 0; i < problem.values[which].size(); i += 5) {
      constexpr double h = 1e-6;
      double& value = problem.values[which][i];
      const double kept = value;
      value = kept + h;
      const double above = loss(problem);
      value = kept - h;
      const double below = loss(problem);
      value = kept;
      CAPTURE(which, i);
      CHECK(all[which][i] == Catch::Approx((above - below) / (2 * h)).epsilon(1e-6).margin(1e-8));
    }
  }
  // Nobody sees the last token of a sequence as past.
  for (std::size_t c = 0; c < kv_width; ++c) CHECK(all[k][6 * kv_width + c] == 0.0);
}

TEST_CASE("Floats follow doubles over several blocks of queries, with the same bits for any executor") {
  for (const std::size_t length : {1u, 128u, 301u}) {
    CAPTURE(length);
    const auto single = gradients(Problem<float>(2, length));
    const auto exact = gradients(Problem<double>(2, length));
    CHECK(single == gradients(Problem<float>(2, length), support::ThreadExecutor{}));
    for (std::size_t which = 0; which < operands; ++which) {
      double error = 0, norm = 0;
      for (std::size_t i = 0; i < exact[which].size(); ++i) {
        error += std::pow(static_cast<double>(single[which][i]) - exact[which][i], 2);
        norm += exact[which][i] * exact[which][i];
      }
      CAPTURE(which);
      CHECK(error <= 1e-10 * norm);
    }
  }
}

TEST_CASE("A cache that keeps everything is none; operands that are the same give the same attention") {
  Problem<float> problem(3, 140);
  const std::vector<float> plain = attend(problem, problem.exact());
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  KvSites<float> sites;
  KvSitesTape<float> tape;
  std::vector<float> out(plain.size());
  REQUIRE(sites.attend(problem.exact(), problem.shape(), tape, matrix(out, q_width), context));
  CHECK(out == plain);
  CHECK(tape.bytes() == 0);
  problem.values[own_k] = problem.values[k];
  problem.values[own_v] = problem.values[v];
  const std::vector<float> same = attend(problem, problem.apart());
  for (std::size_t i = 0; i < plain.size(); ++i) CHECK(same[i] == Catch::Approx(plain[i]).epsilon(1e-4).margin(1e-5));
}

TEST_CASE("A simulated cache is its sites, then attention; past-only or not") {
  const Problem<float> problem(2, 20);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const bool past_only : {true, false}) {
    CAPTURE(past_only);
    KvSites<float> sites{site(3, 30), site(2, 40), past_only};
    Problem<float> by_hand(2, 20);
    REQUIRE(sites.keys.forward(problem.view(k), matrix(by_hand.values[k], kv_width), context));
    REQUIRE(sites.values.forward(problem.view(v), matrix(by_hand.values[v], kv_width), context));
    by_hand.values[own_k] = past_only ? problem.values[k] : by_hand.values[k];
    by_hand.values[own_v] = past_only ? problem.values[v] : by_hand.values[v];
    KvSitesTape<float> tape;
    std::vector<float> out(problem.slopes.size());
    REQUIRE(sites.attend(problem.exact(), problem.shape(), tape, matrix(out, q_width), context));
    const std::vector<float> wanted = attend(by_hand, by_hand.apart());
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(out[i] == Catch::Approx(wanted[i]).epsilon(1e-4).margin(1e-5));

    auto pieces = gradients(by_hand);
    for (const Operand which : {k, v}) {
      auto alone = which == k ? site(3, 30) : site(2, 40);
      if (!past_only) {
        for (std::size_t i = 0; i < pieces[which].size(); ++i) pieces[which][i] += pieces[which + 2][i];
      }
      REQUIRE(alone.backward(matrix(pieces[which], kv_width), problem.view(which), {}, context));
      if (past_only) {
        for (std::size_t i = 0; i < pieces[which].size(); ++i) pieces[which][i] += pieces[which + 2][i];
      }
    }
    std::array<std::vector<float>, operands> all = problem.values;
    const AttentionOperands<float> to{matrix(all[q], q_width), matrix(all[k], kv_width), matrix(all[v], kv_width)};
    const std::size_t rows = out.size() / q_width;
    REQUIRE(sites.backward(problem.exact(), problem.shape(), tape,
                           {matrix_view<const float>(out.data(), rows, q_width),
                            matrix_view<const float>(problem.slopes.data(), rows, q_width)},
                           to, context));
    for (const Operand which : {q, k, v}) {
      for (std::size_t i = 0; i < all[which].size(); ++i) {
        CHECK(all[which][i] == Catch::Approx(pieces[which][i]).epsilon(1e-3).margin(1e-4));
      }
    }
    CHECK(sites.keys.parameters()[0].gradients[3] != 0.0f);
    CHECK(sites.values.parameters()[1].gradients[3] != 0.0f);
  }
}

TEST_CASE("Own keys need own values, of their shape") {
  Problem<float> problem(1, 5);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  std::vector<float> out(problem.slopes.size());
  auto given = problem.apart();
  given.own_v = {};
  CHECK(attend_sequences(given, problem.shape(), matrix(out, q_width), context).error().code == Errc::bad_shape);
  given = problem.apart();
  given.own_k.rows = 4;
  CHECK(attend_sequences(given, problem.shape(), matrix(out, q_width), context).error().code == Errc::bad_shape);
  given = problem.exact();
  given.v.columns = kv_width / 2;
  CHECK(attend_sequences(given, problem.shape(), matrix(out, q_width), context).error().code == Errc::bad_shape);
  given = problem.exact();
  given.k.rows = 4;
  CHECK(attend_sequences(given, problem.shape(), matrix(out, q_width), context).error().code == Errc::bad_shape);
}

TEST_CASE("Gradients have the shapes of operands; own keys and values need their own") {
  const Problem<float> problem(1, 5);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const std::vector<float> out = attend(problem, problem.apart());
  const auto rows = matrix_view<const float>(out.data(), 5, q_width);
  std::array<std::vector<float>, operands> all = problem.values;
  const AttentionOperands<float> whole{matrix(all[q], q_width), matrix(all[k], kv_width), matrix(all[v], kv_width),
                                       matrix(all[own_k], kv_width), matrix(all[own_v], kv_width)};
  const auto code = [&](const AttentionOperands<float>& to) {
    const Status done = attend_sequences_backward(problem.apart(), problem.shape(), rows, rows, to, context);
    return done ? Errc{} : done.error().code;
  };
  CHECK(code(whole) == Errc{});
  AttentionOperands<float> to = whole;
  to.own_k = to.own_v = {};
  CHECK(code(to) == Errc::bad_shape);
  to = whole;
  to.own_v = {};
  CHECK(code(to) == Errc::bad_shape);
  to = whole;
  to.v.rows = 4;
  CHECK(code(to) == Errc::bad_shape);
}

TEST_CASE("A cache of other heads than attention's is refused") {
  const Problem<float> problem(1, 5);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  std::vector<float> out(problem.slopes.size());
  std::array<std::vector<float>, operands> all = problem.values;
  const AttentionOperands<float> to{matrix(all[q], q_width), matrix(all[k], kv_width), matrix(all[v], kv_width)};
  const auto rows = matrix_view<const float>(problem.slopes.data(), 5, q_width);
  struct Heads {
    std::size_t channels, width;
  };
  for (const Heads other : {Heads{6, 6}, {24, 6}, {12, 12}, {12, 3}}) {
    for (const Operand which : {k, v}) {
      CAPTURE(other.channels, other.width, which);
      KvSites<float> sites;
      (which == k ? sites.keys : sites.values) =
          *KvSite<float>::create({.width = other.width}, std::vector<float>(other.channels, 1.0f));
      KvSitesTape<float> tape;
      const Status done = sites.attend(problem.exact(), problem.shape(), tape, matrix(out, q_width), context);
      REQUIRE_FALSE(done);
      CHECK(done.error().code == Errc::bad_shape);
      const Status back = sites.backward(problem.exact(), problem.shape(), tape, {rows, rows}, to, context);
      REQUIRE_FALSE(back);
      CHECK(back.error().code == Errc::bad_shape);
    }
  }
}
