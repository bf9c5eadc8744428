// SPDX-License-Identifier: Apache-2.0
#pragma once

// Kernels of packed attention are compiled once for all tests that include this, in kv_kernels.cpp.
#if !defined(__SANITIZE_ADDRESS__)
#include <cbq/kv/extern_kernels.hpp>
#endif
