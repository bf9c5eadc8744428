// SPDX-License-Identifier: Apache-2.0

// A host with a key/value cache and an attention of its own that takes only the codec from cbq: every row of keys and
// values is stored as bytes, and decoded where attention reads it. One head, decoded token by token; what is current
// stays exact, what is past is quantized.

#include <algorithm>
#include <cbq/kv/affine_group.hpp>
#include <cmath>
#include <cstdio>
#include <random>
#include <span>
#include <vector>

namespace {

constexpr std::size_t width = 64;
constexpr std::size_t tokens = 200;
using Row = std::vector<float>;

/// Past rows, in memory of the host's liking: here one vector.
class Rows {
 public:
  cbq::Status append(const Row& row) {
    const std::size_t end = bytes_.size();
    bytes_.resize(end + row_bytes);
    return codec.encode(row, std::span(bytes_).subspan(end));
  }
  cbq::Status read(std::size_t index, Row& row) const {
    return codec.decode(std::span(bytes_).subspan(index * row_bytes, row_bytes), row);
  }
  [[nodiscard]] std::size_t size() const { return bytes_.size() / row_bytes; }
  [[nodiscard]] std::size_t bytes() const { return bytes_.size(); }

 private:
  static constexpr cbq::AffineGroupCodec<4> codec{.group = width};
  static constexpr std::size_t row_bytes = *codec.row_bytes(width);

  std::vector<std::byte> bytes_;
};

/// Softmax attention of one query: add() a key and value at a time, then result().
class Attention {
 public:
  explicit Attention(const Row& query) : query_(query), sum_(width) {}
  void add(const Row& key, const Row& value) {
    float score = 0;
    for (std::size_t i = 0; i < width; ++i) score += query_[i] * key[i];
    score /= std::sqrt(static_cast<float>(width));
    const float maximum = std::max(maximum_, score);
    const float old = std::exp(maximum_ - maximum), weight = std::exp(score - maximum);
    for (std::size_t i = 0; i < width; ++i) sum_[i] = sum_[i] * old + weight * value[i];
    weights_ = weights_ * old + weight;
    maximum_ = maximum;
  }
  [[nodiscard]] Row result() const {
    Row out = sum_;
    for (float& x : out) x /= weights_;
    return out;
  }

 private:
  Row query_;
  Row sum_;
  float weights_ = 0;
  float maximum_ = -1e30f;
};

Row random_row(std::mt19937& random, float deviation) {
  std::normal_distribution<float> normal(0.0f, deviation);
  Row row(width);
  for (float& x : row) x = normal(random);
  return row;
}

/// Decodes the tokens; largest is the largest difference to attention on floats.
cbq::Status decode(Rows& keys, Rows& values, float& largest) {
  std::mt19937 random(1);
  std::vector<Row> exact_keys, exact_values;
  Row key(width), value(width);
  for (std::size_t t = 0; t < tokens; ++t) {
    const Row query = random_row(random, 1), current_key = random_row(random, 1), current_value = random_row(random, 1);
    Attention quantized(query), exact(query);
    for (std::size_t past = 0; past < keys.size(); ++past) {
      if (const cbq::Status read = keys.read(past, key); !read) return read;
      if (const cbq::Status read = values.read(past, value); !read) return read;
      quantized.add(key, value);
      exact.add(exact_keys[past], exact_values[past]);
    }
    quantized.add(current_key, current_value);
    exact.add(current_key, current_value);
    const Row a = quantized.result(), b = exact.result();
    for (std::size_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
    // The token is past now. A key or value that is not finite is refused here.
    if (const cbq::Status written = keys.append(current_key); !written) return written;
    if (const cbq::Status written = values.append(current_value); !written) return written;
    exact_keys.push_back(current_key);
    exact_values.push_back(current_value);
  }
  return {};
}

}  // namespace

int main() {
  Rows keys, values;
  float largest = 0;
  if (const cbq::Status done = decode(keys, values, largest); !done) {
    std::fprintf(stderr, "%s\n", done.error().what);
    return 1;
  }
  const std::size_t half_bytes = 2 * tokens * width * 2;
  std::printf("%zu tokens in %zu bytes instead of %zu as half; the largest error of attention is %.3f\n", tokens,
              keys.bytes() + values.bytes(), half_bytes, static_cast<double>(largest));
  return largest < 0.3f ? 0 : 1;
}
