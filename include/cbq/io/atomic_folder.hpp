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

#include <cbq/io/atomic_file.hpp>
#include <cbq/io/system_error.hpp>

namespace cbq {

/// What to do with a target folder that exists and is not empty.
enum class Existing : unsigned char {
  refuse,   ///< an error
  replace,  ///< replace it, if it holds only regular files with the endings of model files
};

inline namespace CBQ_ABI {

/// Names of all entries of a folder but "." and "..", in no order. Errc::io.
[[nodiscard]] inline Result<std::vector<std::string>> folder_entries(const std::string& path) {
  DIR* folder = ::opendir(path.c_str());
  if (folder == nullptr) return system_error("cannot open the folder", path, errno);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(folder)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  const int reason = errno;
  (void)::closedir(folder);
  if (reason != 0) return system_error("cannot read the folder", path, reason);
  return names;
}

namespace io_detail {

inline bool is_regular_file(const std::string& path) noexcept {
  struct stat status = {};
  return ::lstat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

// Removes the regular files of a folder and then the folder; anything else in it stays, and so does the folder.
inline void remove_flat_folder(const std::string& path) {
  const Result<std::vector<std::string>> names = folder_entries(path);
  if (!names) return;
  for (const std::string& name : *names) {
    const std::string file = path + "/" + name;
    if (is_regular_file(file)) (void)::unlink(file.c_str());
  }
  (void)::rmdir(path.c_str());
}

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
    if (!is_regular_file(path + "/" + name) || !is_model_file_name(name)) {
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
        temporary_(std::exchange(other.temporary_, {})),
        existing_(other.existing_) {}
  AtomicFolder& operator=(AtomicFolder&& other) noexcept {
    std::swap(target_, other.target_);
    std::swap(temporary_, other.temporary_);
    std::swap(existing_, other.existing_);
    return *this;
  }
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  ~AtomicFolder() { discard(); }

  /// Starts a folder that will become `target`. Errc::io when the target may not be replaced (see Existing) or its
  /// parent cannot be written.
  [[nodiscard]] static Result<AtomicFolder> create(std::string target, Existing existing = Existing::refuse) {
    while (target.size() > 1 && target.back() == '/') target.pop_back();
    const std::string_view name = std::string_view(target).substr(target.rfind('/') + 1);  // npos + 1 is 0
    if (name.empty() || name == "." || name == "..") {
      return Error{Errc::bad_argument, "a folder to write needs a name of its own", target};
    }
    if (const Status free = io_detail::check_replaceable(target, existing); !free) return free.error();
    AtomicFolder folder;
    folder.existing_ = existing;
    folder.target_ = std::move(target);
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
    return folder;
  }

  /// Where to write the files until commit(): the temporary folder. Plain files only.
  [[nodiscard]] const std::string& path() const noexcept { return temporary_; }
  /// The path of `name` in the temporary folder.
  [[nodiscard]] std::string file(std::string_view name) const { return (temporary_ + "/").append(name); }

  /// Syncs every file and moves the folder to its target; afterwards the object is empty. Errc::io; the target is then
  /// as it was and the temporary is removed by the destructor.
  [[nodiscard]] Status commit() {
    if (temporary_.empty()) return Error{Errc::bad_argument, "the folder is not open for writing", target_};
    const Result<std::vector<std::string>> names = folder_entries(temporary_);
    if (!names) return names.error();
    for (const std::string& name : *names) {
      if (const Status synced = sync_file(file(name)); !synced) return synced;
    }
    if (const Status synced = io_detail::sync_folder<PosixSystem>(temporary_); !synced) return synced;
    if (const Status free = io_detail::check_replaceable(target_, existing_); !free) return free;
    if (const Status moved = move_into_place(); !moved) return moved;
    return io_detail::sync_folder<PosixSystem>(io_detail::folder_of(target_));
  }

  /// Removes the temporary folder; the target stays as it was.
  void discard() noexcept {
    if (!temporary_.empty()) io_detail::remove_flat_folder(temporary_);
    temporary_.clear();
  }

 private:
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
    if (!io_detail::exchange_paths(temporary_.c_str(), target_.c_str())) {
      const std::string old = io_detail::temporary_name(target_);
      if (::rename(target_.c_str(), old.c_str()) != 0)
        return system_error("cannot move the old folder away", target_, errno);
      if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
        const int reason = errno;
        (void)::rename(old.c_str(), target_.c_str());
        return system_error("cannot rename the folder into place", target_, reason);
      }
      temporary_ = old;
    }
    io_detail::remove_flat_folder(temporary_);  // now the old content
    temporary_.clear();
    return {};
  }

  std::string target_;
  std::string temporary_;
  Existing existing_ = Existing::refuse;
};

}  // namespace CBQ_ABI
}  // namespace cbq
