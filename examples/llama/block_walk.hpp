// SPDX-License-Identifier: Apache-2.0
#pragma once

// Hidden states on their way through the blocks of a model, for methods that go block by block.

#include <cstddef>
#include <cstring>

#include "decoder_blocks.hpp"
#include "interrupt.hpp"

namespace cbq_llama {

/// Replaces the states [tokens x hidden] before a block by those behind it, or leaves them, so that only the observers
/// of the block's layers learn anything.
enum class Advance : unsigned char { states, observers_only };

/// Some thousand tokens at a time, `see(tape)` after each. Errors of the block; Errc::interrupted.
template <class Block, class See>
[[nodiscard]] cbq::Status pass(const Block& block, const cbq::MatrixView<float>& states, std::size_t length,
                               Advance advance, cbq::ExecutionContext<ToolExecutor>& context, const See& see) {
  typename Block::Tape tape;
  cbq::TapeMatrix<float> out;
  const std::size_t step = length * (length < 4096 ? 4096 / length : 1);
  for (std::size_t first = 0; first < states.rows; first += step) {
    if (const cbq::Status go = check_interrupt(); !go) return go;
    const std::size_t count = states.rows - first < step ? states.rows - first : step;
    if (const cbq::Status taken = out.reshape(count, states.columns); !taken) return taken;
    const auto part = cbq::rows(states, first, count);
    const cbq::Status done = block.forward(cbq::as_const(part), length, out.view(), tape, context);
    if (!done) return done;
    see(tape);
    if (advance == Advance::states) std::memcpy(part.data, out.view().data, count * states.columns * sizeof(float));
  }
  return {};
}
template <class Block>
[[nodiscard]] cbq::Status pass(const Block& block, const cbq::MatrixView<float>& states, std::size_t length,
                               Advance advance, cbq::ExecutionContext<ToolExecutor>& context) {
  return pass(block, states, length, advance, context, [](const auto&) {});
}

}  // namespace cbq_llama
