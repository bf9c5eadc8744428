// SPDX-License-Identifier: Apache-2.0
#include "progress.hpp"

#include <cstdio>
#include <utility>

#include <unistd.h>

namespace cbq_llama {

namespace {

// "1:05" or "2:03:09".
std::string clock_text(double seconds) {
  const auto whole = static_cast<unsigned long long>(seconds + 0.5);
  char text[48] = {};
  if (whole >= 3600) {
    (void)std::snprintf(text, sizeof text, "%llu:%02llu:%02llu", whole / 3600, whole / 60 % 60, whole % 60);
  } else {
    (void)std::snprintf(text, sizeof text, "%llu:%02llu", whole / 60, whole % 60);
  }
  return text;
}

}  // namespace

Progress::Progress(std::string what, std::string unit, std::size_t total)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      start_(Clock::now()),
      last_(start_),
      visible_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (printed_) (void)std::fputs("\r\033[K", stderr);
}

void Progress::update(std::size_t done) {
  const Clock::time_point now = Clock::now();
  if (!visible_ || now - last_ < std::chrono::milliseconds(200)) return;
  last_ = now;
  printed_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done) / seconds;
  std::string left = "?";
  if (done != 0 && done <= total_) left = clock_text(static_cast<double>(total_ - done) / rate);
  (void)std::fprintf(stderr, "\r\033[K%s: %zu of %zu %s, %.4g/s, %s left", what_.c_str(), done, total_, unit_.c_str(),
                     rate, left.c_str());
  (void)std::fflush(stderr);
}

}  // namespace cbq_llama
