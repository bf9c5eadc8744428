// SPDX-License-Identifier: Apache-2.0
#pragma once

// Layers, blocks and models over dense, fake-quantized and packed linear operators; forward.

#include <cbq/nn/any_linear.hpp>
#include <cbq/nn/block.hpp>
#include <cbq/nn/bloom_block.hpp>
#include <cbq/nn/causal_model.hpp>
#include <cbq/nn/dense_linear.hpp>
#include <cbq/nn/embedding.hpp>
#include <cbq/nn/linear.hpp>
#include <cbq/nn/linear_input.hpp>
#include <cbq/nn/llama_block.hpp>
#include <cbq/nn/mlp.hpp>
#include <cbq/nn/model_cache.hpp>
#include <cbq/nn/norm.hpp>
#include <cbq/nn/opt_block.hpp>
#include <cbq/nn/packed_linear.hpp>
#include <cbq/nn/pruned_layer.hpp>
#include <cbq/nn/rotary.hpp>
#include <cbq/nn/row_kernels.hpp>
#include <cbq/nn/runtime_packed_linear.hpp>
#include <cbq/nn/self_attention.hpp>
#include <cbq/nn/trip_linear.hpp>
