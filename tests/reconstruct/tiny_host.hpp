// SPDX-License-Identifier: Apache-2.0
#pragma once

// A model for tests of reconstruction: blocks y = x + W2 tanh(W1 x + b), a head of its own, hidden states with a few
// large channels.

#include <cmath>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <cbq/loss/squared.hpp>
#include <cbq/reconstruct/reconstruction.hpp>
#include <cbq/rounding/straight_through.hpp>
#include "support/nn.hpp"

namespace tiny {

inline constexpr std::size_t hidden = 16, inner = 24, length = 4, sequences = 12, vocabulary = 11;

template <cbq::DifferentiableLinear L>
class Block {
 public:
  using Scalar = float;
  struct Tape {
    cbq::TapeMatrix<float> middle, slopes;
  };

  Block(L first, L second) : first_(std::move(first)), second_(std::move(second)) {}

  template <cbq::Executor E>
  [[nodiscard]] cbq::Status forward(const cbq::MatrixView<const float>& x, std::size_t, const cbq::MatrixView<float>& y,
                                    Tape& tape, cbq::ExecutionContext<E>& context) const {
    if (const cbq::Status taken = tape.middle.reshape(x.rows, inner); !taken) return taken;
    const cbq::MatrixView<float> middle = tape.middle.view();
    if (const cbq::Status done = first_.forward(x, middle, context); !done) return done;
    for (std::size_t i = 0; i < middle.rows * inner; ++i) middle.data[i] = std::tanh(middle.data[i]);
    if (const cbq::Status done = second_.forward(cbq::as_const(middle), y, context); !done) return done;
    for (std::size_t i = 0; i < x.rows * hidden; ++i) y.data[i] += x.data[i];
    return {};
  }

  template <cbq::Executor E>
  [[nodiscard]] cbq::Status backward(const cbq::MatrixView<const float>& dy, const cbq::MatrixView<const float>& x,
                                     std::size_t, Tape& tape, const cbq::MatrixView<float>& dx,
                                     cbq::ExecutionContext<E>& context) {
    if (const cbq::Status taken = tape.slopes.reshape(x.rows, inner); !taken) return taken;
    const cbq::MatrixView<float>&middle = tape.middle.view(), &slopes = tape.slopes.view();
    const auto overwrite = cbq::Accumulate::overwrite;
    if (const cbq::Status done = second_.backward(dy, cbq::as_const(middle), slopes, overwrite, context); !done)
      return done;
    for (std::size_t i = 0; i < middle.rows * inner; ++i) slopes.data[i] *= 1 - middle.data[i] * middle.data[i];
    if (dx.data != dy.data) std::copy(dy.data, dy.data + dy.rows * hidden, dx.data);
    return first_.backward(cbq::as_const(slopes), x, dx, cbq::Accumulate::add, context);
  }

  template <class F>
  void for_each_linear(F&& f) {
    f("first", first_);
    f("second", second_);
  }

 private:
  L first_, second_;
};

// A norm that does nothing.
struct NoNorm {
  template <class... Rest>
  [[nodiscard]] cbq::Status forward(const cbq::MatrixView<const float>& x, const cbq::MatrixView<float>& y,
                                    Rest&...) const {
    std::copy(x.data, x.data + x.rows * x.columns, y.data);
    return {};
  }
  template <class... Rest>
  [[nodiscard]] cbq::Status backward(const cbq::MatrixView<const float>& dy, const cbq::MatrixView<const float>&,
                                     const cbq::MatrixView<float>& dx, Rest&...) const {
    for (std::size_t i = 0; i < dy.rows * dy.columns; ++i) dx.data[i] += dy.data[i];
    return {};
  }
};

template <cbq::TrainableRounding Rounding = cbq::StraightThrough<float>>
class Host {
 public:
  using Scalar = float;
  using Trained = cbq::TrainableLinear<Rounding>;
  using Dense = cbq::DenseGradient<float>;
  using Student = Block<Trained>;
  using Teacher = Block<Dense>;
  using Head = cbq::HeadGradient<NoNorm, Dense>;

  explicit Host(std::size_t blocks, const typename Rounding::Options& options = {}) : options_(options) {
    for (std::size_t i = 0; i < blocks; ++i) {
      const auto seed = static_cast<unsigned>(10 * i);
      layers_.push_back({support::normal(inner * hidden, seed + 1, 0.3f), support::normal(inner, seed + 2, 0.1f),
                         support::normal(hidden * inner, seed + 3, 0.2f)});
    }
    head_weights_ = support::normal(vocabulary * hidden, 7, 0.3f);
    head_.emplace(NoNorm{}, Dense(support::input(head_weights_, hidden)));
  }

  [[nodiscard]] std::size_t blocks() const { return layers_.size(); }
  [[nodiscard]] Head* head() { return with_head ? &*head_ : nullptr; }

  [[nodiscard]] cbq::Result<Teacher> open_teacher(std::size_t index) const {
    const Layer& layer = layers_[index];
    return Teacher(Dense(support::input(layer.first, hidden), layer.bias), Dense(support::input(layer.second, inner)));
  }
  [[nodiscard]] cbq::Result<Student> open_student(std::size_t index) const {
    const Layer& layer = layers_[index];
    auto first = Trained::create(support::input(layer.first, hidden), layer.bias, grid, options_, 5);
    if (!first) return first.error();
    auto second = Trained::create(support::input(layer.second, inner), {}, grid, options_, 6);
    if (!second) return second.error();
    return Student(*std::move(first), *std::move(second));
  }
  [[nodiscard]] cbq::Status finish(std::size_t index, Student& student) {
    if (index != codes.size() / 2) return cbq::Error{cbq::Errc::bad_argument, "blocks come in order", "block", index};
    student.for_each_linear([&](const char*, Trained& linear) { codes.push_back(linear.take_codes()); });
    return {};
  }

  // Codes and scales of all finished layers.
  [[nodiscard]] std::vector<std::byte> bytes() const {
    cbq::CheckpointWriter writer;
    for (const cbq::QuantizedMatrix& matrix : codes) writer.codes(matrix.view());
    return std::move(writer).finish();
  }

  std::vector<cbq::QuantizedMatrix> codes;
  bool with_head = true;
  cbq::Grid grid = {.bits = 2, .granularity = cbq::Granularity::per_group, .group = 8, .zero = cbq::Zero::affine};

  struct Layer {
    std::vector<float> first, bias, second;
  };
  std::vector<Layer>& layers() { return layers_; }

 private:
  typename Rounding::Options options_;
  std::vector<Layer> layers_;
  std::vector<float> head_weights_;
  std::optional<Head> head_;
};

/// What enters the first block, of both streams.
struct States {
  States() : target(support::normal(sequences * length * hidden, 99)) {
    for (std::size_t i = 0; i < target.size(); i += hidden) target[i + 3] *= 8;
    student = target;
  }
  [[nodiscard]] cbq::CalibrationStates<float> views() {
    return {support::view(target, hidden), support::view(student, hidden), length};
  }
  std::vector<float> target, student;
};

template <class Host, cbq::Executor E = cbq::SerialExecutor>
cbq::Result<std::vector<cbq::WindowReport>> run(Host& host, const cbq::ReconstructionOptions& options,
                                                const E& executor = {}) {
  States states;
  cbq::ExecutionContext<E> context(executor, cbq::detect());
  return cbq::reconstruct(host, states.views(), cbq::SquaredLoss::normalized, options, context);
}

}  // namespace tiny
