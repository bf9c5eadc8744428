// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/float_matmul.hpp>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"

using namespace cbq;

namespace {

constexpr float canary = -12345.0f;

struct Shape {
  std::size_t rows;
  std::size_t outputs;
  std::size_t inputs;
};

std::vector<float> random_floats(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

/// The plain definition: sums in double of a [M x K] and b [N x K], and the rounding error a float sum may have.
struct Oracle {
  Oracle(const std::vector<float>& a, const std::vector<float>& b, Shape shape)
      : sums(shape.rows * shape.outputs), bounds(shape.rows * shape.outputs) {
    for (std::size_t m = 0; m < shape.rows; ++m) {
      for (std::size_t n = 0; n < shape.outputs; ++n) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (std::size_t k = 0; k < shape.inputs; ++k) {
          const double product = static_cast<double>(a[m * shape.inputs + k]) * b[n * shape.inputs + k];
          sum += product;
          magnitude += std::abs(product);
        }
        sums[m * shape.outputs + n] = sum;
        bounds[m * shape.outputs + n] = (static_cast<double>(shape.inputs) + 2.0) * 0x1p-24 * magnitude;
      }
    }
  }
  /// Elements of c (row stride `stride`) that differ from the oracle by more than rounding may.
  [[nodiscard]] std::size_t wrong(const float* c, std::size_t stride, Shape shape) const {
    std::size_t count = 0;
    for (std::size_t m = 0; m < shape.rows; ++m) {
      for (std::size_t n = 0; n < shape.outputs; ++n) {
        const std::size_t i = m * shape.outputs + n;
        if (!(std::abs(static_cast<double>(c[m * stride + n]) - sums[i]) <= bounds[i])) ++count;
      }
    }
    return count;
  }
  std::vector<double> sums;
  std::vector<double> bounds;
};

/// A result between forbidden pages, with canaries between its rows.
struct Target {
  Target(Shape shape, std::size_t extra)
      : stride(shape.outputs + extra),
        memory(shape.rows == 0 ? 0 : (shape.rows - 1) * stride + shape.outputs, support::Edge::end),
        view{memory.data(), shape.rows, shape.outputs, stride} {
    for (float& value : memory.span()) value = canary;
  }
  [[nodiscard]] std::size_t overwritten() const {
    std::size_t count = 0;
    for (std::size_t i = 0; i < memory.size(); ++i) {
      if (i % stride >= view.columns && memory.data()[i] != canary) ++count;
    }
    return count;
  }
  std::size_t stride;
  support::Guarded<float> memory;
  MatrixView<float> view;
};

/// Rows of `values` at stride `columns + extra`, ending at a forbidden page.
struct Strided {
  Strided(const std::vector<float>& values, std::size_t rows, std::size_t columns, std::size_t extra,
          support::Edge edge)
      : memory(rows == 0 ? 0 : (rows - 1) * (columns + extra) + columns, edge),
        view{memory.data(), rows, columns, columns + extra} {
    for (float& value : memory.span()) value = std::numeric_limits<float>::quiet_NaN();
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t c = 0; c < columns; ++c) memory.data()[r * (columns + extra) + c] = values[r * columns + c];
    }
  }
  support::Guarded<float> memory;
  MatrixView<const float> view;
};

std::vector<float> transpose(const std::vector<float>& values, std::size_t rows, std::size_t columns) {
  std::vector<float> result(values.size());
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t c = 0; c < columns; ++c) result[c * rows + r] = values[r * columns + c];
  }
  return result;
}

