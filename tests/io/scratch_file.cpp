// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/scratch_file.hpp>

#include <catch2/catch_test_macros.hpp>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include <sys/wait.h>
#include <unistd.h>

#include "support/files.hpp"

using cbq::ScratchFile;

TEST_CASE("A scratch file is memory that leaves no file behind") {
  const support::ScratchFolder folder;
  cbq::Result<ScratchFile> made = ScratchFile::create(folder / "states", 100'003);
  REQUIRE(made);
  CHECK(folder.entries() == 0);
  const std::span<std::byte> bytes = made->bytes();
  REQUIRE(bytes.size() == 100'003);
  CHECK(reinterpret_cast<std::uintptr_t>(bytes.data()) % 4096 == 0);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    CHECK_FALSE(bytes[i] != std::byte{0});
    bytes[i] = static_cast<std::byte>(i * 7);
  }
  ScratchFile moved = *std::move(made);
  ScratchFile target;
  target = std::move(moved);
  CHECK(target.bytes().data() == bytes.data());
  std::size_t same = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) same += target.bytes()[i] == static_cast<std::byte>(i * 7);
  CHECK(same == bytes.size());
}

TEST_CASE("A scratch file of no bytes is no file") {
  const cbq::Result<ScratchFile> none = ScratchFile::create("/nowhere/at/all", 0);
  REQUIRE(none);
  CHECK(none->bytes().empty());
}

TEST_CASE("A killed process leaves no scratch file") {
  const support::ScratchFolder folder;
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const cbq::Result<ScratchFile> made = ScratchFile::create(folder / "states", 1 << 20);
    if (!made) ::_exit(1);
    made->bytes()[0] = std::byte{1};
    ::raise(SIGKILL);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
  CHECK(folder.entries() == 0);
}

TEST_CASE("Where no scratch file can be is said") {
  const cbq::Result<ScratchFile> nowhere = ScratchFile::create("/nowhere/states", 1);
  REQUIRE_FALSE(nowhere);
  CHECK(nowhere.error().code == cbq::Errc::io);
  CHECK(support::message(nowhere.error()).find("/nowhere") != std::string::npos);
  const support::ScratchFolder folder;
  // More than any disk holds, and than a file offset can say.
  for (const std::size_t size : {std::size_t{1} << 60, std::numeric_limits<std::size_t>::max()}) {
    const cbq::Result<ScratchFile> large = ScratchFile::create(folder / "states", size);
    REQUIRE_FALSE(large);
    CHECK(large.error().code == cbq::Errc::io);
  }
  CHECK(folder.entries() == 0);
}
