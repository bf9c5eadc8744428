// SPDX-License-Identifier: Apache-2.0
#pragma once

// Values into and out of a page (kv_layout.hpp), with the quantizer of affine_group.hpp: a page decodes to exactly the
// floats of the row codec unless groups are refined (affine_refinement.hpp). One position is written at a time, over
// whatever was there before, so a cache that was cut back is simply written again.
//
// A position is one field of 2, 4 or 8 bits in each 32-bit word of one line per 16 channels (3 bits: also one bit of
// another line): vectors of codes are shifted there and replace what the words held. Nothing is allocated.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include <cbq/kv/affine_group.hpp>
#include <cbq/kv/affine_refinement.hpp>
#include <cbq/kv/kv_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {

namespace value_codes {

/// Where one position's codes lie in each panel: bits `low` of the code at `shift` of each word of line `line`, and for
/// 3 bits the high bit at `high_shift` of line 2.
struct Place {
  std::size_t line = 0;  ///< bytes from the panel to the line
  int shift = 0;
  int low = 0;
  std::size_t high_line = 0;
  int high_shift = 0;
  bool high = false;
};

[[nodiscard]] constexpr Place place(const KvLayout& layout, std::size_t position) noexcept {
  const std::size_t inside = position % block_inputs;
  const std::size_t step = inside / step_inputs, byte = inside % step_inputs;
  const std::size_t field = layout.bits == 3 ? 2 : layout.bits, steps = 8 / field;
  const std::size_t block = position / block_inputs * block_bytes(layout.bits);
  return {.line = block + step / steps * line_bytes,
          .shift = static_cast<int>(8 * byte + field * (step % steps)),
          .low = static_cast<int>((1u << field) - 1),
          .high_line = block + 2 * line_bytes,
          .high_shift = static_cast<int>(8 * byte + step),
          .high = layout.bits == 3};
}

/// Replaces one field of the words of all channels by its bits of the codes of x.
inline void store(std::span<const float> x, const AffineSteps& steps, const AffineFields& to,
                  Isa isa = affine_isa()) noexcept {
  switch (floating_point_isa(isa)) {
#if defined(__x86_64__)
    case Isa::avx512_vnni:
      return isa::avx512_vnni::affine::fields(x.data(), x.size(), steps, to);
    case Isa::avx2:
      return isa::avx2::affine::fields(x.data(), x.size(), steps, to);
#endif
    default:
      return isa::portable::affine::fields(x.data(), x.size(), steps, to);
  }
}

[[nodiscard]] inline std::uint32_t word(const std::byte* words, std::size_t channel) noexcept {
  std::uint32_t value = 0;
  std::memcpy(&value, words + channel * sizeof value, sizeof value);
  return value;
}

inline constexpr std::size_t most_groups = 2;  // of a head of 256 channels

}  // namespace value_codes

/// Asks for the lines that encode_value() writes to, as prefetch_key().
[[gnu::always_inline]] inline void prefetch_value(const KvLayout& layout, std::size_t position,
                                                  const std::byte* values) noexcept {
  const value_codes::Place place = value_codes::place(layout, position);
  for (std::size_t g = 0; g < layout.groups; ++g) {
    const AffineOffsets at = value_affine(layout, position, g);
    __builtin_prefetch(values + at.scale, 1);
    __builtin_prefetch(values + at.offset, 1);
    const std::byte* panels = values + value_panel_offset(layout, g, 0);
    for (std::size_t p = 0; p < divide_up(group_channels(layout, g), panel_outputs); ++p) {
      __builtin_prefetch(panels + p * layout.value_panel_bytes + place.line, 1);
      if (place.high) __builtin_prefetch(panels + p * layout.value_panel_bytes + place.high_line, 1);
    }
  }
}

/// Writes the value `x` (layout.width floats) of `position` (0 .. 63) of one head, at `values` (layout.value_bytes
/// bytes). The refinement's weights are layout.width, or none. Errors of fit_affine_group; then nothing was written.
[[nodiscard]] inline Status encode_value(const KvLayout& layout, std::size_t position, std::span<const float> x,
                                         std::byte* values, const AffineRefinement& refinement = {}) noexcept {
  if (x.size() != layout.width || position >= kv_page_positions) {
    return Error{Errc::bad_shape, "not a value of this page", "elements", x.size(), layout.width};
  }
  const value_codes::Place place = value_codes::place(layout, position);
  AffineGroup fits[value_codes::most_groups];
  for (std::size_t g = 0; g < layout.groups; ++g) {
    const auto channels = x.subspan(g * layout.group, group_channels(layout, g));
    const Result<AffineGroup> fit = fit_affine_group(affine_range(channels), layout.bits);
    if (!fit) return fit.error();
    const float* weights = refinement.weights == nullptr ? nullptr : refinement.weights + g * layout.group;
    fits[g] = refine_affine_group(channels, *fit, layout.bits, {refinement.steps, weights});
  }
  for (std::size_t g = 0; g < layout.groups; ++g) {
    const auto channels = x.subspan(g * layout.group, group_channels(layout, g));
    const AffineOffsets at = value_affine(layout, position, g);
    std::memcpy(values + at.scale, &fits[g].scale, sizeof(half));
    std::memcpy(values + at.offset, &fits[g].offset, sizeof(half));
    std::byte* panels = values + value_panel_offset(layout, g, 0);
    const AffineSteps steps = affine_steps(fits[g], layout.bits);
    value_codes::store(channels, steps, {panels + place.line, layout.value_panel_bytes, place.low, place.shift, 0});
    if (!place.high) continue;
    value_codes::store(channels, steps, {panels + place.high_line, layout.value_panel_bytes, 1, place.high_shift, 2});
  }
  return {};
}

/// The value of `position` (0 .. 63) of one head as it was stored, into layout.width floats.
inline void decode_value(const KvLayout& layout, const std::byte* values, std::size_t position, float* out) noexcept {
  const value_codes::Place place = value_codes::place(layout, position);
  for (std::size_t g = 0; g < layout.groups; ++g) {
    const AffineOffsets at = value_affine(layout, position, g);
    AffineGroup fit;
    std::memcpy(&fit.scale, values + at.scale, sizeof(half));
    std::memcpy(&fit.offset, values + at.offset, sizeof(half));
    const float scale = to_float(fit.scale), offset = to_float(fit.offset);
    for (std::size_t c = 0; c < group_channels(layout, g); ++c) {
      const std::byte* panel = values + value_panel_offset(layout, g, c / panel_outputs);
      const std::size_t channel = c % panel_outputs;
      std::uint32_t code =
          value_codes::word(panel + place.line, channel) >> place.shift & static_cast<std::uint32_t>(place.low);
      if (place.high) code |= (value_codes::word(panel + place.high_line, channel) >> place.high_shift & 1u) << 2;
      out[g * layout.group + c] = scale * static_cast<float>(code) + offset;
    }
  }
}

}  // namespace CBQ_ABI
}  // namespace cbq
