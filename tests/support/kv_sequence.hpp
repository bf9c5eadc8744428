// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys and values of one sequence as a quantized cache would hold them, made position by position with the codec, and
// what attention over them is by definition: rows decoded in double, out of the space they are stored in.

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <cbq/core/cpu.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/key_block.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/quantized_kv_view.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/kv/value_block.hpp>

#include "oracle/kv_attention.hpp"
#include "oracle/nn.hpp"
#include "support/nn.hpp"

namespace support {

struct KvSequenceShape {
  cbq::KvScheme scheme = {.bits = 8};
  std::size_t heads = 1;  ///< of keys and values
  std::size_t width = 64;
  std::size_t size = 0;
  std::size_t packed = 0;
  std::size_t sinks = 0;
  std::size_t window = 0;
};

class KvSequence {
 public:
  /// Raw keys and values [size x heads * width].
  KvSequence(const KvSequenceShape& shape, std::vector<float> keys, std::vector<float> values)
      : shape_(shape), raw_keys_(std::move(keys)), raw_values_(std::move(values)) {
    layout_ = *cbq::kv_layout(shape.scheme, shape.heads, shape.width);
    const std::size_t columns = shape.heads * shape.width;
    if (shape.scheme.smoothed) {
      const auto wave = [&](float middle, float swing, float speed) {
        std::vector<float> all(columns);
        for (std::size_t i = 0; i < columns; ++i) all[i] = middle + swing * std::sin(speed * static_cast<float>(i));
        return all;
      };
      factors_ = {wave(1.0f, 0.6f, 1.0f), wave(0.1f, 0.5f, 2.0f), wave(1.2f, 0.7f, 3.0f), wave(-0.2f, 0.4f, 4.0f)};
      transform_.key_scales = factors_[0].data();
      transform_.key_offsets = factors_[1].data();
      transform_.value_scales = factors_[2].data();
      transform_.value_offsets = factors_[3].data();
    }
    transform_.hadamard = shape.scheme.hadamard;
    keys_ = raw_keys_;
    values_ = raw_values_;
    REQUIRE(cbq::transform_keys(transform_, {shape.heads, shape.width}, view(keys_, columns)));
    REQUIRE(cbq::transform_values(transform_, {shape.heads, shape.width}, view(values_, columns)));
    write_pages();
    sinks_ = floats(0, shape.sinks);
    exact_ = floats(shape.packed, shape.size - shape.packed);
  }

  [[nodiscard]] cbq::QuantizedKvView cache() const {
    return {.layout = &layout_,
            .pages = pointers_.data(),
            .packed = shape_.packed,
            .first = first_,
            .window = shape_.window,
            .size = shape_.size,
            .sinks = shape_.sinks == 0 ? cbq::FloatKvView{} : sinks_.view(),
            .exact = exact_.size() == 0 ? cbq::FloatKvView{} : exact_.view(),
            .key_scales = transform_.key_scales,
            .key_offsets = transform_.key_offsets,
            .value_scales = transform_.value_scales,
            .value_offsets = transform_.value_offsets,
            .hadamard = transform_.hadamard};
  }

  /// The last position as it is stored, [heads * width] each.
  [[nodiscard]] std::span<const float> newest_key() const { return last_row(keys_); }
  [[nodiscard]] std::span<const float> newest_value() const { return last_row(values_); }

  /// Of ALiBi, one per query head, for attention().
  void set_slopes(const std::vector<float>& slopes) { slopes_ = slopes; }

  /// Nothing before `first` is visible, sinks excepted; its pages are gone.
  void forget_before(std::size_t first) {
    first_ = first;
    for (std::size_t page = 0; page < first / 64; ++page) pointers_[page] = nullptr;
  }

  /// All positions in float, as they are stored.
  [[nodiscard]] cbq::FloatKvCache all_exact() const { return floats(0, shape_.size); }

  /// What a position is worth to attention of one head: codes where `packed` says so, otherwise exact; in the space of
  /// the queries.
  [[nodiscard]] oracle::KvRows rows(std::size_t head, const std::function<bool(std::size_t)>& packed) const {
    const std::size_t width = shape_.width;
    oracle::KvRows rows{oracle::Matrix(shape_.size, width), oracle::Matrix(shape_.size, width)};
    for (std::size_t p = 0; p < shape_.size; ++p) {
      for (std::size_t c = 0; c < width; ++c) {
        const std::size_t at = (p * shape_.heads + head) * width + c;
        rows.keys(p, c) = static_cast<double>(raw_keys_[at]);
        rows.values(p, c) = static_cast<double>(raw_values_[at]);
      }
      if (!packed(p)) continue;
      const oracle::KvPage page{pages_[p / 64].data(), shape_.heads, width, layout_.bits, layout_.channel_keys};
      std::vector<double> key(width), value(width);
      for (std::size_t c = 0; c < width; ++c) {
        key[c] = oracle::decoded_key(page, head, p % 64, c);
        value[c] = oracle::decoded_value(page, head, p % 64, c);
      }
      restore(key, head, 0);
      restore(value, head, 2);
      for (std::size_t c = 0; c < width; ++c) {
        rows.keys(p, c) = key[c];
        rows.values(p, c) = value[c];
      }
    }
    return rows;
  }

