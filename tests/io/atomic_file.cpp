// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/atomic_file.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cerrno>
#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include <sys/resource.h>
#include <sys/stat.h>

#include "support/files.hpp"

using cbq::AtomicFile;
using cbq::Errc;
using support::message;

namespace {

// The system, except that call number `fails_at` fails with `reason`, and that writes are short.
struct FailingSystem : cbq::PosixSystem {
  static inline int calls = 0;
  static inline int fails_at = -1;
  static inline int reason = ENOSPC;
  static bool fails() {
    if (calls++ != fails_at) return false;
    errno = reason;
    return true;
  }
  static int open(const char* path, int flags, mode_t mode) noexcept {
    return fails() ? -1 : PosixSystem::open(path, flags, mode);
  }
  static ssize_t write(int file, const void* bytes, std::size_t size, off_t offset) noexcept {
    return fails() ? -1 : PosixSystem::write(file, bytes, size < 3 ? size : 3, offset);
  }
  static int sync(int file) noexcept { return fails() ? -1 : PosixSystem::sync(file); }
  static int close(int file) noexcept {
    const int closed = PosixSystem::close(file);  // a failing close still closes
    return fails() ? -1 : closed;
  }
  static int rename(const char* from, const char* to) noexcept { return fails() ? -1 : PosixSystem::rename(from, to); }
};

cbq::Status write_with_failures(const std::string& path, std::string_view text) {
  auto file = cbq::BasicAtomicFile<FailingSystem>::create(path);
  if (!file) return file.error();
  if (const auto written = file->write(text); !written) return written;
  return file->commit();
}

}  // namespace

TEST_CASE("the target appears with commit and only then") {
  const support::ScratchFolder folder;
  auto file = AtomicFile::create(folder / "file");
  REQUIRE(file);
  REQUIRE(file->write("hello "));
  REQUIRE(file->write("world"));
  CHECK_FALSE(std::filesystem::exists(folder / "file"));
  AtomicFile moved = std::move(*file);
  REQUIRE(moved.commit());
  CHECK(support::read_text(folder / "file") == "hello world");
  CHECK(folder.entries() == 1);
  CHECK_FALSE(moved.write("more"));
  CHECK_FALSE(moved.commit());
}

TEST_CASE("bytes may be written in any order, and gaps read as zero") {
  const support::ScratchFolder folder;
  auto file = AtomicFile::create(folder / "file");
  REQUIRE(file);
  const std::string_view end = "end";
  REQUIRE(file->write_at(6, std::as_bytes(std::span(end.data(), end.size()))));
  REQUIRE(file->write("start"));
  REQUIRE(file->commit());
  CHECK(support::read_text(folder / "file") == std::string("start\0end", 9));
  auto huge = AtomicFile::create(folder / "huge");
  CHECK_FALSE(huge->write_at(~std::size_t{0} - 1, std::as_bytes(std::span(end.data(), end.size()))));
}

TEST_CASE("without commit the old file stays and nothing is left behind") {
  const support::ScratchFolder folder;
  support::write_text(folder / "file", "old");
  REQUIRE(::chmod((folder / "file").c_str(), 0640) == 0);
  {
    auto file = AtomicFile::create(folder / "file");
    REQUIRE(file->write("new"));
  }
  CHECK(support::read_text(folder / "file") == "old");
  CHECK(folder.entries() == 1);
  REQUIRE(cbq::write_file(folder / "file", "new"));
  CHECK(support::read_text(folder / "file") == "new");
  CHECK(folder.entries() == 1);
  struct stat status = {};
  REQUIRE(::stat((folder / "file").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0640);
}

TEST_CASE("each system call may fail: an error, the old file or the whole new one, no temporary") {
  for (const int reason : {ENOSPC, EIO, EROFS}) {
    for (int n = 0;; ++n) {
      const support::ScratchFolder folder;
      support::write_text(folder / "file", "old content");
      FailingSystem::calls = 0;
      FailingSystem::fails_at = n;
      FailingSystem::reason = reason;
      const cbq::Status status = write_with_failures(folder / "file", "new content");
      const std::string content = support::read_text(folder / "file");
      CAPTURE(n, reason, message(status));
      CHECK(folder.entries() == 1);
      if (FailingSystem::calls <= n) {  // nothing was left to fail
        REQUIRE(n == 11);  // create, 4 writes of up to 3 bytes, sync, close, rename; open, sync, close of the folder
        CHECK(status);
        CHECK(content == "new content");
        break;
      }
      const bool folder_closed = n == 10;  // nothing depends on closing what was only read
      CHECK(status.has_value() == folder_closed);
      if (!status) CHECK(status.error().code == Errc::io);
      CHECK(content == (n < 8 ? "old content" : "new content"));
    }
  }
}

TEST_CASE("an interrupted write goes on") {
  const support::ScratchFolder folder;
  FailingSystem::calls = 0;
  FailingSystem::fails_at = 2;
  FailingSystem::reason = EINTR;
  REQUIRE(write_with_failures(folder / "file", "new content"));
  CHECK(support::read_text(folder / "file") == "new content");
}

TEST_CASE("disk full and unwritable places are errors with the system's reason") {
  const support::ScratchFolder folder;
  CHECK_THAT(message(cbq::write_file(folder / "absent/file", "x")), Catch::Matchers::ContainsSubstring("No such file"));
  support::write_text(folder / "plain", "");
  CHECK_THAT(message(cbq::write_file(folder / "plain/file", "x")),
             Catch::Matchers::ContainsSubstring("Not a directory"));
  CHECK_FALSE(cbq::write_file(folder.path(), "x"));
  rlimit old = {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &old) == 0);
  rlimit small = old;
  small.rlim_cur = 100;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  const cbq::Status full = cbq::write_file(folder / "file", std::string(1000, 'x'));
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &old) == 0);
  std::signal(SIGXFSZ, handler);
  CHECK_THAT(message(full), Catch::Matchers::ContainsSubstring("File too large"));
  CHECK(folder.entries() == 1);
}
