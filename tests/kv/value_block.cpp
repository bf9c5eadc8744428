// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/value_block.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "support/guarded.hpp"
#include "support/nn.hpp"

using cbq::Errc;
using cbq::KvLayout;

namespace {

KvLayout layout_of(int bits, std::size_t width) {
  const auto layout = cbq::kv_layout({.bits = bits}, 1, width);
  REQUIRE(layout);
  return *layout;
}

std::vector<float> row_codec(int bits, std::size_t group, const std::vector<float>& x) {
  const auto through = [&](const auto& codec) {
    std::vector<std::byte> bytes(*codec.row_bytes(x.size()));
    std::vector<float> decoded(x.size());
    REQUIRE(codec.encode(x, bytes));
    REQUIRE(codec.decode(bytes, decoded));
    return decoded;
  };
  if (bits == 2) return through(cbq::AffineGroupCodec<2>{group});
  if (bits == 3) return through(cbq::AffineGroupCodec<3>{group});
  if (bits == 4) return through(cbq::AffineGroupCodec<4>{group});
  return through(cbq::AffineGroupCodec<8>{group});
}

unsigned code_of(const KvLayout& layout, const std::byte* values, std::size_t position, std::size_t channel) {
  const std::size_t group = channel / layout.group, inside = channel % layout.group;
  const std::byte* panel = values + cbq::value_panel_offset(layout, group, inside / 16);
  return cbq::block_code(panel + position / 32 * cbq::block_bytes(layout.bits), layout.bits, inside % 16,
                         position % 32);
}

// The value by the layout's own words: scale, offset, block_code.
float element(const KvLayout& layout, const std::byte* values, std::size_t position, std::size_t channel) {
  const cbq::AffineOffsets at = cbq::value_affine(layout, position, channel / layout.group);
  const auto half_at = [&](std::size_t offset) {
    return cbq::to_float(cbq::half{static_cast<std::uint16_t>(std::to_integer<unsigned>(values[offset]) |
                                                              std::to_integer<unsigned>(values[offset + 1]) << 8)});
  };
  return half_at(at.scale) * static_cast<float>(code_of(layout, values, position, channel)) + half_at(at.offset);
}

}  // namespace

TEST_CASE("a page of values decodes to the floats of the row codec, whatever was there before") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::size_t width : {1u, 16u, 33u, 64u, 80u, 96u, 128u, 144u, 256u}) {
      CAPTURE(bits, width);
      const KvLayout layout = layout_of(bits, width);
      const support::Guarded<std::byte> values(layout.value_bytes,
                                               width % 32 == 0 ? support::Edge::start : support::Edge::end);
      std::mt19937 random(1);
      for (std::byte& b : values.span()) b = static_cast<std::byte>(random());
      // Positions in an order that leaves no neighbour alone, then some again as after truncation.
      std::vector<std::vector<float>> wanted(64);
      for (std::size_t i = 0; i < 80; ++i) {
        const std::size_t p = i < 64 ? i * 29 % 64 : i - 20;
        const auto x = support::normal(width, static_cast<unsigned>(i), i % 7 == 0 ? 100.0f : 1.0f);
        const support::Guarded<float> in(std::span<const float>(x), support::Edge::end);
        REQUIRE(cbq::encode_value(layout, p, in.span(), values.data()));
        wanted[p] = row_codec(bits, layout.group, x);
      }
      for (std::size_t p = 0; p < 64; ++p) {
        const support::Guarded<float> out(width, support::Edge::end);
        cbq::decode_value(layout, values.data(), p, out.data());
        REQUIRE(std::vector<float>(out.span().begin(), out.span().end()) == wanted[p]);
        for (std::size_t c = 0; c < width; ++c) REQUIRE(element(layout, values.data(), p, c) == wanted[p][c]);
      }
    }
  }
}

TEST_CASE("the value of the documentation lies where that says") {
  const auto layout = cbq::kv_layout({.bits = 4}, 2, 96);
  std::vector<std::byte> page(layout->page_bytes);
  std::vector<float> x(96, -1.0f);
  x[41] = 2.0f;
  REQUIRE(cbq::encode_value(*layout, 37, x, page.data() + cbq::kv_values_offset(*layout, 1)));
  std::vector<std::byte> wanted(page.size());
  wanted[10058] = std::byte{0x67};
  wanted[10059] = std::byte{0x32};
  wanted[10187] = std::byte{0xbc};
  wanted[11557] = std::byte{0xf0};
  CHECK(page == wanted);
}

