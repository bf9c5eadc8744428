// SPDX-License-Identifier: Apache-2.0

// Drops tokens of a prompt in a host's own loop over layers: attention shows what tokens give to the first one, a
// schedule says how many go, and hidden states and positions of those that stay move to the front, before the
// feed-forward layer. Caches of later layers hold fewer tokens; a token that follows the prompt sees in each layer what
// its cache has. The layers here have no weights: what matters is the order of the calls.
//   token_pruning [SPARSITY]

#include <cbq/kv.hpp>
#include <cbq/prune.hpp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <span>
#include <string>
#include <vector>

namespace {

constexpr std::size_t layers = 8;
constexpr cbq::AttentionShape shape = {.heads = 4, .kv_heads = 4, .width = 16};
constexpr std::size_t hidden_size = shape.heads * shape.width;
constexpr std::size_t prompt = 256;

/// Some tokens of a call that are still there.
struct Tokens {
  std::vector<float> hidden;
  std::vector<std::uint32_t> positions;

  [[nodiscard]] cbq::MatrixView<float> rows() { return cbq::matrix_view(hidden.data(), positions.size(), hidden_size); }
};

/// hidden += attention(hidden); writes the weights of position 0 [tokens x heads].
cbq::Status attend(Tokens& tokens, cbq::FloatKvCache& cache, std::vector<float>& first_weights,
                   cbq::ExecutionContext<>& context) {
  const auto rows = tokens.rows();
  if (const cbq::Status done = cache.append(as_const(rows), as_const(rows)); !done) return done;
  std::vector<float> mixed(rows.rows * hidden_size);
  first_weights.resize(rows.rows * shape.heads);
  cbq::AttentionScores scores(1 / std::sqrt(static_cast<float>(shape.width)));
  scores.first_weights = cbq::matrix_view(first_weights.data(), rows.rows, shape.heads);
  const auto out = cbq::matrix_view(mixed.data(), rows.rows, hidden_size);
  if (const cbq::Status done = cbq::attend(as_const(rows), cache, scores, out, context); !done) return done;
  for (std::size_t i = 0; i < mixed.size(); ++i) tokens.hidden[i] += mixed[i];
  return {};
}

/// Drops what the schedule says; the first and the last token stay.
cbq::Status prune(Tokens& tokens, const cbq::PruningSchedule& schedule, std::size_t layer,
                  const std::vector<float>& first_weights) {
  const std::size_t count = tokens.positions.size();
  const std::size_t drop = cbq::dropped_tokens(schedule, layer, count);
  std::vector<float> importance(count);
  cbq::sum_heads(cbq::matrix_view(first_weights.data(), count, shape.heads), importance);
  std::vector<std::uint32_t> survivors(count);
  const auto left = cbq::select_survivors({layer, importance, tokens.positions, prompt}, drop, {}, survivors);
  if (!left) return left.error();
  survivors.resize(*left);
  cbq::gather_rows<float>(survivors, tokens.rows());
  cbq::gather_elements<std::uint32_t>(survivors, tokens.positions);
  tokens.positions.resize(*left);
  tokens.hidden.resize(*left * hidden_size);
  return {};
}

/// Stands for a feed-forward layer: works on each row alone.
void feed_forward(Tokens& tokens) {
  for (float& value : tokens.hidden) value += 0.5f * std::tanh(value);
}

cbq::Status run(double sparsity) {
  const auto schedule = cbq::with_sparsity(cbq::quarter_schedule(layers), sparsity);
  if (!schedule) return schedule.error();
  const cbq::SerialExecutor serial;
  cbq::ExecutionContext<> context(serial);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto draw = [&](std::size_t first, std::size_t count) {
    Tokens tokens;
    for (std::size_t i = 0; i < count * hidden_size; ++i) tokens.hidden.push_back(normal(random));
    for (std::size_t t = 0; t < count; ++t) tokens.positions.push_back(static_cast<std::uint32_t>(first + t));
    return tokens;
  };
  Tokens text = draw(0, prompt), next = draw(prompt, 1);
  std::vector<float> weights;
  for (std::size_t layer = 0; layer < layers; ++layer) {
    auto cache = cbq::FloatKvCache::create(shape.kv_heads, shape.width, prompt + 1);
    if (!cache) return cache.error();
    if (const cbq::Status done = attend(text, *cache, weights, context); !done) return done;
    if (const cbq::Status done = prune(text, *schedule, layer, weights); !done) return done;
    feed_forward(text);
    // A token behind the prompt runs through all layers and is never dropped.
    if (const cbq::Status done = attend(next, *cache, weights, context); !done) return done;
    feed_forward(next);
    std::printf("layer %zu: attention over %zu tokens, %zu go on\n", layer, cache->size() - 1, text.positions.size());
  }
  std::printf("mean token sparsity %.3f, asked for %.3f\n", cbq::token_sparsity(*schedule), sparsity);
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const cbq::Status status = run(argc > 1 ? std::atof(argv[1]) : 0.25);
  if (status) return 0;
  std::string text;
  cbq::append_message(text, status.error());
  std::fprintf(stderr, "token_pruning: %s\n", text.c_str());
  return 1;
}
