// SPDX-License-Identifier: Apache-2.0
#pragma once

// The kernels that <cbq/gemm/extern_kernels.hpp> promises, for all packed schemes: include it in exactly one file of a
// program or library. Or include its two halves in one file each, which are then compiled at the same time.

#include <cbq/gemm/instantiate_float_kernels.hpp>
#include <cbq/gemm/instantiate_integer_kernels.hpp>
