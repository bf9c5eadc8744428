// SPDX-License-Identifier: Apache-2.0
#pragma once

// ScratchFile: memory that lies in a temporary file instead of the process's own, for large arrays that are visited
// now and then. The system writes pages back and drops them where memory is short. The file has no name as soon as it
// is open, so nothing is left behind however the process ends; its disk space is reserved at once, so that a full disk
// is an Error and not a signal later.

#include <cerrno>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/io/atomic_file.hpp>
#include <cbq/io/system_error.hpp>

namespace cbq {
inline namespace CBQ_ABI {

class ScratchFile {
 public:
  ScratchFile() noexcept = default;
  ScratchFile(ScratchFile&& other) noexcept
      : mapping_(std::exchange(other.mapping_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  ScratchFile& operator=(ScratchFile&& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(size_, other.size_);
    return *this;
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile() {
    if (mapping_ != nullptr) ::munmap(mapping_, size_);
  }

  /// `size` zero bytes in a file in the folder of `path`. Errc::io with the reason of the system: no such folder, no
  /// space, no memory for the mapping. Errc::out_of_memory.
  [[nodiscard]] static Result<ScratchFile> create(const std::string& path, std::size_t size) {
    return bad_alloc_as_error(path, [&] { return map_unnamed(path, size); });
  }

  /// The bytes, on a page boundary; valid as long as this object (moving it keeps them where they are).
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {static_cast<std::byte*>(mapping_), size_}; }

 private:
  [[nodiscard]] static Result<ScratchFile> map_unnamed(const std::string& path, std::size_t size) {
    ScratchFile scratch;
    if (size == 0) return scratch;
    const std::string folder = io_detail::folder_of(path);
    const int file = open_unnamed(folder, path);
    if (file < 0) return system_error("cannot create a temporary file in the folder", folder, errno);
    const int reserved = reserve(file, size);
    void* memory = MAP_FAILED;
    if (reserved == 0) memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    const int reason = reserved != 0 ? reserved : errno;
    (void)::close(file);  // the mapping keeps it
    if (memory == MAP_FAILED) {
      Error error = system_error("cannot reserve a temporary file in the folder", folder, reason);
      error.wanted = ErrorText(size) << " bytes";
      return error;
    }
    scratch.mapping_ = memory;
    scratch.size_ = size;
    return scratch;
  }

  /// A file without a name; -1 and errno.
  [[nodiscard]] static int open_unnamed(const std::string& folder, const std::string& path) {
#if defined(O_TMPFILE)
    const int unnamed = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (unnamed >= 0) return unnamed;  // what follows is for file systems that cannot
#endif
    const std::string name = io_detail::temporary_name(path);
    const int file = ::open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file >= 0) (void)::unlink(name.c_str());
    return file;
  }

  /// An error number, 0 for none.
  [[nodiscard]] static int reserve(int file, std::size_t size) noexcept {
    struct statvfs disk = {};
    // Asked first: where the file system cannot reserve, the C library writes zeros until the disk is full.
    if (::fstatvfs(file, &disk) != 0) return errno;
    if (disk.f_bavail < divide_up(size, disk.f_frsize)) return ENOSPC;
    int reason = EINTR;
    while (reason == EINTR) reason = ::posix_fallocate(file, 0, static_cast<off_t>(size));
    return reason;
  }

  void* mapping_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
