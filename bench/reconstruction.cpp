// SPDX-License-Identifier: Apache-2.0

// reconstruction/hidden:<h>/heads:<q>x<kv>/inner:<i>/batch:<b>/threads:<t>: a step of reconstruct() on a window of two
// LLaMA blocks at 2 bits in groups of 64, sequences of 512 tokens: rounding, forward, loss, backward, Adam. GOPS counts
// what products need: 6 operations per weight and token, and of attention six products of the lower triangle (two
// forward, four backward). Setting up a window and passing sequences through finished blocks is left out.

#include <chrono>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <cbq/loss/squared.hpp>
#include <cbq/nn/activation_site.hpp>
#include <cbq/nn/block_gradient.hpp>
#include <cbq/nn/head_gradient.hpp>
#include <cbq/nn/self_attention.hpp>
#include <cbq/reconstruct/reconstruction.hpp>
#include <cbq/rounding/straight_through.hpp>

#include "machine.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

constexpr std::size_t length = 512, sequences = 16, window_blocks = 2;
constexpr cbq::Grid two_bits = {
    .bits = 2, .granularity = cbq::Granularity::per_group, .group = 64, .zero = cbq::Zero::affine};

struct Size {
  std::size_t hidden = 0;
  cbq::AttentionShape heads;
  std::size_t inner = 0;

  [[nodiscard]] std::size_t query_width() const { return heads.heads * heads.width; }
  [[nodiscard]] std::size_t key_width() const { return heads.kv_heads * heads.width; }
  [[nodiscard]] std::size_t weights() const { return 2 * hidden * (query_width() + key_width()) + 3 * hidden * inner; }
};

std::vector<float> normal(std::size_t size, std::uint64_t seed, double deviation) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> distribution(0, static_cast<float>(deviation));
  std::vector<float> values(size);
  for (float& value : values) value = distribution(random);
  return values;
}

/// Blocks of one size, all with the same random weights.
class RandomModel {
 public:
  using Scalar = float;
  using Site = cbq::ActivationSite<float>;
  using Trained = cbq::TrainableLinear<cbq::StraightThrough<float>>;
  using Dense = cbq::DenseGradient<float>;
  using Student = cbq::LlamaBlockGradient<Trained, Site>;
  using Teacher = cbq::LlamaBlockGradient<Dense, Site>;
  using Head = cbq::HeadGradient<cbq::RmsNormGradient<float>, Dense>;

  [[nodiscard]] static cbq::Result<RandomModel> create(const Size& size) {
    cbq::Result<cbq::RotaryTable> table = cbq::RotaryTable::create({}, size.heads.width, length);
    if (!table) return table.error();
    return RandomModel(size, *std::move(table));
  }

  [[nodiscard]] std::size_t blocks() const { return window_blocks; }
  [[nodiscard]] Head* head() { return nullptr; }
  [[nodiscard]] cbq::Result<Teacher> open_teacher(std::size_t) const {
    return open<Dense>([](const cbq::MatrixView<const float>& w) { return cbq::Result<Dense>(Dense(w)); });
  }
  [[nodiscard]] cbq::Result<Student> open_student(std::size_t) const {
    return open<Trained>([](const cbq::MatrixView<const float>& w) { return Trained::create(w, {}, two_bits, {}, 0); });
  }
  [[nodiscard]] cbq::Status finish(std::size_t, Student&) { return {}; }

 private:
  RandomModel(const Size& size, cbq::RotaryTable table)
      : size_(size), rotary_(std::move(table)), gains_(size.hidden, 1.0f) {
    const std::size_t hidden = size.hidden, query = size.query_width(), key = size.key_width(), inner = size.inner;
    for (const auto& [outputs, inputs] : {std::pair{query, hidden},
                                          {key, hidden},
                                          {key, hidden},
                                          {hidden, query},
                                          {inner, hidden},
                                          {inner, hidden},
                                          {hidden, inner}}) {
      weights_.push_back(
          {normal(outputs * inputs, weights_.size(), 1 / std::sqrt(static_cast<double>(inputs))), outputs, inputs});
    }
  }

