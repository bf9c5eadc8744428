// SPDX-License-Identifier: Apache-2.0
#pragma once

// Packed matmul: everything an engine needs to run quantized linear layers, and nothing that costs compile time: no
// Eigen, no xsimd. Quantize weights with <cbq/rounding/nearest.hpp> or bring codes of your own.

#include <cbq/core/cpu.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/gemm/activation_codes.hpp>
#include <cbq/gemm/activations.hpp>
#include <cbq/gemm/epilogue.hpp>
#include <cbq/gemm/grouped_matmul.hpp>
#include <cbq/gemm/int4_tokens.hpp>
#include <cbq/gemm/matmul.hpp>
#include <cbq/gemm/packed_weights.hpp>
#include <cbq/gemm/weight_only_bfloat16.hpp>
#include <cbq/gemm/weight_only_matmul.hpp>
#include <cbq/scheme.hpp>
