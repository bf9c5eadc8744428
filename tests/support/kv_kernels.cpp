// SPDX-License-Identifier: Apache-2.0

#if !defined(__SANITIZE_ADDRESS__)
#include <cbq/kv/instantiate_kernels.hpp>
#endif
