// SPDX-License-Identifier: Apache-2.0
#pragma once

// The training of one window of blocks: batches in an order that the seed gives, losses at the window's end, Adam,
// hard codes compared before and after. Where training does not lower the loss of hard codes the window keeps what it
// started with; where the loss stops being finite it starts again with half the rates, three times at most.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <cbq/loss/softmax_kl.hpp>
#include <cbq/reconstruct/host.hpp>
#include <cbq/reconstruct/options.hpp>
#include <cbq/reconstruct/trainable_linear.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace reconstruction {

/// Errc::interrupted once the options' token says so.
[[nodiscard]] inline Status check_stop(const ReconstructionOptions& options) {
  if (options.stop.stop_requested()) return Error{Errc::interrupted, "reconstruction was interrupted"};
  return {};
}

/// What a window is trained on. Where `head` is null, or the weight of the logits 0, no logits are computed.
template <class T, class Head>
struct TrainingData {
  CalibrationStates<T> states = {};
  MatrixView<T> same_input = {};  ///< float blocks fed with the student's input; empty: no such term
  Head* head = nullptr;
};

/// The blocks of a window: students that are trained, then float blocks.
template <class Student, class Teacher>
struct WindowBlocks {
  std::deque<Student>& students;
  std::deque<Teacher>& followers;
};

/// Memory is kept from window to window.
template <class Student, class Teacher, Loss L, class Head, Executor E>
class WindowTraining {
 public:
  using T = typename Student::Scalar;
  using Data = TrainingData<T, Head>;

  WindowTraining(const WindowBlocks<Student, Teacher>& blocks, const ReconstructionOptions& options,
                 ExecutionContext<E>& context)
      : students_(blocks.students), followers_(blocks.followers), options_(options), context_(context) {}

  /// Trains the window's students, which `followers` complete to window.count blocks; `progress` says which window it
  /// is.
  [[nodiscard]] Result<WindowReport> run(const Window& window, const Data& data, const L& loss,
                                         const ReconstructionProgress& progress) {
    window_ = window;
    data_ = data;
    progress_ = progress;
    trained_ = window.count - followers_.size();
    tapes_.resize(trained_);
    follower_tapes_.resize(followers_.size());
    inputs_.resize(window.count + 1);
    set_phase(RoundingPhase::soft);
    const std::vector<std::vector<T>> start = snapshot();
    WindowReport report{.window = window};
    Result<double> before = hard_loss(loss);
    if (!before) return before.error();
    report.loss_before = *before;
    constexpr std::size_t most_restarts = 3;
    for (double rate = 1.0;; rate *= 0.5) {
      const Result<bool> finite = descend(loss, rate);
      if (!finite) return finite.error();
      Result<double> after = *finite ? hard_loss(loss) : Result<double>(std::nan(""));
      if (!after) return after.error();
      report.loss_after = *after;
      if (*after <= *before) return report;
      restore(start);
      if (std::isfinite(*after) || report.restarts == most_restarts) break;
      ++report.restarts;
    }
    report.kept_start = true;
    report.loss_after = report.loss_before;
    return report;
  }

 private:
  [[nodiscard]] std::size_t sequences() const noexcept { return data_.states.target.rows / data_.states.length; }
  [[nodiscard]] std::size_t batch() const noexcept {
    return options_.batch < sequences() ? options_.batch : sequences();
  }
  /// Sequences by which the window's end is compared with its start: one alone says little.
  [[nodiscard]] std::size_t judged() const noexcept {
    constexpr std::size_t least = 8;
    if (batch() > least) return batch();
    return least < sequences() ? least : sequences();
  }

  /// Calls f(linear) for the window's linear layers, until one fails.
  template <class F>
  [[nodiscard]] Status each_linear(F&& f) {
    Status status;
    for (std::size_t i = 0; i < trained_; ++i) {
      students_[i].for_each_linear([&](const char*, auto& linear) {
        if (status) status = f(linear);
      });
    }
    return status;
  }
  template <class F>
  void each_clip(F&& f) {
    for (std::size_t i = 0; i < trained_; ++i) for_each_clip(students_[i], f);
  }
  template <class F>
  void each_cache(F&& f) {
    for (std::size_t i = 0; i < trained_; ++i) for_each_trained_cache(students_[i], f);
  }
  void set_phase(RoundingPhase phase) {
    (void)each_linear([&](auto& linear) -> Status {
      linear.rounding().set_phase(phase);
      return {};
    });
  }
  /// Rates change with the phase, so views are asked for anew.
  [[nodiscard]] std::vector<ParameterView<T>> parameters() {
    std::vector<ParameterView<T>> all;
    (void)each_linear([&](auto& linear) -> Status {
      for (const ParameterView<T>& view : linear.rounding().parameters()) all.push_back(view);
      return {};
    });
    each_clip([&](auto& site) { all.push_back({&site.clip(), &site.clip_gradient(), 1, options_.clip_rate}); });
    each_cache([&](auto& site) {
      for (const ParameterView<T>& view : site.parameters()) all.push_back(view);
    });
    return all;
  }
  [[nodiscard]] std::vector<std::vector<T>> snapshot() {
    std::vector<std::vector<T>> kept;
    for (const ParameterView<T>& view : parameters()) kept.emplace_back(view.values, view.values + view.size);
    return kept;
  }
  void restore(const std::vector<std::vector<T>>& kept) {
    std::size_t next = 0;
    for (const ParameterView<T>& view : parameters()) {
      std::memcpy(view.values, kept[next++].data(), view.size * sizeof(T));
    }
    set_phase(RoundingPhase::soft);
  }

