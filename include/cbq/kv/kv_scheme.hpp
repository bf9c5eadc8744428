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

}  // namespace cbq
