// SPDX-License-Identifier: Apache-2.0
#include <cbq/reconstruct/reconstruction.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "reconstruct/tiny_host.hpp"
#include "support/files.hpp"
#include "support/kernels.hpp"

using cbq::Errc;
using cbq::ReconstructionOptions;
using cbq::WindowReport;

namespace {

constexpr cbq::SerialExecutor serial;

// Squared while it is only measured, NaN while it trains.
struct SpoiledLoss {
  using View = cbq::MatrixView<const float>;
  template <class E>
  double value(const View& y, const View& target, const E& executor) const noexcept {
    return cbq::SquaredLoss().value(y, target, executor);
  }
  template <class E>
  double gradient(const View&, const View&, const cbq::MatrixView<float>&, const E&) const noexcept {
    return std::numeric_limits<double>::quiet_NaN();
  }
  template <class E>
  double add_gradient(const View&, const View&, double, const cbq::MatrixView<float>&, const E&) const noexcept {
    return 0;
  }
};

ReconstructionOptions few_steps() {
  return {.steps = 12, .batch = 3};
}

}  // namespace

TEST_CASE("Reconstruction lowers the loss of every window, and more steps lower it further") {
  tiny::Host<> host(3);
  const auto few = tiny::run(host, few_steps());
  REQUIRE(few);
  REQUIRE(few->size() == 2);
  for (const WindowReport& report : *few) {
    CHECK(report.loss_after < report.loss_before);
    CHECK_FALSE(report.kept_start);
    CHECK(report.restarts == 0);
  }
  CHECK(host.codes.size() == 6);

  tiny::Host<> longer(3);
  auto options = few_steps();
  options.steps = 150;
  const auto many = tiny::run(longer, options);
  REQUIRE(many);
  CHECK(many->front().loss_before == few->front().loss_before);
  CHECK(many->front().loss_after < few->front().loss_after);
  CHECK(many->front().loss_after < 0.5 * many->front().loss_before);
}

TEST_CASE("The codes that a host takes are those that the student ran with") {
  tiny::Host<> host(2);
  tiny::States states;
  cbq::ExecutionContext<> context(serial, cbq::detect());
  REQUIRE(cbq::reconstruct(host, states.views(), cbq::SquaredLoss::normalized, few_steps(), context));
  const tiny::States start;
  cbq::TapeMatrix<float> x, y;
  REQUIRE(x.reshape(tiny::sequences * tiny::length, tiny::hidden));
  REQUIRE(y.reshape(tiny::sequences * tiny::length, tiny::hidden));
  std::memcpy(x.view().data, start.student.data(), start.student.size() * sizeof(float));
  for (std::size_t block = 0; block < 2; ++block) {
    std::vector<float> first(tiny::inner * tiny::hidden), second(first.size());
    REQUIRE(cbq::dequantize(host.codes[2 * block].view(), host.grid, support::view(first, tiny::hidden)));
    REQUIRE(cbq::dequantize(host.codes[2 * block + 1].view(), host.grid, support::view(second, tiny::inner)));
    using Dense = cbq::DenseGradient<float>;
    const tiny::Block<Dense> dense(Dense(support::input(first, tiny::hidden), host.layers()[block].bias),
                                   Dense(support::input(second, tiny::inner)));
    tiny::Block<Dense>::Tape tape;
    REQUIRE(dense.forward(x.constant(), tiny::length, y.view(), tape, context));
    std::swap(x, y);
  }
  CHECK(std::memcmp(x.view().data, states.student.data(), states.student.size() * sizeof(float)) == 0);
}

TEST_CASE("Threads do not change a bit, seeds do") {
  for (const double same_input : {0.0, 0.5}) {
    auto options = few_steps();
    options.same_input_weight = same_input;
    tiny::Host<> host(3), threaded(3), seeded(3);
    const auto reports = tiny::run(host, options);
    REQUIRE(reports);
    const auto others = tiny::run(threaded, options, support::ThreadExecutor{});
    REQUIRE(others);
    CHECK(host.bytes() == threaded.bytes());
    CHECK(reports->back().loss_after == others->back().loss_after);
    options.seed = 1;
    REQUIRE(tiny::run(seeded, options));
    CHECK(seeded.bytes() != host.bytes());
  }
}

TEST_CASE("Weights of the loss's terms have an effect") {
  tiny::Host<> plain(2), without_head(2), unweighted(2), homologous(2);
  without_head.with_head = false;
  auto options = few_steps();
  const auto both = tiny::run(plain, options);
  REQUIRE(both);
  const auto alone = tiny::run(without_head, options);
  REQUIRE(alone);
  CHECK(alone->front().loss_before < both->front().loss_before);
  CHECK(without_head.bytes() != plain.bytes());
  options.logits_weight = 0;
  REQUIRE(tiny::run(unweighted, options));
  CHECK(unweighted.bytes() == without_head.bytes());
  options.windows = {.size = 1, .overlap = 0};
  tiny::Host<> separate(2);
  REQUIRE(tiny::run(separate, options));
  options.same_input_weight = 1;
  REQUIRE(tiny::run(homologous, options));
  // Before the first block both streams are the same, and twice the loss is the same to Adam, or nearly.
  CHECK(homologous.bytes() != separate.bytes());
}

