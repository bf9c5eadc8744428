// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/mapped_file.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>

#include "support/files.hpp"

using cbq::Errc;
using cbq::FileBytes;
using cbq::FileMode;
using support::message;

namespace {

std::string text_of(const FileBytes& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

}  // namespace

TEST_CASE("both modes give the bytes of the file, of any size") {
  const support::ScratchFolder folder;
  for (const std::size_t size : {0u, 1u, 4095u, 4096u, 4097u, 300'000u}) {
    std::string content(size, 'x');
    for (std::size_t i = 0; i < size; ++i) content[i] = static_cast<char>(i * 31 % 251);
    support::write_text(folder / "file", content);
    for (const FileMode mode : {FileMode::map, FileMode::read}) {
      auto file = FileBytes::open(folder / "file", mode);
      REQUIRE(file);
      CHECK(text_of(*file) == content);
      const std::byte* before = file->bytes().data();
      const FileBytes moved = std::move(*file);
      CHECK(moved.bytes().data() == before);
      CHECK(text_of(moved) == content);
      CHECK(moved.check_unchanged("file"));
    }
  }
}

TEST_CASE("a file that changes its size is an error, not a crash") {
  const support::ScratchFolder folder;
  support::write_text(folder / "file", "0123456789");
  const auto mapped = FileBytes::open(folder / "file", FileMode::map);
  const auto copied = FileBytes::open(folder / "file", FileMode::read);
  REQUIRE(mapped);
  REQUIRE(copied);
  std::filesystem::resize_file(folder / "file", 4);
  CHECK(mapped->check_unchanged("file").error().code == Errc::bad_file);
  CHECK_THAT(message(mapped->check_unchanged("file")),
             Catch::Matchers::ContainsSubstring("got 4 bytes, wanted 10 bytes"));
  CHECK(text_of(*copied) == "0123456789");
}

TEST_CASE("a file that is written to while it is in use is an error; one that is replaced is not") {
  const support::ScratchFolder folder;
  const std::string path = folder / "file";
  support::write_text(path, "0123456789");
  const timespec past[2] = {{.tv_sec = 1000, .tv_nsec = 0}, {.tv_sec = 1000, .tv_nsec = 5}};
  REQUIRE(::utimensat(AT_FDCWD, path.c_str(), past, 0) == 0);
  const auto mapped = FileBytes::open(path, FileMode::map);
  const auto copied = FileBytes::open(path, FileMode::read);
  REQUIRE(mapped);
  REQUIRE(copied);
  support::write_text(folder / "new", "abcdefghij");
  std::filesystem::rename(folder / "new", path);
  CHECK(mapped->check_unchanged(path));
  CHECK(text_of(*mapped) == "0123456789");

  const auto second = FileBytes::open(path, FileMode::map);
  REQUIRE(second);
  support::write_text(path, "ABCDEFGHIJ");
  REQUIRE(::utimensat(AT_FDCWD, path.c_str(), past, 0) == 0);  // whatever the clock's steps are
  CHECK(second->check_unchanged(path).error().code == Errc::bad_file);
  CHECK_THAT(message(second->check_unchanged(path)),
             Catch::Matchers::ContainsSubstring("written to while it was in use (got a change at 1000 s and 5 ns"));
  CHECK(text_of(*copied) == "0123456789");
}

TEST_CASE("what is no regular file is refused with the reason") {
  const support::ScratchFolder folder;
  CHECK(FileBytes::open(folder / "absent").error().code == Errc::io);
  CHECK_THAT(message(FileBytes::open(folder / "absent")), Catch::Matchers::ContainsSubstring("No such file"));
  CHECK_THAT(message(FileBytes::open(folder.path())), Catch::Matchers::ContainsSubstring("a folder"));
  CHECK_THAT(message(FileBytes::open("/dev/null")), Catch::Matchers::ContainsSubstring("device"));
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  CHECK_FALSE(FileBytes::open(folder / "pipe"));
  support::write_text(folder / "large", "12345678");
  CHECK(FileBytes::open(folder / "large", FileMode::read, 8));
  CHECK_FALSE(FileBytes::open(folder / "large", FileMode::read, 7));
}

TEST_CASE("bytes that were let go of come back") {
  const support::ScratchFolder folder;
  std::string text(300'000, 'x');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i % 251);
  support::write_text(folder / "f", text);
  for (const cbq::FileMode mode : {cbq::FileMode::map, cbq::FileMode::read}) {
    const auto file = cbq::FileBytes::open(folder / "f", mode);
    REQUIRE(file);
    const std::span<const std::byte> bytes = file->bytes();
    const std::vector<std::byte> other(100'000, std::byte{7});
    for (const auto part : {bytes, bytes.subspan(70'000, 1), bytes.first(0), bytes.last(0), bytes.last(1),
                            std::span<const std::byte>(other), std::span<const std::byte>()}) {
      file->release(part);
    }
    CHECK(std::memcmp(bytes.data(), text.data(), text.size()) == 0);
    CHECK(std::all_of(other.begin(), other.end(), [](std::byte b) { return b == std::byte{7}; }));
  }
}
