// SPDX-License-Identifier: Apache-2.0
#include <cbq/prune/schedule.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>

using namespace cbq;

namespace {

/// Tokens that go through each layer's feed-forward half, counted token by token.
double counted_sparsity(const PruningSchedule& schedule, std::size_t tokens) {
  double left = 0, now = static_cast<double>(tokens);
  for (std::size_t i = 0; i < schedule.layers; ++i) {
    if (i >= schedule.first && (i - schedule.first) % schedule.every == 0) now *= 1 - schedule.ratio;
    left += now;
  }
  return 1 - left / static_cast<double>(schedule.layers * tokens);
}

}  // namespace

TEST_CASE("The ratio of each layer is the paper's") {
  const auto three = with_final_ratio({.layers = 12, .first = 9}, 0.9);
  REQUIRE(three);
  CHECK(std::fabs(three->ratio - 0.535841) < 1e-6);
  CHECK(with_final_ratio({.layers = 12, .first = 11}, 0.9)->ratio == Catch::Approx(0.9));
  CHECK(with_final_ratio({.layers = 12, .first = 9}, 0.0)->ratio == 0.0);
}

TEST_CASE("Every fourth layer from a quarter of the model on drops a share, rounded down") {
  const PruningSchedule quarter = quarter_schedule(30);
  std::vector<std::size_t> layers;
  for (std::size_t i = 0; i < 40; ++i) {
    if (is_pruning_layer(quarter, i)) layers.push_back(i);
    CHECK(pruning_layers(quarter, i) == (i < 30 ? layers.size() : 0));
  }
  CHECK(layers == std::vector<std::size_t>{7, 11, 15, 19, 23, 27});
  CHECK(is_pruning_layer(quarter_schedule(1), 0));
  PruningSchedule tenth = quarter;
  tenth.ratio = 0.1;
  CHECK(dropped_tokens(tenth, 7, 99) == 9);
  CHECK(dropped_tokens(tenth, 7, 9) == 0);
  CHECK(dropped_tokens(tenth, 8, 99) == 0);
}

TEST_CASE("A schedule of a sparsity has it") {
  for (const std::size_t layers : {1u, 2u, 6u, 30u}) {
    const PruningSchedule quarter = quarter_schedule(layers);
    for (const double sparsity : {0.0, 0.05, 0.25, 0.45}) {
      CAPTURE(layers, sparsity);
      const auto schedule = with_sparsity(quarter, sparsity);
      REQUIRE(schedule);
      CHECK(std::fabs(token_sparsity(*schedule) - sparsity) < 1e-9);
      CHECK(std::fabs(counted_sparsity(*schedule, 1000) - sparsity) < 1e-9);
    }
  }
  CHECK(with_sparsity(quarter_schedule(30), 0.0)->ratio == 0.0);
}

TEST_CASE("Schedules that drop everything, or nothing that there is, are refused") {
  const PruningSchedule quarter = quarter_schedule(30);
  for (const double wrong : {-0.1, 1.0, 1.5, double{NAN}}) {
    CAPTURE(wrong);
    CHECK(with_final_ratio(quarter, wrong).error().code == Errc::bad_argument);
    CHECK(with_sparsity(quarter, wrong).error().code == Errc::bad_argument);
    PruningSchedule all = quarter;
    all.ratio = wrong;
    CHECK(check_schedule(all).error().code == Errc::bad_argument);
  }
  CHECK_FALSE(with_sparsity(quarter, 23.0 / 30));  // the first 7 of 30 layers keep everything
  CHECK(with_sparsity(quarter, 0.76));
  CHECK_FALSE(check_schedule({.layers = 4, .first = 4}));
  CHECK_FALSE(check_schedule({.layers = 4, .first = 1, .every = 0}));
  CHECK_FALSE(with_sparsity({}, 0.1));
}
