// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/packed_file_writer.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cerrno>
#include <string>

#include "oracle/gemm.hpp"
#include "support/files.hpp"

using namespace cbq;
using support::message;

namespace {

// The system, except that call number `fails_at` fails.
struct FailingSystem : PosixSystem {
  static inline int calls = 0;
  static inline int fails_at = -1;
  static bool fails() {
    if (calls++ != fails_at) return false;
    errno = ENOSPC;
    return true;
  }
  static int open(const char* path, int flags, mode_t mode) noexcept {
    return fails() ? -1 : PosixSystem::open(path, flags, mode);
  }
  static ssize_t write(int file, const void* bytes, std::size_t size, off_t offset) noexcept {
    return fails() ? -1 : PosixSystem::write(file, bytes, size, offset);
  }
  static int sync(int file) noexcept { return fails() ? -1 : PosixSystem::sync(file); }
  static int rename(const char* from, const char* to) noexcept { return fails() ? -1 : PosixSystem::rename(from, to); }
};

PackedWeights<schemes::w4a8_g32> weights() {
  std::mt19937 random(4);
  const auto w = oracle::weights(schemes::w4a8_g32.weight, 20, 64, oracle::Codes::random, random);
  return *PackedWeights<schemes::w4a8_g32>::from_codes(w.view());
}

Status write(const std::string& path, const PackedMatrix& matrix) {
  auto writer = BasicPackedFileWriter<FailingSystem>::create(path, "stamp");
  if (!writer) return writer.error();
  if (const Status added = writer->add("w", schemes::w4a8_g32, matrix); !added) return added;
  return writer->commit();
}

}  // namespace

TEST_CASE("Whatever call fails, the old file or the whole new one is there, and nothing else") {
  const auto packed = weights();
  for (int call = 0; call < 20; ++call) {
    const support::ScratchFolder folder;
    support::write_text(folder / "f", "old");
    FailingSystem::calls = 0;
    FailingSystem::fails_at = call;
    const Status written = write(folder / "f", packed.view());
    CAPTURE(call, message(written));
    CHECK(folder.entries() == 1);
    const bool reached = FailingSystem::calls > call;
    CHECK(written.has_value() == !reached);
    if (support::read_text(folder / "f") != "old") {
      CHECK(PackedFile::open(folder / "f"));
    } else {
      CHECK(reached);
    }
    if (!reached) return;
  }
  FAIL("the writer makes more calls than this test lets fail");
}

TEST_CASE("A writer that is given up leaves nothing behind") {
  const support::ScratchFolder folder;
  {
    auto writer = PackedFileWriter::create(folder / "f");
    REQUIRE(writer);
    REQUIRE(writer->add("w", schemes::w4a8_g32, weights().view()));
  }
  CHECK(folder.entries() == 0);
}

TEST_CASE("Entries that cannot be written are refused, the others stay") {
  const support::ScratchFolder folder;
  const auto packed = weights();
  const float value = 1.0f;
  auto writer = PackedFileWriter::create(folder / "f");
  REQUIRE(writer);
  REQUIRE(writer->add("w", schemes::w4a8_g32, packed.view()));
  CHECK(message(writer->add("", schemes::w4a8_g32, packed.view())) ==
        "a name has 1 to 256 bytes (got 0, wanted 1..256)");
  CHECK(writer->add(std::string(257, 'n'), schemes::w4a8_g32, packed.view()).error().code == Errc::bad_argument);
  CHECK(writer->add(std::string(256, 'n'), matrix_view(&value, 1, 1)));
  CHECK(message(writer->add("w", matrix_view(&value, 1, 1))) == "w: this name is taken");
  CHECK(writer->add("v", schemes::w4a8_g128, packed.view()).error().code == Errc::bad_shape);
  CHECK(writer->add("v", make_scheme(3, 8, 32, Zero::symmetric), packed.view()).error().code == Errc::bad_shape);
  CHECK(writer->add("v", make_scheme(5, 8, 32, Zero::symmetric), packed.view()).error().code == Errc::unsupported);
  PackedMatrix odd = packed.view();
  odd.multiplier = 3.0f;
  CHECK(writer->add("v", schemes::w4a8_g32, odd).error().code == Errc::bad_shape);
  CHECK(writer->add("v", MatrixView<const float>{&value, 2, 1, 2}).error().code == Errc::bad_shape);
  CHECK(writer->add("v", MatrixView<const float>{&value, ~std::size_t{0}, 2, 2}).error().code == Errc::bad_shape);
  REQUIRE(writer->commit());
  const auto file = PackedFile::open(folder / "f");
  REQUIRE(file);
  CHECK(file->entries().size() == 2);
  CHECK(file->verify());
  CHECK_FALSE(writer->commit());
}

TEST_CASE("A stamp that is too long is refused before a file is made") {
  const support::ScratchFolder folder;
  CHECK(PackedFileWriter::create(folder / "f", std::string(4097, 's')).error().code == Errc::bad_argument);
  CHECK(folder.entries() == 0);
  CHECK(PackedFileWriter::create(folder / "nowhere/f").error().code == Errc::io);
}
