// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/saved_sequence.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/kv_row_model.hpp"

namespace {

using cbq::QuantizedKvCache;
using cbq::QuantizedKvOptions;
using cbq::saved_sequence::Header;
using support::Edge;
using support::Guarded;
using support::KvHost;
using support::KvRowModel;
using support::KvRows;

QuantizedKvOptions small(const char* scheme, const cbq::KvPolicy& policy = {}) {
  return {.scheme = *cbq::parse_kv_scheme(scheme),
          .policy = policy,
          .heads = 2,
          .width = 12,
          .capacity = 320,
          .largest_append = 70};
}

std::vector<std::byte> saved(const QuantizedKvCache& cache) {
  const auto size = cbq::saved_sequence_size(cache);
  REQUIRE(size);
  std::vector<std::byte> bytes(*size);
  REQUIRE(cbq::save_sequence(cache, bytes));
  return bytes;
}

/// Changes the header and makes its checksums right again.
template <class Change>
std::vector<std::byte> forged(std::vector<std::byte> bytes, const Change& change) {
  Header header;
  std::memcpy(&header, bytes.data(), sizeof header);
  change(header);
  header.body_checksum = cbq::checksum(std::span(bytes).subspan(sizeof header));
  header.header_checksum = cbq::saved_sequence::header_checksum(header);
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

/// A cache with some appended rows, and what it must show.
struct Filled {
  Filled(KvHost& host, const QuantizedKvOptions& options, const std::vector<std::size_t>& appends, unsigned seed)
      : cache(*QuantizedKvCache::create(host.pool, options, host.transform)), expected(options, host.transform) {
    std::mt19937 random(seed);
    for (const std::size_t count : appends) append(KvRows(count, options.heads * options.width, random));
  }
  void append(const KvRows& rows) {
    REQUIRE(cache.append(rows.k(), rows.v()));
    expected.append(rows);
  }
  void truncate(std::size_t size) {
    cache.truncate(size);
    expected.truncate(size);
  }

  QuantizedKvCache cache;
  KvRowModel expected;
};

}  // namespace

TEST_CASE("A saved sequence continues as the one that was saved, in any memory") {
  const QuantizedKvOptions all[] = {
      small("kv4"),
      small("kv8_past", {.recent = 30}),
      small("kv3_2d_past_hadamard", {.sinks = 70}),
      small("kv2_kivi_past", {.recent = 10, .sinks = 3}),
      small("kv4_kivi", {.sinks = 2, .window = 50}),
      small("kv4_past", {.window = 40}),
  };
  for (const QuantizedKvOptions& options : all) {
    CAPTURE(cbq::kv_scheme_name(options.scheme).c_str());
    KvHost host(options, 12), other_host(options, 6);
    std::mt19937 random(3);
    for (const std::size_t cut : {0u, 1u, 2u, 63u, 64u, 65u, 100u, 128u, 132u, 150u, 190u}) {
      Filled filled(host, options, {60, 1, 68, 1, 1, 60}, 5);
      filled.truncate(cut);
      const std::vector<std::byte> bytes = saved(filled.cache);
      const Guarded<std::byte> guarded(bytes, cut % 2 == 0 ? Edge::end : Edge::start);
      Filled other(other_host, options, {5, 70}, 6);  // what it held is forgotten
      REQUIRE(cbq::load_sequence(guarded.span(), other.cache));
      filled.expected.check(other.cache.view());
      CHECK(saved(other.cache) == bytes);
      other.expected = filled.expected;
      for (const std::size_t count : {3u, 1u, 70u}) {
        const KvRows rows(count, 24, random);
        filled.append(rows);
        other.append(rows);
        filled.expected.check(other.cache.view());
      }
      CHECK(saved(other.cache) == saved(filled.cache));
    }
    CHECK(host.pool.free_pages() == host.pool.size());
    CHECK(other_host.pool.free_pages() == other_host.pool.size());
  }
}

TEST_CASE("A sequence is saved to bytes of its size, and not a byte more is written") {
  const QuantizedKvOptions options = small("kv4_past");
  KvHost host(options, 2);
  const Filled filled(host, options, {65, 3}, 1);
  const std::size_t size = *cbq::saved_sequence_size(filled.cache);
  CHECK(size == 144 + 2 * host.pool.page_bytes() + 3 * 2 * 24 * sizeof(float));
  const Guarded<std::byte> memory(size, Edge::end);
  REQUIRE(cbq::save_sequence(filled.cache, memory.span()));
  CHECK(cbq::save_sequence(filled.cache, memory.span().first(size - 1)).error().code == cbq::Errc::bad_shape);
  std::vector<std::byte> more(size + 1);
  CHECK(cbq::save_sequence(filled.cache, more).error().code == cbq::Errc::bad_shape);
}

TEST_CASE("Bytes that are not the cache's own sequence are refused, and the cache keeps what it has") {
  const QuantizedKvOptions options = small("kv4_past", {.sinks = 3});
  KvHost host(options, 8);
  const Filled source(host, options, {65, 3}, 1);
  const std::vector<std::byte> good = saved(source.cache);
  Filled filled(host, options, {30, 2}, 2);
  const auto refuses = [&](const std::vector<std::byte>& bytes, cbq::Errc code) {
    const Guarded<std::byte> memory(bytes, Edge::end);
    const cbq::Status loaded = cbq::load_sequence(memory.span(), filled.cache);
    REQUIRE_FALSE(loaded);
    CHECK(loaded.error().code == code);
    filled.expected.check(filled.cache.view());
    return std::string(loaded.error().what);
  };
  SECTION("truncated and damaged") {
    for (const std::size_t size : {0u, 1u, 7u, 8u, 12u, 143u, 144u, 145u, 1000u}) {
      refuses({good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size)}, cbq::Errc::bad_file);
    }
    refuses({good.begin(), good.end() - 1}, cbq::Errc::bad_file);
    std::vector<std::byte> longer = good;
    longer.push_back(std::byte{0});
    refuses(longer, cbq::Errc::bad_file);
    for (std::size_t at = 0; at < good.size(); at += at < 144 ? 1 : 97) {
      CAPTURE(at);
      std::vector<std::byte> damaged = good;
      damaged[at] ^= std::byte{4};
      refuses(damaged, at >= 8 && at < 16 ? cbq::Errc::unsupported : cbq::Errc::bad_file);
    }
  }
  SECTION("of another version, scheme, shape, policy or other factors") {
    CHECK(refuses(forged(good, [](Header& h) { h.version = 2; }), cbq::Errc::unsupported).find("version") !=
          std::string::npos);
    refuses(forged(good, [](Header& h) { h.layout = 2; }), cbq::Errc::unsupported);
    const auto other = [&](const auto& change) { return refuses(forged(good, change), cbq::Errc::bad_shape); };
    CHECK(other([](Header& h) { h.scheme[2] = '8'; }).find("scheme") != std::string::npos);
    other([](Header& h) { std::memset(h.scheme, 'x', sizeof h.scheme); });
    CHECK(other([](Header& h) { h.heads = 3; }).find("heads") != std::string::npos);
    CHECK(other([](Header& h) { h.width = 13; }).find("width") != std::string::npos);
    other([](Header& h) { h.heads = std::numeric_limits<std::uint64_t>::max(); });
    CHECK(other([](Header& h) { h.recent = 1; }).find("policy") != std::string::npos);
    other([](Header& h) { h.sinks = 4; });
    other([](Header& h) { h.window = 9; });
    CHECK(other([](Header& h) { h.transform = 9; }).find("factors") != std::string::npos);
  }
  SECTION("with counts that contradict each other or overflow") {
    constexpr std::uint64_t huge = std::numeric_limits<std::uint64_t>::max();
    refuses(forged(good, [](Header& h) { h.size = huge; }), cbq::Errc::bad_shape);
    refuses(forged(good, [](Header& h) { h.size = 321; }), cbq::Errc::bad_shape);
    refuses(forged(good, [](Header& h) { h.packed = huge; }), cbq::Errc::bad_file);
    refuses(forged(good, [](Header& h) { h.packed = 2; }), cbq::Errc::bad_file);  // below the sinks
    refuses(forged(good, [](Header& h) { h.first = huge; }), cbq::Errc::bad_file);
    refuses(forged(good, [](Header& h) { h.first = 69; }), cbq::Errc::bad_file);
    refuses(forged(good, [](Header& h) { h.size = 67; }), cbq::Errc::bad_file);    // not so many bytes
    refuses(forged(good, [](Header& h) { h.packed = 63; }), cbq::Errc::bad_file);  // likewise
    refuses(forged(good, [](Header& h) { h.first = 64; }), cbq::Errc::bad_file);   // likewise
    refuses(forged(good, [](Header& h) { h.size = 200; }), cbq::Errc::bad_shape);  // 135 exact rows, room for 70
  }
  SECTION("with numbers that are none") {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const std::size_t back : {4u, 2 * 24 * 4u * 3 + 4u}) {  // the last exact value, the last of the sinks
      std::vector<std::byte> bytes = good;
      std::memcpy(bytes.data() + bytes.size() - back, &nan, sizeof nan);
      refuses(forged(bytes, [](Header&) {}), cbq::Errc::not_finite);
    }
    const cbq::KvLayout& layout = filled.cache.layout();
    for (const std::size_t at : {cbq::key_affine(layout, 63, 0).offset,
                                 cbq::kv_values_offset(layout, 1) + cbq::value_affine(layout, 63, 0).scale}) {
      std::vector<std::byte> bytes = good;
      const std::uint16_t infinity = 0xfc00;
      std::memcpy(bytes.data() + 144 + layout.page_bytes + at, &infinity, sizeof infinity);
      refuses(forged(bytes, [](Header&) {}), cbq::Errc::not_finite);
    }
  }
  SECTION("with scales that no encoder writes") {
    const cbq::KvLayout& layout = filled.cache.layout();
    for (const std::size_t at : {cbq::key_affine(layout, 0, 0).scale, cbq::key_affine(layout, 63, 0).scale,
                                 cbq::kv_values_offset(layout, 1) + cbq::value_affine(layout, 63, 0).scale}) {
      std::vector<std::byte> bytes = good;
      bytes[144 + layout.page_bytes + at + 1] |= std::byte{0x80};
      CHECK(refuses(forged(bytes, [](Header&) {}), cbq::Errc::bad_file).find("negative") != std::string::npos);
    }
  }
  SECTION("without pages for them") {
    const Filled hungry(host, options, {70, 70, 70, 1}, 3);
    REQUIRE(host.pool.free_pages() == 1);
    const Filled none(host, options, {60, 1}, 3);
    REQUIRE(host.pool.free_pages() == 0);
    refuses(good, cbq::Errc::out_of_memory);  // two pages, of its own it has one
  }
}

