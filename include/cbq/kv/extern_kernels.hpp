// SPDX-License-Identifier: Apache-2.0
#pragma once

// For hosts of many files: keeps the kernels of packed attention out of every file that includes this header, as
// <cbq/gemm/extern_kernels.hpp> does those of matmuls. <cbq/kv/instantiate_kernels.hpp> belongs in exactly one file of
// the same flags. Compiling them takes some 10 s, whichever of them a file calls: their bits are a run-time value.

#include <cbq/kv/dispatch.hpp>

namespace cbq {
inline namespace CBQ_ABI {

extern template KvKernels kv_kernels_of<2>(Isa) noexcept;
extern template KvKernels kv_kernels_of<3>(Isa) noexcept;
extern template KvKernels kv_kernels_of<4>(Isa) noexcept;
extern template KvKernels kv_kernels_of<8>(Isa) noexcept;

}  // namespace CBQ_ABI
}  // namespace cbq
