// SPDX-License-Identifier: Apache-2.0
#pragma once

// What tests of file formats share: a scratch folder, bytes that end at an unreadable page, a builder of binary
// headers, and the text of errors.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include <cbq/core/result.hpp>

namespace support {

/// A folder of its own for one test, removed afterwards.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "cbq-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  [[nodiscard]] std::string path() const { return path_.string(); }
  [[nodiscard]] std::string operator/(std::string_view name) const { return (path_ / name).string(); }
  [[nodiscard]] std::size_t entries() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::filesystem::path path_;
};

inline void write_text(const std::string& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
}

inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// A copy of bytes whose end is the end of readable memory: one read too far is a crash.
class GuardedBytes {
 public:
  explicit GuardedBytes(std::span<const std::byte> content) : size_(content.size()) {
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const std::size_t readable = (size_ + page - 1) / page * page;
    mapped_ = readable + page;
    start_ = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start_ == MAP_FAILED) std::abort();
    bytes_ = static_cast<std::byte*>(start_) + (readable - size_);
    if (size_ != 0) std::memcpy(bytes_, content.data(), size_);
    if (::mprotect(static_cast<std::byte*>(start_) + readable, page, PROT_NONE) != 0) std::abort();
  }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { ::munmap(start_, mapped_); }

  [[nodiscard]] std::span<const std::byte> bytes() const { return {bytes_, size_}; }

 private:
  void* start_ = nullptr;
  std::byte* bytes_ = nullptr;
  std::size_t size_;
  std::size_t mapped_ = 0;
};

/// Appends numbers and texts as little-endian bytes.
class ByteBuilder {
 public:
  template <class T>
  ByteBuilder& add(T number) {
    const auto* from = reinterpret_cast<const std::byte*>(&number);
    bytes_.insert(bytes_.end(), from, from + sizeof number);
    return *this;
  }
  ByteBuilder& text(std::string_view characters) {
    for (const char c : characters) bytes_.push_back(static_cast<std::byte>(c));
    return *this;
  }
  /// A u64 length, then the text.
  ByteBuilder& counted(std::string_view characters) {
    return add(static_cast<std::uint64_t>(characters.size())).text(characters);
  }
  ByteBuilder& zeros(std::size_t count) {
    bytes_.resize(bytes_.size() + count);
    return *this;
  }
  ByteBuilder& align(std::size_t alignment) { return zeros((alignment - bytes_.size() % alignment) % alignment); }
  [[nodiscard]] const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

/// "where: what (got X, wanted Y)".
inline std::string message(const cbq::Error& error) {
  std::string text;
  cbq::append_message(text, error);
  return text;
}

/// The message of a result, or "success".
template <class T>
std::string message(const cbq::Result<T>& result) {
  return result ? "success" : message(result.error());
}

}  // namespace support