TEST_CASE("A cache for shorter appends refuses more exact rows than it has room for") {
  const QuantizedKvOptions options = small("kv4_past");
  QuantizedKvOptions shorter = options;
  shorter.largest_append = 2;
  KvHost host(options, 8);
  const Filled source(host, options, {65, 3}, 1);
  Filled filled(host, shorter, {2, 2}, 2);
  CHECK(cbq::load_sequence(saved(source.cache), filled.cache).error().code == cbq::Errc::bad_shape);
  filled.expected.check(filled.cache.view());
}

TEST_CASE("Scales per channel that could not be encoded again are refused, the largest that occur are not") {
  const QuantizedKvOptions options = small("kv8_kivi");
  KvHost host(options, 4);
  std::mt19937 random(4);
  KvRows rows(64, 24, random);
  for (float& key : rows.keys) key = random() % 2 == 0 ? 65504.0f : 0.0f;
  Filled source(host, options, {}, 1), other(host, options, {}, 1);
  source.append(rows);
  source.truncate(40);
  const std::vector<std::byte> good = saved(source.cache);
  REQUIRE(cbq::load_sequence(good, other.cache));
  for (int round = 0; round < 20; ++round) {
    // Positions that the rollback left are quantized again with another range, whose scale is rounded up again.
    KvRows more(24, 24, random);
    for (float& key : more.keys) key = static_cast<float>(-1000 * round - 100);
    REQUIRE(other.cache.append(more.k(), more.v()));
    REQUIRE(other.cache.view().packed == 64);
    float key[12];
    for (const std::size_t p : {0u, 39u, 50u}) {
      cbq::decode_key(other.cache.layout(), other.cache.view().pages[0], p, key);
      for (std::size_t c = 0; c < 12; ++c) {
        const float wanted = p < 40 ? rows.keys[p * 24 + c] : more.keys[c];
        CHECK(std::abs(key[c] - wanted) <= 200.0f * static_cast<float>(1 + round));
      }
    }
    other.cache.truncate(40);
    REQUIRE(cbq::load_sequence(saved(other.cache), source.cache));
  }
  const cbq::AffineOffsets at = cbq::key_channel_affine(source.cache.layout(), 7);
  const auto refused = [&](float scale, float offset) {
    const cbq::half halves[] = {cbq::to_half(scale), cbq::to_half(offset)};
    std::vector<std::byte> bytes = good;
    std::memcpy(bytes.data() + 144 + at.scale, &halves[0], sizeof(cbq::half));
    std::memcpy(bytes.data() + 144 + at.offset, &halves[1], sizeof(cbq::half));
    const cbq::Status loaded = cbq::load_sequence(forged(bytes, [](Header&) {}), other.cache);
    return !loaded && loaded.error().code == cbq::Errc::bad_file;
  };
  CHECK(refused(65504.0f, 65504.0f));
  CHECK(refused(1.0f, 65504.0f));
  CHECK(refused(515.0f, -65504.0f));
  CHECK_FALSE(refused(514.0f, -65504.0f));  // 65566: rounded up
  CHECK_FALSE(refused(0.0f, 65504.0f));
}

TEST_CASE("A freed cache is neither saved nor loaded") {
  const QuantizedKvOptions options = small("kv4_past");
  KvHost host(options, 8);
  Filled source(host, options, {65, 3}, 1);
  const std::vector<std::byte> bytes = saved(source.cache);
  const QuantizedKvCache taken = std::move(source.cache);
  CHECK(cbq::saved_sequence_size(source.cache).error().code == cbq::Errc::bad_argument);
  std::vector<std::byte> out(bytes.size());
  CHECK(cbq::save_sequence(source.cache, out).error().code == cbq::Errc::bad_argument);
  CHECK(cbq::load_sequence(bytes, source.cache).error().code == cbq::Errc::bad_argument);
}
