// SPDX-License-Identifier: Apache-2.0
#pragma once

// Scheme: how the two operands of a linear layer are quantized, as a value that the compiler knows and a template
// argument. Names follow a grammar, w<bits>a<bits>[_g<n>|_channel][_asym][_act_group|_act_tensor]:
//   w4a8_g128            4-bit symmetric weights with a scale per 128 inputs, 8-bit activations with a scale per token
//   w4a16_g32_asym       4-bit affine weights with scale and zero point per 32 inputs, floating-point activations
//   w8a8                 no suffix means _channel: one weight scale per output
//   w4a8_g128_act_group  8-bit activations with a scale per token and 128 inputs, the groups of the weights
//   w4a4_act_tensor      4-bit activations with one scale for all tokens, static where calibration fixed it
// `_asym` makes the weights affine, and activations of 4 bits too. The last group of a row may be shorter than the
// others.

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>

namespace cbq {

/// Which elements share one scale.
enum class Granularity : unsigned char {
  per_tensor,   ///< one scale for all elements; activations: all tokens
  per_channel,  ///< weights: one scale per output (a row of the N x K matrix)
  per_group,    ///< one scale per `group` consecutive inputs of an output, or of a token
  per_token,    ///< activations: one scale per row
};

/// Where the grid lies: symmetric codes -2^(b-1) .. 2^(b-1)-1 around zero, or affine codes 0 .. 2^b-1 with a zero
/// point.
enum class Zero : unsigned char { symmetric, affine };

/// How one operand is quantized.
struct Grid {
  int bits = 16;  ///< 2..8; 16 means that the operand stays in floating point
  Granularity granularity = Granularity::per_channel;
  int group = 0;  ///< inputs per group, only with per_group
  Zero zero = Zero::symmetric;
  friend constexpr bool operator==(const Grid&, const Grid&) = default;
};

/// How a linear layer y = x W^T is quantized.
struct Scheme {
  Grid weight = {};
  Grid activation = {.granularity = Granularity::per_token};
  friend constexpr bool operator==(const Scheme&, const Scheme&) = default;
};

/// Codes of one N x K weight matrix, owned by somebody else: w[n][k] = scale[n][k / group] * (code[n][k] - zero[n][k /
/// group]). Codes are unsigned, 0 .. 2^bits - 1. Symmetric weights have no `zeros`: their zero point is 2^(bits-1)
/// everywhere.
struct QuantizedMatrixView {
  MatrixView<const std::uint8_t> codes;  ///< N x K
  MatrixView<const float> scales;        ///< N x groups
  MatrixView<const std::uint8_t> zeros;  ///< N x groups, or empty
};

inline namespace CBQ_ABI {

/// The rules every packed scheme obeys; a broken one names itself on the error line of the type that uses it.
template <Scheme S>
struct Rules {
  static_assert(S.weight.bits == 2 || S.weight.bits == 3 || S.weight.bits == 4 || S.weight.bits == 8,
                "[cbq] Scheme: weight.bits must be 2, 3, 4 or 8 for packed weights");
  static_assert(S.weight.granularity == Granularity::per_channel || S.weight.granularity == Granularity::per_group,
                "[cbq] Scheme: weight.granularity must be per_channel or per_group");
  static_assert((S.weight.granularity == Granularity::per_group) == (S.weight.group != 0),
                "[cbq] Scheme: weight.group must be set with per_group, and only then");
  static_assert(S.weight.group >= 0 && S.weight.group % 32 == 0,
                "[cbq] Scheme: weight.group must be a multiple of 32 (a block of the packed layout)");
  static_assert(S.activation.bits == 4 || S.activation.bits == 8 || S.activation.bits == 16,
                "[cbq] Scheme: activation.bits must be 4, 8 or 16 (floating point)");
  static_assert(S.activation.granularity == Granularity::per_token ||
                    S.activation.granularity == Granularity::per_tensor ||
                    S.activation.granularity == Granularity::per_group,
                "[cbq] Scheme: activation.granularity must be per_token, per_tensor or per_group");
  static_assert(S.activation.granularity != Granularity::per_tensor || S.activation.bits != 16,
                "[cbq] Scheme: activation.granularity per_tensor needs activations of 4 or 8 bits");
  static_assert(S.activation.granularity == Granularity::per_group || S.activation.group == 0,
                "[cbq] Scheme: activation.group must be set with per_group, and only then");
  static_assert(S.activation.granularity != Granularity::per_group ||
                    (S.activation.group != 0 && S.activation.group == S.weight.group),
                "[cbq] Scheme: activation.group must be the group of the weights");
  static_assert(S.activation.granularity != Granularity::per_group || S.activation.bits == 8,
                "[cbq] Scheme: activations per group must have 8 bits");
  static_assert(S.activation.zero == Zero::symmetric || S.activation.bits == 4,
                "[cbq] Scheme: activation.zero may be affine only with 4 bits (code - zero point must fit in int8)");
};

/// S itself, after its rules were checked.
template <Scheme S>
consteval Scheme checked() {
  (void)Rules<S>{};
  return S;
}

/// Largest code, 2^bits - 1.
[[nodiscard]] constexpr int max_code(const Grid& grid) noexcept {
  return (1 << grid.bits) - 1;
}

/// Zero point of a symmetric grid in unsigned codes, 2^(bits-1).
[[nodiscard]] constexpr int symmetric_zero(const Grid& grid) noexcept {
  return 1 << (grid.bits - 1);
}

/// Inputs that share one scale in a row of `inputs`; the whole row with per_channel. At least 1.
[[nodiscard]] constexpr std::size_t group_length(const Grid& grid, std::size_t inputs) noexcept {
  if (grid.granularity == Granularity::per_group) return static_cast<std::size_t>(grid.group);
  return inputs == 0 ? 1 : inputs;
}

/// Scales in a row of `inputs`: ceil(inputs / group).
[[nodiscard]] constexpr std::size_t group_count(const Grid& grid, std::size_t inputs) noexcept {
  const std::size_t length = group_length(grid, inputs);
  return inputs / length + (inputs % length != 0 ? 1 : 0);
}

/// A scheme from its parts; group 0 means per output channel.
[[nodiscard]] constexpr Scheme make_scheme(int weight_bits, int activation_bits, int group, Zero zero) noexcept {
  Scheme scheme;
  scheme.weight = {.bits = weight_bits,
                   .granularity = group == 0 ? Granularity::per_channel : Granularity::per_group,
                   .group = group,
                   .zero = zero};
  scheme.activation = {.bits = activation_bits,
                       .granularity = Granularity::per_token,
                       .group = 0,
                       .zero = activation_bits == 4 ? zero : Zero::symmetric};
  return scheme;
}

/// `scheme` with 8-bit activations that share the groups of its weights, which are per group.
[[nodiscard]] constexpr Scheme with_activation_groups(Scheme scheme) noexcept {
  scheme.activation = {
      .bits = 8, .granularity = Granularity::per_group, .group = scheme.weight.group, .zero = Zero::symmetric};
  return scheme;
}

/// `scheme` with one scale for all tokens of its activations, which have at most 8 bits.
[[nodiscard]] constexpr Scheme with_tensor_activations(Scheme scheme) noexcept {
  scheme.activation.granularity = Granularity::per_tensor;
  return scheme;
}

/// The scheme whose packed weights and kernels `scheme` uses: one scale for all tokens is one per token, all alike.
[[nodiscard]] constexpr Scheme packing_scheme(Scheme scheme) noexcept {
  if (scheme.activation.granularity == Granularity::per_tensor && scheme.activation.bits != 16)
    scheme.activation.granularity = Granularity::per_token;
  return scheme;
}

namespace schemes {
inline constexpr Scheme w4a8_g32 = make_scheme(4, 8, 32, Zero::symmetric);
inline constexpr Scheme w4a8_g128 = make_scheme(4, 8, 128, Zero::symmetric);
inline constexpr Scheme w4a8_g32_act_group = with_activation_groups(w4a8_g32);
inline constexpr Scheme w4a8_g128_act_group = with_activation_groups(w4a8_g128);
inline constexpr Scheme w4a8 = make_scheme(4, 8, 0, Zero::symmetric);
inline constexpr Scheme w4a16_g32 = make_scheme(4, 16, 32, Zero::symmetric);
inline constexpr Scheme w4a16_g128 = make_scheme(4, 16, 128, Zero::symmetric);
inline constexpr Scheme w4a4 = make_scheme(4, 4, 0, Zero::symmetric);
inline constexpr Scheme w3a16_g128_asym = make_scheme(3, 16, 128, Zero::affine);
inline constexpr Scheme w2a16_g64_asym = make_scheme(2, 16, 64, Zero::affine);
inline constexpr Scheme w2a8_g64_asym = make_scheme(2, 8, 64, Zero::affine);
inline constexpr Scheme w8a8 = make_scheme(8, 8, 0, Zero::symmetric);
inline constexpr Scheme w8a16 = make_scheme(8, 16, 0, Zero::symmetric);
}  // namespace schemes

/// The name of a scheme in the grammar above, null-terminated.
struct SchemeName {
  char characters[32] = {};
  [[nodiscard]] constexpr const char* c_str() const noexcept { return characters; }
};

[[nodiscard]] constexpr SchemeName scheme_name(const Scheme& scheme) noexcept {
  ErrorText text;
  text << "w" << scheme.weight.bits << "a" << scheme.activation.bits;
  if (scheme.weight.granularity == Granularity::per_group) text << "_g" << scheme.weight.group;
  if (scheme.weight.zero == Zero::affine) text << "_asym";
  if (scheme.activation.granularity == Granularity::per_group) text << "_act_group";
  if (scheme.activation.granularity == Granularity::per_tensor) text << "_act_tensor";
  SchemeName name;
  for (std::size_t i = 0; i < text.size && i + 1 < sizeof name.characters; ++i) name.characters[i] = text.characters[i];
  return name;
}

/// Reads a scheme name. Errc::bad_argument when it breaks the grammar; whether a packed kernel exists is visit_scheme's
/// to say.
[[nodiscard]] constexpr Result<Scheme> parse_scheme(const char* name) noexcept {
  const char* at = name;
  const auto accept = [&at](const char* word) {
    std::size_t i = 0;
    while (word[i] != '\0') {
      if (at[i] != word[i]) return false;
      ++i;
    }
    at += i;
    return true;
  };
  const auto number = [&at] {
    int value = 0;
    for (int digits = 0; digits < 5 && *at >= '0' && *at <= '9'; ++digits) value = 10 * value + (*at++ - '0');
    return value;
  };
  const auto error = [name] {
    return Error{Errc::bad_argument, "not a scheme name", "scheme", name,
                 "w<bits>a<bits>[_g<n>|_channel][_asym][_act_group|_act_tensor], for example w4a8_g128"};
  };
  if (!accept("w")) return error();
  const int weight_bits = number();
  if (!accept("a")) return error();
  const int activation_bits = number();
  int group = 0;
  if (accept("_g")) {
    group = number();
    if (group == 0) return error();
  } else {
    (void)accept("_channel");
  }
  const Zero zero = accept("_asym") ? Zero::affine : Zero::symmetric;
  const Granularity activations = accept("_act_group")    ? Granularity::per_group
                                  : accept("_act_tensor") ? Granularity::per_tensor
                                                          : Granularity::per_token;
  if (*at != '\0') return error();
  const auto valid = [](int bits) { return (bits >= 2 && bits <= 8) || bits == 16; };
  if (!valid(weight_bits) || !valid(activation_bits)) return error();
  const Scheme scheme = make_scheme(weight_bits, activation_bits, group, zero);
  if (activations == Granularity::per_token) return scheme;
  if (activations == Granularity::per_tensor && activation_bits == 16) return error();
  if (activations == Granularity::per_tensor) return with_tensor_activations(scheme);
  // Activations share the groups of the weights and have 8 bits.
  if (group == 0 || activation_bits != 8) return error();
  return with_activation_groups(scheme);
}

/// Every scheme with a packed kernel: weights of 2, 3, 4, 8 bits; activations of 4, 8 bits and float; per channel and
/// groups of 32, 64, 128; symmetric and affine. Those with groups and 8-bit activations also with activations per
/// group.
inline constexpr auto packed_schemes = [] {
  std::array<Scheme, 120> all{};
  std::size_t count = 0;
  for (const int weight_bits : {2, 3, 4, 8}) {
    for (const int activation_bits : {4, 8, 16}) {
      for (const int group : {0, 32, 64, 128}) {
        for (const Zero zero : {Zero::symmetric, Zero::affine}) {
          const Scheme scheme = make_scheme(weight_bits, activation_bits, group, zero);
          all[count++] = scheme;
          if (group != 0 && activation_bits == 8) all[count++] = with_activation_groups(scheme);
        }
      }
    }
  }
  return all;
}();

/// Errc::unsupported when no packed scheme equals packing_scheme(scheme).
[[nodiscard]] constexpr Status check_packed_scheme(const Scheme& scheme) noexcept {
  for (const Scheme& packed : packed_schemes) {
    if (packed == packing_scheme(scheme)) return {};
  }
  return Error{Errc::unsupported, "no packed kernel for this scheme", "scheme", scheme_name(scheme).c_str(),
               "weights of 2, 3, 4 or 8 bits, activations of 4, 8 or 16, group 32, 64, 128 or per channel"};
}

/// Calls `f.template operator()<S>()` with the packed scheme that equals packing_scheme(scheme), for hosts that learn
/// it from a file, and returns what it returns (a Result). Errc::unsupported when no packed scheme equals it.
template <class F>
[[nodiscard]] constexpr auto visit_scheme(const Scheme& scheme, F&& f)
    -> decltype(f.template operator()<packed_schemes[0]>()) {
  using R = decltype(f.template operator()<packed_schemes[0]>());
  return [&]<std::size_t... I>(std::index_sequence<I...>) -> R {
    using Call = R (*)(F&);
    constexpr Call calls[] = {[](F& g) -> R { return g.template operator()<packed_schemes[I]>(); }...};
    for (std::size_t i = 0; i < sizeof...(I); ++i) {
      if (packed_schemes[i] == packing_scheme(scheme)) return calls[i](f);
    }
    return check_packed_scheme(scheme).error();
  }(std::make_index_sequence<packed_schemes.size()>{});
}

}  // namespace CBQ_ABI
}  // namespace cbq
