// SPDX-License-Identifier: Apache-2.0
#include <cbq/reconstruct/window_training.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <vector>

#include <cbq/loss/absolute.hpp>
#include <cbq/nn/kv_site.hpp>
#include <cbq/rounding/weight_clipping.hpp>

#include "reconstruct/tiny_host.hpp"
#include "support/kernels.hpp"

using cbq::Errc;
using cbq::ReconstructionOptions;
using cbq::WindowReport;

namespace {

using Rounding = cbq::WeightClipping<float>;
using Bytes = std::vector<std::byte>;

// A block whose input goes through a cache first.
template <class L>
class CachedBlock : public tiny::Block<L> {
 public:
  using Base = tiny::Block<L>;
  struct Tape {
    typename Base::Tape block;
    cbq::TapeMatrix<float> kept;
  };
  CachedBlock(Base block, cbq::KvSite<float> site) : Base(std::move(block)), site_(std::move(site)) {}

  template <cbq::Executor E>
  [[nodiscard]] cbq::Status forward(const cbq::MatrixView<const float>& x, std::size_t length,
                                    const cbq::MatrixView<float>& y, Tape& tape,
                                    cbq::ExecutionContext<E>& context) const {
    if (const cbq::Status taken = tape.kept.reshape(x.rows, x.columns); !taken) return taken;
    if (const cbq::Status done = site_.forward(x, tape.kept.view(), context); !done) return done;
    return Base::forward(tape.kept.constant(), length, y, tape.block, context);
  }
  template <cbq::Executor E>
  [[nodiscard]] cbq::Status backward(const cbq::MatrixView<const float>& dy, const cbq::MatrixView<const float>& x,
                                     std::size_t length, Tape& tape, const cbq::MatrixView<float>& dx,
                                     cbq::ExecutionContext<E>& context) {
    const auto kept = tape.kept.constant();
    if (const cbq::Status done = Base::backward(dy, kept, length, tape.block, dx, context); !done) return done;
    return site_.backward(dx, x, kept, context);
  }
  template <class F>
  void for_each_cache(F&& f) {
    f("input", site_);
  }

 private:
  cbq::KvSite<float> site_;
};

// Weights with learned clips, or as they are, behind caches whose smoothing is learned.
class CachedHost : public tiny::Host<Rounding> {
 public:
  using Base = tiny::Host<Rounding>;
  using Student = CachedBlock<Base::Trained>;
  using Base::Base;

  [[nodiscard]] cbq::Result<Student> open_student(std::size_t index) const {
    auto block = Base::open_student(index);
    if (!block) return block.error();
    std::vector<float> scales(tiny::hidden, 1.0f);
    scales[3] = 4;  // the large channel, half of it
    auto site = cbq::KvSite<float>::create({.bits = 3, .width = 16, .scale_rate = rate, .offset_rate = rate}, scales);
    if (!site) return site.error();
    return Student(*std::move(block), *std::move(site));
  }
  [[nodiscard]] cbq::Status finish(std::size_t index, Student& student) {
    student.for_each_cache([&](const char*, cbq::KvSite<float>& site) {
      for (std::size_t c = 0; c < site.channels(); ++c) {
        smoothing.push_back(site.scale(c));
        smoothing.push_back(site.offset(c));
      }
    });
    return Base::finish(index, student);
  }

  double rate = 1e-2;
  std::vector<float> smoothing;
};

struct Run {
  std::vector<WindowReport> reports;
  Bytes codes;
  std::vector<float> smoothing;
  std::vector<Bytes> states;
};

template <class E = cbq::SerialExecutor>
Run run(ReconstructionOptions options, double rate = 1e-2, const E& executor = {}) {
  Run done;
  options.checkpoint.save = [&](std::span<const std::byte> bytes) -> cbq::Status {
    done.states.emplace_back(bytes.begin(), bytes.end());
    return {};
  };
  CachedHost host(4);
  host.rate = rate;
  tiny::States states;
  cbq::ExecutionContext<E> context(executor, cbq::detect());
  const auto make = [](double, std::size_t channels) { return cbq::AbsoluteLoss::per_element(channels); };
  const auto reports = cbq::reconstruct(host, states.views(), make, options, context);
  REQUIRE(reports);
  done.reports = *reports;
  done.codes = host.bytes();
  done.smoothing = host.smoothing;
  return done;
}

ReconstructionOptions regularized(std::size_t size) {
  return {.windows = {.size = size, .overlap = size - 1, .ends = cbq::WindowEnds::shrinking},
          .trained = cbq::TrainedBlocks::first,
          .steps = 40,
          .batch = 6,
          .logits_weight = 0};
}

}  // namespace

