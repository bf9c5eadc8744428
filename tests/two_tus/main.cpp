// SPDX-License-Identifier: Apache-2.0
// A program of parts compiled for different CPUs, and of two versions of cbq. Every part that this CPU can run must
// compute right, with every instruction set that the CPU has. On a CPU without AVX, run under an emulator, the AVX-512
// part is left alone, and the others must not have been given its copies of inline functions.

#include <cstdio>

#include "part.hpp"

namespace {

bool has_v4() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace

int main() {
  const Part parts[] = {part_baseline, part_other_version, part_v4};
  const std::size_t usable = has_v4() ? 3 : 2;

  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (parts[i].detect_address == parts[j].detect_address) {
        std::printf("parts %s and %s share one copy of cbq::detect\n", parts[j].name, parts[i].name);
        return 1;
      }
    }
  }

  const float numbers[] = {1, 2, 3, 4, 5, 6};
  const auto view = cbq::matrix_view(&numbers[0], 2, 3);
  for (std::size_t i = 0; i < usable; ++i) {
    for (const cbq::Isa cap : cbq::all_isas) {
      if (!parts[i].runs_right(cap)) {
        std::printf("part %s computes wrongly with cap %s\n", parts[i].name, cbq::isa_name(cap));
        return 1;
      }
    }
    if (parts[i].sum(view) != 21) {
      std::printf("part %s reads another part's view wrongly\n", parts[i].name);
      return 1;
    }
  }
  std::printf("%zu of 3 parts ran, best instruction set: %s\n", usable, cbq::isa_name(cbq::detect()));
  return 0;
}
