// SPDX-License-Identifier: Apache-2.0

// Products with one library: the same floats for all of them, checked against double precision.

#include <algorithm>
#include <cmath>
#include <map>

#include "peer.hpp"
#include "session.hpp"

namespace peers {
namespace {

double norm(const float* values, std::size_t count) {
  double sum = 0;
  for (std::size_t i = 0; i < count; ++i) sum += double{values[i]} * double{values[i]};
  return std::sqrt(sum);
}

float largest(const float* values, std::size_t count) {
  float most = 0;
  for (std::size_t i = 0; i < count; ++i) most = std::max(most, std::abs(values[i]));
  return most;
}

/// Standard deviation of one output's error when each activation of the row is rounded as the format does.
double expected_error(Activations activations, const float* x, const float* w, std::size_t k) {
  const double length = norm(w, k);
  switch (activations) {
    case Activations::given_int8:
    case Activations::int8:
      return double{largest(x, k)} / 127 / std::sqrt(12.0) * length;
    case Activations::bfloat16:  // both operands
      return 0x1p-8 * length * norm(x, k) / std::sqrt(static_cast<double>(k));
    case Activations::float32:
      return 0x1p-20 * length * norm(x, k);
  }
  return 0;
}

class Products final : public Session {
 public:
  std::string name() const override { return peer_->name(); }

  std::vector<FormatName> formats() const override {
    std::vector<FormatName> names;
    for (const Format& format : formats_) names.push_back({format.name, format.family});
    return names;
  }

  std::size_t prepare(std::size_t format, std::size_t n, std::size_t k) override {
    if (n != n_ || k != k_) {
      matrices_.clear();
      values_ = normal_floats(Weights::distinct_rows * k, 1, 0.02f);
      n_ = n;
      k_ = k;
    }
    matrices_[format] = peer_->prepare(format, {.outputs = n, .inputs = k, .values = values_.data()});
    return matrices_[format]->bytes();
  }

  double warm(std::size_t format, std::size_t m, std::size_t threads) override {
    if (x_.size() < m * k_) x_ = normal_floats(m * k_, 2, 1.0f);
    if (y_.size() < m * n_) y_ = floats(m * n_);
    std::fill_n(y_.data(), m * n_, 0.0f);
    run(format, m, threads);
    return largest_error(format, m);
  }

  std::size_t run(std::size_t format, std::size_t m, std::size_t threads) override {
    return matrices_.at(format)->run({.x = x_.data(), .y = y_.data(), .m = m, .threads = threads});
  }

  void drop() override { matrices_.clear(); }

 private:
  /// Of some outputs of some rows, in units of the expected deviation: below 6 unless something is wrong.
  double largest_error(std::size_t format, std::size_t m) const {
    std::vector<float> w(k_);
    double worst = 0;
    for (std::size_t output = 0; output < Weights::distinct_rows; output += 3) {
      matrices_.at(format)->dequantize(output, w.data());
      for (std::size_t row = 0; row < m; row += std::max<std::size_t>(1, m / 5)) {
        const float* x = x_.data() + row * k_;
        double sum = 0;
        for (std::size_t i = 0; i < k_; ++i) sum += double{x[i]} * double{w[i]};
        const double expected = expected_error(formats_[format].activations, x, w.data(), k_);
        const std::size_t last = output + (n_ - 1 - output) / Weights::distinct_rows * Weights::distinct_rows;
        for (const std::size_t n : {output, last}) {
          const double error = std::abs(double{y_.data()[row * n_ + n]} - sum) / expected;
          if (!(error <= worst)) worst = error;
        }
      }
    }
    return std::isfinite(worst) ? worst : 1e9;
  }

  std::unique_ptr<Peer> peer_ = make_peer();
  std::vector<Format> formats_ = peer_->formats();
  std::map<std::size_t, std::unique_ptr<Matrix>> matrices_;
  std::size_t n_ = 0;
  std::size_t k_ = 0;
  Floats values_, x_, y_;
};

}  // namespace

std::unique_ptr<Session> make_session() {
  return std::make_unique<Products>();
}

}  // namespace peers
