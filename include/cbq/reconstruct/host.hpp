// SPDX-License-Identifier: Apache-2.0
#pragma once

// What reconstruct() asks of its host: blocks with a backward pass, and when to open and to close them. Nothing here
// knows a kind of model; examples/reconstruct_block.cpp brings a block of its own.

#include <concepts>
#include <cstddef>
#include <type_traits>

#include <cbq/loss/rows.hpp>
#include <cbq/nn/differentiable.hpp>

namespace cbq {

/// Hidden states of all calibration sequences, one after another: [sequences * length x hidden]. Both are overwritten.
template <class T>
struct CalibrationStates {
  MatrixView<T> target = {};   ///< what enters the float model's first block
  MatrixView<T> student = {};  ///< what enters the quantized model's first block
  std::size_t length = 0;
};

inline namespace CBQ_ABI {

/// A block with a backward pass, as TransformerBlockGradient offers it. `forward` writes y [tokens x hidden] for whole
/// sequences of `length` tokens and leaves in `tape` what `backward` needs; `backward(dy, x, length, tape, dx)` adds
/// the gradients of its parameters to what the block keeps. dx may be dy.
template <class B>
concept DifferentiableBlock =
    std::movable<B> && requires(B& block, const B& constant, const MatrixView<const typename B::Scalar>& in,
                                const MatrixView<typename B::Scalar>& out, std::size_t length, typename B::Tape& tape,
                                ExecutionContext<>& context) {
      { constant.forward(in, length, out, tape, context) } -> std::same_as<Status>;
      { block.backward(in, in, length, tape, out, context) } -> std::same_as<Status>;
    };

/// Makes the loss of a window from the variance of its targets and their number of channels:
/// SquaredLoss::normalized, for example.
template <class M>
concept LossMaker = requires(const M& make, double variance, std::size_t channels) {
  { make(variance, channels) } -> Loss;
};

/// Calls f(site) for the activation sites of a block that train their clip multiplier, always in one order; for none
/// where the block does not show its sites.
template <class Block, class F>
void for_each_clip(Block& block, F&& f) {
  if constexpr (requires { block.for_each_activation([](const char*, auto&) {}); }) {
    block.for_each_activation([&](const char*, auto& site) {
      if constexpr (requires { site.is_trained(); }) {
        if (site.is_trained()) f(site);
      }
    });
  }
}

/// Calls f(site) for the cache sites of a block that train their smoothing, always in one order; for none where the
/// block does not show any.
template <class Block, class F>
void for_each_trained_cache(Block& block, F&& f) {
  if constexpr (requires { block.for_each_cache([](const char*, auto&) {}); }) {
    block.for_each_cache([&](const char*, auto& site) {
      if (site.is_trained()) f(site);
    });
  }
}

/// Opens and closes the blocks of a model. A student's linear layers are TrainableLinear, visited by for_each_linear
/// always in one order. Clips of its ActivationSites are learned where for_each_activation visits these, the smoothing
/// of its KvSites where for_each_cache does. open_student() makes the same student every time. finish() takes the
/// codes, linear.codes(), of a block that is final. `head()` points to a HeadGradient, or is null where no loss on
/// logits is wanted.
template <class H>
concept ReconstructionHost = requires(H& host, std::size_t index, typename H::Student& student) {
  typename H::Scalar;
  { host.blocks() } -> std::convertible_to<std::size_t>;
  { host.open_teacher(index) } -> std::same_as<Result<typename H::Teacher>>;
  { host.open_student(index) } -> std::same_as<Result<typename H::Student>>;
  { host.finish(index, student) } -> std::same_as<Status>;
  host.head();
} && DifferentiableBlock<typename H::Teacher> && DifferentiableBlock<typename H::Student>;

}  // namespace CBQ_ABI
}  // namespace cbq
