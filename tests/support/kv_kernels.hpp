// SPDX-License-Identifier: Apache-2.0
#pragma once

// Kernels of packed attention are compiled once for all tests that include this, in kv_kernels.cpp; under
// AddressSanitizer, too, where that takes a minute.
#include <cbq/kv/extern_kernels.hpp>
