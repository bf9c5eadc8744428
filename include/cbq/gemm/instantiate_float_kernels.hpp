// SPDX-License-Identifier: Apache-2.0
#pragma once

// The half of <cbq/gemm/instantiate_kernels.hpp> that multiplies activations in floating point.

#include <cbq/gemm/dispatch.hpp>
#include <cbq/gemm/float_dispatch.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template WeightOnlyKernels RegionKernels::weight_only_tile<2, Zero::symmetric>(Isa) noexcept;
template WeightOnlyKernels RegionKernels::weight_only_tile<2, Zero::affine>(Isa) noexcept;
template WeightOnlyKernels RegionKernels::weight_only_tile<3, Zero::symmetric>(Isa) noexcept;
template WeightOnlyKernels RegionKernels::weight_only_tile<3, Zero::affine>(Isa) noexcept;
template WeightOnlyKernels RegionKernels::weight_only_tile<4, Zero::symmetric>(Isa) noexcept;
template WeightOnlyKernels RegionKernels::weight_only_tile<4, Zero::affine>(Isa) noexcept;
template WeightOnlyKernels RegionKernels::weight_only_tile<8, Zero::symmetric>(Isa) noexcept;
template WeightOnlyKernels RegionKernels::weight_only_tile<8, Zero::affine>(Isa) noexcept;

template Bfloat16Kernels RegionKernels::bfloat16_tile<2, Zero::symmetric>(Isa) noexcept;
template Bfloat16Kernels RegionKernels::bfloat16_tile<2, Zero::affine>(Isa) noexcept;
template Bfloat16Kernels RegionKernels::bfloat16_tile<3, Zero::symmetric>(Isa) noexcept;
template Bfloat16Kernels RegionKernels::bfloat16_tile<3, Zero::affine>(Isa) noexcept;
template Bfloat16Kernels RegionKernels::bfloat16_tile<4, Zero::symmetric>(Isa) noexcept;
template Bfloat16Kernels RegionKernels::bfloat16_tile<4, Zero::affine>(Isa) noexcept;
template Bfloat16Kernels RegionKernels::bfloat16_tile<8, Zero::symmetric>(Isa) noexcept;
template Bfloat16Kernels RegionKernels::bfloat16_tile<8, Zero::affine>(Isa) noexcept;

template FloatTallKernels float_tall_kernels<float>(Isa) noexcept;
template FloatNarrowKernels<float> float_narrow_kernels<float>(Isa) noexcept;
template FloatNarrowKernels<half> float_narrow_kernels<half>(Isa) noexcept;
template FloatNarrowKernels<bfloat16> float_narrow_kernels<bfloat16>(Isa) noexcept;
template Bfloat16Decoder bfloat16_decoder<bfloat16>(Isa) noexcept;

}  // namespace CBQ_ABI
}  // namespace cbq
