// SPDX-License-Identifier: Apache-2.0
#pragma once

// An ONNX model of independent MatMulNBits nodes that share their input, written as protocol buffers by hand: field
// numbers are those of onnx.proto. Format: https://protobuf.dev/programming-guides/encoding

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace peers::onnx {

/// A message under construction.
class Message {
 public:
  Message& number(unsigned field, std::uint64_t value) {
    varint(std::uint64_t{field} << 3);
    varint(value);
    return *this;
  }
  Message& bytes(unsigned field, std::string_view value) {
    varint(std::uint64_t{field} << 3 | 2);
    varint(value.size());
    text_ += value;
    return *this;
  }
  Message& message(unsigned field, const Message& value) { return bytes(field, value.text_); }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) text_ += static_cast<char>(value | 0x80);
    text_ += static_cast<char>(value);
  }
  std::string text_;
};

enum class Type : unsigned { float32 = 1, uint8 = 2 };

inline Message tensor(std::string_view name, Type type, std::initializer_list<std::size_t> shape,
                      std::string_view data) {
  Message tensor;
  for (const std::size_t extent : shape) tensor.number(1, extent);
  tensor.number(2, static_cast<unsigned>(type)).bytes(8, name).bytes(9, data);
  return tensor;
}

/// A float matrix of any number of rows.
inline Message matrix(std::string_view name, std::size_t columns) {
  Message shape;
  shape.message(1, Message().bytes(2, "M")).message(1, Message().number(1, columns));
  const Message type =
      Message().message(1, Message().number(1, static_cast<unsigned>(Type::float32)).message(2, shape));
  return Message().bytes(1, name).message(2, type);
}

struct MatMulNBits {
  std::size_t n, k, bits, block;
};

inline Message node(const MatMulNBits& product, const std::string& index) {
  Message node;
  node.bytes(1, "x").bytes(1, "b" + index).bytes(1, "s" + index).bytes(2, "y" + index);
  node.bytes(3, "product" + index).bytes(4, "MatMulNBits").bytes(7, "com.microsoft");
  const auto attribute = [&](std::string_view name, std::size_t value) {
    node.message(5, Message().bytes(1, name).number(3, value).number(20, 2));
  };
  attribute("K", product.k);
  attribute("N", product.n);
  attribute("bits", product.bits);
  attribute("block_size", product.block);
  attribute("accuracy_level", 4);  // activations become int8
  return node;
}

/// The model around a graph with these nodes, tensors, input and outputs.
inline std::string model(const Message& graph) {
  Message model;
  model.number(1, 8).message(7, graph);
  model.message(8, Message().bytes(1, "").number(2, 17)).message(8, Message().bytes(1, "com.microsoft").number(2, 1));
  return model.text();
}

}  // namespace peers::onnx
