// SPDX-License-Identifier: Apache-2.0
#pragma once

// Kernels are compiled once for all tests that include this, in integer_kernels.cpp and float_kernels.cpp. Not under
// AddressSanitizer, with which compiling all of them takes longer than compiling those that tests use, each where it is
// used.
#if !defined(__SANITIZE_ADDRESS__)
#include <cbq/gemm/extern_kernels.hpp>
#endif
