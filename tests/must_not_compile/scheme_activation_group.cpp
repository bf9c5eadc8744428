// expect: [cbq] Scheme: activation.group must be the group of the weights
// SPDX-License-Identifier: Apache-2.0
#include <cbq/scheme.hpp>

constexpr cbq::Scheme correct = cbq::with_activation_groups(cbq::make_scheme(4, 8, 64, cbq::Zero::symmetric));
constexpr cbq::Scheme wrong = {.weight = correct.weight,
                               .activation = {.bits = 8, .granularity = cbq::Granularity::per_group, .group = 32}};
#ifdef CBQ_CORRECT
constexpr cbq::Scheme scheme = correct;
#else
constexpr cbq::Scheme scheme = wrong;
#endif
static_assert(cbq::checked<scheme>() == scheme);
