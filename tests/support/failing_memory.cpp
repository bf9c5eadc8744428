// SPDX-License-Identifier: Apache-2.0
#include "support/failing_memory.hpp"

#include <atomic>
#include <limits>
#include <new>

namespace {

constexpr std::ptrdiff_t never = std::numeric_limits<std::ptrdiff_t>::max();
std::atomic<std::ptrdiff_t> until_failure = never;

}  // namespace

namespace support {

void fail_allocation_after(std::size_t count) {
  until_failure = static_cast<std::ptrdiff_t>(count);
}

bool stop_failing_allocations() {
  return until_failure.exchange(never) < 0;
}

}  // namespace support

// The memory comes from the throwing form, so that operator delete needs no replacement.
void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  if (until_failure.load() != never && until_failure.fetch_sub(1) == 0) return nullptr;
  try {
    return ::operator new(size, alignment);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