/// Calls the tasks backwards, or on threads.
struct Backwards {
  static constexpr std::size_t concurrency() { return 1; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    for (std::size_t index = count; index-- > 0;) task(index);
  }
};
struct Threads {
  static constexpr std::size_t concurrency() { return 3; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    std::atomic<std::size_t> next = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        for (std::size_t index = next++; index < count; index = next++) task(index);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
};

/// One shape through every kind of right-hand side.
void check_shape(Shape shape, std::size_t extra, support::Edge edge) {
  CAPTURE(shape.rows, shape.outputs, shape.inputs, extra);
  const std::vector<float> a = random_floats(shape.rows * shape.inputs, 1);
  const std::vector<float> b = random_floats(shape.outputs * shape.inputs, 2);
  const Oracle oracle(a, b, shape);
  const Strided left(a, shape.rows, shape.inputs, extra, edge);
  const Strided left_transposed(transpose(a, shape.rows, shape.inputs), shape.inputs, shape.rows, extra, edge);
  const Strided by_output(b, shape.outputs, shape.inputs, extra, edge);
  const Strided by_input(transpose(b, shape.outputs, shape.inputs), shape.inputs, shape.outputs, extra, edge);
  const support::Guarded<float> memory(*float_panels_size<float>(shape.outputs, shape.inputs), edge);
  const auto panels = pack_float_panels<float>(by_output.view, memory.span());
  REQUIRE(panels);
  const support::Guarded<float> workspace(*float_matmul_transposed_workspace(shape.rows, shape.inputs),
                                          support::Edge::end);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    const auto check = [&](const char* what, auto&& multiply) {
      CAPTURE(what);
      const Target target(shape, extra);
      CHECK(multiply(target.view));
      CHECK(oracle.wrong(target.memory.data(), target.stride, shape) == 0);
      CHECK(target.overwritten() == 0);
    };
    check("packed", [&](const MatrixView<float>& c) { return float_matmul(left.view, *panels, c, {}, {.cap = isa}); });
    check("A * B^T", [&](const MatrixView<float>& c) {
      return float_matmul(left.view, transposed(by_output.view), c, {}, {.cap = isa});
    });
    check("A * B", [&](const MatrixView<float>& c) {
      return float_matmul(left.view, row_major(by_input.view), c, {}, {.cap = isa});
    });
    check("A^T * B", [&](const MatrixView<float>& c) {
      return float_matmul_transposed(left_transposed.view, row_major(by_input.view), c, NoEpilogue{},
                                     {.cap = isa, .workspace = workspace.span()});
    });
  }
}

template <class T, class E, class X>
std::vector<float> product(const std::vector<float>& a, const FloatPanels<T>& panels, std::size_t rows,
                           const E& epilogue, const FloatMatmulOptions<X>& options) {
  const FloatPanelsView<T> b = panels.view();
  std::vector<float> c(rows * b.outputs, canary);
  REQUIRE(float_matmul(matrix_view<const float>(a.data(), rows, b.inputs), b, matrix_view(c.data(), rows, b.outputs),
                       epilogue, options));
  return c;
}

bool same_bits(const std::vector<float>& left, const std::vector<float>& right) {
  return left.size() == right.size() &&
         (left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(float)) == 0);
}

}  // namespace

TEST_CASE("Products of every tile tail are the definition's up to rounding and stay inside their memory") {
  // Rows: each narrow and tall tile, uneven cuts, two row blocks. Outputs: panel and strip tails. Inputs: chain tails.
  for (const std::size_t rows : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 9u, 11u, 13u, 16u, 17u}) {
    for (const std::size_t outputs : {1u, 15u, 16u, 17u, 31u, 32u, 33u, 53u}) {
      for (const std::size_t inputs : {0u, 1u, 3u, 4u, 5u, 16u, 37u}) {
        check_shape({rows, outputs, inputs}, (rows + inputs) % 3,
                    inputs % 2 == 0 ? support::Edge::start : support::Edge::end);
      }
    }
  }
  // Blocks of 128 rows, 256 decoded inputs, 2048 inputs in place; several tasks.
  for (const Shape shape :
       {Shape{127, 33, 17}, Shape{129, 65, 19}, Shape{259, 48, 8}, Shape{3, 47, 255}, Shape{4, 17, 257},
        Shape{9, 40, 513}, Shape{5, 33, 2049}, Shape{1, 2000, 61}, Shape{40, 1000, 67}}) {
    check_shape(shape, 1, support::Edge::end);
  }
  check_shape({0, 5, 7}, 0, support::Edge::end);
  check_shape({5, 0, 7}, 0, support::Edge::end);
  check_shape({0, 0, 0}, 0, support::Edge::end);
}

