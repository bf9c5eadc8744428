// SPDX-License-Identifier: Apache-2.0
#pragma once

// The kernels that <cbq/kv/extern_kernels.hpp> promises: include it in exactly one file of a program or library.

#include <cbq/kv/dispatch.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template KvKernels kv_kernels_of<2>(Isa) noexcept;
template KvKernels kv_kernels_of<3>(Isa) noexcept;
template KvKernels kv_kernels_of<4>(Isa) noexcept;
template KvKernels kv_kernels_of<8>(Isa) noexcept;

}  // namespace CBQ_ABI
}  // namespace cbq
