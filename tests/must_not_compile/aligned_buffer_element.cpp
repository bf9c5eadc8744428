// expect: [cbq] AlignedBuffer: T must be trivially copyable
// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/aligned.hpp>

struct Copies {
  Copies() = default;
  Copies(const Copies&) {}
};
#ifdef CBQ_CORRECT
cbq::AlignedBuffer<float> buffer;
#else
cbq::AlignedBuffer<Copies> buffer;
#endif
