// SPDX-License-Identifier: Apache-2.0
#pragma once

// A sequence of keys and values as a vector of rows, each exact or what the quantizer made of it: what a
// QuantizedKvCache must show at any time. Written from the documentation of the policies; shares with the cache only
// the quantizer of one group and the row transform, which have tests of their own.

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cbq/kv/affine_group.hpp>
#include <cbq/kv/affine_refinement.hpp>
#include <cbq/kv/key_block.hpp>
#include <cbq/kv/quantized_kv_cache.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/kv/value_block.hpp>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "support/guarded.hpp"

namespace support {

/// What is left of numbers that were quantized as one group.
inline std::vector<float> requantized(const std::vector<float>& x, int bits,
                                      const cbq::AffineRefinement& refinement = {}) {
  const auto wide = static_cast<std::size_t>(bits);
  const auto range = cbq::fit_affine_group(cbq::affine_range(x), wide);
  REQUIRE(range);
  const cbq::AffineGroup fit = cbq::refine_affine_group(x, *range, wide, refinement);
  std::vector<std::uint8_t> codes((x.size() + 15) / 16 * 16);
  cbq::affine_codes(x, fit, wide, codes.data());
  std::vector<float> out;
  for (std::size_t i = 0; i < x.size(); ++i) out.push_back(cbq::affine_value(codes[i], fit));
  return out;
}

/// Some rows of keys and values.
struct KvRows {
  std::size_t columns = 0;
  std::vector<float> keys;
  std::vector<float> values;

  KvRows(std::size_t rows, std::size_t width, std::mt19937& random) : columns(width) {
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < rows * columns; ++i) {
      keys.push_back(normal(random) * static_cast<float>(1 + i % 7));
      values.push_back(normal(random));
    }
  }
  [[nodiscard]] std::size_t rows() const { return keys.size() / columns; }
  [[nodiscard]] cbq::MatrixView<const float> k() const { return {keys.data(), rows(), columns, columns}; }
  [[nodiscard]] cbq::MatrixView<const float> v() const { return {values.data(), rows(), columns, columns}; }
};

/// A pool in memory between forbidden pages, and factors.
struct KvHost {
  KvHost(const cbq::QuantizedKvOptions& options, std::size_t pages)
      : page_bytes(cbq::kv_layout(options.scheme, options.heads, options.width)->page_bytes),
        memory((pages * page_bytes + 4095) / 4096 * 4096, Edge::end),
        pool(*cbq::KvPagePool::create(memory.span().first(pages * page_bytes), page_bytes)) {
    if (!options.scheme.smoothed) return;
    std::mt19937 random(3);
    std::uniform_real_distribution<float> uniform(0.5f, 2.0f);
    for (std::size_t i = 0; i < 5 * options.heads * options.width; ++i) factors.push_back(uniform(random));
    const float* from = factors.data();
    const std::size_t columns = options.heads * options.width;
    transform = {.key_scales = from,
                 .key_offsets = from + columns,
                 .value_scales = from + 2 * columns,
                 .value_offsets = from + 3 * columns,
                 .key_weights = from + 4 * columns,
                 .refinements = 2};
  }

  std::size_t page_bytes;
  Guarded<std::byte> memory;
  cbq::KvPagePool pool;
  std::vector<float> factors;
  cbq::RowTransform transform;
};

/// One position of a FloatKvView, all heads.
inline void read_exact(const cbq::FloatKvView& from, std::size_t p, std::vector<float>& key,
                       std::vector<float>& value) {
  const std::size_t padded = (from.width + 15) / 16 * 16;
  key.clear();
  value.clear();
  for (std::size_t h = 0; h < from.heads; ++h) {
    for (std::size_t i = 0; i < from.width; ++i) {
      key.push_back(from.keys[(h * from.capacity + p / 16 * 16) * from.width + i * 16 + p % 16]);
      value.push_back(from.values[(h * padded + i / 16 * 16) * from.capacity + p * 16 + i % 16]);
    }
  }
}

/// See above. Copy it where a cache is forked.
class KvRowModel {
 public:
  KvRowModel(const cbq::QuantizedKvOptions& options, const cbq::RowTransform& transform)
      : options_(options), transform_(transform) {
    transform_.hadamard = options.scheme.hadamard;
  }

  struct Row {
    std::vector<float> key, value;  ///< transformed
    bool packed = false;
  };

  [[nodiscard]] std::size_t size() const { return rows_.size(); }
  [[nodiscard]] const Row& row(std::size_t position) const { return rows_[position]; }

  void append(KvRows more) {
    const std::size_t count = more.rows(), before = size(), columns = more.columns;
    const cbq::KvHeads heads{options_.heads, options_.width};
    REQUIRE(cbq::transform_keys(transform_, heads, cbq::matrix_view(more.keys.data(), count, columns)));
    REQUIRE(cbq::transform_values(transform_, heads, cbq::matrix_view(more.values.data(), count, columns)));
    if (options_.policy.window != 0 && before + 1 > options_.policy.window) {
      first_ = std::max(first_, before + 1 - options_.policy.window);
    }
    if (options_.scheme.past_only) quantize(before);
    for (std::size_t t = 0; t < count; ++t) {
      Row row;
      row.key.assign(cbq::row(more.k(), t), cbq::row(more.k(), t) + columns);
      row.value.assign(cbq::row(more.v(), t), cbq::row(more.v(), t) + columns);
      rows_.push_back(row);
    }
    if (!options_.scheme.past_only) quantize(size());
  }

