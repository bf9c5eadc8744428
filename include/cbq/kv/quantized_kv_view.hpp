// SPDX-License-Identifier: Apache-2.0
#pragma once

// What attention reads of a quantized cache: pages of codes for what is past, exact rows for what is not. Plain data;
// a QuantizedKvCache gives one, and a host that keeps its own pages can fill one. Three sources cover each position
// once:
//
//   [0, sinks.size)       exact, row p of `sinks`; the pages' positions there are unused
//   [sinks.size, packed)  codes, position p % 64 of page p / 64
//   [packed, size)        exact, row p - packed of `exact`; where there is only one, as in decoding, maybe `newest`
//
// Pages that lie before `first` or wholly among the sinks may be null: readers begin at max(first, sinks.size).
//
// All rows are stored transformed: per channel of a head (x - offset) / scale, then, with `hadamard`, its Hadamard
// rotation (<cbq/kv/row_transform.hpp>). One transformed query serves all three sources.

#include <cstddef>

#include <cbq/kv/encodable.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/kv_layout.hpp>

namespace cbq {

/// Read access to the keys and values of one layer of one sequence. It points into its cache: valid until the next call
/// that changes it.
struct QuantizedKvView {
  const KvLayout* layout = nullptr;         ///< of a page; also number and width of the heads
  const std::byte* const* pages = nullptr;  ///< [ceil(packed / 64)]; null where nothing of a page is visible
  std::size_t packed = 0;                   ///< positions from here on are not quantized; not below sinks.size
  std::size_t first = 0;                    ///< no position before it may be seen, sinks excepted
  std::size_t window = 0;                   ///< a query sees its own and the window - 1 positions before it; 0: all
  std::size_t size = 0;                     ///< positions, packed and exact
  FloatKvView sinks = {};                   ///< positions [0, sinks.size); no sinks: size 0
  FloatKvView exact = {};                   ///< positions [packed, size); size 0 where there are none, or `newest`
  KvRow newest = {};                        ///< position packed, in place of `exact`; key null: not there
  const float* key_scales = nullptr;        ///< [heads * width]; null: all 1
  const float* key_offsets = nullptr;       ///< [heads * width]; null: all 0
  const float* value_scales = nullptr;      ///< as above
  const float* value_offsets = nullptr;
  bool hadamard = false;
};

}  // namespace cbq
