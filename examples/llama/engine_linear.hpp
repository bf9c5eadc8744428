// SPDX-License-Identifier: Apache-2.0
#pragma once

// The linear operator of the engine: any operator of cbq behind a pointer, so that the kernels of all schemes are
// compiled in one file (engine_linear.cpp) and the model in another. It also adds up the time spent, when asked.

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include <cbq/gemm/extern_kernels.hpp>
#include <cbq/gemm/packed_weights.hpp>
#include <cbq/nn/linear.hpp>
#include <cbq/quant/activation_range.hpp>

#include "profile.hpp"
#include "threads.hpp"

namespace cbq_llama {

/// How linear layers compute: with packed weights, or in float with weights and activations rounded to the same grids.
enum class Operators : unsigned char { packed, fake_quantized };

/// In what dense weights are kept.
enum class DenseStorage : unsigned char { float32, float16, bfloat16 };

/// What an operator is for, where its time is noted (null: nowhere), and what its weights expect of its input.
struct OperatorRole {
  Operation operation = Operation::head;
  Profile* profile = nullptr;
  cbq::InputRotation rotation = cbq::InputRotation::none;
  cbq::ActivationRange* inputs = nullptr;  ///< sees what comes in; null: nothing does
};

/// A cbq::LinearOperator for ToolExecutor only.
class EngineLinear {
 public:
  using Context = cbq::ExecutionContext<ToolExecutor>;

  /// Float weights, rounded to `storage`. Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] static cbq::Result<EngineLinear> dense(const cbq::MatrixView<const float>& weights,
                                                       DenseStorage storage, std::span<const float> bias,
                                                       OperatorRole role);
  /// Quantized weights. Errc::unsupported for a scheme without packed kernels, and what cbq::PackedLinear says.
  [[nodiscard]] static cbq::Result<EngineLinear> quantized(const cbq::QuantizedMatrixView& matrix,
                                                           const cbq::Scheme& scheme, std::span<const float> bias,
                                                           Operators operators, OperatorRole role);

  /// Weights that are packed under `scheme` already and outlive the operator. Errors of
  /// cbq::RuntimePackedLinear::view().
  [[nodiscard]] static cbq::Result<EngineLinear> packed(const cbq::PackedMatrix& weights, const cbq::Scheme& scheme,
                                                        std::span<const float> bias, OperatorRole role);

  EngineLinear(EngineLinear&&) noexcept;
  EngineLinear& operator=(EngineLinear&&) noexcept;
  EngineLinear(const EngineLinear&) = delete;
  EngineLinear& operator=(const EngineLinear&) = delete;
  ~EngineLinear();

  /// See cbq::PackedLinear::clip_activations().
  [[nodiscard]] cbq::Status clip_activations(float multiplier) noexcept;
  /// See cbq::PackedLinear::fix_activations().
  [[nodiscard]] cbq::Status fix_activations(const cbq::StaticGrid& grid) noexcept;

  [[nodiscard]] cbq::LinearInfo info() const noexcept;
  template <cbq::Executor E>
  [[nodiscard]] cbq::Status forward(cbq::LinearInput& x, const cbq::LinearOutput& out,
                                    cbq::ExecutionContext<E>& context) const noexcept {
    static_assert(std::is_same_v<E, ToolExecutor>, "the engine's operators run on the tool's executor");
    return run(x, out, context);
  }
  void weight_row(std::size_t output, float* weights) const noexcept;

 private:
  struct State;
  explicit EngineLinear(std::unique_ptr<State> state) noexcept;
  [[nodiscard]] cbq::Status run(cbq::LinearInput& x, const cbq::LinearOutput& out, Context& context) const noexcept;

  std::unique_ptr<State> state_;
};

static_assert(cbq::LinearOperator<EngineLinear>);

}  // namespace cbq_llama
