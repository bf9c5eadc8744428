// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/checksum.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "support/guarded.hpp"

namespace {

std::uint64_t rotated(std::uint64_t h, std::uint64_t word) {
  const std::uint64_t product = (h ^ word) * 0x9e3779b97f4a7c15u;
  return product << 29 | product >> 35;
}

/// The formula of the header, byte by byte.
std::uint64_t plain(const std::vector<std::byte>& bytes) {
  std::uint64_t chains[4] = {1, 2, 3, 4};
  const std::size_t words = bytes.size() / 32 * 4 + 4;
  for (std::size_t w = 0; w < words; ++w) {
    std::uint64_t word = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      const std::size_t at = 8 * w + i;
      if (at < bytes.size()) word |= static_cast<std::uint64_t>(bytes[at]) << (8 * i);
    }
    chains[w % 4] = rotated(chains[w % 4], word);
  }
  std::uint64_t sum = bytes.size();
  for (const std::uint64_t chain : chains) sum = rotated(sum, chain);
  return sum;
}

}  // namespace

TEST_CASE("the checksum is the formula of its header, for every length around a step, and reads nothing behind") {
  for (std::size_t size = 0; size < 100; ++size) {
    std::vector<std::byte> bytes(size);
    for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(37 * i + size);
    const support::Guarded<std::byte> guarded(bytes, support::Edge::end);
    REQUIRE(cbq::checksum(guarded.span()) == plain(bytes));
  }
}

TEST_CASE("every changed bit, and a zero behind, changes the checksum") {
  std::vector<std::byte> bytes(75, std::byte{0x5a});
  const std::uint64_t sum = cbq::checksum(bytes);
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
    REQUIRE(cbq::checksum(bytes) != sum);
    bytes[bit / 8] ^= static_cast<std::byte>(1u << bit % 8);
  }
  bytes.push_back(std::byte{0});
  CHECK(cbq::checksum(bytes) != sum);
}
