// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/kv_layout.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <limits>
#include <vector>

using cbq::Errc;
using cbq::KvLayout;

namespace {

// Marks bytes [first, first + count) of a page, each of which must be free.
struct Map {
  std::vector<int> used;
  void take(std::size_t first, std::size_t count) {
    REQUIRE(first + count <= used.size());
    for (std::size_t i = first; i < first + count; ++i) REQUIRE(used[i]++ == 0);
  }
  void take(cbq::AffineOffsets at, std::size_t base) {
    take(base + at.scale, 2);
    take(base + at.offset, 2);
  }
};

void take_keys(Map& map, const KvLayout& layout, std::size_t base) {
  if (layout.channel_keys) {
    for (std::size_t c = 0; c < 32 * layout.key_blocks; ++c) map.take(cbq::key_channel_affine(layout, c), base);
  } else {
    for (std::size_t p = 0; p < 64; ++p) {
      for (std::size_t g = 0; g < layout.groups; ++g) map.take(cbq::key_affine(layout, p, g), base);
    }
  }
  for (std::size_t panel = 0; panel < 4; ++panel) {
    for (std::size_t b = 0; b < layout.key_blocks; ++b) {
      map.take(base + cbq::key_block_offset(layout, panel, b), 64 * layout.bits);
    }
  }
}

void take_values(Map& map, const KvLayout& layout, std::size_t base) {
  for (std::size_t g = 0; g < layout.groups; ++g) {
    for (std::size_t p = 0; p < 64; ++p) map.take(cbq::value_affine(layout, p, g), base);
    for (std::size_t panel = 0; panel < (cbq::group_channels(layout, g) + 15) / 16; ++panel) {
      map.take(base + cbq::value_panel_offset(layout, g, panel), 2 * 64 * layout.bits);
    }
  }
}

}  // namespace

TEST_CASE("the page of the documentation has its bytes where that says") {
  // 4 bits, 2 heads of 96.
  const auto layout = cbq::kv_layout({.bits = 4}, 2, 96);
  REQUIRE(layout);
  CHECK(layout->group == 96);
  CHECK(layout->groups == 1);
  CHECK(layout->key_blocks == 3);
  CHECK(layout->key_panel_bytes == 64 + 3 * 256);
  CHECK(layout->key_bytes == 3328);
  CHECK(layout->value_bytes == 256 + 6 * 512);
  CHECK(layout->head_bytes == 6656);
  CHECK(layout->page_bytes == 13312);
  CHECK(cbq::kv_bytes_per_token(*layout) == 208);
  // Head 1, position 37.
  CHECK(cbq::kv_keys_offset(*layout, 1) == 6656);
  CHECK(cbq::kv_values_offset(*layout, 1) == 9984);
  CHECK(cbq::key_affine(*layout, 37, 0).scale == 1674);
  CHECK(cbq::key_affine(*layout, 37, 0).offset == 1706);
  CHECK(cbq::key_block_offset(*layout, 2, 1) == 1984);
  CHECK(cbq::value_affine(*layout, 37, 0).scale == 74);
  CHECK(cbq::value_affine(*layout, 37, 0).offset == 202);
  CHECK(cbq::value_panel_offset(*layout, 0, 2) == 1280);
}

TEST_CASE("every byte of a page belongs to exactly one thing") {
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::size_t width : {1u, 16u, 33u, 64u, 80u, 96u, 127u, 128u, 129u, 160u, 192u, 255u, 256u}) {
      for (const bool channel_keys : {false, true}) {
        CAPTURE(bits, width, channel_keys);
        const auto layout = cbq::kv_layout({.bits = bits, .channel_keys = channel_keys}, 2, width);
        REQUIRE(layout);
        std::size_t channels = 0;
        for (std::size_t g = 0; g < layout->groups; ++g) channels += cbq::group_channels(*layout, g);
        REQUIRE(channels == width);
        Map map;
        map.used.resize(layout->page_bytes);
        for (std::size_t head = 0; head < 2; ++head) {
          take_keys(map, *layout, cbq::kv_keys_offset(*layout, head));
          take_values(map, *layout, cbq::kv_values_offset(*layout, head));
        }
        for (const int used : map.used) REQUIRE(used == 1);
        REQUIRE(cbq::kv_bytes_per_token(*layout) * 64 == layout->page_bytes);
      }
    }
  }
}

TEST_CASE("bytes per token count scales, offsets and padding") {
  const auto bytes = [](int bits, std::size_t heads, std::size_t width) {
    const auto per_token = cbq::kv_bytes_per_token({.bits = bits}, heads, width);
    REQUIRE(per_token);
    return *per_token;
  };
  CHECK(bytes(16, 2, 64) == 512);
  CHECK(bytes(32, 2, 64) == 1024);
  CHECK(bytes(4, 2, 64) == 2 * (2 * 32 + 2 * 4));
  CHECK(bytes(3, 1, 128) == 2 * 48 + 2 * 4);
  CHECK(bytes(2, 1, 80) == 24 + 20 + 2 * 4);  // keys are padded to 96 channels
  CHECK(bytes(8, 1, 256) == 2 * 256 + 2 * 8);
  CHECK(*cbq::kv_bits_per_value({.bits = 4}, 128) == 4.25);
  CHECK(*cbq::kv_bits_per_value({.bits = 4, .channel_keys = true}, 128) == 4.375);  // 64 tokens share a key's scale
  CHECK(*cbq::kv_bits_per_value({.bits = 16}, 128) == 16);
  CHECK_FALSE(cbq::kv_bits_per_value({.bits = 4}, 300));
  CHECK_FALSE(cbq::kv_bytes_per_token({.bits = 5}, 1, 64));
  CHECK_FALSE(cbq::kv_bytes_per_token({.bits = 32}, std::numeric_limits<std::size_t>::max(), 64));
}

TEST_CASE("shapes without a page are errors") {
  const auto code = [](const cbq::Result<KvLayout>& layout) {
    REQUIRE_FALSE(layout);
    return layout.error().code;
  };
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  for (const int bits : {-1, 0, 1, 5, 16, 32}) CHECK(code(cbq::kv_layout({.bits = bits}, 1, 64)) == Errc::unsupported);
  CHECK(code(cbq::kv_layout({}, 0, 64)) == Errc::bad_shape);
  CHECK(code(cbq::kv_layout({}, 1, 0)) == Errc::bad_shape);
  CHECK(code(cbq::kv_layout({}, 1, 257)) == Errc::bad_shape);
  CHECK(code(cbq::kv_layout({}, 1, most)) == Errc::bad_shape);
  CHECK(code(cbq::kv_layout({}, most, 64)) == Errc::bad_shape);
  CHECK(code(cbq::kv_layout({}, most / 4608 + 1, 64)) == Errc::bad_shape);  // one head is 4608 bytes
  REQUIRE(cbq::kv_layout({}, most / 4608, 64));
}
