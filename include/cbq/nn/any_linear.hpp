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
                                                    std::span<const float> bias = {},
                                                    InputRotation rotation = InputRotation::none) noexcept {
    if constexpr (can_hold<RuntimePackedLinear>) {
      Result<RuntimePackedLinear> op = RuntimePackedLinear::create(matrix, scheme, bias, rotation);
      if (!op) return op.error();
      return VariantLinear(*std::move(op));
    } else {
      return visit_scheme(scheme, [&]<Scheme S>() -> Result<VariantLinear> {
        if constexpr (S.activation.granularity == Granularity::per_token && S.activation.bits != 16) {
          if (scheme != S) return pack_as<with_tensor_activations(S)>(matrix, bias, rotation);
        }
        return pack_as<S>(matrix, bias, rotation);
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

  /// See linear::forward_all(): grouped where all operators are of one kind that can be.
  template <Executor E>
  [[nodiscard]] static Status forward_group(std::span<const LinearCall<VariantLinear>> calls, LinearInput& x,
                                            ExecutionContext<E>& context) noexcept {
    Status done;
    if ((forward_kind<Ops>(calls, x, context, done) || ...)) return done;
    for (const LinearCall<VariantLinear>& call : calls) {
      if (done = call.op->forward(x, call.out, context); !done) return done;
    }
    return {};
  }

  /// See PackedLinear::clip_activations(). Errc::unsupported for an operator that quantizes no activations.
  [[nodiscard]] Status clip_activations(float multiplier) noexcept {
    return std::visit(
        [&](auto& op) -> Status {
          if constexpr (requires { op.clip_activations(multiplier); }) {
            return op.clip_activations(multiplier);
          } else {
            return Error{Errc::unsupported, "this operator quantizes no activations", "clip"};
          }
        },
        op_);
  }

  /// See PackedLinear::fix_activations(). Errc::unsupported for an operator that quantizes no activations.
  [[nodiscard]] Status fix_activations(const StaticGrid& grid) noexcept {
    return std::visit(
        [&](auto& op) -> Status {
          if constexpr (requires { op.fix_activations(grid); }) {
            return op.fix_activations(grid);
          } else {
            return Error{Errc::unsupported, "this operator quantizes no activations", "fix_activations"};
          }
        },
        op_);
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
  template <Scheme S>
  [[nodiscard]] static Result<VariantLinear> pack_as(const QuantizedMatrixView& matrix, std::span<const float> bias,
                                                     InputRotation rotation) noexcept {
    if constexpr (can_hold<PackedLinear<S>>) {
      Result<PackedLinear<S>> op = PackedLinear<S>::create(matrix, bias, rotation);
      if (!op) return op.error();
      return VariantLinear(*std::move(op));
    } else {
      return Error{Errc::unsupported, "this model type holds no packed operator of the scheme", "scheme",
                   scheme_name(S).c_str()};
    }
  }

  /// Runs the group if all its operators are Op and Op can run groups; says whether it did.
  template <class Op, Executor E>
  [[nodiscard]] static bool forward_kind(std::span<const LinearCall<VariantLinear>> calls, LinearInput& x,
                                         ExecutionContext<E>& context, Status& done) noexcept {
    if constexpr (requires(std::span<const LinearCall<Op>> same) { Op::forward_group(same, x, context); }) {
      LinearCall<Op> same[linear::most_grouped];
      if (calls.size() > linear::most_grouped) return false;
      for (std::size_t i = 0; i < calls.size(); ++i) {
        same[i] = {.op = calls[i].op->template get_if<Op>(), .out = calls[i].out};
        if (same[i].op == nullptr) return false;
      }
      done = Op::forward_group(std::span<const LinearCall<Op>>(same, calls.size()), x, context);
      return true;
    } else {
      return false;
    }
  }

  std::variant<Ops...> op_;
};

/// Any operator of cbq.
using AnyLinear = VariantLinear<DenseLinear<float>, DenseLinear<half>, DenseLinear<bfloat16>, FakeQuantizedLinear,
                                RuntimePackedLinear>;

}  // namespace CBQ_ABI
}  // namespace cbq
