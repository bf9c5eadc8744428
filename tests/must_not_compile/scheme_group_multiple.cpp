// expect: [cbq] Scheme: weight.group must be a multiple of 32 (a block of the packed layout)
// SPDX-License-Identifier: Apache-2.0
#include <cbq/scheme.hpp>

#ifdef CBQ_CORRECT
constexpr cbq::Scheme scheme = {.weight = {.bits = 4, .granularity = cbq::Granularity::per_group, .group = 64}};
#else
constexpr cbq::Scheme scheme = {.weight = {.bits = 4, .granularity = cbq::Granularity::per_group, .group = 48}};
#endif
static_assert(cbq::checked<scheme>() == scheme);
