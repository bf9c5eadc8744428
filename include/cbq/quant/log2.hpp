// SPDX-License-Identifier: Apache-2.0
#pragma once

// The log2 quantizer of softmax outputs: a probability becomes the nearest power of two in the logarithm, so that its
// product with an integer is a shift. Small probabilities keep their relative precision, of which a uniform grid of 4
// bits loses all below 1/30; the price is a relative error of up to 41 % everywhere (mean 17 %). No logarithm is
// computed: the bits of a float are its exponent, and rounding is an addition to them. Two integer operations per
// element.
//
//   q = clip(round(-log2 p), 0, 2^b - 1),  p^ = 2^-q;  p^ = 0 where round(-log2 p) >= 2^b
//
// round(-log2 p) = -e for p = 2^e m with m < sqrt(2), and -e - 1 above; sqrt(2) is no float, so there are no ties. Shen
// et al., Agile-Quant, 2023; Lin et al., FQ-ViT, 2022. "Nothing" is a value of its own, beside the 2^b powers: code
// 2^b.

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/quant/quantizer.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Carries a mantissa above sqrt(2) into the exponent when it is added to a float's bits.
inline constexpr std::uint32_t log2_carry = 0x00800000u - 0x003504f4u;

/// 2^-round(-log2 p) for p from 2^-126 to 2^126; what is smaller becomes no more than 2^-126, and 0 stays. Not for what
/// is negative, infinite or NaN.
[[nodiscard, gnu::always_inline]] constexpr float nearest_power_of_two(float p) noexcept {
  return __builtin_bit_cast(float, (__builtin_bit_cast(std::uint32_t, p) + log2_carry) & 0xff800000u);
}

/// Codes of a positive finite p: min(round(-log2 p), 2^bits), at least 0; p = 0 gets 2^bits, which stands for 0.
[[nodiscard]] constexpr std::uint8_t log2_code(float p, int bits) noexcept {
  const std::uint32_t power = __builtin_bit_cast(std::uint32_t, nearest_power_of_two(p)) >> 23;
  const int code = 127 - static_cast<int>(power);
  const int nothing = 1 << bits;
  return static_cast<std::uint8_t>(code < 0 ? 0 : code < nothing ? code : nothing);
}

/// What a code stands for: 2^-code, 0 for 2^bits and above.
[[nodiscard]] constexpr float log2_value(std::uint8_t code, int bits) noexcept {
  return code < (1 << bits) ? power_of_two(-static_cast<int>(code)) : 0.0f;
}

class Log2Quantizer {
 public:
  using Value = float;
  struct Params {};  ///< a probability needs no scale

  /// Of `bits` bits, 1 to 6; 4 as published. Errc::unsupported.
  [[nodiscard]] static constexpr Result<Log2Quantizer> create(int bits) noexcept {
    if (bits >= 1 && bits <= 6) return Log2Quantizer(bits);
    return Error{Errc::unsupported, "[cbq] Log2Quantizer: codes have 1 to 6 bits", "bits", bits};
  }

  [[nodiscard]] constexpr int bits() const noexcept { return bits_; }

  /// Whether x is made of probabilities: finite and not negative. What lies above 1 counts as 1. Errc::not_finite,
  /// Errc::bad_argument naming row and column.
  [[nodiscard]] constexpr Result<Params> fit(const MatrixView<const float>& x) const noexcept {
    for (std::size_t r = 0; r < x.rows; ++r) {
      for (std::size_t c = 0; c < x.columns; ++c) {
        const float p = row(x, r)[c];
        if (is_finite(p) && p >= 0.0f) continue;
        const ErrorText where = ErrorText("row ") << r << ", column " << c;
        if (!is_finite(p)) return Error{Errc::not_finite, "a probability is NaN or infinite", where};
        return Error{Errc::bad_argument, "a probability is negative", where};
      }
    }
    return Params{};
  }

  /// Codes of x, of which fit() approved. Errc::bad_shape.
  [[nodiscard]] constexpr Status quantize(const MatrixView<const float>& x, const Params&,
                                          const MatrixView<std::uint8_t>& codes) const noexcept {
    return map(x, codes, [this](float p) { return log2_code(p == 0.0f ? 0.0f : p, bits_); });
  }
  [[nodiscard]] constexpr Status dequantize(const MatrixView<const std::uint8_t>& codes, const Params&,
                                            const MatrixView<float>& out) const noexcept {
    return map(codes, out, [this](std::uint8_t code) { return log2_value(code, bits_); });
  }

 private:
  explicit constexpr Log2Quantizer(int bits) noexcept : bits_(bits) {}

  template <class From, class To, class F>
  [[nodiscard]] static constexpr Status map(const MatrixView<const From>& from, const MatrixView<To>& to,
                                            const F& f) noexcept {
    if (to.rows != from.rows || to.columns != from.columns) {
      return Error{Errc::bad_shape, "probabilities and codes do not have the same shape", "out",
                   ErrorText(to.rows) << " x " << to.columns, ErrorText(from.rows) << " x " << from.columns};
    }
    for (std::size_t r = 0; r < from.rows; ++r) {
      for (std::size_t c = 0; c < from.columns; ++c) row(to, r)[c] = f(row(from, r)[c]);
    }
    return {};
  }

  int bits_;
};

static_assert(Quantizer<Log2Quantizer>);

}  // namespace CBQ_ABI
}  // namespace cbq
