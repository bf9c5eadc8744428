// SPDX-License-Identifier: Apache-2.0
// Half of all kernels, compiled once for the engine's files, which include <cbq/gemm/extern_kernels.hpp>.

#include <cbq/gemm/instantiate_float_kernels.hpp>
