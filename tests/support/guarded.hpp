// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory between two pages that must not be touched: reading or writing one byte outside stops the test.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <span>

namespace support {

enum class Edge { start, end };  ///< which end of the elements touches a forbidden page

template <class T>
class Guarded {
 public:
  Guarded(std::size_t count, Edge edge) : count_(count) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t inside = (count * sizeof(T) + page - 1) / page * page + (count == 0 ? page : 0);
    size_ = inside + 2 * page;
    base_ = static_cast<std::byte*>(::mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || ::mprotect(base_ + page, inside, PROT_READ | PROT_WRITE) != 0) std::abort();
    data_ = reinterpret_cast<T*>(base_ + page + (edge == Edge::end ? inside - count * sizeof(T) : 0));
  }
  Guarded(std::span<const T> values, Edge edge) : Guarded(values.size(), edge) {
    if (!values.empty()) std::memcpy(data_, values.data(), values.size_bytes());
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { ::munmap(base_, size_); }

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::span<T> span() const { return {data_, count_}; }

 private:
  std::byte* base_ = nullptr;
  std::size_t size_ = 0;
  std::size_t count_ = 0;
  T* data_ = nullptr;
};

}  // namespace support
