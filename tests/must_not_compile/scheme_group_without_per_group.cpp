// expect: [cbq] Scheme: weight.group must be set with per_group, and only then
// SPDX-License-Identifier: Apache-2.0
#include <cbq/scheme.hpp>

#ifdef CBQ_CORRECT
constexpr cbq::Scheme scheme = {.weight = {.bits = 4, .granularity = cbq::Granularity::per_group, .group = 32}};
#else
constexpr cbq::Scheme scheme = {.weight = {.bits = 4, .group = 32}};
#endif
static_assert(cbq::checked<scheme>() == scheme);
