// SPDX-License-Identifier: Apache-2.0
#include "rounded_kv_cache.hpp"

#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <utility>

#include <cbq/kv/key_block.hpp>
#include <cbq/kv/value_block.hpp>

namespace cbq_llama {

using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

// Undoes the transform of keys where restore_outputs() is told it.
cbq::RowTransform as_keys(const cbq::RowTransform& transform) {
  return {.value_scales = transform.key_scales, .value_offsets = transform.key_offsets, .hadamard = transform.hadamard};
}

}  // namespace

Result<RoundedKvCache> RoundedKvCache::create(const cbq::QuantizedKvOptions& options,
                                              const cbq::RowTransform& transform,
                                              std::shared_ptr<const cbq::RotaryTable> rotary) {
  const Result<cbq::KvLayout> layout = cbq::kv_layout(options.scheme, options.heads, options.width);
  if (!layout) return layout.error();
  Result<cbq::FloatKvCache> floats = cbq::FloatKvCache::create(options.heads, options.width, options.capacity);
  if (!floats) return floats.error();
  Result<cbq::AlignedBuffer<std::byte>> page = cbq::AlignedBuffer<std::byte>::allocate(layout->head_bytes);
  if (!page) return page.error();
  std::memset(page->data(), 0, layout->head_bytes);
  RoundedKvCache cache;
  cache.scheme_ = options.scheme;
  cache.layout_ = *layout;
  cache.transform_ = transform;
  cache.rotary_ = std::move(rotary);
  cache.floats_ = *std::move(floats);
  cache.page_ = *std::move(page);
  return cache;
}

Status RoundedKvCache::append(const MatrixView<const float>& keys, const MatrixView<const float>& values) {
  if (scheme_.past_only) {
    if (const Status settled = settle(); !settled) return settled;
  }
  const std::size_t past = size();
  if (const Status done = floats_.append(keys, values); !done) return done;
  const std::size_t columns = layout_.heads * layout_.width;
  given_.keys.resize(past * columns);
  given_.values.resize(past * columns);
  for (std::size_t t = 0; t < keys.rows; ++t) {
    given_.keys.insert(given_.keys.end(), row(keys, t), row(keys, t) + columns);
    given_.values.insert(given_.values.end(), row(values, t), row(values, t) + columns);
  }
  if (scheme_.past_only) return {};
  const Status settled = settle();
  if (!settled) truncate(past);
  return settled;
}

void RoundedKvCache::truncate(std::size_t size) {
  if (size < rounded_) {
    rounded_ = scheme_.channel_keys ? size / cbq::kv_page_positions * cbq::kv_page_positions : size;
  }
  floats_.truncate(rounded_ < size ? rounded_ : size);
  if (size <= rounded_) return;
  const std::size_t columns = layout_.heads * layout_.width;
  const auto rest = [&](const std::vector<float>& all) {
    return cbq::matrix_view(all.data() + rounded_ * columns, size - rounded_, columns);
  };
  (void)floats_.append(rest(given_.keys), rest(given_.values));  // there is room: they were there
}

// Rounds what may be rounded now, and puts exact rows behind it.
Status RoundedKvCache::settle() {
  const std::size_t end = scheme_.channel_keys ? size() / cbq::kv_page_positions * cbq::kv_page_positions : size();
  if (end <= rounded_) return {};
  const std::size_t all = size();
  const std::size_t columns = layout_.heads * layout_.width;
  Rows rounded;
  if (const Status done = round_rows(rounded_, end - rounded_, rounded); !done) return done;
  floats_.truncate(rounded_);
  const auto view = [&](const std::vector<float>& rows) {
    return cbq::matrix_view(rows.data(), end - rounded_, columns);
  };
  if (const Status done = floats_.append(view(rounded.keys), view(rounded.values)); !done) return done;
  rounded_ = end;
  if (end == all) return {};
  const auto rest = [&](const std::vector<float>& rows) {
    return cbq::matrix_view(rows.data() + end * columns, all - end, columns);
  };
  return floats_.append(rest(given_.keys), rest(given_.values));
}

Status RoundedKvCache::round_rows(std::size_t first, std::size_t count, Rows& rounded) {
  const std::size_t columns = layout_.heads * layout_.width;
  const auto part = [&](const std::vector<float>& rows) {
    const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(first * columns);
    return std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(count * columns));
  };
  rounded = {part(given_.keys), part(given_.values)};
  const cbq::KvHeads heads{layout_.heads, layout_.width};
  const auto keys = cbq::matrix_view(rounded.keys.data(), count, columns);
  const auto values = cbq::matrix_view(rounded.values.data(), count, columns);
  if (const Status done = rotate(keys, first, cbq::RotaryDirection::backward); !done) return done;
  if (const Status done = transform_keys(transform_, heads, keys); !done) return done;
  if (const Status done = transform_values(transform_, heads, values); !done) return done;
  for (std::size_t head = 0; head < layout_.heads; ++head) {
    const Status done = layout_.channel_keys ? round_channels(head, keys) : round_keys(head, keys);
    if (!done) return done;
    if (const Status also = round_values(head, values); !also) return also;
  }
  if (const Status done = restore_outputs(as_keys(transform_), heads, keys); !done) return done;
  if (const Status done = rotate(keys, first, cbq::RotaryDirection::forward); !done) return done;
  return restore_outputs(transform_, heads, values);
}

Status RoundedKvCache::rotate(const MatrixView<float>& keys, std::size_t first, cbq::RotaryDirection direction) const {
  if (rotary_ == nullptr) return {};
  std::vector<std::uint32_t> positions(keys.rows);
  std::iota(positions.begin(), positions.end(), static_cast<std::uint32_t>(first));
  const cbq::SerialExecutor executor;
  cbq::ExecutionContext<> context(executor);
  return rotary_->rotate(keys, positions, context, direction);
}

Status RoundedKvCache::round_keys(std::size_t head, const MatrixView<float>& rows) {
  for (std::size_t t = 0; t < rows.rows; ++t) {
    const std::span<float> key(row(rows, t) + head * layout_.width, layout_.width);
    const Status done =
        cbq::encode_key(layout_, 0, key, page_.data(), cbq::key_refinement(transform_, head, layout_.width));
    if (!done) return done;
    cbq::decode_key(layout_, page_.data(), 0, key.data());
  }
  return {};
}

// Whole pages.
Status RoundedKvCache::round_channels(std::size_t head, const MatrixView<float>& rows) {
  for (std::size_t first = 0; first < rows.rows; first += cbq::kv_page_positions) {
    MatrixView<float> keys = cbq::rows(rows, first, cbq::kv_page_positions);
    keys.data += head * layout_.width;
    keys.columns = layout_.width;
    if (const Status done = cbq::encode_key_channels(layout_, as_const(keys), page_.data()); !done) return done;
    for (std::size_t p = 0; p < keys.rows; ++p) cbq::decode_key(layout_, page_.data(), p, row(keys, p));
  }
  return {};
}

Status RoundedKvCache::round_values(std::size_t head, const MatrixView<float>& rows) {
  std::byte* const page = page_.data() + layout_.key_bytes;
  for (std::size_t t = 0; t < rows.rows; ++t) {
    const std::span<float> value(row(rows, t) + head * layout_.width, layout_.width);
    const Status done = cbq::encode_value(layout_, 0, value, page, cbq::value_refinement(transform_));
    if (!done) return done;
    cbq::decode_value(layout_, page, 0, value.data());
  }
  return {};
}

}  // namespace cbq_llama