TEMPLATE_TEST_CASE("Panels of 16-bit elements multiply as their floats do", "", half, bfloat16) {
  for (const std::size_t rows : {1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 9u, 20u}) {
    for (const Shape shape : {Shape{rows, 33, 0}, Shape{rows, 40, 37}, Shape{rows, 17, 300}}) {
      CAPTURE(shape.rows, shape.outputs, shape.inputs);
      const std::vector<float> a = random_floats(shape.rows * shape.inputs, 3);
      std::vector<float> b = random_floats(shape.outputs * shape.inputs, 4);
      for (float& value : b) value = to_float(from_float<TestType>(value));
      const auto narrow = FloatPanels<TestType>::pack(matrix_view<const float>(b.data(), shape.outputs, shape.inputs));
      const auto wide = FloatPanels<float>::pack(matrix_view<const float>(b.data(), shape.outputs, shape.inputs));
      REQUIRE((narrow && wide));
      const Oracle oracle(a, b, shape);
      for (const Isa isa : support::machine_isas()) {
        CAPTURE(isa_name(isa));
        const FloatMatmulOptions<> options{.cap = isa};
        const std::vector<float> c = product(a, *narrow, rows, NoEpilogue{}, options);
        CHECK(oracle.wrong(c.data(), shape.outputs, shape) == 0);
        // Memory needs no alignment beyond the element's.
        const FloatPanelsView<TestType> aligned = narrow->view();
        std::vector<TestType> moved(narrow->bytes() / sizeof(TestType) + 1);
        if (moved.size() > 1) std::memcpy(moved.data() + 1, aligned.data, narrow->bytes());
        std::vector<float> again(c.size());
        REQUIRE(float_matmul(matrix_view<const float>(a.data(), rows, shape.inputs),
                             FloatPanelsView<TestType>{moved.data() + 1, shape.outputs, shape.inputs},
                             matrix_view(again.data(), rows, shape.outputs), {}, options));
        CHECK(same_bits(c, again));
        // With more than 4 rows both add in the order of the inputs.
        if (rows <= 4) continue;
        CHECK(same_bits(c, product(a, *wide, rows, NoEpilogue{}, options)));
        // product() starts C with a value that is not zero.
        const FloatMatmulOptions<> add{.accumulate = Accumulate::add, .cap = isa};
        const std::vector<float> sum = product(a, *narrow, rows, NoEpilogue{}, add);
        CHECK(same_bits(sum, product(a, *wide, rows, NoEpilogue{}, add)));
      }
    }
  }
}

