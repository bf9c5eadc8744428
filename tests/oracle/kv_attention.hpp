// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention on quantized keys and values in plain double: pages are read bit by bit from their description in
// docs/kv_cache_format.md, position by position, and attended to from the definition. Shares nothing with include/cbq.

#include <cstddef>
#include <functional>
#include <vector>

#include "oracle/nn.hpp"

namespace oracle {

/// One page: 64 positions of all heads.
struct KvPage {
  const std::byte* bytes = nullptr;
  std::size_t heads = 0;
  std::size_t width = 0;
  std::size_t bits = 0;
  bool channel_keys = false;
};

/// Bytes of one head of such a page.
std::size_t kv_head_bytes(const KvPage& page);

/// Key and value of one element: scale * code + offset.
double decoded_key(const KvPage& page, std::size_t head, std::size_t position, std::size_t channel);
double decoded_value(const KvPage& page, std::size_t head, std::size_t position, std::size_t channel);

/// Keys and values of one head of consecutive pages, [positions x width] each.
struct KvRows {
  Matrix keys;
  Matrix values;
};
KvRows decoded_rows(const std::vector<KvPage>& pages, std::size_t head, std::size_t positions);

/// Rows of queries [rows x width] over the positions that sees(row, position) names; scores are scale * q . k, plus
/// the row's slope times the position.
Matrix attention_over(const Matrix& queries, const KvRows& rows, double scale,
                      const std::function<bool(std::size_t, std::size_t)>& sees,
                      const std::vector<double>& slopes = {});

}  // namespace oracle
