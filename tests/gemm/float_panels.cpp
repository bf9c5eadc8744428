// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/float_panels.hpp>

#include <cstring>
#include <limits>
#include <vector>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "support/guarded.hpp"

using namespace cbq;

namespace {

struct Shape {
  std::size_t outputs;
  std::size_t inputs;
};

}  // namespace

TEMPLATE_TEST_CASE("Panels hold every weight at its documented place and zeros beyond the last output", "", float, half,
                   bfloat16) {
  const Shape shape = GENERATE(Shape{0, 5}, Shape{5, 0}, Shape{1, 1}, Shape{15, 3}, Shape{16, 64}, Shape{17, 65},
                               Shape{32, 63}, Shape{47, 129});
  CAPTURE(shape.outputs, shape.inputs);
  const std::size_t stride = shape.inputs + 3;
  std::vector<float> weights(shape.outputs * stride, std::numeric_limits<float>::quiet_NaN());
  for (std::size_t n = 0; n < shape.outputs; ++n) {
    for (std::size_t k = 0; k < shape.inputs; ++k) {
      weights[n * stride + k] = 1.0f + static_cast<float>(n * 31 + k) / 512.0f;
    }
  }
  const std::size_t panels = (shape.outputs + 15) / 16;
  REQUIRE(*float_panels_size<TestType>(shape.outputs, shape.inputs) == panels * 16 * shape.inputs);
  const support::Guarded<TestType> memory(panels * 16 * shape.inputs, support::Edge::end);
  const MatrixView<const float> view{weights.data(), shape.outputs, shape.inputs, stride};
  const auto packed = pack_float_panels<TestType>(view, memory.span());
  REQUIRE(packed);
  CHECK(packed->outputs == shape.outputs);
  CHECK(packed->inputs == shape.inputs);
  std::size_t wrong = 0;
  for (std::size_t n = 0; n < panels * 16; ++n) {
    for (std::size_t k = 0; k < shape.inputs; ++k) {
      const float wanted = n < shape.outputs ? to_float(from_float<TestType>(weights[n * stride + k])) : 0.0f;
      if (to_float(packed->data[(n / 16 * shape.inputs + k) * 16 + n % 16]) != wanted) ++wrong;
    }
  }
  CHECK(wrong == 0);
  const auto owner = FloatPanels<TestType>::pack(view);
  REQUIRE(owner);
  CHECK(owner->bytes() == memory.size() * sizeof(TestType));
  CHECK((memory.size() == 0 || std::memcmp(owner->view().data, memory.data(), memory.size() * sizeof(TestType)) == 0));
}

TEST_CASE("Packing rounds float to half to nearest even and keeps half as it is") {
  const std::vector<float> values = {1.0f, 1.0f + 0x1p-11f, 1.0f + 3 * 0x1p-11f, 65519.0f, 65520.0f, 0x1p-25f};
  const auto panels = FloatPanels<half>::pack(matrix_view(values.data(), 1, values.size()));
  REQUIRE(panels);
  const std::vector<unsigned> wanted = {0x3c00, 0x3c00, 0x3c02, 0x7bff, 0x7c00, 0x0000};
  for (std::size_t k = 0; k < values.size(); ++k) CHECK(panels->view().data[k * 16].bits == wanted[k]);

  std::vector<half> codes(1u << 16);
  for (std::size_t code = 0; code < codes.size(); ++code) codes[code].bits = static_cast<std::uint16_t>(code);
  const auto kept = FloatPanels<half>::pack(matrix_view<const half>(codes.data(), 1, codes.size()));
  REQUIRE(kept);
  std::size_t wrong = 0;
  for (std::size_t code = 0; code < codes.size(); ++code) {
    const bool signalling = (code & 0x7c00) == 0x7c00 && (code & 0x3ff) != 0 && (code & 0x200) == 0;
    const std::size_t quiet = signalling ? code | 0x200 : code;
    if (kept->view().data[code * 16].bits != quiet) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("Packing reports memory that is too small, short strides and sizes that overflow") {
  std::vector<float> weights(34 * 5);
  std::vector<float> memory(3 * 16 * 5 - 1);
  const auto small = pack_float_panels<float>(matrix_view<const float>(weights.data(), 34, 5), std::span(memory));
  REQUIRE_FALSE(small);
  CHECK(small.error().code == Errc::bad_shape);
  memory.resize(3 * 16 * 5);
  const auto stride = pack_float_panels<float>(MatrixView<const float>{weights.data(), 34, 5, 4}, std::span(memory));
  REQUIRE_FALSE(stride);
  CHECK(stride.error().code == Errc::bad_shape);
  CHECK_FALSE(float_panels_size<float>(std::size_t{1} << 40, std::size_t{1} << 40));
  CHECK_FALSE(float_panels_size<half>(16, std::size_t{1} << 59));
}
