// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reconstruction: trains the rounding of a model's blocks so that each window of blocks, fed with what the quantized
// blocks before it give, ends where the float model ends (CBQ, Ding et al., 2024, cross-block dependency; defaults from
// measurements, see docs/reconstruction.md). Two streams of hidden states run through the model: the targets through
// float blocks, the student's through blocks that are final. Blocks and weights are the host's: it opens them when a
// window reaches them and takes the codes when they are final, so memory holds one window.
//
// Everything random follows from the seed, work is cut by shape: the same bits for any executor, and for a run that was
// cut off and continued from its checkpoint.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <cbq/nn/head_gradient.hpp>
#include <cbq/reconstruct/checkpoint.hpp>
#include <cbq/reconstruct/checks.hpp>
#include <cbq/reconstruct/host.hpp>
#include <cbq/reconstruct/options.hpp>
#include <cbq/reconstruct/window_training.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The loop of reconstruct().
template <ReconstructionHost Host, LossMaker MakeLoss, Executor E>
class Reconstruction {
 public:
  using T = typename Host::Scalar;
  using Student = typename Host::Student;
  using Teacher = typename Host::Teacher;
  using WindowLoss = std::invoke_result_t<const MakeLoss&, double, std::size_t>;
  using Head = std::remove_pointer_t<decltype(std::declval<Host&>().head())>;

  Reconstruction(Host& host, const MakeLoss& make_loss, const ReconstructionOptions& options,
                 ExecutionContext<E>& context)
      : host_(host),
        make_loss_(make_loss),
        options_(options),
        context_(context),
        training_({students_, followers_}, options, context) {}

  /// See reconstruct().
  [[nodiscard]] Result<std::vector<WindowReport>> run(const CalibrationStates<T>& states) {
    if (const Status valid = reconstruction::check(states, options_); !valid) return valid.error();
    const Result<std::vector<Window>> windows = plan_windows(host_.blocks(), options_.windows);
    if (!windows) return windows.error();
    if (const Status valid = reconstruction::check(*windows, options_.trained); !valid) return valid.error();
    states_ = states;
    identity_ = reconstruction::fingerprint(states, options_, host_.blocks());
    if (!options_.checkpoint.resume.empty()) {
      if (const Status resumed = resume(*windows); !resumed) return resumed.error();
    }
    while (reports_.size() < windows->size()) {
      const Window& window = (*windows)[reports_.size()];
      const Result<WindowReport> report = run_window(window, windows->size());
      if (!report) return report.error();
      reports_.push_back(*report);
      if (!options_.checkpoint.save) continue;
      if (const Status saved = save(); !saved) return saved.error();
    }
    return std::move(reports_);
  }

 private:
  static constexpr std::uint32_t version = 2;
  static constexpr std::uint64_t magic = 0x31636572'2d716263;  // "cbq-rec1"

  [[nodiscard]] Result<WindowReport> run_window(const Window& window, std::size_t windows) {
    const std::size_t end = window.first + window.count;
    if (const Status opened = open_blocks(window); !opened) return opened.error();
    for (; teacher_depth_ < end; ++teacher_depth_) {
      if (const Status done = teach(teacher_depth_, states_.target, "target"); !done) return done.error();
    }
    reconstruction::TrainingData<T, Head> data{.states = states_};
    if (options_.same_input_weight > 0) {
      if (const Status done = fill_same_input(window); !done) return done.error();
      data.same_input = same_input_.view();
    }
    if (end == host_.blocks()) data.head = host_.head();
    const double spread = variance(as_const(states_.target), context_.executor());
    const WindowLoss loss = make_loss_(spread, states_.target.columns);
    const ReconstructionProgress progress{.window = reports_.size(), .windows = windows};
    Result<WindowReport> report = training_.run(window, data, loss, progress);
    for (std::size_t i = 0; report && i < window.finished; ++i) {
      if (const Status done = finish_front(); !done) return done.error();
    }
    return report;
  }

  [[nodiscard]] Status open_blocks(const Window& window) {
    const std::size_t end = window.first + window.count;
    const std::size_t trained = options_.trained == TrainedBlocks::all ? end : window.first + 1;
    for (; !followers_.empty() && first_follower_ < trained; ++first_follower_) followers_.pop_front();
    if (followers_.empty()) first_follower_ = trained;
    while (first_open_ + students_.size() < trained) {
      Result<Student> student = host_.open_student(first_open_ + students_.size());
      if (!student) return student.error();
      students_.push_back(*std::move(student));
    }
    while (first_follower_ + followers_.size() < end) {
      Result<Teacher> follower = host_.open_teacher(first_follower_ + followers_.size());
      if (!follower) return follower.error();
      followers_.push_back(*std::move(follower));
    }
    return {};
  }

