// SPDX-License-Identifier: Apache-2.0

// `cbq_fuzz --describe FILE...`: what cbq makes of each file, one JSON object a line, for compare_readers.py.

#include <cstdio>
#include <string>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/io/checkpoint.hpp>
#include <cbq/io/gguf.hpp>
#include <cbq/io/json.hpp>

#include "targets.hpp"

namespace fuzz {

namespace {

using cbq::Json;

template <class Tensor>
Json values_of(const Tensor& tensor) {
  const auto count = cbq::element_count(tensor.shape);
  const std::size_t columns = tensor.shape.rank == 0 ? 1 : tensor.shape.sizes[tensor.shape.rank - 1];
  if (!count || *count > most_elements || tensor.shape.rank > 2) return nullptr;
  const std::size_t rows = columns == 0 ? 1 : *count / columns;
  auto memory = cbq::AlignedBuffer<float>::allocate(*count);
  Tensor matrix = tensor;
  if (tensor.shape.rank == 0) matrix.shape = {.rank = 1, .sizes = {1}};
  const auto out = cbq::matrix_view(memory->data(), tensor.shape.rank == 2 ? tensor.shape.sizes[0] : rows, columns);
  if (!cbq::copy_to_float(matrix, out, cbq::Finite::unchecked)) return nullptr;
  // As bits: JSON has no NaN.
  Json bits = Json::array();
  for (std::size_t i = 0; i < *count; ++i) bits.push_back(__builtin_bit_cast(std::uint32_t, (*memory)[i]));
  return bits;
}

template <class Tensor>
Json describe_tensor(const Tensor& tensor, const char* type) {
  Json shape = Json::array();
  for (std::size_t i = 0; i < tensor.shape.rank; ++i) shape.push_back(tensor.shape.sizes[i]);
  return {{"name", std::string(tensor.name)},
          {"type", type},
          {"shape", shape},
          {"bytes", tensor.bytes.size()},
          {"values", values_of(tensor)}};
}

Json refused(const cbq::Error& error) {
  std::string message;
  cbq::append_message(message, error);
  return {{"accepted", false}, {"code", static_cast<int>(error.code)}, {"message", message}};
}

Json describe(const std::string& path) {
  const auto bytes = cbq::FileBytes::open(path);
  if (!bytes) return refused(bytes.error());
  Json all = {{"accepted", true}, {"tensors", Json::array()}};
  if (text_of(bytes->bytes()).starts_with("GGUF")) {
    const auto file = cbq::GgufFile::open(path);
    if (!file) return refused(file.error());
    for (const cbq::GgufTensor& tensor : file->content.tensors()) {
      const auto layout = cbq::gguf_layout(static_cast<std::uint32_t>(tensor.type));
      all["tensors"].push_back(describe_tensor(tensor, layout->name));
    }
    for (const cbq::GgufValue& value : file->content.metadata().values()) all["keys"].push_back(std::string(value.key));
    return all;
  }
  const auto file = cbq::Checkpoint::open(path);
  if (!file) return refused(file.error());
  for (const cbq::TensorView& tensor : file->tensors()) {
    all["tensors"].push_back(describe_tensor(tensor, cbq::dtype_name(tensor.dtype)));
  }
  return all;
}

}  // namespace

void describe(std::span<char*> paths) {
  for (const char* path : paths) {
    const std::string line = describe(std::string(path)).dump(-1, ' ', true, Json::error_handler_t::replace);
    std::printf("%s\n", line.c_str());
  }
}

}  // namespace fuzz
