// SPDX-License-Identifier: Apache-2.0
#pragma once

// Epilogues: what happens to a result while it is still in the L1 cache. A plain value with one call operator, written
// without knowledge of SIMD; a host brings its own. It gets the finished dot product and its place, and returns what is
// stored. The driver calls it for 16 columns of one row at a time in a loop that compilers turn into vectors as long as
// the operator has no branches and calls nothing outside the header: AddResidual then costs 1 to 2 % of a product over
// 4096 inputs. An epilogue that reads memory may offer check(rows, columns) -> Status; it is asked before any work.

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <class E>
concept Epilogue = requires(const E& epilogue, float value, std::size_t row, std::size_t column) {
  { epilogue(value, row, column) } -> std::convertible_to<float>;
};

namespace epilogue {

/// e^x with a relative error below 2^-21, without branches so that loops over it become vectors: x = n ln 2 + r,
/// e^r by a polynomial of degree 6, 2^n by its bits. Clamps x to [-87, 87].
[[nodiscard, gnu::always_inline]] inline float exponential(float x) noexcept {
  // Clamped as an integer: compilers that respect signals of comparisons branch for floats.
  constexpr std::uint32_t largest = __builtin_bit_cast(std::uint32_t, 87.0f);
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const auto clamped = __builtin_bit_cast(float, (bits & 0x80000000u) | (magnitude < largest ? magnitude : largest));
  constexpr float unit_one = 0x1.8p23f;  // adding it rounds to integers, which are then its low bits
  const float shifted = clamped * 1.44269504f + unit_one;
  const std::int32_t n = __builtin_bit_cast(std::int32_t, shifted) - __builtin_bit_cast(std::int32_t, unit_one);
  const auto whole = static_cast<float>(n);
  const float r = (clamped - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts: no cancellation
  float sum = 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  return sum * __builtin_bit_cast(float, (n + 127) * (1 << 23));
}

/// Whether `operand` covers a result of rows x columns.
[[nodiscard]] inline Status check_operand(const MatrixView<const float>& operand, std::size_t rows,
                                          std::size_t columns) noexcept {
  if (rows == 0 || columns == 0) return {};
  if (operand.data == nullptr || operand.rows < rows || operand.columns < columns ||
      (rows > 1 && operand.stride < columns)) {
    return Error{Errc::bad_shape, "[cbq] epilogue: the operand must cover the result", "operand",
                 ErrorText(operand.rows) << " x " << operand.columns << ", stride " << operand.stride
                                         << (operand.data == nullptr ? ", null" : ""),
                 ErrorText(rows) << " x " << columns};
  }
  return {};
}

/// Asks for 32 columns of one row of an operand while the product that they join is still to be computed. Into L2, as
/// rows that lie a power of two apart share one set of L1.
inline void prefetch_operand(const MatrixView<const float>& operand, std::size_t r, std::size_t column) noexcept {
  __builtin_prefetch(row(operand, r) + column, 0, 2);
  __builtin_prefetch(row(operand, r) + column + 16, 0, 2);
}

}  // namespace epilogue

/// Stores the product as it is.
struct NoEpilogue {
  float operator()(float value, std::size_t, std::size_t) const noexcept { return value; }
};

/// Adds a bias per output; `bias` holds N floats.
struct AddBias {
  const float* bias = nullptr;
  float operator()(float value, std::size_t, std::size_t column) const noexcept { return value + bias[column]; }
  [[nodiscard]] Status check(std::size_t, std::size_t columns) const noexcept {
    return epilogue::check_operand({bias, 1, columns, columns}, 1, columns);
  }
};

/// Adds a matrix of the result's shape, which may be the result's own memory only if nothing else writes it.
struct AddResidual {
  MatrixView<const float> residual = {};
  float operator()(float value, std::size_t r, std::size_t column) const noexcept {
    return value + row(residual, r)[column];
  }
  [[nodiscard]] Status check(std::size_t rows, std::size_t columns) const noexcept {
    return epilogue::check_operand(residual, rows, columns);
  }
  void prefetch(std::size_t r, std::size_t column) const noexcept { epilogue::prefetch_operand(residual, r, column); }
};

/// Multiplies by SiLU of a gate of the result's shape: value * gate / (1 + exp(-gate)).
struct SiluMultiply {
  MatrixView<const float> gate = {};
  float operator()(float value, std::size_t r, std::size_t column) const noexcept {
    const float g = row(gate, r)[column];
    return value * (g / (1.0f + epilogue::exponential(-g)));
  }
  [[nodiscard]] Status check(std::size_t rows, std::size_t columns) const noexcept {
    return epilogue::check_operand(gate, rows, columns);
  }
  void prefetch(std::size_t r, std::size_t column) const noexcept { epilogue::prefetch_operand(gate, r, column); }
};

/// The next layer's static INT8 grid, for results of type int8: code = clamp(round(value * inverse_scale), -127, 127),
/// rounded to nearest even, where `inverse_scale` is 1 / scale of the whole tensor. The result's type rounds and
/// clamps.
struct RequantizeInt8 {
  float inverse_scale = 1.0f;
  float operator()(float value, std::size_t, std::size_t) const noexcept { return value * inverse_scale; }
};

/// One epilogue after another: Then{AddBias{b}, RequantizeInt8{1 / scale}}.
template <Epilogue First, Epilogue Second>
struct Then {
  First first = {};
  Second second = {};
  float operator()(float value, std::size_t r, std::size_t column) const noexcept {
    return second(first(value, r, column), r, column);
  }
  [[nodiscard]] Status check(std::size_t rows, std::size_t columns) const noexcept;
  void prefetch(std::size_t r, std::size_t column) const noexcept;
};
template <class First, class Second>
Then(First, Second) -> Then<First, Second>;

/// What an epilogue says about the operands that it reads; success where it says nothing.
template <Epilogue E>
[[nodiscard, gnu::always_inline]] inline Status check_epilogue(const E& epilogue, std::size_t rows,
                                                               std::size_t columns) noexcept {
  if constexpr (requires { epilogue.check(rows, columns); }) {
    return epilogue.check(rows, columns);
  } else {
    return {};
  }
}

/// Asks for what an epilogue reads at 32 columns of one row; nothing where it does not say.
template <Epilogue E>
void prefetch_epilogue(const E& epilogue, std::size_t r, std::size_t column) noexcept {
  if constexpr (requires { epilogue.prefetch(r, column); }) epilogue.prefetch(r, column);
}

template <Epilogue First, Epilogue Second>
[[nodiscard]] Status Then<First, Second>::check(std::size_t rows, std::size_t columns) const noexcept {
  if (const Status fits = check_epilogue(first, rows, columns); !fits) return fits;
  return check_epilogue(second, rows, columns);
}
template <Epilogue First, Epilogue Second>
void Then<First, Second>::prefetch(std::size_t r, std::size_t column) const noexcept {
  prefetch_epilogue(first, r, column);
  prefetch_epilogue(second, r, column);
}

static_assert(Epilogue<NoEpilogue> && Epilogue<AddBias> && Epilogue<AddResidual> && Epilogue<SiluMultiply> &&
              Epilogue<RequantizeInt8> && Epilogue<Then<AddBias, AddResidual>>);

}  // namespace CBQ_ABI
}  // namespace cbq
