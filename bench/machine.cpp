// SPDX-License-Identifier: Apache-2.0

#include "machine.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <set>
#include <thread>

namespace bench {

namespace {

constexpr std::size_t mebibyte = std::size_t{1} << 20;

/// First word of a small file such as those of sysfs; empty where it cannot be read.
std::string read_word(const std::string& path) {
  std::string word;
  std::ifstream(path) >> word;
  return word;
}

/// "32768K" or "32M" in bytes; 0 for anything else.
std::size_t parse_cache_size(const std::string& text) {
  char* end = nullptr;
  const unsigned long long number = std::strtoull(text.c_str(), &end, 10);
  switch (*end) {
    case 'K':
      return static_cast<std::size_t>(number) << 10;
    case 'M':
      return static_cast<std::size_t>(number) << 20;
    default:
      return static_cast<std::size_t>(number);
  }
}

}  // namespace

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

std::string compiler_name() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

std::size_t last_level_cache_bytes() {
  int highest = 0;
  std::size_t bytes = 0;
  std::set<std::string> seen;  // caches of the highest level, named by the processors that share them
  for (std::size_t cpu = 0; cpu < 1024; ++cpu) {
    const std::string folder = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/cache/index";
    for (std::size_t index = 0; index < 8; ++index) {
      const std::string cache = folder + std::to_string(index);
      const int level = std::atoi(read_word(cache + "/level").c_str());
      if (level == 0) break;
      if (level > highest) {
        highest = level;
        bytes = 0;
        seen.clear();
      }
      if (level == highest && read_word(cache + "/type") != "Instruction" &&
          seen.insert(read_word(cache + "/shared_cpu_list")).second) {
        bytes += parse_cache_size(read_word(cache + "/size"));
      }
    }
  }
  return bytes != 0 ? bytes : 32 * mebibyte;
}

std::size_t rotation_bytes() {
  return std::clamp(2 * last_level_cache_bytes(), 128 * mebibyte, 512 * mebibyte);
}

std::size_t processor_count() {
  return std::max<std::size_t>(1, std::thread::hardware_concurrency());
}

std::vector<std::size_t> thread_counts() {
  std::vector<std::size_t> counts{1};
#if defined(_OPENMP)
  const std::size_t most = processor_count();
  for (std::size_t count = 2; count < most; count *= 2) counts.push_back(count);
  if (most > 1) counts.push_back(most);
#endif
  return counts;
}

cbq::Result<cbq::Isa> isa_cap() {
  const char* name = std::getenv("CBQ_ISA");
  if (name == nullptr || *name == '\0') return cbq::detect();
  const cbq::Result<cbq::Isa> isa = cbq::parse_isa(name);
  if (!isa) return isa.error();
  return cbq::capped(*isa);
}

std::vector<cbq::Isa> instruction_sets(cbq::Isa cap) {
  std::vector<cbq::Isa> sets;
  for (const cbq::Isa isa : cbq::all_isas) {
    if (isa <= cap && cbq::capped(isa) == isa) sets.push_back(isa);
  }
  return sets;
}

}  // namespace bench