TEST_CASE("A block trained through the float blocks behind it lowers the loss behind them") {
  const Run through = run(regularized(3));
  REQUIRE(through.reports.size() == 4);
  for (std::size_t i = 0; i < 4; ++i) {
    CAPTURE(i);
    CHECK(through.reports[i].window == cbq::Window{i, 4 - i < 3 ? 4 - i : 3, 1});
    CHECK(through.reports[i].loss_after < through.reports[i].loss_before);
  }
  // The whole model is one window of the first block, which then ends where the last block's window ends.
  CHECK(run(regularized(4)).codes != through.codes);
}

TEST_CASE("Alone in its window a block is trained as all are") {
  ReconstructionOptions options = regularized(1);
  const Run first = run(options);
  options.trained = cbq::TrainedBlocks::all;
  const Run all = run(options);
  CHECK(first.codes == all.codes);
  CHECK(first.smoothing == all.smoothing);
}

TEST_CASE("Smoothing of caches is trained, unless its rates are zero") {
  const Run trained = run(regularized(2)), still = run(regularized(2), 0);
  REQUIRE(trained.smoothing.size() == 4 * 2 * tiny::hidden);
  std::size_t moved = 0;
  for (std::size_t i = 0; i < still.smoothing.size(); ++i) {
    const float start = i % 2 == 1 ? 0.0f : i / 2 % tiny::hidden == 3 ? 4.0f : 1.0f;
    CHECK(still.smoothing[i] == Catch::Approx(start));
    if (std::fabs(trained.smoothing[i] - start) > 1e-3f) ++moved;
  }
  CHECK(moved > trained.smoothing.size() / 2);
  CHECK(trained.reports.front().loss_after < still.reports.front().loss_after);
}

TEST_CASE("Regularized runs continue from any window, and threads do not change a bit") {
  const Run whole = run(regularized(3));
  const Run threaded = run(regularized(3), 1e-2, support::ThreadExecutor());
  CHECK(threaded.codes == whole.codes);
  CHECK(threaded.smoothing == whole.smoothing);
  for (std::size_t window = 0; window < 4; ++window) {
    CAPTURE(window);
    ReconstructionOptions options = regularized(3);
    options.checkpoint.resume = whole.states[window];
    const Run rest = run(options);
    CHECK(rest.codes == whole.codes);
    CHECK(rest.smoothing == whole.smoothing);
  }
  // Another state: all blocks trained.
  ReconstructionOptions options = regularized(3);
  options.trained = cbq::TrainedBlocks::all;
  options.checkpoint.resume = whole.states[1];
  CachedHost host(4);
  tiny::States states;
  const cbq::SerialExecutor serial;
  cbq::ExecutionContext<> context(serial, cbq::detect());
  const auto make = [](double, std::size_t channels) { return cbq::AbsoluteLoss::per_element(channels); };
  CHECK(cbq::reconstruct(host, states.views(), make, options, context).error().code == Errc::bad_argument);
}

TEST_CASE("A window that makes blocks final which it does not train is refused") {
  ReconstructionOptions options = regularized(3);
  options.windows.ends = cbq::WindowEnds::fixed;
  tiny::Host<Rounding> host(4);
  CHECK(tiny::run(host, options).error().code == Errc::bad_argument);
  options.windows = {.size = 3, .overlap = 1, .ends = cbq::WindowEnds::shrinking};
  CHECK(tiny::run(host, options).error().code == Errc::bad_argument);
}
