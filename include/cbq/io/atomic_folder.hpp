// SPDX-License-Identifier: Apache-2.0
#pragma once

// AtomicFolder: a folder of files that appears under its name only when all of them are complete.
//
// Files are written into a temporary folder beside the target; commit() syncs them and renames the folder. Without
// commit() the destructor removes the temporary. An existing target is refused unless it is empty, or replacing was
// asked for and it holds nothing but the plain files of a model: those are exchanged in one step and removed
// afterwards. Subfolders are never removed.

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/atomic_file.hpp>
#include <cbq/io/system_error.hpp>

namespace cbq {

/// What to do with a target folder that exists and is not empty.
enum class Existing : unsigned char {
  refuse,   ///< an error
  replace,  ///< replace it, if it holds only regular files with the endings of model files
};

inline namespace CBQ_ABI {

namespace io_detail {

// An open folder, whose files can be listed and removed when no memory is left.
class OpenFolder {
 public:
  OpenFolder() noexcept = default;
  /// Check is_open(), and errno.
  explicit OpenFolder(const std::string& path) noexcept : folder_(::opendir(path.c_str())) {}
  OpenFolder(OpenFolder&& other) noexcept : folder_(std::exchange(other.folder_, nullptr)) {}
  OpenFolder& operator=(OpenFolder&& other) noexcept {
    std::swap(folder_, other.folder_);
    return *this;
  }
  OpenFolder(const OpenFolder&) = delete;
  OpenFolder& operator=(const OpenFolder&) = delete;
  ~OpenFolder() {
    if (folder_ != nullptr) (void)::closedir(folder_);
  }
  [[nodiscard]] bool is_open() const noexcept { return folder_ != nullptr; }

  /// Calls `see(name)` for all entries but "." and ".."; 0 or the error number.
  template <class See>
  [[nodiscard]] int for_each(const See& see) const {
    ::rewinddir(folder_);
    errno = 0;
    while (const dirent* entry = ::readdir(folder_)) {
      const std::string_view name = entry->d_name;
      if (name != "." && name != "..") see(entry->d_name);
      errno = 0;
    }
    return errno;
  }

  /// Removes the files of this folder, which lies at `path`, and then the folder; folders in it stay, and so does it.
  void remove(const char* path) const noexcept {
    for (bool again = true; again;) {  // what is removed while a folder is read may hide what comes behind
      again = false;
      (void)for_each([&](const char* name) { again = ::unlinkat(::dirfd(folder_), name, 0) == 0 || again; });
    }
    (void)::rmdir(path);
  }

 private:
  DIR* folder_ = nullptr;
};

}  // namespace io_detail

/// Names of all entries of a folder but "." and "..", in no order. Errc::io, Errc::out_of_memory.
[[nodiscard]] inline Result<std::vector<std::string>> folder_entries(const std::string& path) {
  return bad_alloc_as_error(path, [&]() -> Result<std::vector<std::string>> {
    const io_detail::OpenFolder folder(path);
    if (!folder.is_open()) return system_error("cannot open the folder", path, errno);
    std::vector<std::string> names;
    const int reason = folder.for_each([&](const char* name) { names.emplace_back(name); });
    if (reason != 0) return system_error("cannot read the folder", path, reason);
    return names;
  });
}

namespace io_detail {

inline bool is_model_file_name(std::string_view name) noexcept {
  for (const std::string_view ending : {".safetensors", ".json", ".model", ".txt", ".jinja", ".md"}) {
    if (name.ends_with(ending)) return true;
  }
  return false;
}

inline Status check_replaceable(const std::string& path, Existing existing) {
  struct stat status = {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return system_error("cannot look at the target folder", path, errno);
  }
  if (!S_ISDIR(status.st_mode)) return Error{Errc::io, "the target exists and is no folder", path};
  const Result<std::vector<std::string>> names = folder_entries(path);
  if (!names) return names.error();
  if (names->empty()) return {};
  if (existing == Existing::refuse) {
    return Error{Errc::io, "the target folder exists and is not empty", path, names->front(),
                 "an empty or a new folder"};
  }
  for (const std::string& name : *names) {
    const std::string file = path + "/" + name;
    if (::lstat(file.c_str(), &status) != 0) return system_error("cannot look at the target folder", file, errno);
    if (!S_ISREG(status.st_mode) || !is_model_file_name(name)) {
      return Error{Errc::io, "the target folder holds something that is no model file", path, name, "only model files"};
    }
  }
  return {};
}

// Swaps two paths in one step where the system can.
inline bool exchange_paths([[maybe_unused]] const char* first, [[maybe_unused]] const char* second) noexcept {
#if defined(__linux__) && defined(SYS_renameat2)
  constexpr unsigned exchange = 2;  // RENAME_EXCHANGE
  return ::syscall(SYS_renameat2, AT_FDCWD, first, AT_FDCWD, second, exchange) == 0;
#else
  return false;
#endif
}

}  // namespace io_detail

class AtomicFolder {
 public:
  AtomicFolder() noexcept = default;
  AtomicFolder(AtomicFolder&& other) noexcept
      : target_(std::move(other.target_)),
        parent_(std::move(other.parent_)),
        temporary_(std::exchange(other.temporary_, {})),
        files_(std::move(other.files_)),
        existing_(other.existing_) {}
  AtomicFolder& operator=(AtomicFolder&& other) noexcept {
    std::swap(target_, other.target_);
    std::swap(parent_, other.parent_);
    std::swap(temporary_, other.temporary_);
    std::swap(files_, other.files_);
    std::swap(existing_, other.existing_);
    return *this;
  }
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  ~AtomicFolder() { discard(); }

  /// Starts a folder that will become `target`. Errc::io when the target may not be replaced (see Existing) or its
  /// parent cannot be written.
  [[nodiscard]] static Result<AtomicFolder> create(const std::string& target, Existing existing = Existing::refuse) {
    return bad_alloc_as_error(target, [&] { return make(target, existing); });
  }

  /// Where to write the files until commit(): the temporary folder. Plain files only.
  [[nodiscard]] const std::string& path() const noexcept { return temporary_; }
  /// The path of `name` in the temporary folder.
  [[nodiscard]] std::string file(std::string_view name) const { return (temporary_ + "/").append(name); }

  /// Syncs every file and moves the folder to its target; afterwards the object is empty. Errc::io; the target is then
  /// as it was and the temporary is removed by the destructor.
  [[nodiscard]] Status commit() {
    return bad_alloc_as_error(target_, [&] { return finish(); });
  }

  /// Removes the temporary folder; the target stays as it was.
  void discard() noexcept {
    if (!temporary_.empty() && files_.is_open()) files_.remove(temporary_.c_str());
    if (!temporary_.empty() && !files_.is_open()) (void)::rmdir(temporary_.c_str());
    temporary_.clear();
  }

 private:
  static Result<AtomicFolder> make(std::string target, Existing existing) {
    while (target.size() > 1 && target.back() == '/') target.pop_back();
    const std::string_view name = std::string_view(target).substr(target.rfind('/') + 1);  // npos + 1 is 0
    if (name.empty() || name == "." || name == "..") {
      return Error{Errc::bad_argument, "a folder to write needs a name of its own", target};
    }
    if (const Status free = io_detail::check_replaceable(target, existing); !free) return free.error();
    AtomicFolder folder;
    folder.existing_ = existing;
    folder.target_ = std::move(target);
    folder.parent_ = io_detail::folder_of(folder.target_);
    int made = -1;
    for (int attempt = 0; attempt < 16 && made != 0; ++attempt) {
      folder.temporary_ = io_detail::temporary_name(folder.target_);
      made = ::mkdir(folder.temporary_.c_str(), 0777);
      if (made != 0 && errno != EEXIST) break;
    }
    if (made != 0) {
      const int reason = errno;
      folder.temporary_.clear();
      return system_error("cannot create a folder here", folder.target_, reason);
    }
    folder.files_ = io_detail::OpenFolder(folder.temporary_);
    if (!folder.files_.is_open()) return system_error("cannot open a new folder", folder.target_, errno);
    return folder;
  }

  Status finish() {
    if (temporary_.empty()) return Error{Errc::bad_argument, "the folder is not open for writing", target_};
    const Result<std::vector<std::string>> names = folder_entries(temporary_);
    if (!names) return names.error();
    for (const std::string& name : *names) {
      if (const Status synced = sync_file(file(name)); !synced) return synced;
    }
    if (const Status synced = io_detail::sync_folder<PosixSystem>(temporary_); !synced) return synced;
    if (const Status free = io_detail::check_replaceable(target_, existing_); !free) return free;
    if (const Status moved = move_into_place(); !moved) return moved;
    return io_detail::sync_folder<PosixSystem>(parent_);
  }

  static Status sync_file(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return system_error("cannot open the file to sync it", path, errno);
    const int synced = ::fsync(descriptor);
    const int reason = errno;
    (void)::close(descriptor);
    if (synced != 0) return system_error("cannot sync the file", path, reason);
    return {};
  }

  Status move_into_place() {
    if (::rename(temporary_.c_str(), target_.c_str()) == 0) {  // no target, or an empty folder
      temporary_.clear();
      return {};
    }
    if ((errno != ENOTEMPTY && errno != EEXIST) || existing_ == Existing::refuse) {
      return system_error("cannot rename the folder into place", target_, errno);
    }
    io_detail::OpenFolder old_files(target_);
    if (!old_files.is_open()) return system_error("cannot open the old folder", target_, errno);
    if (!io_detail::exchange_paths(temporary_.c_str(), target_.c_str())) {
      std::string old = io_detail::temporary_name(target_);
      if (::rename(target_.c_str(), old.c_str()) != 0)
        return system_error("cannot move the old folder away", target_, errno);
      if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
        const int reason = errno;
        (void)::rename(old.c_str(), target_.c_str());
        return system_error("cannot rename the folder into place", target_, reason);
      }
      temporary_.swap(old);
    }
    files_ = std::move(old_files);
    discard();  // now the old content
    return {};
  }

  std::string target_;
  std::string parent_;
  std::string temporary_;
  io_detail::OpenFolder files_;  ///< of the temporary folder
  Existing existing_ = Existing::refuse;
};

}  // namespace CBQ_ABI
}  // namespace cbq
