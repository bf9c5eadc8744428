// expect: [cbq] Scheme: activation.granularity must be per_token, per_tensor or per_group
// SPDX-License-Identifier: Apache-2.0
#include <cbq/scheme.hpp>

#ifdef CBQ_CORRECT
constexpr cbq::Scheme scheme = {.weight = {.bits = 4},
                                .activation = {.bits = 8, .granularity = cbq::Granularity::per_token}};
#else
constexpr cbq::Scheme scheme = {.weight = {.bits = 4},
                                .activation = {.bits = 8, .granularity = cbq::Granularity::per_channel}};
#endif
static_assert(cbq::checked<scheme>() == scheme);
