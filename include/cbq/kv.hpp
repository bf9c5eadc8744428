// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys and values of past tokens, exact or quantized, and attention over them; no Eigen.

#include <cbq/core/context.hpp>
#include <cbq/kv/affine_group.hpp>
#include <cbq/kv/affine_refinement.hpp>
#include <cbq/kv/attention.hpp>
#include <cbq/kv/attention_scores.hpp>
#include <cbq/kv/channel_statistics.hpp>
#include <cbq/kv/encodable.hpp>
#include <cbq/kv/float_kv_cache.hpp>
#include <cbq/kv/int8_kv_cache.hpp>
#include <cbq/kv/integer_attention.hpp>
#include <cbq/kv/key_block.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_page_table.hpp>
#include <cbq/kv/kv_policy.hpp>
#include <cbq/kv/kv_scheme.hpp>
#include <cbq/kv/kv_tile.hpp>
#include <cbq/kv/packed_attention.hpp>
#include <cbq/kv/page_pool.hpp>
#include <cbq/kv/page_writer.hpp>
#include <cbq/kv/quantized_kv_cache.hpp>
#include <cbq/kv/quantized_kv_options.hpp>
#include <cbq/kv/quantized_kv_view.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/kv/saved_sequence.hpp>
#include <cbq/kv/saved_sequence_format.hpp>
#include <cbq/kv/shifted_values.hpp>
#include <cbq/kv/smoothing.hpp>
#include <cbq/kv/softmax.hpp>
#include <cbq/kv/teacher_forced_attention.hpp>
#include <cbq/kv/value_block.hpp>