  /// A float block over one of the streams.
  [[nodiscard]] Status teach(std::size_t index, const MatrixView<T>& states, const char* stream) {
    const auto teacher = host_.open_teacher(index);
    if (!teacher) return teacher.error();
    return advance(*teacher, states, stream);
  }

  [[nodiscard]] Status fill_same_input(const Window& window) {
    const MatrixView<T>& student = states_.student;
    if (const Status taken = same_input_.reshape(student.rows, student.columns); !taken) return taken;
    std::memcpy(same_input_.view().data, student.data, student.rows * student.columns * sizeof(T));
    for (std::size_t i = 0; i < window.count; ++i) {
      const Status done = teach(window.first + i, same_input_.view(), "student");
      if (!done) return done;
    }
    return {};
  }

  /// Makes the first open block final.
  [[nodiscard]] Status finish_front() {
    Status status;
    students_.front().for_each_linear([&](const char*, auto& linear) {
      if (status) status = linear.harden(context_);
    });
    return status ? close_front() : status;
  }

  /// Hands a block, whose codes are final, to the host.
  [[nodiscard]] Status close_front() {
    Student& student = students_.front();
    if (options_.checkpoint.save) {
      student.for_each_linear([&](const char*, auto& linear) { finished_.codes(linear.codes().view()); });
      for_each_clip(student, [&](auto& site) { finished_.number(site.clip()); });
      write_caches(student, finished_);
    }
    if (const Status done = advance(student, states_.student, "student"); !done) return done;
    if (const Status done = host_.finish(first_open_, student); !done) return done;
    students_.pop_front();
    ++first_open_;
    return {};
  }

