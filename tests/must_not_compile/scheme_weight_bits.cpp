// expect: [cbq] Scheme: weight.bits must be 2, 3, 4 or 8 for packed weights
// SPDX-License-Identifier: Apache-2.0
#include <cbq/scheme.hpp>

#ifdef CBQ_CORRECT
constexpr cbq::Scheme scheme = {.weight = {.bits = 4}};
#else
constexpr cbq::Scheme scheme = {.weight = {.bits = 5}};
#endif
static_assert(cbq::checked<scheme>() == scheme);
