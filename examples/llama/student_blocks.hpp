// SPDX-License-Identifier: Apache-2.0
#pragma once

// Blocks that are trained: of linear layers that have a rounding, and of those that stay in floating point.

#include <cstddef>
#include <utility>
#include <variant>

#include "decoder_blocks.hpp"

namespace cbq_llama {

/// A layer that is trained, or one that stays as it is.
template <class Trained>
class StudentLinear {
 public:
  using Scalar = float;
  explicit StudentLinear(Trained linear) : linear_(std::move(linear)) {}
  explicit StudentLinear(ObservedLinear linear) : linear_(std::move(linear)) {}

  [[nodiscard]] std::size_t outputs() const {
    return std::visit([](const auto& linear) { return linear.outputs(); }, linear_);
  }
  [[nodiscard]] std::size_t inputs() const {
    return std::visit([](const auto& linear) { return linear.inputs(); }, linear_);
  }
  /// Null where it stays as it is.
  [[nodiscard]] Trained* trained() { return std::get_if<Trained>(&linear_); }

  template <cbq::Executor E>
  [[nodiscard]] cbq::Status forward(const cbq::MatrixView<const float>& x, const cbq::MatrixView<float>& y,
                                    cbq::ExecutionContext<E>& context) const {
    return std::visit([&](const auto& linear) { return linear.forward(x, y, context); }, linear_);
  }
  template <cbq::Executor E>
  [[nodiscard]] cbq::Status backward(const cbq::MatrixView<const float>& dy, const cbq::MatrixView<const float>& x,
                                     const cbq::MatrixView<float>& dx, cbq::Accumulate accumulate,
                                     cbq::ExecutionContext<E>& context) {
    return std::visit([&](auto& linear) { return linear.backward(dy, x, dx, accumulate, context); }, linear_);
  }

 private:
  std::variant<Trained, ObservedLinear> linear_;
};

/// A block of StudentLinear: reconstruction sees the layers that are trained.
template <class Block>
class StudentBlock : public Block {
 public:
  explicit StudentBlock(Block block) : Block(std::move(block)) {}

  /// Calls f(name, linear) for the layers that are trained.
  template <class F>
  void for_each_linear(F&& f) {
    Block::for_each_linear([&](const char* name, auto& linear) {
      if (auto* trained = linear.trained()) f(name, *trained);
    });
  }
  /// Calls f(trained, or null) for all layers.
  template <class F>
  void for_each_layer(F&& f) {
    Block::for_each_linear([&](const char*, auto& linear) { f(linear.trained()); });
  }
};

}  // namespace cbq_llama
