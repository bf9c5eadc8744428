// SPDX-License-Identifier: Apache-2.0
#pragma once

// What GGUF files call a LLaMA model's tensors, and the order they give the rows of query and key weights and elements
// of their biases: those of each head, two halves in a Hugging Face checkpoint, become pairs.

#include <cstddef>
#include <string>
#include <string_view>

namespace cbq_llama {

/// Hugging Face's name of a tensor in GGUF's words ("model.layers.3.mlp.up_proj.weight" is "blk.3.ffn_up.weight");
/// empty when GGUF has no such tensor.
[[nodiscard]] std::string gguf_name(std::string_view name);

/// Whether the rows of the tensor `name` (Hugging Face's), of a bias its elements, stand in another order in GGUF.
[[nodiscard]] inline bool has_gguf_row_order(std::string_view name) {
  return name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") || name.ends_with("q_proj.bias") ||
         name.ends_with("k_proj.bias");
}

/// Where GGUF has row `row`: its row 2 i + j of a head is row j d / 2 + i, d = head_width, even.
[[nodiscard]] constexpr std::size_t gguf_row(std::size_t row, std::size_t head_width) {
  const std::size_t inside = row % head_width;
  const std::size_t half = head_width / 2;
  return row - inside + 2 * (inside % half) + inside / half;
}

/// The inverse of gguf_row().
[[nodiscard]] constexpr std::size_t row_of_gguf(std::size_t row, std::size_t head_width) {
  const std::size_t inside = row % head_width;
  return row - inside + inside % 2 * (head_width / 2) + inside / 2;
}

}  // namespace cbq_llama
