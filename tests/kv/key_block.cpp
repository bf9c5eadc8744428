// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/key_block.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "support/guarded.hpp"
#include "support/nn.hpp"

using cbq::Errc;
using cbq::KvLayout;

namespace {

constexpr std::size_t widths[] = {1, 16, 33, 64, 80, 96, 128, 144, 256};

KvLayout layout_of(int bits, std::size_t width, bool channel_keys = false) {
  const auto layout = cbq::kv_layout({.bits = bits, .channel_keys = channel_keys}, 1, width);
  REQUIRE(layout);
  return *layout;
}

// What the row codec makes of x.
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

// The key by the layout's own words: scale, offset, block_code.
float element(const KvLayout& layout, const std::byte* keys, std::size_t position, std::size_t channel) {
  const std::size_t group = channel / layout.group, inside = channel % layout.group;
  const std::size_t block = group * layout.blocks_per_group + inside / 32;
  const cbq::AffineOffsets at = layout.channel_keys ? cbq::key_channel_affine(layout, 32 * block + inside % 32)
                                                    : cbq::key_affine(layout, position, group);
  const auto half_at = [&](std::size_t offset) {
    return cbq::to_float(cbq::half{static_cast<std::uint16_t>(std::to_integer<unsigned>(keys[offset]) |
                                                              std::to_integer<unsigned>(keys[offset + 1]) << 8)});
  };
  const unsigned code = cbq::block_code(keys + cbq::key_block_offset(layout, position / 16, block), layout.bits,
                                        position % 16, inside % 32);
  return half_at(at.scale) * static_cast<float>(code) + half_at(at.offset);
}

}  // namespace

TEST_CASE("a page of keys decodes to the floats of the row codec, whatever was there before") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::size_t width : widths) {
      CAPTURE(bits, width);
      const KvLayout layout = layout_of(bits, width);
      const support::Guarded<std::byte> keys(layout.key_bytes,
                                             width % 32 == 0 ? support::Edge::start : support::Edge::end);
      std::mt19937 random(1);
      for (std::byte& b : keys.span()) b = static_cast<std::byte>(random());
      // Positions in an order that leaves no neighbour alone, then some again as after truncation.
      std::vector<std::vector<float>> wanted(64);
      for (std::size_t i = 0; i < 80; ++i) {
        const std::size_t p = i < 64 ? i * 29 % 64 : i - 20;
        const auto x = support::normal(width, static_cast<unsigned>(i), i % 7 == 0 ? 100.0f : 1.0f);
        const support::Guarded<float> in(std::span<const float>(x), support::Edge::end);
        REQUIRE(cbq::encode_key(layout, p, in.span(), keys.data()));
        wanted[p] = row_codec(bits, layout.group, x);
      }
      for (std::size_t p = 0; p < 64; ++p) {
        const support::Guarded<float> out(width, support::Edge::end);
        cbq::decode_key(layout, keys.data(), p, out.data());
        REQUIRE(std::vector<float>(out.span().begin(), out.span().end()) == wanted[p]);
        for (std::size_t c = 0; c < width; ++c) REQUIRE(element(layout, keys.data(), p, c) == wanted[p][c]);
      }
    }
  }
}

TEST_CASE("the key of the documentation lies where that says") {
  const auto layout = cbq::kv_layout({.bits = 4}, 2, 96);
  std::vector<std::byte> page(layout->page_bytes);
  std::vector<float> x(96, -1.0f);
  x[41] = 2.0f;
  REQUIRE(cbq::encode_key(*layout, 37, x, page.data() + cbq::kv_keys_offset(*layout, 1)));
  std::vector<std::byte> wanted(page.size());
  wanted[8330] = std::byte{0x67};
  wanted[8331] = std::byte{0x32};
  wanted[8363] = std::byte{0xbc};
  wanted[8725] = std::byte{0x0f};
  CHECK(page == wanted);
}

TEST_CASE("a key writes its own bits, and channels that fill up a block get code 0") {
  for (const int bits : {2, 3, 4, 8}) {
    const KvLayout layout = layout_of(bits, 33);
    std::vector<std::byte> ones(layout.key_bytes, std::byte{255}), zeros(layout.key_bytes);
    const auto x = support::normal(33, 5);
    REQUIRE(cbq::encode_key(layout, 21, x, ones.data()));
    REQUIRE(cbq::encode_key(layout, 21, x, zeros.data()));
    std::size_t written = 0;
    for (std::size_t i = 0; i < ones.size(); ++i) {
      if (ones[i] == zeros[i]) {
        ++written;
      } else {
        REQUIRE((ones[i] == std::byte{255} && zeros[i] == std::byte{0}));
      }
    }
    CHECK(written == 4 + 2 * 4 * static_cast<std::size_t>(bits));
    for (std::size_t inside = 1; inside < 32; ++inside) {
      CHECK(cbq::block_code(ones.data() + cbq::key_block_offset(layout, 1, 1), layout.bits, 5, inside) == 0);
    }
  }
}

