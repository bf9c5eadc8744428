// SPDX-License-Identifier: Apache-2.0
// The one file of the program that holds kernels.

#include <cbq/gemm/instantiate_kernels.hpp>
