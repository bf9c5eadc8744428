// SPDX-License-Identifier: Apache-2.0
#pragma once

// What is known of a reconstruction before it begins: whether its options and states make sense, and which checkpoints
// belong to it.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <cbq/reconstruct/checkpoint.hpp>
#include <cbq/reconstruct/host.hpp>
#include <cbq/reconstruct/options.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace reconstruction {

/// Errc::bad_shape, Errc::bad_argument.
template <class T>
[[nodiscard]] Status check(const CalibrationStates<T>& states, const ReconstructionOptions& options) {
  const MatrixView<T>& target = states.target;
  const bool same = states.student.rows == target.rows && states.student.columns == target.columns;
  const bool dense = target.stride == target.columns && states.student.stride == target.columns;
  if (states.length == 0 || target.rows == 0 || target.rows % states.length != 0 || !same || !dense) {
    return Error{Errc::bad_shape, "calibration states are whole sequences of one length, both streams of one shape",
                 "states", ErrorText(target.rows) << " x " << target.columns, states.length};
  }
  if (options.steps == 0 || options.batch == 0) {
    return Error{Errc::bad_argument, "reconstruction needs at least one step of one sequence", "steps, batch",
                 ErrorText(options.steps) << ", " << options.batch};
  }
  for (const double weight :
       {options.logits_weight, options.same_input_weight, options.hardened_share, options.clip_rate}) {
    if (weight >= 0 && std::isfinite(weight)) continue;
    return Error{Errc::bad_argument, "weights, rates and shares are finite and not negative", "ReconstructionOptions"};
  }
  if (options.hardened_share <= 1) return {};
  return Error{Errc::bad_argument, "a share of the steps is at most 1", "hardened_share"};
}

/// Errc::bad_argument where blocks would be final that never were trained.
[[nodiscard]] inline Status check(const std::vector<Window>& windows, TrainedBlocks trained) {
  for (const Window& window : windows) {
    if (trained == TrainedBlocks::all || window.finished == 1) continue;
    return Error{Errc::bad_argument,
                 "to train the first block of each window alone takes an overlap of size - 1 and shrinking ends",
                 "WindowOptions", ErrorText("a window with ") << window.finished << " final blocks", 1};
  }
  return {};
}

/// Of everything that the result depends on, as far as the loop knows it.
template <class T>
[[nodiscard]] std::uint64_t fingerprint(const CalibrationStates<T>& states, const ReconstructionOptions& options,
                                        std::size_t blocks) {
  CheckpointWriter all;
  const WindowOptions& windows = options.windows;
  for (const std::uint64_t value :
       {options.checkpoint.fingerprint, std::uint64_t{blocks}, std::uint64_t{windows.size},
        std::uint64_t{windows.overlap}, static_cast<std::uint64_t>(windows.ends), std::uint64_t{options.steps},
        std::uint64_t{options.batch}, static_cast<std::uint64_t>(options.decay), options.seed,
        std::uint64_t{states.length}}) {
    all.number(value);
  }
  for (const double value :
       {options.logits_weight, options.same_input_weight, options.hardened_share, options.clip_rate}) {
    all.number(value);
  }
  if (options.trained != TrainedBlocks::all) all.number(static_cast<std::uint64_t>(options.trained));
  std::uint64_t hash = hash_bytes(all.content());
  for (const MatrixView<T>& stream : {states.target, states.student}) {
    hash = hash_bytes(std::as_bytes(std::span(stream.data, stream.rows * stream.columns)), hash);
  }
  return hash;
}

}  // namespace reconstruction
}  // namespace CBQ_ABI
}  // namespace cbq