  /// The step from which codes are fixed.
  [[nodiscard]] std::size_t hardening() const noexcept {
    const auto steps = static_cast<double>(options_.steps);
    return options_.steps - static_cast<std::size_t>(steps * options_.hardened_share);
  }

  /// All steps; false where the loss stopped being finite.
  [[nodiscard]] Result<bool> descend(const L& loss, double rate) {
    std::mt19937_64 random(options_.seed * 0x9e3779b97f4a7c15u + window_.first * 1009 + window_.count);
    std::vector<std::size_t> order(sequences());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::size_t next = order.size();
    std::vector<ParameterView<T>> views = parameters();
    Result<Adam<T>> adam = Adam<T>::create(views);
    if (!adam) return adam.error();
    each_clip([](auto& site) { site.clip_gradient() = 0; });
    each_cache([](auto& site) { site.clear_gradients(); });
    for (std::size_t step = 0; step < options_.steps; ++step) {
      if (const Status go = check_stop(options_); !go) return go.error();
      if (step == hardening()) {
        set_phase(RoundingPhase::hardened);
        views = parameters();
      }
      if (next + batch() > order.size()) {
        shuffle(order, random);
        next = 0;
      }
      const std::span<const std::size_t> chosen(order.data() + next, batch());
      next += batch();
      const Result<double> value = step_loss(loss, chosen);
      if (!value) return value.error();
      tell(step + 1, *value);
      if (!std::isfinite(*value)) return false;
      if (const Status done = backward(step); !done) return done.error();
      const double factor = rate * decay_factor(options_.decay, step, options_.steps);
      if (const Status done = adam->step(views, factor, context_.executor()); !done) return done.error();
      (void)each_linear([](auto& linear) -> Status {
        linear.rounding().project();
        return {};
      });
      each_clip([](auto& site) {
        site.project();
        site.clip_gradient() = 0;
      });
      each_cache([](auto& site) {
        site.project();
        site.clear_gradients();
      });
    }
    return true;
  }

  void tell(std::size_t step, double loss) {
    progress_.loss = loss;
    progress_.step = step;
    progress_.steps = options_.steps;
    if (options_.progress) options_.progress(progress_);
  }

  /// std::shuffle's result is the library's choice; this one is the same everywhere.
  static void shuffle(std::vector<std::size_t>& order, std::mt19937_64& random) {
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }

