// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a reconstruction is told and what it tells: options, progress, reports of windows. Defaults are what measured
// best, see docs/reconstruction.md. Plain data.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stop_token>

#include <cbq/reconstruct/adam.hpp>
#include <cbq/reconstruct/windows.hpp>

namespace cbq {

/// Which blocks of a window are trained.
enum class TrainedBlocks : unsigned char {
  all,
  first,  ///< the first alone; those behind it are float blocks, through which its error is seen (WKVQuant)
};

struct ReconstructionProgress {
  std::size_t window = 0;
  std::size_t windows = 0;
  std::size_t step = 0;
  std::size_t steps = 0;
  double loss = 0;  ///< of the last step
};

/// What became of a window. Losses are those of hard codes on the first sequences: as many as a batch
/// has, and at least 8 where there are as many.
struct WindowReport {
  Window window = {};
  double loss_before = 0;
  double loss_after = 0;
  std::size_t restarts = 0;  ///< after losses that were not finite; each halves the learning rates
  bool kept_start = false;   ///< training did not lower the loss: the window's first parameters are the result
};

/// Where a reconstruction leaves its state after each window, and from which it continues to the same bits.
struct CheckpointOptions {
  /// Takes the state; what it returns as an error ends the reconstruction. Empty: no state is made.
  std::function<Status(std::span<const std::byte>)> save = {};
  std::span<const std::byte> resume = {};  ///< what `save` got last; empty: from the start
  std::uint64_t fingerprint = 0;           ///< of whatever the host's blocks depend on; see hash_bytes()
};

struct ReconstructionOptions {
  WindowOptions windows = {};
  TrainedBlocks trained = TrainedBlocks::all;  ///< `first` needs an overlap of size - 1 and shrinking ends
  std::size_t steps = 1600;                    ///< per window
  std::size_t batch = 1;                       ///< sequences per step; more steps do more than larger batches
  Decay decay = Decay::linear;
  double logits_weight = 1.0;      ///< of the divergence of the logits, in the last window
  double same_input_weight = 0.0;  ///< of the loss against float blocks fed with the student's input (homologous)
  double clip_rate = 3e-3;         ///< learning rate of clip multipliers, of sites that train theirs
  double hardened_share = 0.0;     ///< of the steps, the last ones: codes are fixed and only steps are trained
  std::uint64_t seed = 0;
  std::stop_token stop = {};
  std::function<void(const ReconstructionProgress&)> progress = {};
  CheckpointOptions checkpoint = {};
};

}  // namespace cbq
