// SPDX-License-Identifier: Apache-2.0
#pragma once

// Makes the allocations of AlignedBuffer fail on demand, so that every path that runs out of memory is walked without
// asking for absurd sizes. Using it replaces one form of operator new in the whole test program.

#include <cstddef>

namespace support {

/// From here on `count` allocations without exceptions succeed and the next one fails; those behind it succeed again.
void fail_allocation_after(std::size_t count);

/// No allocation fails from here on. Returns whether one did since fail_allocation_after().
bool stop_failing_allocations();

}  // namespace support
