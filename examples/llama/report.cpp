// SPDX-License-Identifier: Apache-2.0
#include "report.hpp"

#include <cmath>
#include <cstdio>

#include <sys/resource.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace cbq_llama {

namespace {

template <class T>
cbq::Json optional_json(const std::optional<T>& value) {
  if constexpr (std::is_floating_point_v<T>) {
    if (value && !std::isfinite(*value)) return nullptr;  // JSON has no infinity
  }
  return value ? cbq::Json(*value) : cbq::Json(nullptr);
}

cbq::Json text_json(const std::string& text) {
  return text.empty() ? cbq::Json(nullptr) : cbq::Json(text);
}

}  // namespace

cbq::Json to_json(const Report& report) {
  return {{"model", text_json(report.model)},
          {"scheme", text_json(report.scheme)},
          {"method", text_json(report.method)},
          {"isa", text_json(report.isa)},
          {"threads", optional_json(report.threads)},
          {"perplexity", optional_json(report.perplexity)},
          {"nll", optional_json(report.nll)},
          {"nll_stderr", optional_json(report.nll_stderr)},
          {"windows", optional_json(report.windows)},
          {"tokens", optional_json(report.tokens)},
          {"context", optional_json(report.context)},
          {"kl_mean", optional_json(report.kl_mean)},
          {"kl_p99", optional_json(report.kl_p99)},
          {"top1_agreement", optional_json(report.top1_agreement)},
          {"probability_error_rms", optional_json(report.probability_error_rms)},
          {"bits_per_weight", optional_json(report.bits_per_weight)},
          {"file_bytes", optional_json(report.file_bytes)},
          {"peak_memory_bytes", optional_json(report.peak_memory_bytes)},
          {"prompt_tokens_per_second", optional_json(report.prompt_tokens_per_second)},
          {"new_tokens_per_second", optional_json(report.new_tokens_per_second)},
          {"seed", optional_json(report.seed)},
          {"calibration_tokens", optional_json(report.calibration_tokens)},
          {"kv_scheme", text_json(report.kv_scheme)},
          {"kv_bytes_per_token", optional_json(report.kv_bytes_per_token)},
          {"kv_rope", optional_json(report.kv_rope)},
          {"kv_sinks", optional_json(report.kv_sinks)},
          {"kv_recent", optional_json(report.kv_recent)},
          {"attention", text_json(report.attention)},
          {"softmax", text_json(report.softmax)},
          {"seconds", optional_json(report.seconds)}};
}

std::optional<std::size_t> peak_memory_bytes() {
  rusage usage = {};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return std::nullopt;
#if defined(__APPLE__)
  return static_cast<std::size_t>(usage.ru_maxrss);
#else
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
#endif
}

bool restart_peak_memory() {
#if defined(__linux__)
#if defined(__GLIBC__)
  (void)::malloc_trim(0);
#endif
  std::FILE* file = std::fopen("/proc/self/clear_refs", "w");
  if (file == nullptr) return false;
  const bool written = std::fputs("5", file) >= 0;  // 5: reset the high-water mark
  return std::fclose(file) == 0 && written;
#else
  return false;
#endif
}

std::string size_text(std::size_t bytes) {
  constexpr const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(units)) {
    value /= 1000;
    ++unit;
  }
  char text[48] = {};
  (void)std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.3g %s", value, units[unit]);
  return text;
}

}  // namespace cbq_llama