TEST_CASE("keys with scales per channel decode to the floats of the row codec on columns") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::size_t width : {1u, 33u, 64u, 80u, 144u, 256u}) {
      CAPTURE(bits, width);
      const KvLayout layout = layout_of(bits, width, true);
      const support::Guarded<std::byte> keys(layout.key_bytes, support::Edge::end);
      for (std::byte& b : keys.span()) b = std::byte{0xa5};
      const std::size_t stride = width + 3;
      const auto x = support::normal(63 * stride + width, 11, 3.0f);
      const support::Guarded<float> in(std::span<const float>(x), support::Edge::end);
      REQUIRE(cbq::encode_key_channels(layout, {in.data(), 64, width, stride}, keys.data()));
      std::vector<std::vector<float>> decoded(64, std::vector<float>(width));
      for (std::size_t p = 0; p < 64; ++p) cbq::decode_key(layout, keys.data(), p, decoded[p].data());
      for (std::size_t c = 0; c < width; ++c) {
        std::vector<float> column(64);
        for (std::size_t p = 0; p < 64; ++p) column[p] = x[p * stride + c];
        const auto wanted = row_codec(bits, 64, column);
        for (std::size_t p = 0; p < 64; ++p) {
          REQUIRE(decoded[p][c] == wanted[p]);
          REQUIRE(element(layout, keys.data(), p, c) == wanted[p]);
        }
      }
    }
  }
}

TEST_CASE("refined keys are stored with the scales, offsets and codes of the refinement") {
  for (const std::size_t width : {33u, 80u, 144u}) {
    const KvLayout layout = layout_of(3, width);
    std::vector<std::byte> bytes(layout.key_bytes);
    const auto x = support::normal(width, 31);
    auto weights = support::normal(width, 32);
    for (float& w : weights) w = w * w;
    for (const float* costs : {static_cast<const float*>(nullptr), static_cast<const float*>(weights.data())}) {
      REQUIRE(cbq::encode_key(layout, 37, x, bytes.data(), {.steps = 2, .weights = costs}));
      std::vector<float> decoded(width);
      cbq::decode_key(layout, bytes.data(), 37, decoded.data());
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

TEST_CASE("keys that cannot be stored leave the page as it was") {
  const KvLayout layout = layout_of(4, 144), channels = layout_of(4, 144, true);
  std::vector<std::byte> keys(layout.key_bytes, std::byte{7}), channel_keys(channels.key_bytes, std::byte{7});
  const auto before = keys;
  auto x = support::normal(144, 1);
  x[143] = std::numeric_limits<float>::quiet_NaN();
  CHECK(cbq::encode_key(layout, 0, x, keys.data()).error().code == Errc::not_finite);
  x[143] = -1e6f;
  CHECK(cbq::encode_key(layout, 0, x, keys.data()).error().code == Errc::bad_argument);
  x[143] = 0;
  CHECK(cbq::encode_key(layout, 64, x, keys.data()).error().code == Errc::bad_shape);
  CHECK(cbq::encode_key(layout, 0, std::span(x).first(143), keys.data()).error().code == Errc::bad_shape);
  CHECK(cbq::encode_key(channels, 0, x, keys.data()).error().code == Errc::bad_shape);
  CHECK(keys == before);
  CHECK(cbq::encode_key(layout, 63, x, keys.data()));

  const auto untouched = channel_keys;
  std::vector<float> rows = support::normal(64 * 144, 2);
  const auto view = [&](std::size_t count, std::size_t width) {
    return cbq::matrix_view<const float>(rows.data(), count, width);
  };
  CHECK(cbq::encode_key_channels(channels, view(63, 144), channel_keys.data()).error().code == Errc::bad_shape);
  CHECK(cbq::encode_key_channels(channels, view(64, 143), channel_keys.data()).error().code == Errc::bad_shape);
  CHECK(cbq::encode_key_channels(layout, view(64, 144), channel_keys.data()).error().code == Errc::bad_shape);
  rows[63 * 144 + 130] = std::numeric_limits<float>::infinity();
  const cbq::Status status = cbq::encode_key_channels(channels, view(64, 144), channel_keys.data());
  REQUIRE_FALSE(status);
  CHECK(status.error().code == Errc::not_finite);
  CHECK(std::string(status.error().where.c_str()) == "channel 130");
  CHECK(channel_keys == untouched);
}
