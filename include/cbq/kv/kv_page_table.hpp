// SPDX-License-Identifier: Apache-2.0
#pragma once

// KvPageTable: which pages of a pool hold the positions of one layer of one sequence. Page i holds positions 64 i to
// 64 i + 63; a page that was never written, or was given back, is null. Tables share pages after a fork; writing to a
// shared page makes a copy of it first.

#include <cstddef>
#include <cstring>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/result.hpp>
#include <cbq/kv/page_pool.hpp>

namespace cbq {

/// Pages [first, last) of a table.
struct KvPageRange {
  std::size_t first = 0;
  std::size_t last = 0;
};

inline namespace CBQ_ABI {

class KvPageTable {
 public:
  KvPageTable() = default;  ///< of no pool
  KvPageTable(KvPageTable&& other) noexcept
      : pages_(std::exchange(other.pages_, {})), entries_(std::move(other.entries_)) {}
  KvPageTable& operator=(KvPageTable&& other) noexcept {
    const KvPageTable old(std::move(*this));  // whose pages go back now, not when `other` ends
    pages_ = std::exchange(other.pages_, {});
    entries_ = std::move(other.entries_);
    return *this;
  }
  KvPageTable(const KvPageTable&) = delete;
  KvPageTable& operator=(const KvPageTable&) = delete;
  ~KvPageTable() { release({0, entries_.size()}); }

  /// A table of up to `size` pages, none of them held. Errc::out_of_memory.
  [[nodiscard]] static Result<KvPageTable> create(KvPages pages, std::size_t size) noexcept {
    KvPageTable table;
    Result<AlignedBuffer<std::byte*>> entries = AlignedBuffer<std::byte*>::allocate(size);
    if (!entries) return entries.error();
    table.pages_ = pages;
    table.entries_ = *std::move(entries);
    for (std::byte*& page : table.entries_) page = nullptr;
    return table;
  }

  /// A table with the same pages, shared. Errc::out_of_memory.
  [[nodiscard]] Result<KvPageTable> fork() const noexcept {
    Result<KvPageTable> copy = create(pages_, entries_.size());
    if (!copy) return copy;
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i] == nullptr) continue;
      pages_.retain(entries_[i]);
      copy->entries_[i] = entries_[i];
    }
    return copy;
  }

  /// Whether it is of a pool: not default-constructed, not moved from.
  [[nodiscard]] bool alive() const noexcept { return !pages_.empty(); }
  [[nodiscard]] const KvPages& pages() const noexcept { return pages_; }
  [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
  [[nodiscard]] const std::byte* const* data() const noexcept { return entries_.data(); }

  /// Pages that must be free for all of `range` to be written.
  [[nodiscard]] std::size_t needed(const KvPageRange& range) const noexcept {
    std::size_t count = 0;
    for (std::size_t i = range.first; i < range.last; ++i) count += own(i) ? 0u : 1u;
    return count;
  }
  /// Pages that release(range) makes free: those that nobody shares.
  [[nodiscard]] std::size_t releasable(const KvPageRange& range) const noexcept {
    std::size_t count = 0;
    for (std::size_t i = range.first; i < range.last; ++i) count += own(i) ? 1u : 0u;
    return count;
  }
  /// Pages held, and those of them that others hold too.
  [[nodiscard]] std::size_t held() const noexcept {
    std::size_t count = 0;
    for (const std::byte* page : entries_) count += page != nullptr ? 1u : 0u;
    return count;
  }
  [[nodiscard]] std::size_t shared() const noexcept { return held() - releasable({0, entries_.size()}); }

  /// Page `index`, which nobody else holds: acquired where there was none, copied where it was shared.
  /// Errc::out_of_memory: no page is free.
  [[nodiscard]] Result<std::byte*> writable(std::size_t index) noexcept {
    if (own(index)) return entries_[index];
    const Result<std::byte*> page = pages_.acquire();
    if (!page) return page;
    if (entries_[index] != nullptr) {
      std::memcpy(*page, entries_[index], pages_.page_bytes());
      pages_.release(entries_[index]);
    }
    entries_[index] = *page;
    return page;
  }

  /// Gives pages back.
  void release(const KvPageRange& range) noexcept {
    for (std::size_t i = range.first; i < range.last; ++i) {
      if (entries_[i] != nullptr) pages_.release(entries_[i]);
      entries_[i] = nullptr;
    }
  }

 private:
  [[nodiscard]] bool own(std::size_t index) const noexcept {
    return entries_[index] != nullptr && pages_.references(entries_[index]) == 1;
  }

  KvPages pages_;
  AlignedBuffer<std::byte*> entries_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