TEMPLATE_TEST_CASE("Every 16-bit code arrives in a product as to_float gives it", "", half, bfloat16) {
  const std::size_t outputs = 1u << 16;
  std::vector<TestType> codes(outputs);
  for (std::size_t i = 0; i < outputs; ++i) codes[i].bits = static_cast<std::uint16_t>(i);
  const auto panels = FloatPanels<TestType>::pack(matrix_view<const TestType>(codes.data(), outputs, 1));
  REQUIRE(panels);
  for (const Isa isa : support::machine_isas()) {
    for (const std::size_t rows : {std::size_t{1}, std::size_t{6}, std::size_t{9}}) {
      CAPTURE(isa_name(isa), rows);
      const std::vector<float> c =
          product(std::vector<float>(rows, 1.0f), *panels, rows, NoEpilogue{}, FloatMatmulOptions<>{.cap = isa});
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < c.size(); ++i) {
        const float wanted = to_float(codes[i % outputs]);
        if (std::isnan(wanted) ? !std::isnan(c[i]) : c[i] != wanted) ++wrong;
      }
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("Executors, column ranges and neighbouring rows do not change a bit") {
  const Shape shape = GENERATE(Shape{1, 1500, 96}, Shape{3, 900, 129}, Shape{7, 700, 300}, Shape{150, 250, 64});
  CAPTURE(shape.rows, shape.outputs, shape.inputs);
  const std::vector<float> a = random_floats(shape.rows * shape.inputs, 5);
  const std::vector<float> b = random_floats(shape.outputs * shape.inputs, 6);
  const auto panels = FloatPanels<float>::pack(matrix_view<const float>(b.data(), shape.outputs, shape.inputs));
  REQUIRE(panels);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa));
    const std::vector<float> whole = product(a, *panels, shape.rows, NoEpilogue{}, FloatMatmulOptions<>{.cap = isa});
    CHECK(same_bits(whole, product(a, *panels, shape.rows, NoEpilogue{}, FloatMatmulOptions<Backwards>{.cap = isa})));
    CHECK(same_bits(whole, product(a, *panels, shape.rows, NoEpilogue{}, FloatMatmulOptions<Threads>{.cap = isa})));
    std::vector<float> pieces(whole.size(), canary);
    const std::size_t cuts[] = {0, 16, 48, 224, shape.outputs};
    for (std::size_t i = 0; i + 1 < std::size(cuts); ++i) {
      const FloatMatmulOptions<> options{.columns = {cuts[i], cuts[i + 1] - cuts[i]}, .cap = isa};
      const std::vector<float> piece = product(a, *panels, shape.rows, NoEpilogue{}, options);
      std::size_t touched = 0;
      for (std::size_t j = 0; j < piece.size(); ++j) {
        const std::size_t column = j % shape.outputs;
        if (column >= cuts[i] && column < cuts[i + 1]) {
          pieces[j] = piece[j];
        } else if (piece[j] != canary) {
          ++touched;
        }
      }
      CHECK(touched == 0);
    }
    CHECK(same_bits(whole, pieces));
    if (shape.rows <= 5) continue;
    // With more than 4 rows a row's result does not depend on how many others there are.
    std::vector<float> fewer = product(a, *panels, 5, NoEpilogue{}, FloatMatmulOptions<>{.cap = isa});
    CHECK(std::memcmp(fewer.data(), whole.data(), fewer.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("A column range may end inside a panel") {
  const std::vector<float> a = random_floats(6 * 20, 7);
  const std::vector<float> b = random_floats(64 * 20, 8);
  const auto panels = FloatPanels<float>::pack(matrix_view<const float>(b.data(), 64, 20));
  REQUIRE(panels);
  const std::vector<float> whole = product(a, *panels, 6, NoEpilogue{}, FloatMatmulOptions<>{});
  const std::vector<float> part = product(a, *panels, 6, NoEpilogue{}, FloatMatmulOptions<>{.columns = {16, 21}});
  for (std::size_t i = 0; i < part.size(); ++i) CHECK(part[i] == (i % 64 >= 16 && i % 64 < 37 ? whole[i] : canary));
}

TEST_CASE("Accumulating continues from C") {
  for (const Shape shape :
       {Shape{2, 37, 50}, Shape{6, 37, 50}, Shape{11, 64, 300}, Shape{6, 20, 2100}, Shape{3, 20, 0}}) {
    CAPTURE(shape.rows, shape.outputs, shape.inputs);
    // C is one more input of A times the identity: the oracle gets both.
    const std::vector<float> a = random_floats(shape.rows * shape.inputs, 9);
    const std::vector<float> b = random_floats(shape.outputs * shape.inputs, 10);
    const std::vector<float> start = random_floats(shape.rows * shape.outputs, 11);
    Oracle oracle(a, b, shape);
    for (std::size_t i = 0; i < start.size(); ++i) {
      oracle.sums[i] += start[i];
      oracle.bounds[i] += (static_cast<double>(shape.inputs) + 2.0) * 0x1p-24 * std::abs(start[i]);
    }
    const auto panels = FloatPanels<float>::pack(matrix_view<const float>(b.data(), shape.outputs, shape.inputs));
    REQUIRE(panels);
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(isa_name(isa));
      const FloatMatmulOptions<> options{.accumulate = Accumulate::add, .cap = isa};
      const auto left = matrix_view<const float>(a.data(), shape.rows, shape.inputs);
      const support::Guarded<float> c(std::span<const float>(start), support::Edge::end);
      REQUIRE(float_matmul(left, panels->view(), matrix_view(c.data(), shape.rows, shape.outputs), {}, options));
      CHECK(oracle.wrong(c.data(), shape.outputs, shape) == 0);
      std::vector<float> decoded = start;  // in blocks of 256 inputs
      REQUIRE(float_matmul(left, transposed(matrix_view<const float>(b.data(), shape.outputs, shape.inputs)),
                           matrix_view(decoded.data(), shape.rows, shape.outputs), {}, options));
      CHECK(oracle.wrong(decoded.data(), shape.outputs, shape) == 0);
      if (shape.rows > 4) CHECK(std::memcmp(c.data(), decoded.data(), decoded.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("Epilogues see each finished value once, with its place in the whole result") {
  for (const Shape shape : {Shape{2, 37, 50}, Shape{9, 64, 300}, Shape{140, 33, 5}, Shape{6, 20, 2100}}) {
    CAPTURE(shape.rows, shape.outputs, shape.inputs);
    const std::vector<float> a = random_floats(shape.rows * shape.inputs, 12);
    const std::vector<float> b = random_floats(shape.outputs * shape.inputs, 13);
    const std::vector<float> bias = random_floats(shape.outputs, 14);
    const std::vector<float> other = random_floats(shape.rows * shape.outputs, 15);
    const auto panels = FloatPanels<float>::pack(matrix_view<const float>(b.data(), shape.outputs, shape.inputs));
    REQUIRE(panels);
    for (const Isa isa : support::machine_isas()) {
      CAPTURE(isa_name(isa));
      const FloatMatmulOptions<> options{.cap = isa};
      const std::vector<float> plain = product(a, *panels, shape.rows, NoEpilogue{}, options);
      const auto check = [&](const auto& epilogue) {
        std::vector<float> wanted = plain;
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          wanted[i] = epilogue(plain[i], i / shape.outputs, i % shape.outputs);
        }
        CHECK(same_bits(product(a, *panels, shape.rows, epilogue, options), wanted));
      };
      check(AddBias{bias.data()});
      check(AddResidual{matrix_view<const float>(other.data(), shape.rows, shape.outputs)});
      // Compiled for an instruction set with FMA, the polynomial of the exponential may end in another last bit.
      const SiluMultiply silu{matrix_view<const float>(other.data(), shape.rows, shape.outputs)};
      const std::vector<float> gated = product(a, *panels, shape.rows, silu, options);
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < gated.size(); ++i) {
        const float wanted = silu(plain[i], i / shape.outputs, i % shape.outputs);
        if (std::abs(gated[i] - wanted) > 0x1p-21f * std::abs(wanted)) ++wrong;
      }
      CHECK(wrong == 0);
      // The residual may be C itself.
      std::vector<float> in_place = other;
      REQUIRE(float_matmul(matrix_view<const float>(a.data(), shape.rows, shape.inputs), panels->view(),
                           matrix_view(in_place.data(), shape.rows, shape.outputs),
                           AddResidual{matrix_view<const float>(in_place.data(), shape.rows, shape.outputs)}, options));
      std::vector<float> wanted = plain;
      for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] += other[i];
      CHECK(same_bits(in_place, wanted));
    }
  }
}

TEST_CASE("NaN and infinity reach exactly the results that they belong to") {
  const Shape shape = GENERATE(Shape{3, 35, 40}, Shape{10, 35, 300});
  std::vector<float> a = random_floats(shape.rows * shape.inputs, 16);
  std::vector<float> b = random_floats(shape.outputs * shape.inputs, 17);
  a[1 * shape.inputs + 7] = std::numeric_limits<float>::quiet_NaN();
  b[20 * shape.inputs + 9] = std::numeric_limits<float>::infinity();
  const auto panels = FloatPanels<float>::pack(matrix_view<const float>(b.data(), shape.outputs, shape.inputs));
  REQUIRE(panels);
  for (const Isa isa : support::machine_isas()) {
    CAPTURE(isa_name(isa), shape.rows);
    const std::vector<float> c = product(a, *panels, shape.rows, NoEpilogue{}, FloatMatmulOptions<>{.cap = isa});
    std::size_t wrong = 0;
    for (std::size_t m = 0; m < shape.rows; ++m) {
      for (std::size_t n = 0; n < shape.outputs; ++n) {
        const float value = c[m * shape.outputs + n];
        if (std::isnan(value) != (m == 1)) ++wrong;
        if (std::isinf(value) != (m != 1 && n == 20)) ++wrong;
      }
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("Wrong shapes, ranges and workspaces are errors and touch nothing") {
  const std::vector<float> a(40 * 40, 1.0f);
  std::vector<float> c(40 * 40, canary);
  const auto panels = FloatPanels<float>::pack(matrix_view<const float>(a.data(), 20, 10));
  REQUIRE(panels);
  const auto left = [&](std::size_t rows, std::size_t inputs) {
    return matrix_view<const float>(a.data(), rows, inputs);
  };
  const auto code = [](const Status& status) {
    REQUIRE_FALSE(status);
    return status.error().code;
  };
  CHECK(code(float_matmul(left(3, 9), panels->view(), matrix_view(c.data(), 3, 20))) == Errc::bad_shape);
  CHECK(code(float_matmul(left(3, 10), panels->view(), matrix_view(c.data(), 2, 20))) == Errc::bad_shape);
  CHECK(code(float_matmul(left(3, 10), panels->view(), matrix_view(c.data(), 3, 19))) == Errc::bad_shape);
  CHECK(code(float_matmul(left(3, 10), panels->view(), MatrixView<float>{c.data(), 3, 20, 19})) == Errc::bad_shape);
  CHECK(code(float_matmul({a.data(), 3, 10, 9}, panels->view(), matrix_view(c.data(), 3, 20))) == Errc::bad_shape);
  CHECK(code(float_matmul(left(3, 10), panels->view(), matrix_view(c.data(), 3, 20), {}, {.columns = {8, 4}})) ==
        Errc::bad_argument);
  CHECK(code(float_matmul(left(3, 10), panels->view(), matrix_view(c.data(), 3, 20), {}, {.columns = {32, 4}})) ==
        Errc::bad_argument);
  std::vector<float> workspace(*float_matmul_transposed_workspace(3, 10) - 1);
  CHECK(code(float_matmul_transposed(left(10, 3), panels->view(), matrix_view(c.data(), 3, 20), NoEpilogue{},
                                     FloatMatmulOptions<>{.workspace = workspace})) == Errc::bad_argument);
  CHECK_FALSE(float_matmul_transposed_workspace(std::size_t{1} << 40, std::size_t{1} << 40));
  CHECK(std::count(c.begin(), c.end(), canary) == 40 * 40);
}

TEST_CASE("Null memory and epilogues without operands are refused, empty products do nothing") {
  const std::vector<float> a(3 * 5, 1.0f), b(5 * 20, 1.0f);
  std::vector<float> c(3 * 20, canary);
  const auto left = matrix_view<const float>(a.data(), 3, 5);
  const auto right = row_major(matrix_view<const float>(b.data(), 5, 20));
  const auto view = matrix_view(c.data(), 3, 20);
  CHECK(float_matmul(matrix_view<const float>(nullptr, 3, 5), right, view).error().code == Errc::bad_argument);
  CHECK(float_matmul(left, right, matrix_view<float>(nullptr, 3, 20)).error().code == Errc::bad_argument);
  CHECK(float_matmul(left, right, view, AddBias{}).error().code == Errc::bad_shape);
  CHECK(c == std::vector<float>(c.size(), canary));
  CHECK(float_matmul(matrix_view<const float>(nullptr, 0, 5), right, matrix_view<float>(nullptr, 0, 20)));
  CHECK(
      float_matmul(matrix_view<const float>(nullptr, 3, 0), row_major(matrix_view<const float>(nullptr, 0, 20)), view));
  CHECK(c == std::vector<float>(c.size(), 0.0f));
}