  /// Attention of `tokens` queries that belong to the last positions: sees(position of the query, position).
  [[nodiscard]] oracle::Matrix attention(const std::vector<float>& q, std::size_t tokens, double scale,
                                         const std::function<bool(std::size_t, std::size_t)>& packed,
                                         const std::function<bool(std::size_t, std::size_t)>& sees) const {
    const std::size_t columns = q.size() / tokens;
    const std::size_t group = columns / shape_.width / shape_.heads;
    oracle::Matrix out(tokens, columns);
    for (std::size_t head = 0; head < shape_.heads; ++head) {
      const oracle::KvRows exact = rows(head, [](std::size_t) { return false; });
      const oracle::KvRows codes = rows(head, [this](std::size_t p) { return p < shape_.packed; });
      for (std::size_t t = 0; t < tokens; ++t) {
        const std::size_t position = shape_.size - tokens + t;
        oracle::KvRows rows = exact;
        for (std::size_t p = 0; p < shape_.size; ++p) {
          if (!packed(position, p)) continue;
          for (std::size_t c = 0; c < shape_.width; ++c) {
            rows.keys(p, c) = codes.keys(p, c);
            rows.values(p, c) = codes.values(p, c);
          }
        }
        oracle::Matrix queries(group, shape_.width);
        for (std::size_t i = 0; i < queries.values.size(); ++i) {
          queries.values[i] = static_cast<double>(q[t * columns + head * group * shape_.width + i]);
        }
        const auto own = [&](std::size_t, std::size_t p) { return sees(position, p); };
        std::vector<double> slopes;
        for (std::size_t i = 0; i < group && !slopes_.empty(); ++i) {
          slopes.push_back(static_cast<double>(slopes_[head * group + i]));
        }
        const oracle::Matrix part = oracle::attention_over(queries, rows, scale, own, slopes);
        std::copy(part.values.begin(), part.values.end(),
                  out.values.begin() + static_cast<std::ptrdiff_t>(t * columns + head * group * shape_.width));
      }
    }
    return out;
  }

  /// The same with what the cache holds now.
  [[nodiscard]] oracle::Matrix attention(const std::vector<float>& q, std::size_t tokens, double scale) const {
    return attention(
        q, tokens, scale, [&](std::size_t, std::size_t p) { return p >= shape_.sinks && p < shape_.packed; },
        [&](std::size_t own, std::size_t p) {
          const bool seen = p >= first_ && (shape_.window == 0 || p + shape_.window > own);
          return p <= own && (seen || p < shape_.sinks);
        });
  }

 private:
  [[nodiscard]] std::span<const float> row_of(const std::vector<float>& all, std::size_t p, std::size_t head) const {
    return {all.data() + (p * shape_.heads + head) * shape_.width, shape_.width};
  }

  [[nodiscard]] std::span<const float> last_row(const std::vector<float>& all) const {
    return std::span(all).last(shape_.heads * shape_.width);
  }

  void write_pages() {
    pages_.assign((shape_.packed + 63) / 64, std::vector<std::byte>(layout_.page_bytes));
    for (std::size_t page = 0; page < pages_.size(); ++page) {
      pointers_.push_back(pages_[page].data());
      for (std::size_t head = 0; head < shape_.heads; ++head) {
        std::byte* keys = pages_[page].data() + cbq::kv_keys_offset(layout_, head);
        std::byte* values = pages_[page].data() + cbq::kv_values_offset(layout_, head);
        if (layout_.channel_keys) {
          const cbq::MatrixView<const float> rows{row_of(keys_, page * 64, head).data(), 64, shape_.width,
                                                  shape_.heads * shape_.width};
          REQUIRE(cbq::encode_key_channels(layout_, rows, keys));
        }
        for (std::size_t p = page * 64; p < std::min(page * 64 + 64, shape_.packed); ++p) {
          if (!layout_.channel_keys) REQUIRE(cbq::encode_key(layout_, p % 64, row_of(keys_, p, head), keys));
          REQUIRE(cbq::encode_value(layout_, p % 64, row_of(values_, p, head), values));
        }
      }
    }
  }

  [[nodiscard]] cbq::FloatKvCache floats(std::size_t first, std::size_t count) const {
    const std::size_t columns = shape_.heads * shape_.width;
    auto cache = cbq::FloatKvCache::create(shape_.heads, shape_.width, std::max<std::size_t>(count, 1));
    REQUIRE(cache);
    REQUIRE(cache->append(cbq::rows(input(keys_, columns), first, count),
                          cbq::rows(input(values_, columns), first, count)));
    return *std::move(cache);
  }

  /// Undoes rotation and scaling; `side`: 0 keys, 2 values.
  void restore(std::vector<double>& x, std::size_t head, std::size_t side) const {
    if (shape_.scheme.hadamard) {
      const std::size_t block = x.size() & (~x.size() + 1);
      std::vector<double> y(x.size());
      for (std::size_t i = 0; i < x.size(); ++i) {
        for (std::size_t j = i / block * block; j < (i / block + 1) * block; ++j) {
          int ones = 0;
          for (std::size_t common = (i % block) & (j % block); common != 0; common /= 2) ones += common % 2 == 1;
          y[i] += (ones % 2 == 0 ? x[j] : -x[j]) / std::sqrt(static_cast<double>(block));
        }
      }
      x = y;
    }
    if (!shape_.scheme.smoothed) return;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t at = head * x.size() + i;
      x[i] = x[i] * static_cast<double>(factors_[side][at]) + static_cast<double>(factors_[side + 1][at]);
    }
  }

  KvSequenceShape shape_;
  cbq::KvLayout layout_ = {};
  std::vector<float> raw_keys_, raw_values_, keys_, values_;
  std::vector<std::vector<float>> factors_;
  cbq::RowTransform transform_ = {};
  std::vector<std::vector<std::byte>> pages_;
  std::vector<const std::byte*> pointers_;
  std::size_t first_ = 0;
  cbq::FloatKvCache sinks_, exact_;
  std::vector<float> slopes_;
};

}  // namespace support
