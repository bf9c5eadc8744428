// SPDX-License-Identifier: Apache-2.0
// The other side of owner_baseline.cpp.
#include <cbq/core/aligned.hpp>

std::size_t size_in_v4(const cbq::AlignedBuffer<float>& buffer) {
  return buffer.size();
}
std::size_t size_in_baseline(const cbq::AlignedBuffer<float>& buffer);

bool v4_gives();
bool v4_gives() {
  const cbq::AlignedBuffer<float> buffer;
  return size_in_baseline(buffer) == 0;
}