  void gather(const MatrixView<T>& states, std::span<const std::size_t> chosen, const MatrixView<T>& out) const {
    const std::size_t size = data_.states.length * states.columns;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      std::memcpy(out.data + i * size, states.data + chosen[i] * size, size * sizeof(T));
    }
  }

  /// The soft loss of a batch and, in slopes_, dL/dy.
  [[nodiscard]] Result<double> step_loss(const L& loss, std::span<const std::size_t> chosen) {
    const Status refreshed = each_linear([&](auto& linear) { return linear.refresh(context_); });
    if (!refreshed) return refreshed.error();
    if (const Status done = forward(chosen); !done) return done.error();
    const MatrixView<const T> y = inputs_[window_.count].constant();
    double value = loss.gradient(y, wanted_.constant(), slopes_.view(), context_.executor());
    if (data_.same_input.data != nullptr) {
      gather(data_.same_input, chosen, beside_.view());
      const double weight = options_.same_input_weight;
      value += weight * loss.add_gradient(y, beside_.constant(), weight, slopes_.view(), context_.executor());
    }
    if (data_.head == nullptr || !(options_.logits_weight > 0)) return value;
    const Result<double> logits = logits_loss(y, &slopes_.view());
    return logits ? Result<double>(value + *logits) : logits;
  }

  /// The mean loss of hard codes on the first judged() sequences, batch by batch.
  [[nodiscard]] Result<double> hard_loss(const L& loss) {
    const Status hard = each_linear([&](auto& linear) { return linear.refresh_hard(context_); });
    if (!hard) return hard.error();
    double sum = 0;
    std::vector<std::size_t> chosen;
    for (std::size_t first = 0; first < judged(); first += chosen.size()) {
      const std::size_t rest = judged() - first;
      chosen.resize(rest < batch() ? rest : batch());
      for (std::size_t i = 0; i < chosen.size(); ++i) chosen[i] = first + i;
      const Result<double> value = hard_loss(loss, chosen);
      if (!value) return value;
      sum += *value * static_cast<double>(chosen.size());
    }
    return sum / static_cast<double>(judged());
  }
  [[nodiscard]] Result<double> hard_loss(const L& loss, std::span<const std::size_t> chosen) {
    if (const Status done = forward(chosen); !done) return done.error();
    const MatrixView<const T> y = inputs_[window_.count].constant();
    const double value = loss.value(y, wanted_.constant(), context_.executor());
    if (data_.head == nullptr || !(options_.logits_weight > 0)) return value;
    const Result<double> logits = logits_loss(y, nullptr);
    return logits ? Result<double>(value + *logits) : logits;
  }

  /// The batch through the window, its targets into wanted_.
  [[nodiscard]] Status forward(std::span<const std::size_t> chosen) {
    const std::size_t rows = chosen.size() * data_.states.length;
    const std::size_t hidden = data_.states.target.columns;
    for (TapeMatrix<T>& matrix : inputs_) {
      if (const Status taken = matrix.reshape(rows, hidden); !taken) return taken;
    }
    for (TapeMatrix<T>* matrix : {&wanted_, &slopes_, &beside_}) {
      if (const Status taken = matrix->reshape(rows, hidden); !taken) return taken;
    }
    gather(data_.states.student, chosen, inputs_[0].view());
    gather(data_.states.target, chosen, wanted_.view());
    const auto pass = [&](const auto& block, auto& tape, std::size_t i) {
      return block.forward(inputs_[i].constant(), data_.states.length, inputs_[i + 1].view(), tape, context_);
    };
    for (std::size_t i = 0; i < window_.count; ++i) {
      const Status done = i < trained_ ? pass(students_[i], tapes_[i], i)
                                       : pass(followers_[i - trained_], follower_tapes_[i - trained_], i);
      if (!done) return done;
    }
    return {};
  }

  /// Divergence of the logits, some hundred tokens at a time; adds to `slopes` unless null.
  [[nodiscard]] Result<double> logits_loss(const MatrixView<const T>& y, const MatrixView<T>* slopes) {
    constexpr std::size_t step = 512;
    double total = 0;
    for (std::size_t first = 0; first < y.rows; first += step) {
      const Workspace::Frame frame(context_.workspace());
      const std::size_t count = y.rows - first < step ? y.rows - first : step;
      const auto student = context_.workspace().template take_matrix<T>(count, data_.head->vocabulary());
      if (!student) return student.error();
      const auto teacher = context_.workspace().template take_matrix<T>(count, data_.head->vocabulary());
      if (!teacher) return teacher.error();
      const auto part = rows(y, first, count);
      if (const Status done = data_.head->forward(part, *student, context_); !done) return done.error();
      const auto wanted = rows(wanted_.constant(), first, count);
      if (const Status done = data_.head->forward(wanted, *teacher, context_); !done) return done.error();
      const double share = options_.logits_weight * static_cast<double>(count) / static_cast<double>(y.rows);
      if (slopes == nullptr) {
        total += share * LogitsKl().value(as_const(*student), as_const(*teacher), context_.executor());
        continue;
      }
      const auto logit_slopes = context_.workspace().template take_matrix<T>(count, data_.head->vocabulary());
      if (!logit_slopes) return logit_slopes.error();
      const MatrixView<T>& dy = *logit_slopes;
      std::memset(dy.data, 0, count * dy.columns * sizeof(T));
      total += share * LogitsKl().add_gradient(as_const(*student), as_const(*teacher), share, dy, context_.executor());
      const Status done = data_.head->backward(as_const(dy), part, rows(*slopes, first, count), context_);
      if (!done) return done.error();
    }
    return total;
  }

  [[nodiscard]] Status backward(std::size_t step) {
    const auto pass = [&](auto& block, auto& tape, std::size_t i) {
      return block.backward(slopes_.constant(), inputs_[i].constant(), data_.states.length, tape, slopes_.view(),
                            context_);
    };
    for (std::size_t i = window_.count; i-- > 0;) {
      const Status done = i < trained_ ? pass(students_[i], tapes_[i], i)
                                       : pass(followers_[i - trained_], follower_tapes_[i - trained_], i);
      if (!done) return done;
    }
    const Penalty penalty{static_cast<double>(step) / static_cast<double>(options_.steps)};
    return each_linear([&](auto& linear) { return linear.update_gradients(penalty, context_); });
  }

  std::deque<Student>& students_;
  std::deque<Teacher>& followers_;
  const ReconstructionOptions& options_;
  ExecutionContext<E>& context_;
  Window window_;
  std::size_t trained_ = 0;  ///< of its blocks
  Data data_;
  ReconstructionProgress progress_;
  std::vector<typename Student::Tape> tapes_;
  std::vector<typename Teacher::Tape> follower_tapes_;
  std::vector<TapeMatrix<T>> inputs_;
  TapeMatrix<T> wanted_;
  TapeMatrix<T> beside_;
  TapeMatrix<T> slopes_;
};

}  // namespace reconstruction
}  // namespace CBQ_ABI
}  // namespace cbq
