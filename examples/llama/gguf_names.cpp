// SPDX-License-Identifier: Apache-2.0
#include "gguf_names.hpp"

#include <array>
#include <utility>

namespace cbq_llama {

std::string gguf_name(std::string_view name) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 9> parts = {{
      {"input_layernorm", "attn_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"post_attention_layernorm", "ffn_norm"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
  }};
  if (name == "model.embed_tokens.weight") return "token_embd.weight";
  if (name == "model.norm.weight") return "output_norm.weight";
  if (name == "lm_head.weight") return "output.weight";
  constexpr std::string_view layers = "model.layers.";
  if (!name.starts_with(layers)) return {};
  name.remove_prefix(layers.size());
  const std::size_t dot = name.find('.');
  const std::size_t last = name.rfind('.');
  if (dot == std::string_view::npos || last <= dot) return {};
  const std::string_view middle = name.substr(dot + 1, last - dot - 1);
  for (const auto& [ours, theirs] : parts) {
    if (middle == ours) {
      return std::string("blk.").append(name.substr(0, dot)).append(".").append(theirs).append(name.substr(last));
    }
  }
  return {};
}

}  // namespace cbq_llama
