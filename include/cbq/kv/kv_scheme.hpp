// SPDX-License-Identifier: Apache-2.0
#pragma once

// KvScheme: how keys and values of past tokens are stored, as plain data. Names follow a grammar,
// f32 | f16 | kv<bits>[_2d][_kivi][_past][_hadamard]:
//   kv4               4-bit codes with scale and offset per token and head
//   kv4_2d_past       channels smoothed first; what is current stays exact (WKVQuant, arXiv 2402.12065)
//   kv2_kivi_past     keys with scale and offset per channel and 64 tokens (KIVI, arXiv 2402.02750)
//   kv3_2d_past_hadamard  channels smoothed, then each head rotated

#include <cstddef>
#include <string_view>

#include <cbq/core/result.hpp>

namespace cbq {

/// How keys and values of past tokens are stored.
struct KvScheme {
  int bits = 4;               ///< 2, 3, 4, 8; 16: half, 32: float, both without any of what follows
  bool smoothed = false;      ///< `_2d`: (x - offset) / scale per channel before anything else
  bool channel_keys = false;  ///< `_kivi`: scale and offset of keys per channel and page, of values per token
  bool past_only = false;     ///< `_past`: the tokens of the present call are attended to exactly
  bool hadamard = false;      ///< `_hadamard`: heads are rotated after smoothing
  friend constexpr bool operator==(const KvScheme&, const KvScheme&) = default;
};

inline namespace CBQ_ABI {

/// The name of a scheme in the grammar above, null-terminated.
struct KvSchemeName {
  char characters[32] = {};
  [[nodiscard]] constexpr const char* c_str() const noexcept { return characters; }
};

/// Whether keys and values stay floats (f16, f32).
[[nodiscard]] constexpr bool is_float(const KvScheme& scheme) noexcept {
  return scheme.bits == 16 || scheme.bits == 32;
}

[[nodiscard]] constexpr KvSchemeName kv_scheme_name(const KvScheme& scheme) noexcept {
  ErrorText text(is_float(scheme) ? "f" : "kv");
  text << scheme.bits;
  if (scheme.smoothed) text << "_2d";
  if (scheme.channel_keys) text << "_kivi";
  if (scheme.past_only) text << "_past";
  if (scheme.hadamard) text << "_hadamard";
  KvSchemeName name;
  for (std::size_t i = 0; i < text.size && i + 1 < sizeof name.characters; ++i) name.characters[i] = text.characters[i];
  return name;
}

/// Reads a scheme name. Errc::bad_argument when it breaks the grammar or has other bits than 2, 3, 4 and 8.
[[nodiscard]] constexpr Result<KvScheme> parse_kv_scheme(std::string_view name) noexcept {
  std::string_view rest = name;
  const auto accept = [&rest](std::string_view word) {
    if (!rest.starts_with(word)) return false;
    rest.remove_prefix(word.size());
    return true;
  };
  const auto error = [name] {
    return Error{Errc::bad_argument, "not a scheme of keys and values", "KV scheme", name,
                 "f32, f16 or kv<bits>[_2d][_kivi][_past][_hadamard] with 2, 3, 4 or 8 bits, for example kv4_2d_past"};
  };
  if (name == "f32") return KvScheme{.bits = 32};
  if (name == "f16") return KvScheme{.bits = 16};
  if (!accept("kv")) return error();
  KvScheme scheme{.bits = accept("2") ? 2 : accept("3") ? 3 : accept("4") ? 4 : accept("8") ? 8 : 0};
  if (scheme.bits == 0) return error();
  scheme.smoothed = accept("_2d");
  scheme.channel_keys = accept("_kivi");
  scheme.past_only = accept("_past");
  scheme.hadamard = accept("_hadamard");
  if (!rest.empty()) return error();
  return scheme;
}

}  // namespace CBQ_ABI
}  // namespace cbq