  template <class L, class Make>
  [[nodiscard]] cbq::Result<cbq::LlamaBlockGradient<L, Site>> open(const Make& make) const {
    std::vector<L> linears;
    for (const Weights& w : weights_) {
      cbq::Result<L> linear = make(cbq::matrix_view(w.values.data(), w.outputs, w.inputs));
      if (!linear) return linear.error();
      linears.push_back(*std::move(linear));
    }
    auto attention = cbq::SelfAttentionGradient<L, Site>::create(
        size_.heads, &rotary_,
        {std::move(linears[0]), std::move(linears[1]), std::move(linears[2]), std::move(linears[3])});
    if (!attention) return attention.error();
    auto mlp =
        cbq::GatedMlpGradient<L, Site>::create({std::move(linears[4]), std::move(linears[5]), std::move(linears[6])});
    if (!mlp) return mlp.error();
    const cbq::RmsNormGradient<float> norm(gains_, 1e-5);
    return cbq::LlamaBlockGradient<L, Site>(norm, *std::move(attention), norm, *std::move(mlp));
  }

  struct Weights {
    std::vector<float> values;
    std::size_t outputs = 0;
    std::size_t inputs = 0;
  };
  Size size_;
  cbq::RotaryTable rotary_;
  std::vector<float> gains_;
  std::vector<Weights> weights_;
};

void run(benchmark::State& state, const Size& size, std::size_t batch, std::size_t thread_count) {
  using Clock = std::chrono::steady_clock;
  constexpr std::size_t timed_steps = 10;
  const Threads executor = threads(thread_count);
  cbq::ExecutionContext<Threads> context(executor, cbq::detect());
  for ([[maybe_unused]] auto _ : state) {
    cbq::Result<RandomModel> model = RandomModel::create(size);
    if (!model) return skip(state, model.error());
    std::vector<float> target = normal(sequences * length * size.hidden, 99, 1), student = target;
    const auto view = [&](std::vector<float>& values) {
      return cbq::matrix_view(values.data(), sequences * length, size.hidden);
    };
    Clock::time_point first, last;
    cbq::ReconstructionOptions options{.steps = timed_steps + 1, .batch = batch};
    options.progress = [&](const cbq::ReconstructionProgress& now) {
      last = Clock::now();
      if (now.step == 1) first = last;
    };
    const auto reports =
        cbq::reconstruct(*model, {view(target), view(student), length}, cbq::SquaredLoss::normalized, options, context);
    if (!reports) return skip(state, reports.error());
    state.SetIterationTime(std::chrono::duration<double>(last - first).count() / timed_steps);
  }
  const auto tokens = static_cast<double>(batch * length);
  const double products = 6 * static_cast<double>(size.weights()) * tokens;
  const double attention = 6 * static_cast<double>(size.query_width() * (length + 1)) * tokens;
  set_rates(state, window_blocks * (products + attention), 0);
}

}  // namespace

void register_reconstruction(const Selection& selection) {
  if (!selection.everything) return;
  // The embedded model, one of 14 million parameters in 8 layers, SmolLM2-135M.
  for (const Size& size : {Size{256, {4, 2, 64}, 512}, Size{384, {6, 6, 64}, 1024}, Size{576, {9, 3, 64}, 1536}}) {
    for (const std::size_t batch : {1u, 8u}) {
      for (const std::size_t thread_count : thread_counts()) {
        const std::string name = "reconstruction/hidden:" + std::to_string(size.hidden) +
                                 "/heads:" + std::to_string(size.heads.heads) + "x" +
                                 std::to_string(size.heads.kv_heads) + "/inner:" + std::to_string(size.inner) +
                                 "/batch:" + std::to_string(batch) + "/threads:" + std::to_string(thread_count);
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          run(state, size, batch, thread_count);
        })->UseManualTime();
      }
    }
  }
}

}  // namespace bench
