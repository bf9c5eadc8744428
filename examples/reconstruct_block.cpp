// SPDX-License-Identifier: Apache-2.0

// Reconstructs a block that cbq does not know: an encoder layer whose tokens see each other in both directions. The
// host writes its forward and backward pass around linear layers of a template parameter; with cbq::DenseGradient it is
// the float model, with cbq::TrainableLinear the one whose rounding is trained. Here two such layers with random
// weights take the place of a model.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <cbq/loss/squared.hpp>
#include <cbq/nn/norm_gradient.hpp>
#include <cbq/reconstruct/reconstruction.hpp>
#include <cbq/rounding/straight_through.hpp>

namespace {

constexpr std::size_t width = 32, inner = 64, tokens = 8, sequences = 48;
const float scale = 1 / std::sqrt(static_cast<float>(width));

using cbq::Accumulate;
using cbq::Status;
using In = cbq::MatrixView<const float>;
using Out = cbq::MatrixView<float>;

/// y = m + W2 relu(W1 m),  m = x + Wo softmax(q k^T / sqrt(width)) v
template <class Linear>
struct EncoderBlock {
  using Scalar = float;
  struct Tape {
    cbq::TapeMatrix<float> q, k, v, mix, shares, middle, up, dq, dk, dv, dmix, dup;
  };
  Linear query, key, value, output, up, down;

  template <class F>
  void for_each_linear(F&& f) {
    f("query", query), f("key", key), f("value", value), f("output", output), f("up", up), f("down", down);
  }

  Status forward(const In& x, std::size_t length, const Out& y, Tape& tape, cbq::ExecutionContext<>& context) const {
    for (auto* m : {&tape.q, &tape.k, &tape.v, &tape.mix, &tape.middle, &tape.dq, &tape.dk, &tape.dv, &tape.dmix}) {
      if (const Status taken = m->reshape(x.rows, width); !taken) return taken;
    }
    if (const Status taken = tape.shares.reshape(x.rows, length); !taken) return taken;
    if (const Status taken = tape.up.reshape(x.rows, inner); !taken) return taken;
    if (const Status taken = tape.dup.reshape(x.rows, inner); !taken) return taken;
    if (const Status done = query.forward(x, tape.q.view(), context); !done) return done;
    if (const Status done = key.forward(x, tape.k.view(), context); !done) return done;
    if (const Status done = value.forward(x, tape.v.view(), context); !done) return done;
    attend(length, tape);
    if (const Status done = output.forward(tape.mix.constant(), tape.middle.view(), context); !done) return done;
    add(x, tape.middle.view());
    if (const Status done = up.forward(tape.middle.constant(), tape.up.view(), context); !done) return done;
    for (std::size_t i = 0; i < x.rows * inner; ++i) {
      tape.up.view().data[i] = tape.up.view().data[i] > 0 ? tape.up.view().data[i] : 0.0f;
    }
    if (const Status done = down.forward(tape.up.constant(), y, context); !done) return done;
    add(tape.middle.constant(), y);
    return {};
  }

  Status backward(const In& dy, const In& x, std::size_t length, Tape& tape, const Out& dx,
                  cbq::ExecutionContext<>& context) {
    const auto overwrite = Accumulate::overwrite, more = Accumulate::add;
    if (const Status done = down.backward(dy, tape.up.constant(), tape.dup.view(), overwrite, context); !done)
      return done;
    for (std::size_t i = 0; i < x.rows * inner; ++i) {
      if (tape.up.view().data[i] == 0) tape.dup.view().data[i] = 0;
    }
    if (dx.data != dy.data) std::copy(dy.data, dy.data + dy.rows * width, dx.data);  // dx = dL/dm from here
    if (const Status done = up.backward(tape.dup.constant(), tape.middle.constant(), dx, more, context); !done)
      return done;
    if (const Status done =
            output.backward(cbq::as_const(dx), tape.mix.constant(), tape.dmix.view(), overwrite, context);
        !done)
      return done;
    attend_backward(length, tape);
    if (const Status done = query.backward(tape.dq.constant(), x, dx, more, context); !done) return done;
    if (const Status done = key.backward(tape.dk.constant(), x, dx, more, context); !done) return done;
    return value.backward(tape.dv.constant(), x, dx, more, context);
  }

 private:
  static void add(const In& x, const Out& y) {
    for (std::size_t i = 0; i < x.rows * width; ++i) y.data[i] += x.data[i];
  }
  static float dot(const float* a, const float* b) {
    float sum = 0;
    for (std::size_t i = 0; i < width; ++i) sum += a[i] * b[i];
    return sum;
  }
  static void add_scaled(const float* from, float factor, float* to) {
    for (std::size_t i = 0; i < width; ++i) to[i] += factor * from[i];
  }

