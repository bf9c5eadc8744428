// SPDX-License-Identifier: Apache-2.0

// Attention with one library: layers of 32 query heads of 128 elements, as in LLaMA 2 7B and LLaMA 3 8B, over the same
// floats for all libraries, checked against double precision.

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "attention_peer.hpp"

namespace peers {
namespace {

double dot(const float* a, const float* b, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

class Attention final : public Session {
 public:
  std::string name() const override { return peer_->name(); }
  std::vector<FormatName> formats() const override { return peer_->formats(); }

  std::size_t prepare(std::size_t format, std::size_t kv_heads, std::size_t context) override {
    if (kv_heads != shape_.kv_heads || context != shape_.context) {
      if (kv_heads == 0 || shape_.heads % kv_heads != 0) throw std::runtime_error("key/value heads must divide 32");
      caches_.clear();
      shape_.kv_heads = kv_heads;
      shape_.context = context;
      keys_ = normal_floats(KeysValues::distinct * shape_.kv_columns(), 1, 1.0f);
      values_ = normal_floats(KeysValues::distinct * shape_.kv_columns(), 2, 1.0f);
    }
    caches_[format] = peer_->prepare(format, shape_, {.keys = keys_.data(), .values = values_.data()});
    return caches_[format]->bytes();
  }

  /// The root of the mean square of the difference to attention over the floats, relative.
  double warm(std::size_t format, std::size_t rows, std::size_t threads) override {
    const std::size_t count = rows * shape_.columns();
    if (q_.size() < count) q_ = normal_floats(count, 3, 1.0f);
    if (out_.size() < count) out_ = floats(count);
    std::fill_n(out_.data(), count, 0.0f);
    run(format, rows, threads);
    double difference = 0, size = 0;
    for (std::size_t row = 0; row < rows; row += std::max<std::size_t>(1, rows / 3)) {
      for (std::size_t head = 0; head < shape_.heads; ++head) {
        const std::vector<double> wanted = expected(row, head, shape_.context - rows + row + 1);
        const float* got = out_.data() + row * shape_.columns() + head * shape_.width;
        for (std::size_t i = 0; i < shape_.width; ++i) {
          difference += (double{got[i]} - wanted[i]) * (double{got[i]} - wanted[i]);
          size += wanted[i] * wanted[i];
        }
      }
    }
    const double error = std::sqrt(difference / size);
    return std::isfinite(error) ? error : 1e9;
  }

  std::size_t run(std::size_t format, std::size_t rows, std::size_t threads) override {
    caches_.at(format)->run({.q = q_.data(), .out = out_.data(), .rows = rows, .threads = threads});
    return 1;
  }

  void drop() override { caches_.clear(); }

 private:
  /// Equal positions have equal scores: each distinct one is counted as often as it is seen.
  std::vector<double> expected(std::size_t row, std::size_t head, std::size_t visible) const {
    const std::size_t width = shape_.width;
    const std::size_t offset = head / (shape_.heads / shape_.kv_heads) * width;
    const float* q = q_.data() + row * shape_.columns() + head * width;
    const std::size_t count = std::min(visible, KeysValues::distinct);
    std::vector<double> scores(count);
    double most = -std::numeric_limits<double>::infinity();
    for (std::size_t p = 0; p < count; ++p) {
      const float* key = keys_.data() + p * shape_.kv_columns() + offset;
      scores[p] = dot(q, key, width) / std::sqrt(static_cast<double>(width));
      most = std::max(most, scores[p]);
    }
    std::vector<double> result(width);
    double total = 0;
    for (std::size_t p = 0; p < count; ++p) {
      const auto times = static_cast<double>((visible - 1 - p) / KeysValues::distinct + 1);
      const double weight = times * std::exp(scores[p] - most);
      const float* value = values_.data() + p * shape_.kv_columns() + offset;
      for (std::size_t i = 0; i < width; ++i) result[i] += weight * double{value[i]};
      total += weight;
    }
    for (double& element : result) element /= total;
    return result;
  }

  std::unique_ptr<AttentionPeer> peer_ = make_attention_peer();
  AttentionShape shape_{.heads = 32, .width = 128};
  std::map<std::size_t, std::unique_ptr<AttentionCache>> caches_;
  Floats keys_, values_, q_, out_;
};

}  // namespace

std::unique_ptr<Session> make_session() {
  return std::make_unique<Attention>();
}

}  // namespace peers
