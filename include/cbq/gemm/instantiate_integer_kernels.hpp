// SPDX-License-Identifier: Apache-2.0
#pragma once

// The half of <cbq/gemm/instantiate_kernels.hpp> that multiplies activations in integers.

#include <cbq/gemm/dispatch.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template IntegerKernel RegionKernels::integer_tile<2, Zero::symmetric>(Isa) noexcept;
template IntegerKernel RegionKernels::integer_tile<2, Zero::affine>(Isa) noexcept;
template IntegerKernel RegionKernels::integer_tile<3, Zero::symmetric>(Isa) noexcept;
template IntegerKernel RegionKernels::integer_tile<3, Zero::affine>(Isa) noexcept;
template IntegerKernel RegionKernels::integer_tile<4, Zero::symmetric>(Isa) noexcept;
template IntegerKernel RegionKernels::integer_tile<4, Zero::affine>(Isa) noexcept;
template IntegerKernel RegionKernels::integer_tile<8, Zero::symmetric>(Isa) noexcept;
template IntegerKernel RegionKernels::integer_tile<8, Zero::affine>(Isa) noexcept;

template DecodeKernel RegionKernels::decode_panel<2, Zero::symmetric>(Isa) noexcept;
template DecodeKernel RegionKernels::decode_panel<2, Zero::affine>(Isa) noexcept;
template DecodeKernel RegionKernels::decode_panel<3, Zero::symmetric>(Isa) noexcept;
template DecodeKernel RegionKernels::decode_panel<3, Zero::affine>(Isa) noexcept;
template DecodeKernel RegionKernels::decode_panel<4, Zero::symmetric>(Isa) noexcept;
template DecodeKernel RegionKernels::decode_panel<4, Zero::affine>(Isa) noexcept;
template DecodeKernel RegionKernels::decode_panel<8, Zero::symmetric>(Isa) noexcept;
template DecodeKernel RegionKernels::decode_panel<8, Zero::affine>(Isa) noexcept;

}  // namespace CBQ_ABI
}  // namespace cbq
