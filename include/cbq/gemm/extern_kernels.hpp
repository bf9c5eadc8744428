// SPDX-License-Identifier: Apache-2.0
#pragma once

// For hosts of many files: keeps the kernels out of every file that includes this header, so that they are compiled
// once. Include it beside <cbq/gemm.hpp> wherever matmuls are called, and <cbq/gemm/instantiate_kernels.hpp> in exactly
// one file of the same flags. Without the latter the program does not link; results are the same either way.

#include <cbq/gemm/dispatch.hpp>
#include <cbq/gemm/float_dispatch.hpp>

namespace cbq {
inline namespace CBQ_ABI {

extern template IntegerKernel RegionKernels::integer_tile<2, Zero::symmetric>(Isa) noexcept;
extern template IntegerKernel RegionKernels::integer_tile<2, Zero::affine>(Isa) noexcept;
extern template IntegerKernel RegionKernels::integer_tile<3, Zero::symmetric>(Isa) noexcept;
extern template IntegerKernel RegionKernels::integer_tile<3, Zero::affine>(Isa) noexcept;
extern template IntegerKernel RegionKernels::integer_tile<4, Zero::symmetric>(Isa) noexcept;
extern template IntegerKernel RegionKernels::integer_tile<4, Zero::affine>(Isa) noexcept;
extern template IntegerKernel RegionKernels::integer_tile<8, Zero::symmetric>(Isa) noexcept;
extern template IntegerKernel RegionKernels::integer_tile<8, Zero::affine>(Isa) noexcept;

extern template DecodeKernel RegionKernels::decode_panel<2, Zero::symmetric>(Isa) noexcept;
extern template DecodeKernel RegionKernels::decode_panel<2, Zero::affine>(Isa) noexcept;
extern template DecodeKernel RegionKernels::decode_panel<3, Zero::symmetric>(Isa) noexcept;
extern template DecodeKernel RegionKernels::decode_panel<3, Zero::affine>(Isa) noexcept;
extern template DecodeKernel RegionKernels::decode_panel<4, Zero::symmetric>(Isa) noexcept;
extern template DecodeKernel RegionKernels::decode_panel<4, Zero::affine>(Isa) noexcept;
extern template DecodeKernel RegionKernels::decode_panel<8, Zero::symmetric>(Isa) noexcept;
extern template DecodeKernel RegionKernels::decode_panel<8, Zero::affine>(Isa) noexcept;

extern template WeightOnlyKernels RegionKernels::weight_only_tile<2, Zero::symmetric>(Isa) noexcept;
extern template WeightOnlyKernels RegionKernels::weight_only_tile<2, Zero::affine>(Isa) noexcept;
extern template WeightOnlyKernels RegionKernels::weight_only_tile<3, Zero::symmetric>(Isa) noexcept;
extern template WeightOnlyKernels RegionKernels::weight_only_tile<3, Zero::affine>(Isa) noexcept;
extern template WeightOnlyKernels RegionKernels::weight_only_tile<4, Zero::symmetric>(Isa) noexcept;
extern template WeightOnlyKernels RegionKernels::weight_only_tile<4, Zero::affine>(Isa) noexcept;
extern template WeightOnlyKernels RegionKernels::weight_only_tile<8, Zero::symmetric>(Isa) noexcept;
extern template WeightOnlyKernels RegionKernels::weight_only_tile<8, Zero::affine>(Isa) noexcept;

extern template Bfloat16Kernels RegionKernels::bfloat16_tile<2, Zero::symmetric>(Isa) noexcept;
extern template Bfloat16Kernels RegionKernels::bfloat16_tile<2, Zero::affine>(Isa) noexcept;
extern template Bfloat16Kernels RegionKernels::bfloat16_tile<3, Zero::symmetric>(Isa) noexcept;
extern template Bfloat16Kernels RegionKernels::bfloat16_tile<3, Zero::affine>(Isa) noexcept;
extern template Bfloat16Kernels RegionKernels::bfloat16_tile<4, Zero::symmetric>(Isa) noexcept;
extern template Bfloat16Kernels RegionKernels::bfloat16_tile<4, Zero::affine>(Isa) noexcept;
extern template Bfloat16Kernels RegionKernels::bfloat16_tile<8, Zero::symmetric>(Isa) noexcept;
extern template Bfloat16Kernels RegionKernels::bfloat16_tile<8, Zero::affine>(Isa) noexcept;

extern template FloatTallKernels float_tall_kernels<float>(Isa) noexcept;
extern template FloatNarrowKernels<float> float_narrow_kernels<float>(Isa) noexcept;
extern template FloatNarrowKernels<half> float_narrow_kernels<half>(Isa) noexcept;
extern template FloatNarrowKernels<bfloat16> float_narrow_kernels<bfloat16>(Isa) noexcept;
extern template Bfloat16Decoder bfloat16_decoder<bfloat16>(Isa) noexcept;

}  // namespace CBQ_ABI
}  // namespace cbq