TEST_CASE("Windows slide, grow and overlap") {
  for (const cbq::WindowOptions windows :
       {cbq::WindowOptions{1, 0}, {2, 0}, {3, 2}, {2, 1, cbq::WindowEnds::growing}, {9, 1}}) {
    CAPTURE(windows.size, windows.overlap);
    tiny::Host<> host(4);
    auto options = few_steps();
    options.windows = windows;
    const auto reports = tiny::run(host, options);
    REQUIRE(reports);
    CHECK(reports->size() == cbq::plan_windows(4, windows)->size());
    CHECK(host.codes.size() == 8);
    for (const WindowReport& report : *reports) CHECK(report.loss_after <= report.loss_before);
  }
}

TEST_CASE("What a window is judged by does not depend on small batches") {
  const auto start = [](std::size_t batch) {
    tiny::Host<> host(2);
    const auto reports = tiny::run(host, {.steps = 1, .batch = batch});
    REQUIRE(reports);
    return reports->front().loss_before;
  };
  const double of_eight = start(8);
  for (const std::size_t batch : {1u, 3u, 5u}) CHECK(start(batch) == Catch::Approx(of_eight).epsilon(1e-6));
  CHECK(start(tiny::sequences) != Catch::Approx(of_eight).epsilon(1e-6));
}

TEST_CASE("A window that training makes worse keeps its start") {
  tiny::Host<> wild(2, {.offset_rate = 30, .step_rate = 30}), still(2, {.offset_rate = 0, .step_rate = 0});
  const auto reports = tiny::run(wild, few_steps());
  REQUIRE(reports);
  CHECK(reports->front().kept_start);
  CHECK(reports->front().loss_after == reports->front().loss_before);
  REQUIRE(tiny::run(still, few_steps()));
  CHECK(wild.bytes() == still.bytes());
}

TEST_CASE("Losses that are not finite are restarted at half the rate, then given up") {
  tiny::Host<> host(1);
  tiny::States states;
  cbq::ExecutionContext<> context(serial, cbq::detect());
  const auto make = [](double, std::size_t) { return SpoiledLoss{}; };
  const auto reports = cbq::reconstruct(host, states.views(), make, few_steps(), context);
  REQUIRE(reports);
  CHECK(reports->front().restarts == 3);
  CHECK(reports->front().kept_start);
}

TEST_CASE("States that are not finite are named") {
  cbq::ExecutionContext<> context(serial, cbq::detect());
  tiny::Host<> host(2);
  tiny::States states;
  states.target[5 * tiny::hidden + 2] = std::numeric_limits<float>::infinity();
  const auto failed = cbq::reconstruct(host, states.views(), cbq::SquaredLoss::normalized, few_steps(), context);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::not_finite);
  const std::string message = support::message(failed.error());
  CHECK(message.find("target stream") != std::string::npos);
  CHECK(message.find("token 5, channel") != std::string::npos);
}

TEST_CASE("A stop token ends the loop") {
  std::stop_source stop;
  auto options = few_steps();
  options.stop = stop.get_token();
  std::vector<cbq::ReconstructionProgress> seen;
  options.progress = [&](const cbq::ReconstructionProgress& now) {
    seen.push_back(now);
    if (seen.size() == 17) stop.request_stop();
  };
  tiny::Host<> host(3);
  const auto failed = tiny::run(host, options);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::interrupted);
  REQUIRE(seen.size() == 17);
  CHECK(seen.back().window == 1);
  CHECK(seen.back().windows == 2);
  CHECK(seen.back().step == 5);
  CHECK(seen.back().steps == 12);
  CHECK(seen.back().loss > 0);
  CHECK(host.codes.size() == 2);
}

TEST_CASE("Options and states that make no sense are refused") {
  const auto refused = [](auto change, Errc code) {
    auto options = few_steps();
    change(options);
    tiny::Host<> host(2);
    const auto result = tiny::run(host, options);
    REQUIRE_FALSE(result);
    CHECK(result.error().code == code);
  };
  refused([](auto& o) { o.steps = 0; }, Errc::bad_argument);
  refused([](auto& o) { o.batch = 0; }, Errc::bad_argument);
  refused([](auto& o) { o.windows.size = 0; }, Errc::bad_argument);
  refused([](auto& o) { o.windows.overlap = 2; }, Errc::bad_argument);
  refused([](auto& o) { o.logits_weight = -1; }, Errc::bad_argument);
  refused([](auto& o) { o.same_input_weight = std::numeric_limits<double>::infinity(); }, Errc::bad_argument);
  refused([](auto& o) { o.hardened_share = 1.5; }, Errc::bad_argument);
  tiny::Host<> none(0);
  CHECK(tiny::run(none, few_steps()).error().code == Errc::bad_argument);

  cbq::ExecutionContext<> context(serial, cbq::detect());
  tiny::Host<> host(2);
  tiny::States states;
  for (const std::size_t length : {std::size_t{0}, std::size_t{5}}) {
    auto views = states.views();
    views.length = length;
    CHECK(cbq::reconstruct(host, views, cbq::SquaredLoss::normalized, few_steps(), context).error().code ==
          Errc::bad_shape);
  }
  auto views = states.views();
  views.student.rows -= tiny::length;
  CHECK(cbq::reconstruct(host, views, cbq::SquaredLoss::normalized, few_steps(), context).error().code ==
        Errc::bad_shape);
}