TEST_CASE("a value writes its own bits, and channels that fill up a panel get code 0") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::size_t position : {0u, 21u, 37u, 63u}) {
      CAPTURE(bits, position);
      const KvLayout layout = layout_of(bits, 33);
      std::vector<std::byte> ones(layout.value_bytes, std::byte{255}), zeros(layout.value_bytes);
      const auto x = support::normal(33, 5);
      REQUIRE(cbq::encode_value(layout, position, x, ones.data()));
      REQUIRE(cbq::encode_value(layout, position, x, zeros.data()));
      std::size_t written = 0;
      for (std::size_t i = 0; i < ones.size(); ++i) {
        const unsigned same = 255u & ~(std::to_integer<unsigned>(ones[i]) ^ std::to_integer<unsigned>(zeros[i]));
        for (unsigned bit = 0; bit < 8; ++bit) written += same >> bit & 1u;
      }
      CHECK(written == 32 + 48 * static_cast<std::size_t>(bits));
      const unsigned top = (1u << bits) - 1;
      for (std::size_t p = 0; p < 64; ++p) {
        for (std::size_t c = 0; c < 33; ++c) {
          if (p != position) REQUIRE(code_of(layout, ones.data(), p, c) == top);
          if (p != position) REQUIRE(code_of(layout, zeros.data(), p, c) == 0);
        }
      }
    }
  }
}

TEST_CASE("refined values are stored with the scales, offsets and codes of the refinement") {
  for (const std::size_t width : {33u, 80u, 144u}) {
    const KvLayout layout = layout_of(3, width);
    std::vector<std::byte> bytes(layout.value_bytes);
    const auto x = support::normal(width, 31);
    auto weights = support::normal(width, 32);
    for (float& w : weights) w = w * w;
    for (const float* costs : {static_cast<const float*>(nullptr), static_cast<const float*>(weights.data())}) {
      REQUIRE(cbq::encode_value(layout, 37, x, bytes.data(), {.steps = 2, .weights = costs}));
      std::vector<float> decoded(width);
      cbq::decode_value(layout, bytes.data(), 37, decoded.data());
      std::size_t changed = 0;
      for (std::size_t first = 0; first < width; first += layout.group) {
        const std::span<const float> group(x.data() + first, std::min(layout.group, width - first));
        const cbq::AffineGroup range = *cbq::fit_affine_group(cbq::affine_range(group), 3);
        const cbq::AffineGroup fit =
            cbq::refine_affine_group(group, range, 3, {2, costs == nullptr ? nullptr : costs + first});
        if (fit.scale != range.scale) ++changed;
        std::vector<std::uint8_t> codes((group.size() + 15) / 16 * 16);
        cbq::affine_codes(group, fit, 3, codes.data());
        for (std::size_t i = 0; i < group.size(); ++i) {
          REQUIRE(decoded[first + i] == cbq::affine_value(codes[i], fit));
        }
      }
      CHECK(changed != 0);
    }
  }
}

TEST_CASE("values that cannot be stored leave the page as it was") {
  const KvLayout layout = layout_of(4, 144);
  std::vector<std::byte> values(layout.value_bytes, std::byte{7});
  const auto before = values;
  auto x = support::normal(144, 1);
  x[143] = -std::numeric_limits<float>::infinity();
  CHECK(cbq::encode_value(layout, 0, x, values.data()).error().code == Errc::not_finite);
  x[143] = 1e7f;
  CHECK(cbq::encode_value(layout, 0, x, values.data()).error().code == Errc::bad_argument);
  x[143] = 0;
  CHECK(cbq::encode_value(layout, 64, x, values.data()).error().code == Errc::bad_shape);
  CHECK(cbq::encode_value(layout, 0, std::span(x).first(143), values.data()).error().code == Errc::bad_shape);
  CHECK(values == before);
  CHECK(cbq::encode_value(layout, 63, x, values.data()));
}
