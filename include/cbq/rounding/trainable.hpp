// SPDX-License-Identifier: Apache-2.0
#pragma once

// TrainableRounding: what a rounding method offers to the loop that trains it against the outputs of a block. The loop
// asks for the weights of the forward pass, multiplies with them, hands the gradient of the loss back, lets an
// optimizer move the parameters and at the end takes codes:
//
//   soft_weights -> forward -> backward(dL/dW^) -> optimizer over parameters() -> project, and again; at last harden
//
// Methods: straight_through.hpp (dense or low rank; the default), ada.hpp, lora.hpp, learned_steps.hpp,
// weight_clipping.hpp. Each keeps a view of the weights it was created from; they must outlive it.

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include <cbq/core/executor.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/quant/quantized_matrix.hpp>

namespace cbq {

/// Parameters of one kind and the gradient of the loss with respect to them, for an optimizer.
template <class T>
struct ParameterView {
  T* values = nullptr;
  T* gradients = nullptr;
  std::size_t size = 0;
  double learning_rate = 0;  ///< before the optimizer's schedule; 0: stays as it is
};

/// How far the training of a window is; methods with a compensation loss schedule its weight and exponent by it.
struct Penalty {
  double progress = 0;  ///< steps done / steps in all, 0 .. 1
};

/// What the forward pass uses and what is trained. Methods whose forward pass is hard anyway know only the difference
/// between `hardened` and the rest.
enum class RoundingPhase : unsigned char {
  soft,          ///< forward with soft codes; rounding and steps are trained
  hard_forward,  ///< forward with hard codes, gradients of the soft ones
  hardened,      ///< forward with hard codes; only the steps are trained
};

inline namespace CBQ_ABI {

/// The parameters of one rounding: two or three kinds, for example A1, A2 and the log steps; always in the same order
/// and of the same sizes. A range.
template <class T>
struct ParameterList {
  std::array<ParameterView<T>, 3> views = {};
  std::size_t count = 0;

  void add(const ParameterView<T>& view) noexcept { views[count++] = view; }
  [[nodiscard]] std::size_t size() const noexcept { return count; }
  [[nodiscard]] const ParameterView<T>* data() const noexcept { return views.data(); }
  [[nodiscard]] const ParameterView<T>* begin() const noexcept { return views.data(); }
  [[nodiscard]] const ParameterView<T>* end() const noexcept { return views.data() + count; }
  [[nodiscard]] const ParameterView<T>& operator[](std::size_t index) const noexcept { return views[index]; }
};

/// R::create(weights, grid, options, seed) makes one, its steps from the search for the least squared error; weights
/// are outputs x inputs. A fifth argument, an executor, speeds the search up.
///   soft_weights(out, executor)        the weights of the forward pass now, in the shape of the weights
///   hard_weights(out, executor)        the weights after hardening now: what dequantize() makes of harden()
///   backward(dL/dW^, penalty, executor)  overwrites the gradients of all parameters, the compensation loss included
///   project()                          after an optimizer's step: back into the allowed range
///   harden()                           codes and storable scales
/// Results are the same bits for any executor. Errors are Errc::bad_shape and, where memory is needed, out_of_memory.
template <class R>
concept TrainableRounding = requires(
    R& r, const R& c, const MatrixView<typename R::Scalar>& out, const MatrixView<const typename R::Scalar>& in,
    const Grid& grid, const typename R::Options& options, std::uint64_t seed, const SerialExecutor& executor) {
  { R::create(in, grid, options, seed) } -> std::same_as<Result<R>>;
  { R::create(in, grid, options, seed, executor) } -> std::same_as<Result<R>>;
  { c.grid() } -> std::convertible_to<Grid>;
  { c.soft_weights(out, executor) } -> std::same_as<Status>;
  { c.hard_weights(out, executor) } -> std::same_as<Status>;
  { r.backward(in, Penalty{}, executor) } -> std::same_as<Status>;
  { r.parameters() } -> std::same_as<ParameterList<typename R::Scalar>>;
  r.set_phase(RoundingPhase::soft);
  r.project();
  { c.harden() } -> std::same_as<Result<QuantizedMatrix>>;
  { c.trained_parameters() } -> std::same_as<std::size_t>;
  { c.bytes() } -> std::same_as<std::size_t>;  // memory it owns, gradients included
  { R::bytes_for(in.rows, in.columns, grid, options) } -> std::same_as<std::size_t>;  // bytes(), before creating it
};

}  // namespace CBQ_ABI
}  // namespace cbq
