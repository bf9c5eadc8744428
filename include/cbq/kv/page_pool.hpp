// SPDX-License-Identifier: Apache-2.0
#pragma once

// KvPagePool: pages of equal size in memory that the host provides, counted by reference so that sequences can share
// them. Acquiring, sharing and giving back take constant time (and acquiring sets the page to zero); nothing is
// allocated after create(). One pool serves any number of layers and sequences of one layout.
//
// Not thread-safe: a pool and the caches that use it belong to one thread at a time. A host that appends to sequences
// from several threads gives each thread a pool or takes a lock around append, truncate, fork and destruction;
// attention only reads pages and needs none.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/result.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Refers to the pages of a KvPagePool, and still does when the pool was moved; must not outlive it.
class KvPages {
 public:
  KvPages() = default;  ///< of no pool

  [[nodiscard]] bool empty() const noexcept { return state_ == nullptr; }
  [[nodiscard]] std::size_t page_bytes() const noexcept { return empty() ? 0 : state_->page_bytes; }
  /// All pages, and those that nobody holds; 0 of no pool.
  [[nodiscard]] std::size_t size() const noexcept { return empty() ? 0 : state_->size; }
  [[nodiscard]] std::size_t free_pages() const noexcept { return empty() ? 0 : state_->free; }

  /// A page of zeros with one reference. Errc::out_of_memory: no page is free.
  [[nodiscard]] Result<std::byte*> acquire() const noexcept {
    if (free_pages() == 0) return full(1);
    const std::size_t index = state_->first_free;
    state_->first_free = state_->entries[index].next_free;
    state_->entries[index].references = 1;
    state_->free -= 1;
    std::byte* const page = state_->memory + index * state_->page_bytes;
    std::memset(page, 0, state_->page_bytes);
    return page;
  }

  /// One reference more to a page of this pool that somebody holds; so, too, for the next two.
  void retain(const std::byte* page) const noexcept { state_->entries[index_of(page)].references += 1; }

  /// One reference less; without any the page is free.
  void release(const std::byte* page) const noexcept {
    const std::size_t index = index_of(page);
    Entry& entry = state_->entries[index];
    entry.references -= 1;
    if (entry.references != 0) return;
    entry.next_free = state_->first_free;
    state_->first_free = index;
    state_->free += 1;
  }

  /// How many hold the page.
  [[nodiscard]] std::size_t references(const std::byte* page) const noexcept {
    return state_->entries[index_of(page)].references;
  }

  /// Errc::out_of_memory unless `wanted` pages are free.
  [[nodiscard]] Status check_free(std::size_t wanted) const noexcept {
    if (wanted > free_pages()) return full(wanted);
    return {};
  }

 private:
  friend class KvPagePool;
  struct Entry {
    std::size_t references;
    std::size_t next_free;  ///< of a free page
  };
  struct State {
    std::byte* memory;
    std::size_t page_bytes;
    std::size_t size;
    std::size_t free;
    std::size_t first_free;
    Entry* entries;
  };

  explicit KvPages(State* state) noexcept : state_(state) {}
  [[nodiscard]] std::size_t index_of(const std::byte* page) const noexcept {
    return static_cast<std::size_t>(page - state_->memory) / state_->page_bytes;
  }
  [[nodiscard]] Error full(std::size_t wanted) const noexcept {
    return Error{Errc::out_of_memory,
                 "the page pool is full: truncate or destroy a sequence, or create the pool with more memory",
                 "free pages", ErrorText(free_pages()) << " of " << size(), wanted};
  }

  State* state_ = nullptr;
};

class KvPagePool {
 public:
  static constexpr std::size_t alignment = 64;

  /// As many pages of `page_bytes` (KvLayout::page_bytes) as fit in `memory`, which starts on 64 bytes, belongs to the
  /// host and must outlive the pool. Errc::bad_shape: not even one page, or page_bytes is no multiple of 64;
  /// Errc::bad_argument: alignment; Errc::out_of_memory: no 16 bytes per page for the references.
  [[nodiscard]] static Result<KvPagePool> create(std::span<std::byte> memory, std::size_t page_bytes) noexcept {
    if (page_bytes == 0 || page_bytes % alignment != 0) {
      return Error{Errc::bad_shape, "pages are a multiple of 64 bytes", "page bytes", page_bytes};
    }
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % alignment != 0) {
      return Error{Errc::bad_argument, "the memory of a page pool must start on a multiple of 64 bytes", "memory",
                   ErrorText(reinterpret_cast<std::uintptr_t>(memory.data()) % alignment) << " bytes behind one"};
    }
    const std::size_t size = memory.size() / page_bytes;
    if (size == 0) {
      return Error{Errc::bad_shape, "the memory of a page pool holds no page", "memory",
                   ErrorText(memory.size()) << " bytes", ErrorText("at least ") << page_bytes};
    }
    Result<AlignedBuffer<Entry>> entries = AlignedBuffer<Entry>::allocate(size);
    if (!entries) return entries.error();
    Result<AlignedBuffer<State>> state = AlignedBuffer<State>::allocate(1);
    if (!state) return state.error();
    // Pages are handed out in the order of their addresses at first.
    for (std::size_t i = 0; i < size; ++i) (*entries)[i] = {.references = 0, .next_free = i + 1};
    (*state)[0] = {.memory = memory.data(),
                   .page_bytes = page_bytes,
                   .size = size,
                   .free = size,
                   .first_free = 0,
                   .entries = entries->data()};
    return KvPagePool(*std::move(state), *std::move(entries));
  }

  /// What caches keep of their pool; a moved-from pool gives one of no pool.
  [[nodiscard]] KvPages pages() noexcept { return KvPages(state_.data()); }

  /// 0 for a pool that was moved from, all three.
  [[nodiscard]] std::size_t page_bytes() const noexcept { return gone() ? 0 : state_[0].page_bytes; }
  [[nodiscard]] std::size_t size() const noexcept { return gone() ? 0 : state_[0].size; }
  [[nodiscard]] std::size_t free_pages() const noexcept { return gone() ? 0 : state_[0].free; }
  /// See KvPages.
  [[nodiscard]] Result<std::byte*> acquire() noexcept { return pages().acquire(); }
  void retain(const std::byte* page) noexcept { pages().retain(page); }
  void release(const std::byte* page) noexcept { pages().release(page); }

 private:
  using Entry = KvPages::Entry;
  using State = KvPages::State;
  KvPagePool(AlignedBuffer<State> state, AlignedBuffer<Entry> entries) noexcept
      : state_(std::move(state)), entries_(std::move(entries)) {}
  [[nodiscard]] bool gone() const noexcept { return state_.data() == nullptr; }

  AlignedBuffer<State> state_;  // on the heap: KvPages point to it
  AlignedBuffer<Entry> entries_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
