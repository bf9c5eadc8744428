// SPDX-License-Identifier: Apache-2.0
#pragma once

// Quantizers: scales and codes for weights and activations. Needs xsimd.

#include <cbq/quant/activation.hpp>
#include <cbq/quant/activation_range.hpp>
#include <cbq/quant/affine.hpp>
#include <cbq/quant/log2.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/quant/quantizer.hpp>
#include <cbq/quant/range.hpp>
#include <cbq/quant/recoding.hpp>
#include <cbq/quant/rows.hpp>
#include <cbq/quant/scale.hpp>
#include <cbq/quant/trip.hpp>
