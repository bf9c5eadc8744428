// SPDX-License-Identifier: Apache-2.0
// Gives its own buffer to owner_v4.cpp and takes one from there.
#include <cbq/core/aligned.hpp>

std::size_t size_in_baseline(const cbq::AlignedBuffer<float>& buffer) {
  return buffer.size();
}
std::size_t size_in_v4(const cbq::AlignedBuffer<float>& buffer);
bool v4_gives();

int main() {
  const cbq::AlignedBuffer<float> buffer;
  return size_in_v4(buffer) == 0 && v4_gives() ? 0 : 1;
}
