// expect: [cbq] Scheme: activation.bits must be 4, 8 or 16 (floating point)
// SPDX-License-Identifier: Apache-2.0
#include <cbq/scheme.hpp>

#ifdef CBQ_CORRECT
constexpr cbq::Scheme scheme = {.weight = {.bits = 4},
                                .activation = {.bits = 8, .granularity = cbq::Granularity::per_token}};
#else
constexpr cbq::Scheme scheme = {.weight = {.bits = 4},
                                .activation = {.bits = 6, .granularity = cbq::Granularity::per_token}};
#endif
static_assert(cbq::checked<scheme>() == scheme);
