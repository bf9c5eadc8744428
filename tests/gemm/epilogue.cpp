// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/epilogue.hpp>

#include <cmath>
#include <limits>

#include <catch2/catch_test_macros.hpp>

using namespace cbq;

TEST_CASE("The exponential of the gate stays within two units of the last place") {
  double worst = 0.0;
  for (float x = -86.99f; x < 87.0f; x += 0.00317f) {
    const double want = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(epilogue::exponential(x)) - want) / want);
  }
  CHECK(worst < 0x1p-21);
  CHECK(epilogue::exponential(0.0f) == 1.0f);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(epilogue::exponential(infinity) == epilogue::exponential(87.0f));
  CHECK(epilogue::exponential(-infinity) == epilogue::exponential(-87.0f));
}

TEST_CASE("Gates of any size give the limits of SiLU") {
  const float gates[] = {200.0f, -200.0f, 0.0f, std::numeric_limits<float>::quiet_NaN()};
  const SiluMultiply silu{matrix_view(gates, 1, 4)};
  CHECK(silu(2.0f, 0, 0) == 400.0f);
  CHECK(std::abs(silu(2.0f, 0, 1)) < 1e-30f);
  CHECK(silu(2.0f, 0, 2) == 0.0f);
  CHECK(std::isnan(silu(2.0f, 0, 3)));
}

TEST_CASE("Chained epilogues run in order") {
  const float bias[] = {1.0f, 2.0f};
  const float other[] = {10.0f, 20.0f, 30.0f, 40.0f};
  const Then epilogue{Then{AddBias{bias}, AddResidual{matrix_view(other, 2, 2)}}, RequantizeInt8{0.5f}};
  CHECK(epilogue(4.0f, 1, 0) == 17.5f);
  CHECK(epilogue(4.0f, 0, 1) == 13.0f);
}

TEST_CASE("Epilogues refuse operands that do not cover the result") {
  const float values[12] = {};
  CHECK(AddBias{values}.check(3, 4));
  CHECK(AddBias{}.check(3, 4).error().code == Errc::bad_shape);
  CHECK(AddBias{}.check(3, 0));
  const auto fits = matrix_view(values, 3, 4);
  CHECK(AddResidual{fits}.check(3, 4));
  CHECK(AddResidual{fits}.check(2, 3));
  CHECK(AddResidual{fits}.check(4, 4).error().code == Errc::bad_shape);
  CHECK(AddResidual{fits}.check(3, 5).error().code == Errc::bad_shape);
  CHECK(AddResidual{MatrixView<const float>{values, 3, 4, 3}}.check(3, 4).error().code == Errc::bad_shape);
  CHECK(AddResidual{MatrixView<const float>{nullptr, 3, 4, 4}}.check(3, 4).error().code == Errc::bad_shape);
  CHECK(AddResidual{}.check(0, 4));
  CHECK(SiluMultiply{fits}.check(3, 4));
  CHECK(SiluMultiply{fits}.check(3, 5).error().code == Errc::bad_shape);
  CHECK(check_epilogue(NoEpilogue{}, 3, 4));
  CHECK(check_epilogue(Then{NoEpilogue{}, SiluMultiply{fits}}, 3, 4));
  CHECK_FALSE(check_epilogue(Then{NoEpilogue{}, SiluMultiply{fits}}, 3, 5));
  CHECK_FALSE(check_epilogue(Then{AddBias{}, NoEpilogue{}}, 3, 5));
}
