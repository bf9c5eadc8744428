// SPDX-License-Identifier: Apache-2.0
#pragma once

// QuantizedKvCache: keys and values of one layer of one sequence, quantized as a KvScheme says once a KvPolicy calls
// them past. Codes lie in pages of a KvPagePool, exact rows in memory of the cache. Takes the place of a FloatKvCache
// in layers and models (ModelCache<QuantizedKvCache>).
//
//   append    validates everything, quantizes what became past, then stores the new rows; allocates nothing
//   truncate  rollback, for example of rejected draft tokens: what was quantized stays quantized
//   fork      another sequence with the same past: pages are shared, and copied where one of both writes
//
// An append costs two passes of the row transform over its rows, and for each row that became past one of the encoder.
// Not thread-safe against the other caches of its pool: see page_pool.hpp.

#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/view.hpp>
#include <cbq/kv/encodable.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/kv_page_table.hpp>
#include <cbq/kv/kv_policy.hpp>
#include <cbq/kv/page_writer.hpp>
#include <cbq/kv/quantized_kv_options.hpp>
#include <cbq/kv/quantized_kv_view.hpp>
#include <cbq/kv/row_transform.hpp>

namespace cbq {

/// Bytes that a sequence holds in one layer.
struct KvCacheBytes {
  std::size_t pages = 0;   ///< of the pool
  std::size_t shared = 0;  ///< part of `pages` that other sequences hold too
  std::size_t exact = 0;   ///< room for exact rows and the work of append, whether in use or not
};

inline namespace CBQ_ABI {

class QuantizedKvCache {
 public:
  /// An empty sequence. `pool`, and the factors that `transform` points to, must outlive it; whether heads are rotated
  /// is the scheme's. Errc::bad_shape (heads, width, pages of another size than kv_layout() says), Errc::unsupported
  /// (bits), Errc::bad_argument (no capacity or no rows per append; a scheme with `_2d` needs factors, others must have
  /// none; factors of 0), Errc::not_finite (factors), Errc::out_of_memory.
  [[nodiscard]] static Result<QuantizedKvCache> create(KvPagePool& pool, const QuantizedKvOptions& options,
                                                       const RowTransform& transform = {}) noexcept {
    const Result<KvLayout> layout = kv_layout(options.scheme, options.heads, options.width);
    if (!layout) return layout.error();
    if (const Status valid = check_quantized_kv(options, transform); !valid) return valid.error();
    if (pool.pages().empty() || pool.page_bytes() != layout->page_bytes) {
      return Error{Errc::bad_shape, "the pool has pages of another size", "page bytes",
                   pool.pages().empty() ? 0 : pool.page_bytes(), layout->page_bytes};
    }
    Result<KvPageTable> table = KvPageTable::create(pool.pages(), divide_up(options.capacity, kv_page_positions));
    if (!table) return table.error();
    return QuantizedKvCache(*layout, options, transform).with_memory(*std::move(table));
  }

  /// Positions; both are 0 for a cache that was moved from.
  [[nodiscard]] std::size_t size() const noexcept { return alive() ? size_ : 0; }
  [[nodiscard]] std::size_t capacity() const noexcept { return alive() ? options_.capacity : 0; }
  [[nodiscard]] const QuantizedKvOptions& options() const noexcept { return options_; }
  [[nodiscard]] const KvLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] const RowTransform& transform() const noexcept { return transform_; }

  /// What attention reads; valid until the next call that is not const.
  [[nodiscard]] QuantizedKvView view() const noexcept {
    if (!alive()) return {};
    return {.layout = &layout_,
            .pages = table_.data(),
            .packed = packed_,
            .first = first_,
            .window = options_.policy.window,
            .size = size_,
            .sinks = sinks_.view(),
            .exact = exact_.view(),
            .newest = newest(),
            .key_scales = transform_.key_scales,
            .key_offsets = transform_.key_offsets,
            .value_scales = transform_.value_scales,
            .value_offsets = transform_.value_offsets,
            .hadamard = transform_.hadamard};
  }

  [[nodiscard]] KvCacheBytes bytes() const noexcept {
    if (!alive()) return {};
    const std::size_t floats = floats_of(sinks_.view()) + floats_of(exact_.view()) + scratch_.size();
    const std::size_t page = table_.pages().page_bytes();
    return {.pages = table_.held() * page, .shared = table_.shared() * page, .exact = floats * sizeof(float)};
  }

  /// Appends one position per row of `keys` and `values` [tokens x heads * width]; first what the policy calls past
  /// is quantized, and pages before the window are given back. On an error the cache is as before: Errc::bad_shape
  /// (shapes, more rows than largest_append, a full cache), Errc::not_finite, Errc::bad_argument (elements that are
  /// beyond half when transformed, a cache that was moved from), Errc::out_of_memory (a full pool).
  [[nodiscard]] Status append(const MatrixView<const float>& keys, const MatrixView<const float>& values) noexcept {
    if (const Status alive = check_alive(); !alive) return alive;
    if (const Status shapes = check_append(options_, size_, keys, values); !shapes) return shapes;
    for (std::size_t t = 0; t < keys.rows; ++t) {
      transform_row(row(keys, t), row(values, t));
      const Status valid = check_encodable({row(keys, t), row(values, t), columns()}, row_of(next_row_), t);
      if (!valid) return valid;
    }
    if (keys.rows == 0) return {};
    if (const Status pages = prepare_pages(keys.rows); !pages) return pages;
    // From here on nothing can fail.
    if (options_.scheme.past_only) quantize(size_);
    for (std::size_t t = 0; t < keys.rows; ++t) {
      if (keys.rows > 1) transform_row(row(keys, t), row(values, t));  // a single row still lies there
      store_row(t + 1 == keys.rows);
      if (!options_.scheme.past_only) quantize(size_);
    }
    return {};
  }

  /// append() for hosts that number positions: Errc::bad_argument unless `position` is size().
  [[nodiscard]] Status append_at(std::size_t position, const MatrixView<const float>& keys,
                                 const MatrixView<const float>& values) noexcept {
    if (alive() && position != size_) {
      return Error{Errc::bad_argument, "positions must be appended in order", "position", position, size_};
    }
    return append(keys, values);
  }

  /// Forgets all positions from `size` on and gives back pages that hold nothing else. With a window, positions that
  /// earlier appends gave back stay lost: only what the last append brought can be rolled back without loss.
  void truncate(std::size_t size) noexcept {
    if (size >= this->size()) return;
    size_ = size;
    if (kept_end_ > size) kept_end_ = 0;
    sinks_.truncate(size);
    if (size > packed_) {
      exact_.truncate(size - packed_);
      keep_newest();
    } else {
      exact_.reset();
      packed_ = size;
    }
    if (first_ > size) first_ = size;
    const std::size_t last = visible_from() < packed_ ? divide_up(packed_, kv_page_positions) : 0;
    table_.release({last, table_.size()});
  }
  void reset() noexcept { truncate(0); }

  /// Another sequence with the same positions, for example a shared prompt: quantized pages are shared until one of
  /// both writes to them, exact rows are copied. Allocates. Errc::bad_argument for a cache that was moved from,
  /// Errc::out_of_memory.
  [[nodiscard]] Result<QuantizedKvCache> fork() const noexcept {
    if (const Status alive = check_alive(); !alive) return alive.error();
    Result<KvPageTable> table = table_.fork();
    if (!table) return table.error();
    Result<QuantizedKvCache> copy = QuantizedKvCache(layout_, options_, transform_).with_memory(*std::move(table));
    if (!copy) return copy;
    copy_rows(sinks_, copy->sinks_, copy->scratch_.data());
    copy_rows(exact_, copy->exact_, copy->scratch_.data());
    copy->size_ = size_;
    copy->packed_ = packed_;
    copy->first_ = first_;
    if (const KvRow row = newest(); row.key != nullptr) {
      std::memcpy(copy->kept_row(), row.key, 2 * columns() * sizeof(float));
      copy->kept_end_ = size_;
    }
    return copy;
  }

 private:
  friend class SavedSequence;  // saved_sequence.hpp

  QuantizedKvCache(const KvLayout& layout, const QuantizedKvOptions& options, const RowTransform& transform) noexcept
      : layout_(layout), options_(options), transform_(transform) {
    transform_.hadamard = options.scheme.hadamard;
  }

  /// Takes the table and allocates what else the cache needs.
  [[nodiscard]] Result<QuantizedKvCache> with_memory(KvPageTable table) && noexcept {
    const KvPolicy& policy = options_.policy;
    const std::size_t sinks = policy.sinks < options_.capacity ? policy.sinks : options_.capacity;
    const std::size_t exact = most_exact_positions(options_.scheme, policy, options_.capacity, options_.largest_append);
    Result<FloatKvCache> first = FloatKvCache::create(options_.heads, options_.width, sinks);
    if (!first) return first.error();
    Result<FloatKvCache> last = FloatKvCache::create(options_.heads, options_.width, exact);
    if (!last) return last.error();
    const std::size_t page = layout_.channel_keys ? kv_page_positions * options_.width : 0;
    Result<AlignedBuffer<float>> scratch = AlignedBuffer<float>::allocate(4 * columns() + page);
    if (!scratch) return scratch.error();
    sinks_ = *std::move(first);
    exact_ = *std::move(last);
    scratch_ = *std::move(scratch);
    table_ = std::move(table);
    return std::move(*this);
  }

  [[nodiscard]] bool alive() const noexcept { return table_.alive(); }
  [[nodiscard]] Status check_alive() const noexcept {
    if (alive()) return {};
    return Error{Errc::bad_argument, "the sequence was freed: its cache was moved from", "key/value cache"};
  }

  [[nodiscard]] std::size_t columns() const noexcept { return options_.heads * options_.width; }
  [[nodiscard]] static std::size_t floats_of(const FloatKvView& rows) noexcept {
    constexpr std::size_t panel = FloatKvCache::panel;
    return rows.heads * rows.capacity * (rows.width + divide_up(rows.width, panel) * panel);
  }
  /// The first position whose codes a query may see.
  [[nodiscard]] std::size_t visible_from() const noexcept { return first_ > sinks_.size() ? first_ : sinks_.size(); }

  /// Gives back what the window has left behind and makes sure that `rows` more positions find their pages.
  [[nodiscard]] Status prepare_pages(std::size_t rows) noexcept {
    const std::size_t seen = first_visible(options_.policy, size_);
    const std::size_t first = seen > first_ ? seen : first_;
    const std::size_t past = options_.scheme.past_only ? size_ : size_ + rows;
    const std::size_t goal = quantized_positions(options_.scheme, options_.policy, past);
    const std::size_t sinks = size_ + rows < options_.policy.sinks ? size_ + rows : options_.policy.sinks;
    std::size_t from = first / kv_page_positions * kv_page_positions;
    if (packed_ > from) from = packed_;
    if (sinks > from) from = sinks;
    const KvPageRange left{first_ / kv_page_positions, first / kv_page_positions};
    const KvPageRange written{from / kv_page_positions, from < goal ? divide_up(goal, kv_page_positions) : 0};
    const std::size_t wanted = table_.needed(written), freed = table_.releasable(left);
    if (wanted > freed) {
      if (const Status pages = table_.pages().check_free(wanted - freed); !pages) return pages;
    }
    table_.release(left);
    first_ = first;
    return {};
  }

  /// One of the two rows in scratch_: key, then value.
  [[nodiscard]] KvRow row_of(std::size_t index) const noexcept {
    const float* const key = scratch_.data() + index * 2 * columns();
    return {key, key + columns(), columns()};
  }

  /// Where the other row of scratch_ begins, which may be kept.
  [[nodiscard]] float* kept_row() noexcept { return scratch_.data() + (1 - next_row_) * 2 * columns(); }

  /// The only exact row, unless it lies in exact_; key null: it does, or there are more, or none.
  [[nodiscard]] KvRow newest() const noexcept {
    return exact_.size() == 0 && size_ > packed_ ? row_of(1 - next_row_) : KvRow{};
  }

  /// Makes the only row of exact_ the kept one, as if its append had brought no more.
  void keep_newest() noexcept {
    if (exact_.size() != 1 || quantizes_pages(options_.scheme, options_.policy)) return;
    copy_row(exact_, 0, kept_row(), kept_row() + columns());
    exact_.reset();
    kept_end_ = size_;
  }

  /// A row, transformed, into the next row of scratch_.
  void transform_row(const float* key, const float* value) noexcept {
    float* const next = scratch_.data() + next_row_ * 2 * columns();
    std::memcpy(next, key, columns() * sizeof(float));
    std::memcpy(next + columns(), value, columns() * sizeof(float));
    for (std::size_t head = 0; head < options_.heads; ++head) {
      float* const x = next + head * options_.width;
      transform_key(transform_, head, std::span(x, options_.width), isa_);
      transform_value(transform_, head, std::span(x + columns(), options_.width), isa_);
    }
  }

  /// The next row of scratch_ becomes the position after the last, and stays there while the other is the next. Where
  /// it is the only exact one, with `last` of its append, that is enough: in exact_ each element would lie in a cache
  /// line of its own.
  void store_row(bool last) noexcept {
    const KvRow next = row_of(next_row_);
    const auto key = matrix_view<const float>(next.key, 1, columns());
    const auto value = matrix_view<const float>(next.value, 1, columns());
    const bool sink = size_ < options_.policy.sinks;
    const bool alone =
        size_ == packed_ && (last || !options_.scheme.past_only) && !quantizes_pages(options_.scheme, options_.policy);
    if (sink || !alone) (void)(sink ? sinks_ : exact_).append(key, value);  // there is room
    ++size_;
    kept_end_ = size_;
    next_row_ = 1 - next_row_;
    if (size_ <= options_.policy.sinks) packed_ = size_;
  }

  /// Quantizes exact rows until the policy is content with `past` eligible positions.
  void quantize(std::size_t past) noexcept {
    const std::size_t goal = quantized_positions(options_.scheme, options_.policy, past);
    if (goal <= packed_) return;
    for (std::size_t index = packed_ / kv_page_positions; index * kv_page_positions < goal; ++index) {
      const std::size_t start = index * kv_page_positions;
      const std::size_t end = start + kv_page_positions;
      if (end <= first_) continue;  // no query will see it
      std::byte* const page = *table_.writable(index);
      if (layout_.channel_keys) {
        write_page_keys(layout_, exact_, page_keys(start), scratch_.data() + 4 * columns(), page);
      }
      for (std::size_t p = start < packed_ ? packed_ : start; p < goal && p < end; ++p) {
        if (p + 1 == kept_end_) {  // in one piece; as newest() it is nowhere else
          write_row(layout_, transform_, row_of(1 - next_row_), p - start, page);
        } else {
          write_row(layout_, transform_, exact_, {.row = p - packed_, .position = p - start}, page);
        }
      }
    }
    if (exact_.size() != 0) exact_.drop_front(goal - packed_);
    packed_ = goal;
  }

  /// Where the keys of the page come from that begins at position `start`.
  [[nodiscard]] PageKeys page_keys(std::size_t start) const noexcept {
    PageKeys from;
    from.before = packed_ > start ? packed_ - start : 0;
    from.row = start + from.before - packed_;
    const std::size_t hidden = visible_from() > start ? visible_from() - start : 0;
    from.hidden = hidden < from.before ? hidden : from.before;
    return from;
  }

  KvLayout layout_;
  QuantizedKvOptions options_;
  RowTransform transform_;
  Isa isa_ = capped(Isa::amx_int8);
  KvPageTable table_;
  FloatKvCache sinks_;
  FloatKvCache exact_;            ///< positions packed_ .. size_ - 1, but for newest()
  AlignedBuffer<float> scratch_;  ///< two rows; with scales per channel also the keys of a head and page
  std::size_t next_row_ = 0;      ///< of the two, where the next one is transformed; the other may be kept
  std::size_t kept_end_ = 0;      ///< the position after that of the kept row; 0: there is none
  std::size_t size_ = 0;
  std::size_t packed_ = 0;  ///< positions quantized or among the sinks
  std::size_t first_ = 0;   ///< pages that end before it were given back
};

}  // namespace CBQ_ABI
}  // namespace cbq
