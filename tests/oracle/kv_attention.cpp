// SPDX-License-Identifier: Apache-2.0
#include "oracle/kv_attention.hpp"

#include <cmath>
#include <cstdint>

namespace oracle {
namespace {

constexpr std::size_t longest_group = 128;

/// Channels of group `group`, of at most 128 each.
std::size_t group_width(const KvPage& page, std::size_t group) {
  const std::size_t left = page.width - group * longest_group;
  return left < longest_group ? left : longest_group;
}

std::size_t groups_of(const KvPage& page) {
  return (page.width + longest_group - 1) / longest_group;
}

std::size_t key_blocks_before(const KvPage& page, std::size_t group) {
  std::size_t blocks = 0;
  for (std::size_t g = 0; g < group; ++g) blocks += (group_width(page, g) + 31) / 32;
  return blocks;
}

std::size_t key_bytes(const KvPage& page) {
  const std::size_t blocks = key_blocks_before(page, groups_of(page));
  const std::size_t headers = page.channel_keys ? blocks * 32 * 4 : 4 * groups_of(page) * 16 * 4;
  return headers + 4 * blocks * page.bits * 64;
}

std::size_t value_group_bytes(const KvPage& page, std::size_t group) {
  return 64 * 4 + (group_width(page, group) + 15) / 16 * 2 * page.bits * 64;
}

unsigned bit(const std::byte* line, std::size_t byte, std::size_t index) {
  return (std::to_integer<unsigned>(line[byte]) >> index) & 1u;
}

/// Code of one output and input of a block, bit by bit.
double block_code_at(const std::byte* block, std::size_t bits, std::size_t output, std::size_t input) {
  const std::size_t byte = 4 * output + input % 4;
  const std::size_t step = input / 4;
  unsigned code = 0;
  if (bits == 3) {
    code = bit(block + step / 4 * 64, byte, 2 * (step % 4)) + 2 * bit(block + step / 4 * 64, byte, 2 * (step % 4) + 1) +
           4 * bit(block + 2 * 64, byte, step);
  } else {
    const std::size_t steps_per_line = 8 / bits;
    for (std::size_t b = 0; b < bits; ++b) {
      code += bit(block + step / steps_per_line * 64, byte, bits * (step % steps_per_line) + b) << b;
    }
  }
  return static_cast<double>(code);
}

double half_at(const std::byte* from) {
  const unsigned bits = std::to_integer<unsigned>(from[0]) + 256 * std::to_integer<unsigned>(from[1]);
  const int exponent = static_cast<int>((bits >> 10) & 31u);
  const double mantissa = static_cast<double>(bits & 1023u) / 1024;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -14) : std::ldexp(1 + mantissa, exponent - 15);
  return bits >= 0x8000u ? -magnitude : magnitude;
}

}  // namespace

std::size_t kv_head_bytes(const KvPage& page) {
  std::size_t bytes = key_bytes(page);
  for (std::size_t g = 0; g < groups_of(page); ++g) bytes += value_group_bytes(page, g);
  return bytes;
}

double decoded_key(const KvPage& page, std::size_t head, std::size_t position, std::size_t channel) {
  const std::byte* keys = page.bytes + head * kv_head_bytes(page);
  const std::size_t group = channel / longest_group;
  const std::size_t blocks = key_blocks_before(page, groups_of(page));
  const std::size_t block = key_blocks_before(page, group) + channel % longest_group / 32;
  const std::size_t header = page.channel_keys ? 0 : groups_of(page) * 16 * 4;
  const std::size_t in_front = page.channel_keys ? blocks * 32 * 4 : 0;
  const std::byte* panel = keys + in_front + position / 16 * (header + blocks * page.bits * 64);
  const double code =
      block_code_at(panel + header + block * page.bits * 64, page.bits, position % 16, channel % longest_group % 32);
  if (page.channel_keys) {
    const std::size_t padded = key_blocks_before(page, group) * 32 + channel % longest_group;
    return half_at(keys + 2 * padded) * code + half_at(keys + blocks * 32 * 2 + 2 * padded);
  }
  const std::byte* scales = panel + group * 16 * 4;
  return half_at(scales + 2 * (position % 16)) * code + half_at(scales + 32 + 2 * (position % 16));
}

double decoded_value(const KvPage& page, std::size_t head, std::size_t position, std::size_t channel) {
  const std::byte* group = page.bytes + head * kv_head_bytes(page) + key_bytes(page);
  for (std::size_t g = 0; g < channel / longest_group; ++g) group += value_group_bytes(page, g);
  const std::size_t inside = channel % longest_group;
  const std::byte* block = group + 64 * 4 + (inside / 16 * 2 + position / 32) * page.bits * 64;
  const double code = block_code_at(block, page.bits, inside % 16, position % 32);
  return half_at(group + 2 * position) * code + half_at(group + 64 * 2 + 2 * position);
}

KvRows decoded_rows(const std::vector<KvPage>& pages, std::size_t head, std::size_t positions) {
  const std::size_t width = pages.empty() ? 0 : pages.front().width;
  KvRows rows{Matrix(positions, width), Matrix(positions, width)};
  for (std::size_t p = 0; p < positions; ++p) {
    for (std::size_t c = 0; c < width; ++c) {
      rows.keys(p, c) = decoded_key(pages[p / 64], head, p % 64, c);
      rows.values(p, c) = decoded_value(pages[p / 64], head, p % 64, c);
    }
  }
  return rows;
}

Matrix attention_over(const Matrix& queries, const KvRows& rows, double scale,
                      const std::function<bool(std::size_t, std::size_t)>& sees, const std::vector<double>& slopes) {
  Matrix out(queries.rows, rows.values.columns);
  for (std::size_t r = 0; r < queries.rows; ++r) {
    std::vector<double> weights(rows.keys.rows, 0.0);
    double best = -INFINITY;
    double total = 0;
    for (std::size_t p = 0; p < weights.size(); ++p) {
      if (!sees(r, p)) continue;
      for (std::size_t c = 0; c < queries.columns; ++c) weights[p] += scale * queries(r, c) * rows.keys(p, c);
      if (!slopes.empty()) weights[p] += slopes[r] * static_cast<double>(p);
      best = std::fmax(best, weights[p]);
    }
    for (std::size_t p = 0; p < weights.size(); ++p) {
      weights[p] = sees(r, p) ? std::exp(weights[p] - best) : 0.0;
      total += weights[p];
    }
    for (std::size_t p = 0; p < weights.size(); ++p) {
      for (std::size_t c = 0; c < out.columns; ++c) out(r, c) += weights[p] / total * rows.values(p, c);
    }
  }
  return out;
}

}  // namespace oracle
