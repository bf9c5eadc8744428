// SPDX-License-Identifier: Apache-2.0
#pragma once

// FileBytes: the bytes of a whole regular file, read-only, either mapped or read into memory.
//
// Mapping costs no time and no memory of its own, and is right for files that nobody changes in place (replacing one by
// rename is fine: the mapping keeps the old file). What a mapping promises, and what it cannot:
//
//   map    A file that another process writes to or truncates changes or loses bytes under its reader.
//   check_unchanged()
//          finds that before and after use. Between two checks it does not: bytes may be new, though no reader of cbq
//          leaves its bounds for that, and touching a page that was cut off ends the process with SIGBUS, which a
//          library cannot turn into an Error. For folders that somebody writes to, network folders, downloads: `read`.
//   read   The file is copied once, and the copy is refused if the file changed meanwhile: safe ever after.

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <span>
#include <string>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cbq/core/aligned.hpp>
#include <cbq/io/system_error.hpp>

namespace cbq {

/// How a file reaches memory.
enum class FileMode : unsigned char {
  map,   ///< mapped read-only: no copy; the file must not change while it is in use
  read,  ///< copied into memory: safe whatever happens to the file
};

inline namespace CBQ_ABI {

class FileBytes {
 public:
  FileBytes() noexcept = default;
  FileBytes(FileBytes&& other) noexcept
      : memory_(std::move(other.memory_)),
        mapping_(std::exchange(other.mapping_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        modified_(other.modified_),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  FileBytes& operator=(FileBytes&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(mapping_, other.mapping_);
    std::swap(size_, other.size_);
    std::swap(modified_, other.modified_);
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;
  ~FileBytes() {
    if (mapping_ != nullptr) ::munmap(mapping_, size_);
    if (descriptor_ >= 0) ::close(descriptor_);
  }

  /// Opens the regular file `path`. Errc::io with the reason of the system; Errc::bad_file when it is no regular file
  /// or it changes meanwhile or is above `largest` bytes; Errc::out_of_memory.
  [[nodiscard]] static Result<FileBytes> open(const std::string& path, FileMode mode = FileMode::map,
                                              std::size_t largest = ~std::size_t{0}) {
    FileBytes file;
    file.descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe must not block the caller
    if (file.descriptor_ < 0) return system_error("cannot open the file", path, errno);
    struct stat status = {};
    if (::fstat(file.descriptor_, &status) != 0) return system_error("cannot ask for the file's size", path, errno);
    if (!S_ISREG(status.st_mode)) {
      return Error{Errc::bad_file, "not a regular file", path,
                   S_ISDIR(status.st_mode) ? "a folder" : "a device or a pipe"};
    }
    file.size_ = static_cast<std::size_t>(status.st_size);
    file.modified_ = status.st_mtim;
    if (file.size_ > largest) {
      return Error{Errc::bad_file, "the file is too large", path, ErrorText(file.size_) << " bytes",
                   ErrorText("at most ") << largest};
    }
    const Status filled = mode == FileMode::map ? file.map(path) : file.read(path);
    if (!filled) return filled.error();
    if (const Status same = file.check_unchanged(path); !same) return same.error();
    return file;
  }

  /// The bytes; valid as long as this object (moving it keeps them where they are).
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    const void* start = mapping_ != nullptr ? mapping_ : static_cast<const void*>(memory_.data());
    return {static_cast<const std::byte*>(start), size_};
  }

  /// Lets go of the memory that holds `part` of these bytes, for a pass over a file that shall not stay resident. They
  /// can be used again and are then read from the file again. Does nothing where the bytes were copied.
  void release(std::span<const std::byte> part) const noexcept {
    constexpr std::uintptr_t piece = std::uintptr_t{1} << 16;  // what a page fault brings in, and whole pages anywhere
    const auto start = reinterpret_cast<std::uintptr_t>(mapping_);
    const auto first = reinterpret_cast<std::uintptr_t>(part.data());
    if (mapping_ == nullptr || first < start || first - start > size_ || part.size() > size_ - (first - start)) return;
    const std::uintptr_t begin = (first - start) / piece * piece;
    const std::uintptr_t end = first - start + part.size();
    const std::uintptr_t last = size_ - end < piece ? size_ : (end + piece - 1) / piece * piece;
    if (last > begin) (void)::madvise(static_cast<std::byte*>(mapping_) + begin, last - begin, MADV_DONTNEED);
  }

  /// Asks the system again whether the file still has the size and the time of its last change that it was opened with:
  /// Errc::bad_file. `path` is for the error only. A microsecond; right before and after a mapping is relied on.
  [[nodiscard]] Status check_unchanged(std::string_view path) const noexcept {
    struct stat status = {};
    if (::fstat(descriptor_, &status) != 0) return system_error("cannot ask for the file's size", path, errno);
    if (static_cast<std::size_t>(status.st_size) != size_) {
      return Error{Errc::bad_file, "the file changed its size while it was in use", path,
                   ErrorText(status.st_size) << " bytes", ErrorText(size_) << " bytes"};
    }
    const timespec& now = status.st_mtim;
    if (now.tv_sec != modified_.tv_sec || now.tv_nsec != modified_.tv_nsec) {
      return Error{Errc::bad_file, "the file was written to while it was in use", path, changed_at(now),
                   changed_at(modified_)};
    }
    return {};
  }

 private:
  static ErrorText changed_at(const timespec& time) noexcept {
    return ErrorText("a change at ") << time.tv_sec << " s and " << time.tv_nsec << " ns";
  }

  Status map(std::string_view path) noexcept {
    if (size_ == 0) return {};
    void* address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor_, 0);
    if (address == MAP_FAILED) return system_error("cannot map the file", path, errno);
    mapping_ = address;
    return {};
  }

  Status read(std::string_view path) noexcept {
    Result<AlignedBuffer<std::byte>> memory = AlignedBuffer<std::byte>::allocate(size_);
    if (!memory) return in_context(memory.error(), path);
    memory_ = std::move(*memory);
    std::size_t done = 0;
    while (done < size_) {
      const ssize_t count = ::read(descriptor_, memory_.data() + done, size_ - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return system_error("cannot read the file", path, errno);
      if (count == 0) {
        return Error{Errc::bad_file, "the file ended early", path, ErrorText(done) << " bytes",
                     ErrorText(size_) << " bytes"};
      }
      done += static_cast<std::size_t>(count);
    }
    return {};
  }

  AlignedBuffer<std::byte> memory_;
  void* mapping_ = nullptr;
  std::size_t size_ = 0;
  timespec modified_ = {};
  int descriptor_ = -1;
};

}  // namespace CBQ_ABI
}  // namespace cbq
