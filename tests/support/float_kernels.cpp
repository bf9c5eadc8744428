// SPDX-License-Identifier: Apache-2.0

#if !defined(__SANITIZE_ADDRESS__)
#include <cbq/gemm/instantiate_float_kernels.hpp>
#endif
