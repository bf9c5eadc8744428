// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/instantiate_kernels.hpp>