  /// Replaces the states before a block by those behind it.
  template <class Block>
  [[nodiscard]] Status advance(const Block& block, const MatrixView<T>& states, const char* stream) {
    typename Block::Tape tape;
    TapeMatrix<T> out;
    const std::size_t sequences = states.rows / states_.length;
    const std::size_t step = (options_.batch < sequences ? options_.batch : sequences) * states_.length;
    for (std::size_t first = 0; first < states.rows; first += step) {
      if (const Status go = reconstruction::check_stop(options_); !go) return go;
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

  // ---- checkpoints ----

  [[nodiscard]] Status save() {
    CheckpointWriter state;
    state.number(magic);
    state.number(version);
    state.number(static_cast<std::uint32_t>(sizeof(T)));
    state.number(identity_);
    state.number<std::uint64_t>(reports_.size());
    for (const WindowReport& report : reports_) {
      state.number(report.loss_before);
      state.number(report.loss_after);
      state.number<std::uint64_t>(report.restarts);
      state.number<std::uint64_t>(report.kept_start ? 1 : 0);
    }
    state.number<std::uint64_t>(first_open_);
    state.bytes(finished_.content());
    state.number<std::uint64_t>(students_.size());
    for (Student& student : students_) {
      student.for_each_linear([&](const char*, auto& linear) {
        for (const ParameterView<T>& view : linear.rounding().parameters()) state.parameters(view);
      });
      for_each_clip(student, [&](auto& site) { state.number(site.clip()); });
      write_caches(student, state);
    }
    return options_.checkpoint.save(std::move(state).finish());
  }
  static void write_caches(Student& student, CheckpointWriter& to) {
    for_each_trained_cache(student, [&](auto& site) {
      for (const ParameterView<T>& view : site.parameters()) to.parameters(view);
    });
  }

  [[nodiscard]] Status resume(const std::vector<Window>& windows) {
    Result<CheckpointReader> state = CheckpointReader::open(options_.checkpoint.resume);
    if (!state) return state.error();
    if (const Status same = check_header(*state); !same) return same;
    if (const Status done = read_reports(*state, windows); !done) return done;
    const Result<std::size_t> finished = state->count();
    if (!finished) return finished.error();
    std::size_t due = 0, reached = 0;
    for (std::size_t i = 0; i < reports_.size(); ++i) {
      due += windows[i].finished;
      reached = windows[i].first + (options_.trained == TrainedBlocks::all ? windows[i].count : 1);
    }
    if (*finished != due) return CheckpointReader::damaged("number of finished blocks");
    while (first_open_ < due) {
      if (const Status opened = reopen(*state, [&](auto& linear) { return read_codes(*state, linear); }); !opened)
        return opened;
      if (const Status closed = close_front(); !closed) return closed;
    }
    const Result<std::size_t> open = state->count();
    if (!open) return open.error();
    if (*open != reached - due) return CheckpointReader::damaged("number of open blocks");
    while (students_.size() < *open) {
      if (const Status opened = reopen(*state, [&](auto& linear) { return read_parameters(*state, linear); }); !opened)
        return opened;
    }
    return state->finish();
  }

  [[nodiscard]] Status check_header(CheckpointReader& state) const {
    std::uint64_t found = 0, identity = 0;
    std::uint32_t written = 0, scalar = 0;
    if (const Status done = state.number(found); !done) return done;
    if (const Status done = state.number(written); !done) return done;
    if (found != magic) return CheckpointReader::damaged("its first bytes");
    if (written != version) {
      return Error{Errc::unsupported, "the checkpoint is of another version", "checkpoint", written, version};
    }
    if (const Status done = state.number(scalar); !done) return done;
    if (const Status done = state.number(identity); !done) return done;
    if (scalar == sizeof(T) && identity == identity_) return {};
    return Error{Errc::bad_argument, "the checkpoint is of another model, calibration text or setting", "checkpoint"};
  }

  [[nodiscard]] Status read_reports(CheckpointReader& state, const std::vector<Window>& windows) {
    const Result<std::size_t> count = state.count();
    if (!count) return count.error();
    if (*count > windows.size()) return CheckpointReader::damaged("number of windows");
    for (std::size_t i = 0; i < *count; ++i) {
      WindowReport report{.window = windows[i]};
      if (const Status done = state.number(report.loss_before); !done) return done;
      if (const Status done = state.number(report.loss_after); !done) return done;
      const Result<std::size_t> restarts = state.count();
      if (!restarts) return restarts.error();
      const Result<std::size_t> kept = state.count();
      if (!kept) return kept.error();
      report.restarts = *restarts;
      report.kept_start = *kept != 0;
      reports_.push_back(report);
    }
    return {};
  }

  /// Opens the next student, calls read(linear) for its layers and reads its clips and its caches' smoothing.
  template <class Read>
  [[nodiscard]] Status reopen(CheckpointReader& state, const Read& read) {
    Result<Student> student = host_.open_student(first_open_ + students_.size());
    if (!student) return student.error();
    students_.push_back(*std::move(student));
    Status status;
    students_.back().for_each_linear([&](const char*, auto& linear) {
      if (status) status = read(linear);
    });
    for_each_clip(students_.back(), [&](auto& site) {
      if (status) status = state.number(site.clip());
      if (status && !(site.clip() > T(0) && site.clip() <= T(1))) status = CheckpointReader::damaged("clips");
    });
    for_each_trained_cache(students_.back(), [&](auto& site) {
      for (const ParameterView<T>& view : site.parameters()) {
        if (status) status = state.parameters(view);
        for (std::size_t i = 0; status && i < view.size; ++i) {
          if (view.values[i] - view.values[i] != T(0)) status = CheckpointReader::damaged("smoothing");
        }
      }
    });
    return status;
  }
  template <class Linear>
  [[nodiscard]] static Status read_codes(CheckpointReader& state, Linear& linear) {
    Result<QuantizedMatrix> codes = state.codes(linear.outputs(), linear.inputs(), linear.rounding().grid());
    if (!codes) return codes.error();
    return linear.harden(*std::move(codes));
  }
  template <class Linear>
  [[nodiscard]] static Status read_parameters(CheckpointReader& state, Linear& linear) {
    for (const ParameterView<T>& view : linear.rounding().parameters()) {
      if (const Status done = state.parameters(view); !done) return done;
    }
    return {};
  }

  Host& host_;
  const MakeLoss& make_loss_;
  const ReconstructionOptions& options_;
  ExecutionContext<E>& context_;
  CalibrationStates<T> states_;
  TapeMatrix<T> same_input_;
  std::vector<WindowReport> reports_;
  std::deque<Student> students_;
  std::deque<Teacher> followers_;  ///< float blocks behind the window's students
  reconstruction::WindowTraining<Student, Teacher, WindowLoss, Head, E> training_;
  CheckpointWriter finished_;  ///< codes of finished blocks
  std::uint64_t identity_ = 0;
  std::size_t first_open_ = 0;
  std::size_t first_follower_ = 0;
  std::size_t teacher_depth_ = 0;
};

/// Reconstructs all blocks of `host` on the given states, which are used up. Errors: those of the host and its blocks;
/// Errc::bad_shape, Errc::bad_argument, Errc::not_finite (naming the token and channel), Errc::interrupted; what
/// options.checkpoint.save() returns; for a checkpoint to continue from Errc::bad_file (damaged), Errc::unsupported
/// (version), Errc::bad_argument (of another model, text or setting). May throw std::bad_alloc.
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
