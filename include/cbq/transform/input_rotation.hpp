// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whether a linear layer's weights expect its input rotated at run time: y = W' (H x) with W' = W H, which equals W x.
// The transform is what 4-bit activations need where an outlier cannot be folded away, above all before down_proj
// (QuaRot, arXiv 2404.00456). It belongs to the layer, like its scheme: files record it, operators apply it to each
// token before they quantize it, hadamard_rows() applies it to weights offline. Plain data.

namespace cbq {

/// What an operator does to each token of its input before anything else.
enum class InputRotation : unsigned char {
  none,
  hadamard,  ///< hadamard_row() in blocks of hadamard_size(inputs)
};

}  // namespace cbq
