// SPDX-License-Identifier: Apache-2.0
#include "engine_linear.hpp"

#include <cbq/nn/any_linear.hpp>

namespace cbq_llama {

using cbq::AnyLinear;
using cbq::Result;
using cbq::Status;

struct EngineLinear::State {
  AnyLinear op;
  OperatorRole role;
};

EngineLinear::EngineLinear(std::unique_ptr<State> state) noexcept : state_(std::move(state)) {}
EngineLinear::EngineLinear(EngineLinear&&) noexcept = default;
EngineLinear& EngineLinear::operator=(EngineLinear&&) noexcept = default;
EngineLinear::~EngineLinear() = default;

namespace {

template <class T>
Result<AnyLinear> make_dense(const cbq::MatrixView<const float>& weights, std::span<const float> bias,
                             cbq::InputRotation rotation) {
  auto op = cbq::DenseLinear<T>::create(weights, bias, rotation);
  if (!op) return op.error();
  return AnyLinear(*std::move(op));
}

}  // namespace

Result<EngineLinear> EngineLinear::dense(const cbq::MatrixView<const float>& weights, DenseStorage storage,
                                         std::span<const float> bias, OperatorRole role) {
  Result<AnyLinear> op = storage == DenseStorage::float32   ? make_dense<float>(weights, bias, role.rotation)
                         : storage == DenseStorage::float16 ? make_dense<cbq::half>(weights, bias, role.rotation)
                                                            : make_dense<cbq::bfloat16>(weights, bias, role.rotation);
  if (!op) return op.error();
  return EngineLinear(std::make_unique<State>(State{*std::move(op), role}));
}

Result<EngineLinear> EngineLinear::quantized(const cbq::QuantizedMatrixView& matrix, const cbq::Scheme& scheme,
                                             std::span<const float> bias, Operators operators, OperatorRole role) {
  if (operators == Operators::packed) {
    Result<AnyLinear> op = AnyLinear::packed(matrix, scheme, bias, role.rotation);
    if (!op) return op.error();
    return EngineLinear(std::make_unique<State>(State{*std::move(op), role}));
  }
  auto op = cbq::FakeQuantizedLinear::create(matrix, scheme, bias, role.rotation);
  if (!op) return op.error();
  return EngineLinear(std::make_unique<State>(State{AnyLinear(*std::move(op)), role}));
}

Result<EngineLinear> EngineLinear::packed(const cbq::PackedMatrix& weights, const cbq::Scheme& scheme,
                                          std::span<const float> bias, OperatorRole role) {
  auto op = cbq::RuntimePackedLinear::view(weights, scheme, bias, role.rotation);
  if (!op) return op.error();
  return EngineLinear(std::make_unique<State>(State{AnyLinear(*std::move(op)), role}));
}

Status EngineLinear::clip_activations(float multiplier) noexcept {
  return state_->op.clip_activations(multiplier);
}

Status EngineLinear::fix_activations(const cbq::StaticGrid& grid) noexcept {
  return state_->op.fix_activations(grid);
}

cbq::LinearInfo EngineLinear::info() const noexcept {
  return state_->op.info();
}

void EngineLinear::weight_row(std::size_t output, float* weights) const noexcept {
  state_->op.weight_row(output, weights);
}

Status EngineLinear::run(cbq::LinearInput& x, const cbq::LinearOutput& out, Context& context) const noexcept {
  if (state_->role.inputs != nullptr) {
    if (const Status seen = state_->role.inputs->add(x.values()); !seen) return seen;
  }
  return timed(state_->role.profile, state_->role.operation, [&] { return state_->op.forward(x, out, context); });
}

}  // namespace cbq_llama
