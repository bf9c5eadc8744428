// SPDX-License-Identifier: Apache-2.0

// Saved sequences of KV caches, as they come and with checksums made right. What loads must be saved again to the same
// bytes, and the cache must go on.

#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include <cbq/kv/saved_sequence.hpp>

#include "targets.hpp"

namespace fuzz {

namespace {

struct Setting {
  const char* scheme;
  cbq::KvPolicy policy;
};
constexpr Setting settings[] = {
    {"kv4", {.sinks = 1}},
    {"kv4_kivi", {.recent = 8, .sinks = 2}},
    {"kv2_past", {.recent = 4, .sinks = 0, .window = 64}},
    {"kv8_hadamard", {}},
};

struct Host {
  explicit Host(const Setting& setting)
      : options{.scheme = *cbq::parse_kv_scheme(setting.scheme),
                .policy = setting.policy,
                .heads = 1,
                .width = 8,
                .capacity = 192,
                .largest_append = 8},
        memory(4 * cbq::kv_layout(options.scheme, options.heads, options.width)->page_bytes),
        pool(*cbq::KvPagePool::create(memory, memory.size() / 4)),
        cache(*cbq::QuantizedKvCache::create(pool, options)) {}

  cbq::QuantizedKvOptions options;
  std::vector<std::byte> memory;
  cbq::KvPagePool pool;
  cbq::QuantizedKvCache cache;
};

void load(Bytes bytes, cbq::QuantizedKvCache& cache) {
  const std::size_t before = cache.size();
  if (!accepted(cbq::load_sequence(bytes, cache))) {
    require(cache.size() == before);
    return;
  }
  const auto size = cbq::saved_sequence_size(cache);
  require(size && *size == bytes.size());
  std::vector<std::byte> again(bytes.size());
  require(bool(cbq::save_sequence(cache, again)));
  require(std::memcmp(again.data(), bytes.data(), bytes.size()) == 0);
  std::vector<float> row(cache.options().heads * cache.options().width, 0.5f);
  const auto one = cbq::matrix_view<const float>(row.data(), 1, row.size());
  (void)accepted(cache.append(one, one));
}

}  // namespace

void saved_sequence(Bytes bytes) {
  if (bytes.empty()) return;
  Host host(settings[static_cast<std::size_t>(bytes.front()) % std::size(settings)]);
  const Bytes saved = bytes.subspan(1);
  load(saved, host.cache);
  cbq::saved_sequence::Header header;
  if (saved.size() < sizeof header) return;
  std::vector<std::byte> sealed(saved.begin(), saved.end());
  std::memcpy(&header, sealed.data(), sizeof header);
  header.bytes = sealed.size();
  header.body_checksum = cbq::checksum(saved.subspan(sizeof header));
  header.header_checksum = cbq::saved_sequence::header_checksum(header);
  std::memcpy(sealed.data(), &header, sizeof header);
  load(sealed, host.cache);
}

void saved_sequence_seeds(const std::string& folder) {
  for (std::size_t i = 0; i < std::size(settings); ++i) {
    Host host(settings[i]);
    std::vector<float> row(host.options.heads * host.options.width);
    for (const std::size_t size : {std::size_t{5}, std::size_t{70}}) {
      while (host.cache.size() < size) {
        for (std::size_t c = 0; c < row.size(); ++c) {
          row[c] = static_cast<float>((host.cache.size() * 7 + c * 5) % 13) - 6.0f;
        }
        const auto one = cbq::matrix_view<const float>(row.data(), 1, row.size());
        require(bool(host.cache.append(one, one)));
      }
      const auto bytes = cbq::saved_sequence_size(host.cache);
      require(bool(bytes));
      std::vector<std::byte> seed(*bytes + 1);
      seed.front() = static_cast<std::byte>(i);
      require(bool(cbq::save_sequence(host.cache, std::span(seed).subspan(1))));
      write_seed(folder + "/" + settings[i].scheme + "_" + std::to_string(size), seed);
    }
  }
}

}  // namespace fuzz
