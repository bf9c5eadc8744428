// SPDX-License-Identifier: Apache-2.0
#include <cbq/reconstruct/rounding_choice.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <vector>

#include "reconstruct/tiny_host.hpp"
#include "support/kernels.hpp"

using cbq::RoundingChoiceOptions;
using cbq::RoundingMethod;
using Choice = cbq::RoundingChoice<float>;

namespace {

constexpr std::size_t rows = 6, columns = 16;
constexpr cbq::Grid grid = {.bits = 3, .granularity = cbq::Granularity::per_group, .group = 8};

std::size_t trained(const RoundingChoiceOptions& options) {
  const std::vector<float> weights = support::normal(rows * columns, 1);
  return Choice::create(support::input(weights, columns), grid, options, 0).value().trained_parameters();
}

}  // namespace

TEST_CASE("A method as a value is the method") {
  constexpr std::size_t steps = rows * 2;
  CHECK(trained({}) == rows * columns + steps);
  CHECK(trained({.method = RoundingMethod::ada}) == rows * columns + steps);
  CHECK(trained({.method = RoundingMethod::nearest}) == steps);
  CHECK(trained({.method = RoundingMethod::clipping}) == 2 * steps);
  CHECK(trained({.method = RoundingMethod::lora}) == 5 * (rows + columns) + steps);
  CHECK(trained({.method = RoundingMethod::lora, .rank = 2}) == 2 * (rows + columns) + steps);
  CHECK(trained({.method = RoundingMethod::straight_through_low_rank, .rank = 3}) == 3 * (rows + columns) + steps);
  CHECK(trained({.rank = 3}) == rows * columns + steps);  // dense methods have no rank

  const std::vector<float> weights = support::normal(rows * columns, 1);
  const auto view = support::input(weights, columns);
  CHECK(Choice::create(view, grid, {.method = RoundingMethod::lora, .rank = 7}, 0).error().code ==
        cbq::Errc::bad_argument);
  const auto rate = [&](const RoundingChoiceOptions& options, std::size_t kind) {
    return Choice::create(view, grid, options, 0).value().parameters()[kind].learning_rate;
  };
  CHECK(rate({}, 0) == 2.5e-3);
  CHECK(cbq::straight_through_offset_rate(cbq::ReconstructionOptions{}.steps) == Catch::Approx(2.5e-3));
  CHECK(rate({.offset_rate = 0.25}, 0) == 0.25);
  CHECK(rate({}, 1) == 1e-3);
  CHECK(rate({.step_rate = 0.0}, 1) == 0.0);
  const auto plain = cbq::StraightThrough<float>::create(view, grid, {}, 0).value();
  const auto chosen = Choice::create(view, grid, {}, 0).value();
  CHECK(chosen.bytes() == plain.bytes());
  CHECK(Choice::bytes_for(rows, columns, grid, {}) == plain.bytes());
}

TEST_CASE("Every method reconstructs: a loss that falls, codes that threads do not change, checkpoints that continue") {
  for (const auto method :
       {RoundingMethod::straight_through, RoundingMethod::straight_through_low_rank, RoundingMethod::lora,
        RoundingMethod::ada, RoundingMethod::nearest, RoundingMethod::clipping}) {
    CAPTURE(static_cast<int>(method));
    const RoundingChoiceOptions choice = {.method = method, .rank = 4};
    cbq::ReconstructionOptions options = {.steps = 40, .batch = 4, .hardened_share = cbq::hardened_share(method)};
    std::vector<std::vector<std::byte>> states;
    options.checkpoint.save = [&](std::span<const std::byte> bytes) -> cbq::Status {
      states.emplace_back(bytes.begin(), bytes.end());
      return {};
    };
    tiny::Host<Choice> host(3, choice), threaded(3, choice), resumed(3, choice);
    const auto reports = tiny::run(host, options);
    REQUIRE(reports);
    double before = 0, after = 0;
    for (const cbq::WindowReport& report : *reports) {
      before += report.loss_before;
      after += report.loss_after;
    }
    CHECK(after < before);
    REQUIRE(tiny::run(threaded, options, support::ThreadExecutor{}));
    CHECK(threaded.bytes() == host.bytes());
    const std::vector<std::byte> first = states.front();
    options.checkpoint.resume = first;
    REQUIRE(tiny::run(resumed, options));
    CHECK(resumed.bytes() == host.bytes());
  }
}
