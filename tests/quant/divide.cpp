// SPDX-License-Identifier: Apache-2.0
#include <cbq/quant/divide.hpp>

#include <limits>
#include <random>

#include <catch2/catch_test_macros.hpp>

namespace {

/// Quotients of random operands and of products, which divide without a remainder, lane by lane.
template <class T>
void check_quotients() {
  using Lanes = xsimd::batch<T>;
  std::mt19937 random(3);
  std::uniform_real_distribution<T> values(T{0.5}, T{2});
  std::uniform_int_distribution<int> steps(-16, 16);
  int wrong = 0;
  for (int round = 0; round < 2000; ++round) {
    T x[Lanes::size], y[Lanes::size], got[Lanes::size];
    for (std::size_t lane = 0; lane < Lanes::size; ++lane) {
      y[lane] = static_cast<T>(static_cast<float>(values(random)) * 1024) / 1024;
      x[lane] = round % 2 == 0 ? values(random) : y[lane] * (static_cast<T>(steps(random)) + T{0.5});
    }
    cbq::divide(Lanes::load_unaligned(x), Lanes::load_unaligned(y)).store_unaligned(got);
    for (std::size_t lane = 0; lane < Lanes::size; ++lane) {
      const volatile T wanted = x[lane] / y[lane];
      if (got[lane] != wanted) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("Quotients are those of scalar division") {
  check_quotients<float>();
  check_quotients<double>();
}

TEST_CASE("Denormals and infinities divide as scalars do") {
  using Lanes = xsimd::batch<float>;
  float got[Lanes::size];
  cbq::divide(Lanes(0x1p-149f), Lanes(0x1p-149f)).store_unaligned(got);
  CHECK(got[0] == 1.0f);
  cbq::divide(Lanes(0x1.8p-140f), Lanes(4.0f)).store_unaligned(got);
  CHECK(got[0] == 0x1.8p-142f);
  cbq::divide(Lanes(1.0f), Lanes(0.0f)).store_unaligned(got);
  CHECK(got[0] == std::numeric_limits<float>::infinity());
}
