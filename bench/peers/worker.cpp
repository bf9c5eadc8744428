// SPDX-License-Identifier: Apache-2.0

// The main of every peer: answers one line of JSON to each line of standard input. compare.py is the other end.
//
//   describe                              name and formats
//   prepare FORMAT N K                    builds cold copies of the matrix; their bytes, or why not
//   warm FORMAT M THREADS                 one untimed run, checked against a product in double precision
//   time FORMAT M THREADS SECONDS         seconds of one product, over at least SECONDS of them
//   drop                                  frees all matrices

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <map>
#include <random>
#include <sstream>

#include <cbq/core/aligned.hpp>

#include "../machine.hpp"
#include "peer.hpp"

namespace peers {

std::size_t copy_count(std::size_t bytes) {
  constexpr std::size_t most = 2000;  // libraries take milliseconds to set up each
  return std::min(most, bench::rotation_bytes() / bytes + 1);
}

namespace {

using Floats = cbq::AlignedBuffer<float>;

Floats floats(std::size_t count) {
  auto made = Floats::allocate(count);
  if (!made) throw std::runtime_error("no memory");
  return std::move(*made);
}

Floats normal_floats(std::size_t count, unsigned seed, float deviation) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  Floats values = floats(count);
  for (std::size_t i = 0; i < count; ++i) values.data()[i] = normal(generator);
  return values;
}

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

class Session {
 public:
  std::string describe() {
    std::string text = "{\"name\":\"" + peer_->name() + "\",\"formats\":[";
    for (const Format& format : formats_) {
      if (text.back() != '[') text += ',';
      text += "{\"name\":\"" + format.name + "\",\"family\":\"" + format.family + "\"}";
    }
    return text + "]}";
  }

  std::string prepare(std::size_t format, std::size_t n, std::size_t k) {
    if (n != n_ || k != k_) {
      matrices_.clear();
      values_ = normal_floats(Weights::distinct_rows * k, 1, 0.02f);
      n_ = n;
      k_ = k;
    }
    matrices_[format] = peer_->prepare(format, {.outputs = n, .inputs = k, .values = values_.data()});
    return "{\"bytes\":" + std::to_string(matrices_[format]->bytes()) + "}";
  }

  std::string warm(std::size_t format, std::size_t m, std::size_t threads) {
    if (x_.size() < m * k_) x_ = normal_floats(m * k_, 2, 1.0f);
    if (y_.size() < m * n_) y_ = floats(m * n_);
    std::fill_n(y_.data(), m * n_, 0.0f);
    matrices_.at(format)->run({.x = x_.data(), .y = y_.data(), .m = m, .threads = threads});
    return "{\"error\":" + std::to_string(largest_error(format, m)) + "}";
  }

  std::string time(std::size_t format, std::size_t m, std::size_t threads, double seconds) {
    using Clock = std::chrono::steady_clock;
    const Product product{.x = x_.data(), .y = y_.data(), .m = m, .threads = threads};
    Matrix& matrix = *matrices_.at(format);
    const auto measure = [&](double least) {
      std::size_t products = 0;
      double elapsed = 0;
      const auto start = Clock::now();
      do {
        products += matrix.run(product);
        elapsed = std::chrono::duration<double>(Clock::now() - start).count();
      } while (elapsed < least);
      return std::pair(elapsed, products);
    };
    // This process was stopped: threads that it wakes may share a processor until the scheduler notices.
    constexpr double long_enough = 0.2;
    auto [elapsed, products] = measure(threads == 1 ? 0.0 : seconds);
    if (elapsed < long_enough) std::tie(elapsed, products) = measure(seconds);
    std::ostringstream text;
    text << "{\"seconds\":" << elapsed / static_cast<double>(products) << ",\"products\":" << products << "}";
    return text.str();
  }

  std::string drop() {
    matrices_.clear();
    return "{}";
  }

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

std::string answer(Session& session, const std::string& line) {
  std::istringstream words(line);
  std::string command;
  std::size_t format = 0, a = 0, b = 0;
  double seconds = 0;
  words >> command;
  if (command == "describe") return session.describe();
  if (command == "drop") return session.drop();
  words >> format >> a >> b;
  if (command == "prepare" && words) return session.prepare(format, a, b);
  if (command == "warm" && words) return session.warm(format, a, b);
  words >> seconds;
  if (command == "time" && words) return session.time(format, a, b, seconds);
  throw std::runtime_error("not a command: " + line);
}

std::string quoted(std::string text) {
  for (char& character : text) {
    if (character == '"' || character == '\\' || static_cast<unsigned char>(character) < ' ') character = ' ';
  }
  return "\"" + text + "\"";
}

}  // namespace
}  // namespace peers

int main() {
  // Libraries print to standard output what they like: answers are lines that start with '='.
  peers::Session session;
  for (std::string line; std::getline(std::cin, line);) {
    std::string reply;
    try {
      reply = peers::answer(session, line);
    } catch (const std::exception& error) {
      reply = "{\"failed\":" + peers::quoted(error.what()) + "}";
    }
    std::cout << "=" << reply << std::endl;
  }
}