  // Every token looks at all tokens of its sequence.
  static void attend(std::size_t length, Tape& tape) {
    for (std::size_t t = 0; t < tape.q.view().rows; ++t) {
      const std::size_t first = t / length * length;
      float* const shares = cbq::row(tape.shares.view(), t);
      float sum = 0;
      for (std::size_t j = 0; j < length; ++j) {
        shares[j] = std::exp(scale * dot(cbq::row(tape.q.view(), t), cbq::row(tape.k.view(), first + j)));
        sum += shares[j];
      }
      float* const mix = cbq::row(tape.mix.view(), t);
      std::fill(mix, mix + width, 0.0f);
      for (std::size_t j = 0; j < length; ++j) {
        shares[j] /= sum;
        add_scaled(cbq::row(tape.v.view(), first + j), shares[j], mix);
      }
    }
  }
  static void attend_backward(std::size_t length, Tape& tape) {
    for (auto* m : {&tape.dq, &tape.dk, &tape.dv})
      std::fill(m->view().data, m->view().data + m->view().rows * width, 0.f);
    std::vector<float> slopes(length);
    for (std::size_t t = 0; t < tape.q.view().rows; ++t) {
      const std::size_t first = t / length * length;
      const float *const shares = cbq::row(tape.shares.view(), t), *const dmix = cbq::row(tape.dmix.view(), t);
      float mean = 0;
      for (std::size_t j = 0; j < length; ++j) {
        slopes[j] = dot(dmix, cbq::row(tape.v.view(), first + j));
        mean += shares[j] * slopes[j];
      }
      for (std::size_t j = 0; j < length; ++j) {
        const float slope = scale * shares[j] * (slopes[j] - mean);
        add_scaled(cbq::row(tape.k.view(), first + j), slope, cbq::row(tape.dq.view(), t));
        add_scaled(cbq::row(tape.q.view(), t), slope, cbq::row(tape.dk.view(), first + j));
        add_scaled(dmix, shares[j], cbq::row(tape.dv.view(), first + j));
      }
    }
  }
};

/// Weights in memory of the host, and the codes that come back.
class Model {
 public:
  using Scalar = float;
  using Trained = cbq::TrainableLinear<cbq::StraightThrough<float>>;
  using Student = EncoderBlock<Trained>;
  using Teacher = EncoderBlock<cbq::DenseGradient<float>>;
  using Head = cbq::HeadGradient<cbq::LayerNormGradient<float>, cbq::DenseGradient<float>>;

  explicit Model(std::size_t blocks) : weights_(blocks * 6) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 0.2f);
    for (std::size_t i = 0; i < weights_.size(); ++i) {
      weights_[i].resize(i % 6 < 4 ? width * width : width * inner);
      for (float& w : weights_[i]) w = normal(random);
    }
  }

  std::size_t blocks() const { return weights_.size() / 6; }
  Head* head() const { return nullptr; }  // no logits here

  cbq::Result<Teacher> open_teacher(std::size_t block) const {
    const auto linear = [&](std::size_t i) { return cbq::DenseGradient<float>(view(block, i)); };
    return Teacher{linear(0), linear(1), linear(2), linear(3), linear(4), linear(5)};
  }
  cbq::Result<Student> open_student(std::size_t block) const {
    const cbq::Grid grid = {
        .bits = 2, .granularity = cbq::Granularity::per_group, .group = 32, .zero = cbq::Zero::affine};
    std::vector<Trained> made;
    for (std::size_t i = 0; i < 6; ++i) {
      cbq::Result<Trained> linear = Trained::create(view(block, i), {}, grid, {}, 0);
      if (!linear) return linear.error();
      made.push_back(*std::move(linear));
    }
    return Student{std::move(made[0]), std::move(made[1]), std::move(made[2]),
                   std::move(made[3]), std::move(made[4]), std::move(made[5])};
  }
  Status finish(std::size_t, Student& student) {
    student.for_each_linear([&](const char*, Trained& linear) { codes.push_back(linear.take_codes()); });
    return {};
  }

  std::vector<cbq::QuantizedMatrix> codes;  ///< ready to be packed

 private:
  In view(std::size_t block, std::size_t i) const {
    return cbq::matrix_view(weights_[block * 6 + i].data(), i == 4 ? inner : width, i == 5 ? inner : width);
  }
  std::vector<std::vector<float>> weights_;
};

}  // namespace

int main() {
  Model model(2);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> target(sequences * tokens * width);
  for (float& x : target) x = normal(random);
  std::vector<float> student = target;

  cbq::ReconstructionOptions options;
  options.steps = 150;
  const cbq::SerialExecutor executor;
  cbq::ExecutionContext<> context(executor);
  const auto states = [](std::vector<float>& x) { return cbq::matrix_view(x.data(), sequences * tokens, width); };
  const auto reports = cbq::reconstruct(model, {states(target), states(student), tokens}, cbq::SquaredLoss::normalized,
                                        options, context);
  if (!reports) {
    std::string message;
    cbq::append_message(message, reports.error());
    std::fprintf(stderr, "%s\n", message.c_str());
    return 1;
  }
  for (const cbq::WindowReport& report : *reports) {
    std::printf(
        "blocks %zu to %zu: share of the signal lost at 2 bits %.3f with nearest rounding, %.3f reconstructed\n",
        report.window.first, report.window.first + report.window.count - 1, report.loss_before, report.loss_after);
    if (!(report.loss_after < report.loss_before)) return 1;
  }
  std::printf("%zu matrices of codes\n", model.codes.size());
  return model.codes.size() == 12 ? 0 : 1;
}
