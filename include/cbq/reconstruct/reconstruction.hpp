// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reconstruction: trains the rounding of a model's blocks so that each window of blocks, fed with what the quantized
// blocks before it give, ends where the float model ends (CBQ, Ding et al., 2024, cross-block dependency; defaults from
// measurements, see docs/reconstruction.md). Two streams of hidden states run through the model: the targets through
// float blocks, the student's through blocks that are final. Blocks and weights are the host's: it opens them when a
// window reaches them and takes the codes when they are final, so memory holds one window.
//
// Everything random follows from the seed, work is cut by shape: the same bits for any executor.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <span>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <vector>

#include <cbq/loss/softmax_kl.hpp>
#include <cbq/nn/head_gradient.hpp>
#include <cbq/reconstruct/adam.hpp>
#include <cbq/reconstruct/trainable_linear.hpp>
#include <cbq/reconstruct/windows.hpp>

namespace cbq {

struct ReconstructionProgress {
  std::size_t window = 0;
  std::size_t windows = 0;
  std::size_t step = 0;
  std::size_t steps = 0;
  double loss = 0;  ///< of the last step
};

/// What became of a window. Losses are those of hard codes on the first batch of sequences.
struct WindowReport {
  Window window = {};
  double loss_before = 0;
  double loss_after = 0;
  std::size_t restarts = 0;  ///< after losses that were not finite; each halves the learning rates
  bool kept_start = false;   ///< training did not lower the loss: the window's first parameters are the result
};

struct ReconstructionOptions {
  WindowOptions windows = {};
  std::size_t steps = 400;  ///< per window
  std::size_t batch = 8;    ///< sequences per step
  Decay decay = Decay::linear;
  double logits_weight = 1.0;  ///< of the divergence of the logits, in the last window
  std::uint64_t seed = 0;
  std::stop_token stop = {};
  std::function<void(const ReconstructionProgress&)> progress = {};
};

/// Hidden states of all calibration sequences, one after another: [sequences * length x hidden]. Both are overwritten.
template <class T>
struct CalibrationStates {
  MatrixView<T> target = {};   ///< what enters the float model's first block
  MatrixView<T> student = {};  ///< what enters the quantized model's first block
  std::size_t length = 0;
};

inline namespace CBQ_ABI {

/// A block with a backward pass, as TransformerBlockGradient offers it; a host models it with blocks of its own.
template <class B>
concept DifferentiableBlock =
    std::movable<B> && requires(B& block, const B& constant, const MatrixView<const typename B::Scalar>& in,
                                const MatrixView<typename B::Scalar>& out, std::size_t length, typename B::Tape& tape,
                                ExecutionContext<>& context) {
      { constant.forward(in, length, out, tape, context) } -> std::same_as<Status>;
      { block.backward(in, in, length, tape, out, context) } -> std::same_as<Status>;
    };

/// Makes the loss of a window from the variance of its targets and their number of channels:
/// SquaredLoss::normalized, for example.
template <class M>
concept LossMaker = requires(const M& make, double variance, std::size_t channels) {
  { make(variance, channels) } -> Loss;
};

/// Opens and closes the blocks of a model. A student's linear layers are TrainableLinear, visited by for_each_linear.
/// `head()` points to a HeadGradient, or is null where no loss on logits is wanted.
template <class H>
concept ReconstructionHost = requires(H& host, std::size_t index, typename H::Student& student) {
  typename H::Scalar;
  { host.blocks() } -> std::convertible_to<std::size_t>;
  { host.open_teacher(index) } -> std::same_as<Result<typename H::Teacher>>;
  { host.open_student(index) } -> std::same_as<Result<typename H::Student>>;
  { host.finish(index, student) } -> std::same_as<Status>;
  host.head();
} && DifferentiableBlock<typename H::Teacher> && DifferentiableBlock<typename H::Student>;

/// The loop of reconstruct().
template <ReconstructionHost Host, LossMaker MakeLoss, Executor E>
class Reconstruction {
 public:
  using T = typename Host::Scalar;
  using Student = typename Host::Student;
  using WindowLoss = std::invoke_result_t<const MakeLoss&, double, std::size_t>;

  Reconstruction(Host& host, const MakeLoss& make_loss, const ReconstructionOptions& options,
                 ExecutionContext<E>& context)
      : host_(host), make_loss_(make_loss), loss_(make_loss(1.0, 1)), options_(options), context_(context) {}

  /// See reconstruct().
  [[nodiscard]] Result<std::vector<WindowReport>> run(const CalibrationStates<T>& states) {
    if (const Status valid = check(states); !valid) return valid.error();
    const Result<std::vector<Window>> windows = plan_windows(host_.blocks(), options_.windows);
    if (!windows) return windows.error();
    states_ = states;
    std::vector<WindowReport> reports;
    for (const Window& window : *windows) {
      progress_.window = reports.size();
      progress_.windows = windows->size();
      Result<WindowReport> report = run_window(window);
      if (!report) return report.error();
      reports.push_back(*report);
    }
    return reports;
  }

 private:
  [[nodiscard]] std::size_t batch() const noexcept {
    return options_.batch < sequences() ? options_.batch : sequences();
  }
  [[nodiscard]] std::size_t sequences() const noexcept { return states_.target.rows / states_.length; }

  [[nodiscard]] Status check(const CalibrationStates<T>& states) const {
    const MatrixView<T>& target = states.target;
    const bool same = states.student.rows == target.rows && states.student.columns == target.columns;
    const bool dense = target.stride == target.columns && states.student.stride == target.columns;
    if (states.length == 0 || target.rows == 0 || target.rows % states.length != 0 || !same || !dense) {
      return Error{Errc::bad_shape, "calibration states are whole sequences of one length, both streams of one shape",
                   "states", ErrorText(target.rows) << " x " << target.columns, states.length};
    }
    if (options_.steps == 0 || options_.batch == 0) {
      return Error{Errc::bad_argument, "reconstruction needs at least one step of one sequence", "steps, batch",
                   ErrorText(options_.steps) << ", " << options_.batch};
    }
    return {};
  }

  [[nodiscard]] Result<WindowReport> run_window(const Window& window) {
    const std::size_t end = window.first + window.count;
    for (; first_open_ + students_.size() < end;) {
      Result<Student> student = host_.open_student(first_open_ + students_.size());
      if (!student) return student.error();
      students_.push_back(*std::move(student));
    }
    for (; teacher_depth_ < end; ++teacher_depth_) {
      auto teacher = host_.open_teacher(teacher_depth_);
      if (!teacher) return teacher.error();
      if (const Status done = advance(*teacher, states_.target, "target"); !done) return done.error();
    }
    const double spread = variance(as_const(states_.target), context_.executor());
    loss_ = make_loss_(spread, states_.target.columns);
    WindowReport report;
    report.window = window;
    if (const Status done = train(window, report); !done) return done.error();
    for (std::size_t i = 0; i < window.finished; ++i) {
      Student& student = students_.front();
      if (const Status done = refresh_hard(student); !done) return done.error();
      if (const Status done = advance(student, states_.student, "student"); !done) return done.error();
      if (const Status done = host_.finish(first_open_, student); !done) return done.error();
      students_.pop_front();
      ++first_open_;
    }
    return report;
  }

  // Replaces the states before a block by those behind it.
  template <class Block>
  [[nodiscard]] Status advance(const Block& block, const MatrixView<T>& states, const char* stream) {
    typename Block::Tape tape;
    TapeMatrix<T> out;
    const std::size_t step = batch() * states_.length;
    for (std::size_t first = 0; first < states.rows; first += step) {
      if (const Status go = check_stop(); !go) return go;
      const std::size_t count = states.rows - first < step ? states.rows - first : step;
      if (const Status taken = out.reshape(count, states.columns); !taken) return taken;
      const auto part = rows(states, first, count);
      const Status done = block.forward(as_const(part), states_.length, out.view(), tape, context_);
      if (!done) return done;
      std::memcpy(part.data, out.view().data, count * states.columns * sizeof(T));
      for (std::size_t i = 0; i < count * states.columns; ++i) {
        if (part.data[i] - part.data[i] == T(0)) continue;
        return Error{Errc::not_finite, "hidden states are not finite", ErrorText(stream) << " stream",
                     ErrorText("token ") << first + i / states.columns << ", channel " << i % states.columns};
      }
    }
    return {};
  }

  [[nodiscard]] Status check_stop() const {
    if (options_.stop.stop_requested()) return Error{Errc::interrupted, "reconstruction was interrupted"};
    return {};
  }

  // Calls f(linear) for the trained layers of a window, until one fails.
  template <class F>
  [[nodiscard]] Status each_linear(std::size_t count, F&& f) {
    Status status;
    for (std::size_t i = 0; i < count; ++i) {
      students_[i].for_each_linear([&](const char*, auto& linear) {
        if (status) status = f(linear);
      });
    }
    return status;
  }

  [[nodiscard]] Status refresh_hard(Student& student) {
    Status status;
    student.for_each_linear([&](const char*, auto& linear) {
      if (status) status = linear.refresh_hard(context_);
    });
    return status;
  }

  [[nodiscard]] std::vector<ParameterView<T>> parameters(std::size_t count) {
    std::vector<ParameterView<T>> all;
    (void)each_linear(count, [&](auto& linear) -> Status {
      for (const ParameterView<T>& view : linear.rounding().parameters()) all.push_back(view);
      return {};
    });
    return all;
  }

  [[nodiscard]] static std::vector<std::vector<T>> snapshot(const std::vector<ParameterView<T>>& views) {
    std::vector<std::vector<T>> kept;
    for (const ParameterView<T>& view : views) kept.emplace_back(view.values, view.values + view.size);
    return kept;
  }
  static void restore(const std::vector<ParameterView<T>>& views, const std::vector<std::vector<T>>& kept) {
    for (std::size_t i = 0; i < views.size(); ++i) {
      std::memcpy(views[i].values, kept[i].data(), views[i].size * sizeof(T));
    }
  }

  [[nodiscard]] Status train(const Window& window, WindowReport& report) {
    const std::vector<ParameterView<T>> views = parameters(window.count);
    const std::vector<std::vector<T>> start = snapshot(views);
    tapes_.resize(window.count);
    inputs_.resize(window.count + 1);
    Result<double> before = hard_loss(window);
    if (!before) return before.error();
    report.loss_before = *before;
    constexpr std::size_t most_restarts = 3;
    for (double rate = 1.0;; rate *= 0.5) {
      const Result<bool> finite = descend(window, views, rate);
      if (!finite) return finite.error();
      Result<double> after = *finite ? hard_loss(window) : Result<double>(std::nan(""));
      if (!after) return after.error();
      report.loss_after = *after;
      if (*after <= *before) return {};
      restore(views, start);
      if (std::isfinite(*after) || report.restarts == most_restarts) break;
      ++report.restarts;
    }
    report.kept_start = true;
    report.loss_after = report.loss_before;
    return {};
  }

  // All steps of a window; false where the loss stopped being finite.
  [[nodiscard]] Result<bool> descend(const Window& window, const std::vector<ParameterView<T>>& views, double rate) {
    std::mt19937_64 random(options_.seed * 0x9e3779b97f4a7c15u + window.first * 1009 + window.count);
    std::vector<std::size_t> order(sequences());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::size_t next = order.size();
    Result<Adam<T>> adam = Adam<T>::create(views);
    if (!adam) return adam.error();
    for (std::size_t step = 0; step < options_.steps; ++step) {
      if (const Status go = check_stop(); !go) return go.error();
      if (next + batch() > order.size()) {
        shuffle(order, random);
        next = 0;
      }
      const std::span<const std::size_t> chosen(order.data() + next, batch());
      next += batch();
      const Status refreshed = each_linear(window.count, [&](auto& linear) { return linear.refresh(context_); });
      if (!refreshed) return refreshed.error();
      const Result<double> loss = forward(window, chosen, true);
      if (!loss) return loss.error();
      progress_.loss = *loss;
      progress_.step = step + 1;
      progress_.steps = options_.steps;
      if (options_.progress) options_.progress(progress_);
      if (!std::isfinite(*loss)) return false;
      if (const Status done = backward(window, step); !done) return done.error();
      const double factor = rate * decay_factor(options_.decay, step, options_.steps);
      if (const Status done = adam->step(views, factor, context_.executor()); !done) return done.error();
      (void)each_linear(window.count, [](auto& linear) -> Status {
        linear.rounding().project();
        return {};
      });
    }
    return true;
  }

  // std::shuffle's result is the library's choice; this one is the same everywhere.
  static void shuffle(std::vector<std::size_t>& order, std::mt19937_64& random) {
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }

  void gather(const MatrixView<T>& states, std::span<const std::size_t> chosen, const MatrixView<T>& out) const {
    const std::size_t size = states_.length * states.columns;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      std::memcpy(out.data + i * size, states.data + chosen[i] * size, size * sizeof(T));
    }
  }

  // The loss of a batch; with `gradient` also dL/dy into slopes_.
  [[nodiscard]] Result<double> forward(const Window& window, std::span<const std::size_t> chosen, bool gradient) {
    const std::size_t rows = chosen.size() * states_.length;
    const std::size_t hidden = states_.target.columns;
    for (TapeMatrix<T>& matrix : inputs_) {
      if (const Status taken = matrix.reshape(rows, hidden); !taken) return taken.error();
    }
    if (const Status taken = wanted_.reshape(rows, hidden); !taken) return taken.error();
    if (const Status taken = slopes_.reshape(rows, hidden); !taken) return taken.error();
    gather(states_.student, chosen, inputs_[0].view());
    gather(states_.target, chosen, wanted_.view());
    for (std::size_t i = 0; i < window.count; ++i) {
      const Status done =
          students_[i].forward(inputs_[i].constant(), states_.length, inputs_[i + 1].view(), tapes_[i], context_);
      if (!done) return done.error();
    }
    const MatrixView<const T> y = inputs_[window.count].constant();
    double loss = gradient ? loss_.gradient(y, wanted_.constant(), slopes_.view(), context_.executor())
                           : loss_.value(y, wanted_.constant(), context_.executor());
    const bool last = window.first + window.count == host_.blocks();
    if (last && host_.head() != nullptr && options_.logits_weight > 0) {
      const Result<double> logits = logits_loss(y, gradient);
      if (!logits) return logits.error();
      loss += *logits;
    }
    return loss;
  }

  // Divergence of the logits, some hundred tokens at a time; with `gradient` adds to slopes_.
  [[nodiscard]] Result<double> logits_loss(const MatrixView<const T>& y, bool gradient) {
    auto& head = *host_.head();
    constexpr std::size_t step = 512;
    double total = 0;
    for (std::size_t first = 0; first < y.rows; first += step) {
      const Workspace::Frame frame(context_.workspace());
      const std::size_t count = y.rows - first < step ? y.rows - first : step;
      const auto student = context_.workspace().template take_matrix<T>(count, head.vocabulary());
      const auto teacher = context_.workspace().template take_matrix<T>(count, head.vocabulary());
      if (!student) return student.error();
      if (!teacher) return teacher.error();
      const auto part = rows(y, first, count);
      if (const Status done = head.forward(part, *student, context_); !done) return done.error();
      if (const Status done = head.forward(rows(wanted_.constant(), first, count), *teacher, context_); !done)
        return done.error();
      const double share = options_.logits_weight * static_cast<double>(count) / static_cast<double>(y.rows);
      if (!gradient) {
        total += share * LogitsKl().value(as_const(*student), as_const(*teacher), context_.executor());
        continue;
      }
      const auto slopes = context_.workspace().template take_matrix<T>(count, head.vocabulary());
      if (!slopes) return slopes.error();
      std::memset(slopes->data, 0, count * slopes->columns * sizeof(T));
      total +=
          share * LogitsKl().add_gradient(as_const(*student), as_const(*teacher), share, *slopes, context_.executor());
      const Status done = head.backward(as_const(*slopes), part, rows(slopes_.view(), first, count), context_);
      if (!done) return done.error();
    }
    return total;
  }

  [[nodiscard]] Status backward(const Window& window, std::size_t step) {
    for (std::size_t i = window.count; i-- > 0;) {
      const Status done = students_[i].backward(slopes_.constant(), inputs_[i].constant(), states_.length, tapes_[i],
                                                slopes_.view(), context_);
      if (!done) return done;
    }
    const Penalty penalty{static_cast<double>(step) / static_cast<double>(options_.steps)};
    return each_linear(window.count, [&](auto& linear) { return linear.update_gradients(penalty, context_); });
  }

  // The loss of hard codes on the first batch.
  [[nodiscard]] Result<double> hard_loss(const Window& window) {
    const Status hard = each_linear(window.count, [&](auto& linear) { return linear.refresh_hard(context_); });
    if (!hard) return hard.error();
    std::vector<std::size_t> chosen(batch());
    for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = i;
    return forward(window, chosen, false);
  }

  Host& host_;
  const MakeLoss& make_loss_;
  WindowLoss loss_;
  const ReconstructionOptions& options_;
  ExecutionContext<E>& context_;
  CalibrationStates<T> states_;
  ReconstructionProgress progress_;
  std::deque<Student> students_;
  std::size_t first_open_ = 0;
  std::size_t teacher_depth_ = 0;
  std::vector<typename Student::Tape> tapes_;
  std::vector<TapeMatrix<T>> inputs_;
  TapeMatrix<T> wanted_;
  TapeMatrix<T> slopes_;
};

/// Reconstructs all blocks of `host` on the given states, which are used up. Errors: those of the host and its blocks;
/// Errc::bad_shape, Errc::bad_argument, Errc::not_finite (naming the token and channel), Errc::interrupted. May throw
/// std::bad_alloc.
template <ReconstructionHost Host, LossMaker MakeLoss, Executor E>
[[nodiscard]] Result<std::vector<WindowReport>> reconstruct(Host& host,
                                                            const CalibrationStates<typename Host::Scalar>& states,
                                                            const MakeLoss& make_loss,
                                                            const ReconstructionOptions& options,
                                                            ExecutionContext<E>& context) {
  return Reconstruction<Host, MakeLoss, E>(host, make_loss, options, context).run(states);
}

}  // namespace CBQ_ABI
}  // namespace cbq
