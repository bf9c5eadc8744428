// expect: nodiscard
// SPDX-License-Identifier: Apache-2.0
#include <cbq/scheme.hpp>

#pragma GCC diagnostic error "-Wunused-result"
void ignores_the_error() {
#ifdef CBQ_CORRECT
  const auto scheme = cbq::parse_scheme("w4a8");
  (void)scheme;
#else
  cbq::parse_scheme("w4a8");
#endif
}
