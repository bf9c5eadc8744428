// SPDX-License-Identifier: Apache-2.0
#pragma once

// One line on standard error that says how far a long loop is, how fast, and how long it will take; only where standard
// error is a terminal. For one thread.

#include <chrono>
#include <cstddef>
#include <string>

namespace cbq_llama {

class Progress {
 public:
  /// `what` is a verb with its object ("evaluating w4a8_g128"), `unit` what is counted ("tokens").
  Progress(std::string what, std::string unit, std::size_t total);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// Wipes the line.
  ~Progress();

  /// `done` of the total are done; prints at most a few times per second.
  void update(std::size_t done);

 private:
  using Clock = std::chrono::steady_clock;

  std::string what_;
  std::string unit_;
  std::size_t total_;
  Clock::time_point start_;
  Clock::time_point last_;
  bool visible_;
  bool printed_ = false;
};

}  // namespace cbq_llama
