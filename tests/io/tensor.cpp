// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/tensor.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/files.hpp"

using cbq::Dtype;
using cbq::Errc;
using cbq::Finite;
using cbq::TensorView;
using support::message;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::size_t huge = std::size_t{1} << 63;

TensorView view_of(Dtype dtype, cbq::TensorShape shape, std::span<const std::byte> bytes) {
  return {.name = "w", .dtype = dtype, .shape = shape, .bytes = bytes, .offset = 0};
}

}  // namespace

TEST_CASE("type names are read back") {
  for (const cbq::DtypeName& entry : cbq::dtype_names) CHECK(*cbq::parse_dtype(entry.name) == entry.dtype);
  for (const char* name : {"", "f32", "F32 ", "F128", "I4"})
    CHECK(cbq::parse_dtype(name).error().code == Errc::unsupported);
}

TEST_CASE("sizes are exact or an error") {
  CHECK(*cbq::element_count({}) == 1);
  CHECK(*cbq::element_count({.rank = 2, .sizes = {3, 5}}) == 15);
  CHECK(*cbq::element_count({.rank = 3, .sizes = {0, huge, huge}}) == 0);
  CHECK_FALSE(cbq::element_count({.rank = 3, .sizes = {huge, 2, 0}}));
  CHECK_FALSE(cbq::element_count({.rank = 2, .sizes = {std::size_t{1} << 32, std::size_t{1} << 32}}));
  CHECK(*cbq::byte_count({.rank = 1, .sizes = {5}}, Dtype::f64) == 40);
  CHECK(*cbq::byte_count({.rank = 1, .sizes = {4}}, Dtype::f6_e2m3) == 3);
  CHECK_FALSE(cbq::byte_count({.rank = 1, .sizes = {3}}, Dtype::f4));
  CHECK_FALSE(cbq::byte_count({.rank = 1, .sizes = {std::size_t{1} << 60}}, Dtype::f16));
}

TEMPLATE_TEST_CASE("elements of each float type reach the same place", "", float, cbq::half, cbq::bfloat16, double) {
  const Dtype dtype = std::is_same_v<TestType, float>       ? Dtype::f32
                      : std::is_same_v<TestType, cbq::half> ? Dtype::f16
                      : std::is_same_v<TestType, double>    ? Dtype::f64
                                                            : Dtype::bf16;
  support::ByteBuilder builder;
  builder.zeros(1);  // an odd address
  for (int i = 0; i < 12; ++i) builder.add(cbq::from_float<TestType>(static_cast<float>(i) - 4.5f));
  const support::GuardedBytes guarded(builder.bytes());
  const TensorView tensor = view_of(dtype, {.rank = 2, .sizes = {3, 4}}, guarded.bytes().subspan(1));

  std::vector<float> out(3 * 6, -1.0f);
  const cbq::MatrixView<float> strided{.data = out.data(), .rows = 3, .columns = 4, .stride = 6};
  REQUIRE(cbq::copy_to_float(tensor, strided));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float wanted = i % 6 < 4 ? static_cast<float>(i / 6 * 4 + i % 6) - 4.5f : -1.0f;
    CHECK(out[i] == wanted);
  }
  std::vector<float> last(8);
  REQUIRE(cbq::copy_rows_to_float(tensor, 1, cbq::matrix_view(last.data(), 2, 4)));
  CHECK(last.front() == -0.5f);
  CHECK(last.back() == 6.5f);
  CHECK_FALSE(cbq::copy_rows_to_float(tensor, 2, cbq::matrix_view(last.data(), 2, 4)));
  CHECK_FALSE(cbq::copy_rows_to_float(tensor, ~std::size_t{0}, cbq::matrix_view(last.data(), 2, 4)));
}

TEST_CASE("a wrong shape or type is refused, with both in the message") {
  const std::vector<std::byte> bytes(48);
  std::vector<float> out(64);
  const TensorView matrix = view_of(Dtype::f32, {.rank = 2, .sizes = {3, 4}}, bytes);
  const TensorView vector = view_of(Dtype::f32, {.rank = 1, .sizes = {12}}, bytes);
  const TensorView cube = view_of(Dtype::f32, {.rank = 3, .sizes = {1, 3, 4}}, bytes);
  CHECK(cbq::copy_to_float(vector, std::span(out).first(12)));
  CHECK(cbq::copy_to_float(vector, cbq::matrix_view(out.data(), 1, 12)));
  CHECK_FALSE(cbq::copy_to_float(matrix, std::span(out).first(12)));
  CHECK_FALSE(cbq::copy_to_float(matrix, cbq::matrix_view(out.data(), 4, 3)));
  CHECK_FALSE(cbq::copy_to_float(matrix, cbq::matrix_view(out.data(), 2, 4)));
  CHECK_FALSE(cbq::copy_to_float(vector, cbq::matrix_view(out.data(), 12, 1)));
  CHECK_FALSE(cbq::copy_to_float(cube, cbq::matrix_view(out.data(), 3, 4)));
  CHECK(message(cbq::copy_to_float(matrix, cbq::matrix_view(out.data(), 4, 3))) ==
        "w: a tensor has the wrong shape (got [3, 4], wanted [4, 3])");
  const TensorView integers = view_of(Dtype::i32, {.rank = 1, .sizes = {12}}, bytes);
  CHECK(cbq::copy_to_float(integers, std::span(out).first(12)).error().code == Errc::unsupported);
}

TEST_CASE("NaN and infinity are found where they are") {
  for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::size_t at : {0u, 7u, 14u}) {
      std::vector<float> values(15, 1e38f);
      CHECK(cbq::first_not_finite(values) == 15);
      values[at] = bad;
      CHECK(cbq::first_not_finite(values) == at);
      const TensorView tensor = view_of(Dtype::f32, {.rank = 2, .sizes = {3, 5}}, std::as_bytes(std::span(values)));
      std::vector<float> out(15);
      const auto status = cbq::copy_to_float(tensor, cbq::matrix_view(out.data(), 3, 5));
      REQUIRE_FALSE(status);
      CHECK(status.error().code == Errc::not_finite);
      const std::string place = "row " + std::to_string(at / 5) + ", column " + std::to_string(at % 5);
      CHECK_THAT(message(status), Catch::Matchers::ContainsSubstring(place));
      CHECK(cbq::copy_to_float(tensor, cbq::matrix_view(out.data(), 3, 5), Finite::unchecked));
    }
  }
  CHECK(cbq::first_not_finite({}) == 0);
}

TEST_CASE("any number of empty rows is copied at once") {
  const TensorView tensor = view_of(Dtype::f32, {.rank = 2, .sizes = {huge, 0}}, {});
  CHECK(cbq::copy_to_float(tensor, cbq::matrix_view(static_cast<float*>(nullptr), huge, 0)));
}
