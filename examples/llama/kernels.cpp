// SPDX-License-Identifier: Apache-2.0
// All kernels, compiled once for the engine's files, which include <cbq/gemm/extern_kernels.hpp>.

#include <cbq/gemm/instantiate_kernels.hpp>
