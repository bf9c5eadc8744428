// SPDX-License-Identifier: Apache-2.0
#pragma once

// Equivalent transformations: channel scaling, SmoothQuant's factors, Hadamard transforms and rotations; the statistics
// that factors are found from. Needs xsimd.

#include <cbq/transform/channel_scaling.hpp>
#include <cbq/transform/channel_statistics.hpp>
#include <cbq/transform/decoder_rotation.hpp>
#include <cbq/transform/hadamard.hpp>
#include <cbq/transform/hadamard_kernels.hpp>
#include <cbq/transform/input_rotation.hpp>
#include <cbq/transform/layer_weights.hpp>
#include <cbq/transform/rotation.hpp>
#include <cbq/transform/smoothquant.hpp>
