// SPDX-License-Identifier: Apache-2.0
#pragma once

// Model files: safetensors checkpoints (single and sharded), GGUF, quantized checkpoints, packed files, atomic writes.
// Needs nlohmann_json (CMake target cbq::io), which nothing else in cbq does; hence not part of <cbq/cbq.hpp>.

#include <cbq/io/atomic_file.hpp>
#include <cbq/io/atomic_folder.hpp>
#include <cbq/io/awq.hpp>
#include <cbq/io/bit_packing.hpp>
#include <cbq/io/byte_cursor.hpp>
#include <cbq/io/checkpoint.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/compressed_tensors_config.hpp>
#include <cbq/io/config_groups.hpp>
#include <cbq/io/config_rotations.hpp>
#include <cbq/io/gguf.hpp>
#include <cbq/io/gguf_blocks.hpp>
#include <cbq/io/gguf_encoding.hpp>
#include <cbq/io/gguf_keys.hpp>
#include <cbq/io/gguf_limits.hpp>
#include <cbq/io/gguf_metadata.hpp>
#include <cbq/io/gguf_packing.hpp>
#include <cbq/io/gguf_writer.hpp>
#include <cbq/io/gptq.hpp>
#include <cbq/io/gptq_reader.hpp>
#include <cbq/io/int_quantized.hpp>
#include <cbq/io/json.hpp>
#include <cbq/io/mapped_file.hpp>
#include <cbq/io/packed_file.hpp>
#include <cbq/io/packed_file_format.hpp>
#include <cbq/io/packed_file_writer.hpp>
#include <cbq/io/quantization_config.hpp>
#include <cbq/io/quantization_record.hpp>
#include <cbq/io/refined_groups.hpp>
#include <cbq/io/safetensors.hpp>
#include <cbq/io/safetensors_writer.hpp>
#include <cbq/io/scratch_file.hpp>
#include <cbq/io/sharded_writer.hpp>
#include <cbq/io/stored_input_grid.hpp>
#include <cbq/io/stored_matrix.hpp>
#include <cbq/io/stored_packing.hpp>
#include <cbq/io/stored_scales.hpp>
#include <cbq/io/stored_tensors.hpp>
#include <cbq/io/system_error.hpp>
#include <cbq/io/tensor.hpp>
#include <cbq/io/weight_only_config.hpp>
