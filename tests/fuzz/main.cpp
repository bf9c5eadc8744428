// SPDX-License-Identifier: Apache-2.0

// One program for all targets: `cbq_fuzz --target=gguf corpus/gguf`, otherwise libFuzzer's own command line; and
// `cbq_fuzz --seeds=FOLDER` and `cbq_fuzz --describe FILE...`.

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include <sys/mman.h>
#include <unistd.h>

#include "targets.hpp"

namespace fuzz {

MemoryFile::MemoryFile()
    : descriptor_(::memfd_create("input", 0)), path_("/proc/self/fd/" + std::to_string(descriptor_)) {
  require(descriptor_ >= 0);
}
MemoryFile::~MemoryFile() {
  ::close(descriptor_);
}
void MemoryFile::write(Bytes bytes) const {
  require(::ftruncate(descriptor_, 0) == 0);
  require(::pwrite(descriptor_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
}

void write_seed(const std::string& path, Bytes bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace fuzz

namespace {

const fuzz::Target* chosen = nullptr;

[[noreturn]] void write_seeds(const std::filesystem::path& folder) {
  for (const fuzz::Target& target : fuzz::targets) {
    if (target.seeds == nullptr) continue;
    std::filesystem::create_directories(folder / target.name);
    target.seeds((folder / target.name).string());
  }
  std::exit(0);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* count, char*** arguments) {
  constexpr std::string_view option = "--target=";
  for (int i = 1; i < *count; ++i) {
    const std::string_view argument = (*arguments)[i];
    constexpr std::string_view seeds = "--seeds=";
    if (argument.starts_with(seeds)) write_seeds(argument.substr(seeds.size()));
    if (argument == "--describe") {
      fuzz::describe(std::span(*arguments, static_cast<std::size_t>(*count)).subspan(static_cast<std::size_t>(i) + 1));
      std::exit(0);
    }
    if (!argument.starts_with(option)) continue;
    for (const fuzz::Target& target : fuzz::targets) {
      if (argument.substr(option.size()) == target.name) chosen = &target;
    }
  }
  if (chosen != nullptr) return 0;
  std::fprintf(stderr, "cbq_fuzz: name a target with --target=, one of");
  for (const fuzz::Target& target : fuzz::targets) std::fprintf(stderr, " %s", target.name);
  std::fprintf(stderr, "\n");
  std::exit(2);
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  chosen->run(std::as_bytes(std::span(data, size)));
  return 0;
}
