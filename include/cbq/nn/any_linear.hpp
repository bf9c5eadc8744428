// SPDX-License-Identifier: Apache-2.0
#pragma once

// A model is not one scheme: VariantLinear<Ops...> is a linear operator that is one of Ops, chosen per layer at run
// time. AnyLinear can be every operator of cbq, dense, fake-quantized or packed under any of the schemes of
// visit_scheme(); every product is instantiated in the file that runs a model on it. An engine that knows its schemes
// lists them: VariantLinear<PackedLinear<schemes::w4a8_g128>, PackedLinear<schemes::w8a8>>.

#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>

#include <cbq/nn/dense_linear.hpp>
#include <cbq/nn/packed_linear.hpp>
#include <cbq/nn/runtime_packed_linear.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// One of several linear operators.
template <LinearOperator... Ops>
class VariantLinear {
 public:
  template <class Op>
  static constexpr bool can_hold = (std::is_same_v<Op, Ops> || ...);

  template <class Op>
    requires can_hold<Op>
  VariantLinear(Op op) noexcept : op_(std::move(op)) {}  // NOLINT(google-explicit-constructor): is one of Ops

  /// A packed operator for a scheme known at run time. Errors as PackedLinear::create(), and Errc::unsupported when no
  /// operator of the list packs it.
  [[nodiscard]] static Result<VariantLinear> packed(const QuantizedMatrixView& matrix, const Scheme& scheme,
                                                    std::span<const float> bias = {}) noexcept {
    if constexpr (can_hold<RuntimePackedLinear>) {
      Result<RuntimePackedLinear> op = RuntimePackedLinear::create(matrix, scheme, bias);
      if (!op) return op.error();
      return VariantLinear(*std::move(op));
    } else {
      return visit_scheme(scheme, [&]<Scheme S>() -> Result<VariantLinear> {
        if constexpr (can_hold<PackedLinear<S>>) {
          Result<PackedLinear<S>> op = PackedLinear<S>::create(matrix, bias);
          if (!op) return op.error();
          return VariantLinear(*std::move(op));
        } else {
          return Error{Errc::unsupported, "this model type holds no packed operator of the scheme", "scheme",
                       scheme_name(S).c_str()};
        }
      });
    }
  }

  [[nodiscard]] LinearInfo info() const noexcept {
    return std::visit([](const auto& op) { return op.info(); }, op_);
  }
  template <Executor E>
  [[nodiscard]] Status forward(LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) const noexcept {
    return std::visit([&](const auto& op) { return op.forward(x, out, context); }, op_);
  }
  void weight_row(std::size_t output, float* weights) const noexcept {
    std::visit([&](const auto& op) { op.weight_row(output, weights); }, op_);
  }

  /// The operator itself, or null when it is another one.
  template <class Op>
  [[nodiscard]] const Op* get_if() const noexcept {
    return std::get_if<Op>(&op_);
  }

 private:
  std::variant<Ops...> op_;
};

/// Any operator of cbq.
using AnyLinear = VariantLinear<DenseLinear<float>, DenseLinear<half>, DenseLinear<bfloat16>, FakeQuantizedLinear,
                                RuntimePackedLinear>;

}  // namespace CBQ_ABI
}  // namespace cbq