  void truncate(std::size_t size) {
    if (size < rows_.size()) rows_.resize(size);
    first_ = std::min(first_, size);
  }

  /// Every visible position of the view is, bit for bit, what is expected.
  void check(const cbq::QuantizedKvView& view) const {
    REQUIRE(view.size == size());
    REQUIRE(view.first == first_);
    REQUIRE(view.window == options_.policy.window);
    REQUIRE(view.sinks.size == std::min(options_.policy.sinks, size()));
    const bool newest = view.newest.key != nullptr;
    REQUIRE(view.packed + (newest ? 1 : view.exact.size) == size());
    // Rows that are quantized one by one leave a single exact one as it is, however it became the only one.
    const bool pages = options_.policy.recent > 0 || options_.scheme.channel_keys;
    REQUIRE(newest == (size() == view.packed + 1 && !pages));
    std::vector<float> key, value;
    for (std::size_t p = 0; p < size(); ++p) {
      const bool sink = p < view.sinks.size;
      if (!sink && p < first_) continue;
      REQUIRE(rows_[p].packed == (!sink && p < view.packed));
      if (sink) {
        read_exact(view.sinks, p, key, value);
      } else if (p < view.packed) {
        read_packed(view, p, key, value);
      } else if (newest) {
        REQUIRE(view.newest.columns == options_.heads * options_.width);
        key.assign(view.newest.key, view.newest.key + view.newest.columns);
        value.assign(view.newest.value, view.newest.value + view.newest.columns);
      } else {
        read_exact(view.exact, p - view.packed, key, value);
      }
      if (key != rows_[p].key || value != rows_[p].value) FAIL("position " << p << " of " << size());
    }
  }

 private:
  static void read_packed(const cbq::QuantizedKvView& view, std::size_t p, std::vector<float>& key,
                          std::vector<float>& value) {
    const cbq::KvLayout& layout = *view.layout;
    const std::byte* page = view.pages[p / 64];
    REQUIRE(page != nullptr);
    key.resize(layout.heads * layout.width);
    value.resize(key.size());
    for (std::size_t h = 0; h < layout.heads; ++h) {
      cbq::decode_key(layout, page + cbq::kv_keys_offset(layout, h), p % 64, key.data() + h * layout.width);
      cbq::decode_value(layout, page + cbq::kv_values_offset(layout, h), p % 64, value.data() + h * layout.width);
    }
  }

  void quantize(std::size_t eligible) {
    std::size_t end = eligible < options_.policy.recent ? 0 : eligible - options_.policy.recent;
    if (options_.policy.recent > 0 || options_.scheme.channel_keys) end -= end % 64;
    if (options_.scheme.channel_keys) {
      for (std::size_t page = 0; page < end; page += 64) quantize_channels(page);
    }
    for (std::size_t p = options_.policy.sinks; p < end; ++p) {
      if (rows_[p].packed) continue;
      rows_[p].packed = true;
      rows_[p].value = in_groups(rows_[p].value, {.steps = transform_.refinements});
      const bool refined = transform_.hadamard || transform_.key_weights != nullptr;
      const cbq::AffineRefinement keys{refined ? transform_.refinements : 0, transform_.key_weights};
      if (!options_.scheme.channel_keys) rows_[p].key = in_groups(rows_[p].key, keys);
    }
  }

  /// Groups of 128 channels of each head.
  [[nodiscard]] std::vector<float> in_groups(const std::vector<float>& row,
                                             const cbq::AffineRefinement& refinement) const {
    std::vector<float> out;
    for (std::size_t head = 0; head < row.size(); head += options_.width) {
      for (std::size_t i = 0; i < options_.width; i += 128) {
        const auto from = row.begin() + static_cast<std::ptrdiff_t>(head + i);
        const auto count = static_cast<std::ptrdiff_t>(std::min<std::size_t>(128, options_.width - i));
        cbq::AffineRefinement part = refinement;
        if (part.weights != nullptr) part.weights += head + i;
        const std::vector<float> group = requantized({from, from + count}, options_.scheme.bits, part);
        out.insert(out.end(), group.begin(), group.end());
      }
    }
    return out;
  }

  /// Keys of a page that has positions which are not quantized yet: all of it that is seen, anew.
  void quantize_channels(std::size_t page) {
    std::vector<std::size_t> used;
    bool anything = false;
    for (std::size_t p = page; p < page + 64; ++p) {
      const bool fresh = !rows_[p].packed && p >= options_.policy.sinks;
      anything = anything || fresh;
      if (fresh || (p >= options_.policy.sinks && p >= first_)) used.push_back(p);
    }
    if (!anything) return;
    for (std::size_t c = 0; c < options_.heads * options_.width; ++c) {
      std::vector<float> channel;
      for (const std::size_t p : used) channel.push_back(rows_[p].key[c]);
      channel = requantized(channel, options_.scheme.bits);
      for (std::size_t i = 0; i < used.size(); ++i) rows_[used[i]].key[c] = channel[i];
    }
  }

  cbq::QuantizedKvOptions options_;
  cbq::RowTransform transform_;
  std::vector<Row> rows_;
  std::size_t first_ = 0;
};

}  // namespace support
