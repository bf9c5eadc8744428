// SPDX-License-Identifier: Apache-2.0
#pragma once

// AtomicFile: writes a file so that a reader, after a crash too, finds either the old content or the whole new one.
//
// Bytes go to a temporary in the same folder; commit() syncs it, renames it over the target and syncs the folder.
// Without commit() the destructor removes the temporary and the target is untouched. Bytes may be written in any order
// (`write_at`), so that a file with a table of contents needs no second copy in memory. The system calls are a template
// argument: tests make each of them fail in turn.

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/io/system_error.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The system calls AtomicFile makes; each returns -1 and sets errno on failure.
struct PosixSystem {
  static int open(const char* path, int flags, mode_t mode) noexcept { return ::open(path, flags, mode); }
  static ssize_t write(int file, const void* bytes, std::size_t size, off_t offset) noexcept {
    return ::pwrite(file, bytes, size, offset);
  }
  static int sync(int file) noexcept { return ::fsync(file); }
  static int close(int file) noexcept { return ::close(file); }
  static int rename(const char* from, const char* to) noexcept { return ::rename(from, to); }
};

namespace io_detail {

inline std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// A name next to `path` that other threads and processes hardly pick; creation with O_EXCL (or mkdir) settles the rest.
inline std::string temporary_name(const std::string& path) {
  std::timespec now = {};
  (void)::clock_gettime(CLOCK_REALTIME, &now);
  const auto ticks =
      static_cast<unsigned long long>(now.tv_sec) * 1000000000ull + static_cast<unsigned long long>(now.tv_nsec);
  const auto thread = reinterpret_cast<std::uintptr_t>(&now);  // each thread has a stack of its own
  char suffix[64] = {};
  (void)std::snprintf(suffix, sizeof suffix, ".tmp-%llx-%llx-%llx", static_cast<unsigned long long>(::getpid()),
                      static_cast<unsigned long long>(thread >> 4), ticks);
  return path + suffix;
}

template <class System>
Status sync_folder(const std::string& folder) {
  const int descriptor = System::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (descriptor < 0) return system_error("cannot open the folder to sync it", folder, errno);
  const int synced = System::sync(descriptor);
  const int reason = errno;
  (void)System::close(descriptor);
  // Some file systems cannot sync folders and say so with EINVAL.
  if (synced != 0 && reason != EINVAL) return system_error("cannot sync the folder", folder, reason);
  return {};
}

}  // namespace io_detail

template <class System = PosixSystem>
class BasicAtomicFile {
 public:
  BasicAtomicFile() noexcept = default;
  BasicAtomicFile(BasicAtomicFile&& other) noexcept
      : path_(std::move(other.path_)),
        folder_(std::move(other.folder_)),
        temporary_(std::exchange(other.temporary_, {})),
        position_(other.position_),
        descriptor_(std::exchange(other.descriptor_, -1)) {}
  BasicAtomicFile& operator=(BasicAtomicFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(folder_, other.folder_);
    std::swap(temporary_, other.temporary_);
    std::swap(position_, other.position_);
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  BasicAtomicFile(const BasicAtomicFile&) = delete;
  BasicAtomicFile& operator=(const BasicAtomicFile&) = delete;
  ~BasicAtomicFile() { discard(); }

  /// Starts a file that will become `path`, with the permissions of the file it replaces. Errc::io,
  /// Errc::out_of_memory.
  [[nodiscard]] static Result<BasicAtomicFile> create(const std::string& path) {
    return bad_alloc_as_error(path, [&] { return open_temporary(path); });
  }

  /// Appends after the furthest byte that `write` wrote. Errc::io.
  [[nodiscard]] Status write(std::span<const std::byte> bytes) {
    const Status written = write_at(position_, bytes);
    if (written) position_ += bytes.size();
    return written;
  }
  [[nodiscard]] Status write(std::string_view text) {
    return write(std::as_bytes(std::span(text.data(), text.size())));
  }

  /// Writes at byte `offset`; bytes never written read as zero. Errc::io.
  [[nodiscard]] Status write_at(std::size_t offset, std::span<const std::byte> bytes) {
    if (descriptor_ < 0) return Error{Errc::bad_argument, "the file is not open for writing", path_};
    constexpr std::size_t largest = ~std::size_t{0} >> 1;
    if (offset > largest || bytes.size() > largest - offset) {
      return Error{Errc::bad_shape, "a file cannot be this large", path_, ErrorText(bytes.size()) << " bytes"};
    }
    constexpr std::size_t piece = std::size_t{1} << 30;
    for (std::size_t done = 0; done < bytes.size();) {
      const std::size_t size = bytes.size() - done < piece ? bytes.size() - done : piece;
      const ssize_t count = System::write(descriptor_, bytes.data() + done, size, static_cast<off_t>(offset + done));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return system_error("cannot write the file", path_, errno);
      if (count == 0) return system_error("cannot write the file", path_, ENOSPC);
      done += static_cast<std::size_t>(count);
    }
    return {};
  }

  /// Syncs, renames over the target, syncs the folder; afterwards the object is empty. On an error before the rename
  /// the temporary is removed and the target is as it was. Errc::io.
  [[nodiscard]] Status commit() {
    if (descriptor_ < 0) return Error{Errc::bad_argument, "the file is not open for writing", path_};
    if (System::sync(descriptor_) != 0) return fail("cannot sync the file");
    if (System::close(std::exchange(descriptor_, -1)) != 0) return fail("cannot close the file");
    if (System::rename(temporary_.c_str(), path_.c_str()) != 0) return fail("cannot rename the file into place");
    temporary_.clear();
    return io_detail::sync_folder<System>(folder_);
  }

  /// Removes the temporary; the target stays as it was.
  void discard() noexcept {
    if (descriptor_ >= 0) (void)::close(std::exchange(descriptor_, -1));
    if (!temporary_.empty()) (void)::unlink(temporary_.c_str());
    temporary_.clear();
  }

  /// The target, as given to `create`.
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  static Result<BasicAtomicFile> open_temporary(const std::string& path) {
    BasicAtomicFile file;
    file.path_ = path;
    file.folder_ = io_detail::folder_of(path);
    for (int attempt = 0; attempt < 16 && file.descriptor_ < 0; ++attempt) {
      file.temporary_ = io_detail::temporary_name(path);
      file.descriptor_ = System::open(file.temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (file.descriptor_ < 0 && errno != EEXIST) break;
    }
    if (file.descriptor_ < 0) {
      const int reason = errno;
      file.temporary_.clear();
      return system_error("cannot create a file in this folder", path, reason);
    }
    struct stat old = {};
    if (::stat(path.c_str(), &old) == 0 && S_ISREG(old.st_mode)) (void)::fchmod(file.descriptor_, old.st_mode & 0777u);
    return file;
  }

  Error fail(const char* what) {
    const Error error = system_error(what, path_, errno);
    discard();
    return error;
  }

  std::string path_;
  std::string folder_;
  std::string temporary_;
  std::size_t position_ = 0;
  int descriptor_ = -1;
};

using AtomicFile = BasicAtomicFile<>;

/// Writes `bytes` as the whole content of `path`, atomically. Errc::io, Errc::out_of_memory.
[[nodiscard]] inline Status write_file(const std::string& path, std::span<const std::byte> bytes) {
  Result<AtomicFile> file = AtomicFile::create(path);
  if (!file) return file.error();
  if (const Status written = file->write(bytes); !written) return written;
  return file->commit();
}
[[nodiscard]] inline Status write_file(const std::string& path, std::string_view text) {
  return write_file(path, std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace CBQ_ABI
}  // namespace cbq
