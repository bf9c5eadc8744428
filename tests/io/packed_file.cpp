// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/packed_file.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include <cbq/io/packed_file_writer.hpp>

#include "oracle/gemm.hpp"
#include "support/files.hpp"

using namespace cbq;
using support::message;

namespace {

constexpr Scheme affine = make_scheme(3, 16, 64, Zero::affine);

/// Two matrices and floats, and what they were made of.
struct Content {
  std::mt19937 random{9};
  oracle::Weights a = oracle::weights(schemes::w4a8_g32.weight, 21, 100, oracle::Codes::random, random);
  oracle::Weights b = oracle::weights(affine.weight, 5, 130, oracle::Codes::random, random);
  std::vector<float> norm{1.0f, -2.5f, 0x1p-140f};

  void write(const std::string& path, std::string_view stamp) const {
    auto writer = PackedFileWriter::create(path, stamp);
    REQUIRE(writer);
    const auto packed_b = PackedWeights<affine>::from_codes(b.view());
    const auto packed_a = PackedWeights<schemes::w4a8_g32>::from_codes(a.view());
    REQUIRE(writer->add("layers.1.b", affine, packed_b->view()));
    REQUIRE(writer->add("norm", matrix_view(norm.data(), 1, 3)));
    REQUIRE(writer->add("layers.0.a", schemes::w4a8_g32, packed_a->view()));
    REQUIRE(writer->add("empty", matrix_view(norm.data(), 0, 7)));
    REQUIRE(writer->commit());
  }
};

void check_weights(const PackedMatrix& got, const oracle::Weights& wanted) {
  std::size_t wrong = 0;
  for (std::size_t n = 0; n < wanted.outputs; ++n) {
    for (std::size_t k = 0; k < wanted.inputs; ++k) {
      const UnpackedWeight w = unpack(got, n, k);
      wrong +=
          w.code != wanted.codes[n * wanted.inputs + k] || w.scale != wanted.scale(n, k) || w.zero != wanted.zero(n, k);
    }
  }
  CHECK(wrong == 0);
}

std::vector<std::byte> bytes_of(const std::string& path) {
  const std::string text = support::read_text(path);
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// The file of Content in memory, to be damaged; restore() makes the checksums right again, so that other checks see
/// the damage.
struct Damaged {
  std::vector<std::byte> bytes;

  Damaged() {
    const support::ScratchFolder folder;
    Content().write(folder / "f", "stamp");
    bytes = bytes_of(folder / "f");
  }
  template <class T>
  [[nodiscard]] T get(std::size_t at) const {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  }
  template <class T>
  void set(std::size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
  [[nodiscard]] std::size_t table() const { return get<std::uint64_t>(24); }
  void restore() {
    set(48, packed_file::checksum(std::span(bytes).subspan(table(), get<std::uint64_t>(32))));
    set(56, packed_file::checksum(std::span(bytes).first(56)));
  }
  [[nodiscard]] Error error() const {
    const support::GuardedBytes guarded(bytes);
    const auto file = PackedFile::parse(guarded.bytes());
    REQUIRE_FALSE(file);
    return file.error();
  }
};

// In the table: stamp, then the entry "layers.1.b" with its fields.
constexpr std::size_t first_entry = 8 + 5;
constexpr std::size_t first_fields = first_entry + 8 + 10;
constexpr std::size_t kind_at = first_fields, scheme_at = kind_at + 4, rows_at = scheme_at + 32,
                      columns_at = rows_at + 8, multiplier_at = columns_at + 8, offset_at = multiplier_at + 4,
                      bytes_at = offset_at + 8;

}  // namespace

TEST_CASE("A packed file gives back what was written") {
  const FileMode mode = GENERATE(FileMode::map, FileMode::read);
  const support::ScratchFolder folder;
  const Content content;
  content.write(folder / "f", "made of this");
  CHECK(folder.entries() == 1);
  auto opened = PackedFile::open(folder / "f", mode);
  INFO(message(opened));
  REQUIRE(opened);
  const PackedFile file = std::move(*opened);
  CHECK(file.stamp() == "made of this");
  REQUIRE(file.entries().size() == 4);
  CHECK(file.entries()[0].name == "empty");
  CHECK(file.entries()[3].name == "norm");
  CHECK(file.find("layers.0.a")->scheme == schemes::w4a8_g32);
  CHECK(file.find("layers.0") == nullptr);
  const auto a = file.matrix<schemes::w4a16_g32>("layers.0.a");  // weights on the same grid
  REQUIRE(a);
  check_weights(*a, content.a);
  const auto b = file.matrix("layers.1.b");
  REQUIRE(b);
  check_weights(*b, content.b);
  const auto norm = file.floats("norm");
  REQUIRE(norm);
  CHECK((norm->rows == 1 && norm->columns == 3));
  CHECK(std::memcmp(norm->data, content.norm.data(), 12) == 0);
  CHECK(file.floats("empty")->columns == 7);
  for (const PackedEntry& entry : file.entries()) {
    CHECK(reinterpret_cast<std::uintptr_t>(entry.bytes.data()) % 64 == 0);
  }
  CHECK(file.verify());
  CHECK(file.check_unchanged("f"));
}

TEST_CASE("A file without entries is one") {
  const support::ScratchFolder folder;
  auto writer = PackedFileWriter::create(folder / "f");
  REQUIRE(writer);
  REQUIRE(writer->commit());
  const auto file = PackedFile::open(folder / "f");
  REQUIRE(file);
  CHECK(file->entries().empty());
  CHECK(file->stamp().empty());
}

TEST_CASE("Entries that are asked for wrongly") {
  const support::ScratchFolder folder;
  Content().write(folder / "f", "");
  const auto file = PackedFile::open(folder / "f");
  REQUIRE(file);
  CHECK(message(file->matrix("nothing")) == "nothing: the packed file lacks an entry (wanted a packed matrix)");
  CHECK(file->matrix("norm").error().code == Errc::bad_file);
  CHECK(file->floats("layers.0.a").error().code == Errc::bad_file);
  const auto other = file->matrix<schemes::w4a8_g128>("layers.0.a");
  REQUIRE_FALSE(other);
  CHECK(other.error().code == Errc::unsupported);
  CHECK(message(other) == "layers.0.a: a matrix is packed on another grid (got w4a8_g32, wanted w4a8_g128)");
}

TEST_CASE("The worked header of docs/packed_format.md") {
  const Damaged file;
  CHECK(std::memcmp(file.bytes.data(), "CBQPACK\0", 8) == 0);
  CHECK(file.get<std::uint32_t>(8) == 1);
  CHECK(file.get<std::uint32_t>(12) == 1);
  CHECK(file.get<std::uint64_t>(16) == file.bytes.size());
  CHECK(file.get<std::uint64_t>(40) == 4);
  CHECK(file.bytes.size() % 64 == 0);
  CHECK(file.get<std::uint64_t>(file.table() + offset_at) == 64);
  CHECK(file.get<std::uint64_t>(file.table() + rows_at) == 5);
  CHECK(std::string(reinterpret_cast<const char*>(file.bytes.data() + file.table() + scheme_at)) == "w3a16_g64_asym");
}

TEST_CASE("A file cut anywhere is refused") {
  const Damaged whole;
  for (std::size_t size = 0; size < whole.bytes.size(); size += size < 80 ? 1 : 64) {
    Damaged cut = whole;
    cut.bytes.resize(size);
    CAPTURE(size);
    auto memory = AlignedBuffer<std::byte>::allocate(size);
    REQUIRE(memory);
    if (size != 0) std::memcpy(memory->data(), cut.bytes.data(), size);
    const auto file = PackedFile::parse({memory->data(), size});
    REQUIRE_FALSE(file);
    CHECK(file.error().code == Errc::bad_file);
  }
}

TEST_CASE("A file with one wrong bit is refused or found by verify") {
  const Damaged whole;
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    Damaged one = whole;
    const std::size_t at = i < 64 ? static_cast<std::size_t>(i) : random() % one.bytes.size();
    one.bytes[at] ^= std::byte{1} << random() % 8;
    CAPTURE(at);
    const support::GuardedBytes guarded(one.bytes);
    const auto file = PackedFile::parse(guarded.bytes());
    if (file && file->verify()) {
      // Only the bytes between entries and behind the table mean nothing.
      bool padding = at >= packed_file::header_bytes;
      for (const PackedEntry& entry : file->entries()) {
        const auto begin = static_cast<std::size_t>(entry.bytes.data() - guarded.bytes().data());
        padding = padding && !(at >= begin && at < begin + entry.bytes.size());
      }
      CHECK(padding);
    }
  }
}

TEST_CASE("Headers that lie are refused with what, where, got and wanted") {
  Damaged file;
  SECTION("magic") {
    file.set(0, 'c');
    CHECK(message(file.error()) == "byte 0: not a packed file (got another magic, wanted CBQPACK)");
  }
  SECTION("version") {
    file.set(8, std::uint32_t{2});
    file.restore();
    CHECK(message(file.error()) == "byte 8: a packed file of another version (got 2, wanted 1)");
    CHECK(file.error().code == Errc::unsupported);
  }
  SECTION("layout") {
    file.set(12, std::uint32_t{0});
    file.restore();
    CHECK(message(file.error()) == "byte 12: a packed file with another layout of matrices (got 0, wanted 1)");
  }
  SECTION("header damaged") {
    file.set(40, std::uint64_t{3});
    CHECK(message(file.error()).starts_with("byte 56: the header is damaged: its checksum differs (got "));
  }
  SECTION("table damaged") {
    file.set(file.table() + 8, 'S');
    CHECK(message(file.error())
              .starts_with("byte " + std::to_string(file.table()) +
                           ": the table is damaged: its checksum differs (got "));
  }
  SECTION("file size") {
    file.bytes.resize(file.bytes.size() + 64);
    CHECK(message(file.error()) == "byte 16: the file does not have the size that it was written with (got " +
                                       std::to_string(file.bytes.size()) + " bytes, wanted " +
                                       std::to_string(file.bytes.size() - 64) + " bytes)");
  }
  SECTION("place of the table") {
    const std::uint64_t place = GENERATE(0u, 1u, 65u, std::uint64_t{1} << 40, ~std::uint64_t{0} - 63);
    file.set(24, place);
    file.set(56, packed_file::checksum(std::span(file.bytes).first(56)));
    CHECK(std::string(file.error().what) == "the table does not lie in the file");
  }
  SECTION("size of the table") {
    const std::uint64_t size = GENERATE(std::uint64_t{1} << 40, ~std::uint64_t{0});
    file.set(32, size);
    file.set(56, packed_file::checksum(std::span(file.bytes).first(56)));
    CHECK(std::string(file.error().what) == "the table does not lie in the file");
  }
  SECTION("number of entries") {
    const std::uint64_t count = GENERATE(1000u, ~std::uint64_t{0});
    file.set(40, count);
    file.restore();
    CHECK(std::string(file.error().what) == "the table is too short for its entries");
  }
  SECTION("fewer entries than the table has") {
    file.set(40, std::uint64_t{3});
    file.restore();
    CHECK(std::string(file.error().what) == "the entries do not fill the file");
  }
}

TEST_CASE("Tables that lie are refused and name the entry") {
  Damaged file;
  const std::size_t table = file.table();
  const auto what = [&] {
    file.restore();
    const Error error = file.error();
    CHECK(std::string(error.where.c_str()).starts_with("table"));
    return std::string(error.what);
  };
  SECTION("a stamp that is too long") {
    file.set(table, std::uint64_t{4097});
    CHECK(what() == "a text is too long");
  }
  SECTION("a name that is too long, or longer than the table") {
    const std::uint64_t size = GENERATE(257u, ~std::uint64_t{0});
    file.set(table + first_entry, size);
    CHECK(what() == "a text is too long");
  }
  SECTION("an empty name") {
    file.set(table + first_entry, std::uint64_t{0});
    CHECK(what() == "an entry without a name");
  }
  SECTION("a kind that does not exist") {
    file.set(table + kind_at, std::uint32_t{3});
    CHECK(what() == "an entry of an unknown kind");
  }
  SECTION("a scheme that is none") {
    file.set(table + scheme_at, 'x');
    CHECK(what() == "not a scheme name");
  }
  SECTION("a scheme without end") {
    for (std::size_t i = 0; i < 32; ++i) file.set(table + scheme_at + i, 'w');
    CHECK(what() == "the name of the scheme has no end");
  }
  SECTION("a scheme without kernels") {
    file.set(table + scheme_at + 1, '5');
    CHECK(what() == "no packed kernel for this scheme");
  }
  SECTION("a scheme of another size") {
    file.set(table + scheme_at + 1, '4');
    CHECK(what() == "the bytes do not fit scheme and shape");
  }
  SECTION("sizes that overflow") {
    file.set(table + rows_at, ~std::uint64_t{0});
    file.set(table + columns_at, ~std::uint64_t{0});
    file.restore();
    CHECK(file.error().code == Errc::bad_shape);
  }
  SECTION("a size that does not fit its bytes") {
    file.set(table + rows_at, std::uint64_t{500});
    CHECK(what() == "the bytes do not fit scheme and shape");
  }
  SECTION("sizes and bytes that agree, but not with the file") {
    const auto size = packed_bytes(*packed_layout(affine.weight, 160000, 130));
    file.set(table + rows_at, std::uint64_t{160000});
    file.set(table + bytes_at, std::uint64_t{size});
    CHECK(what() == "an entry reaches into the table");
  }
  SECTION("an offset that overlaps, leaves a gap, or is misaligned") {
    file.set(table + offset_at,
             GENERATE(std::uint64_t{0}, std::uint64_t{63}, std::uint64_t{65}, std::uint64_t{128}, ~std::uint64_t{0}));
    CHECK(what() == "an entry does not begin where the one before it ends");
  }
  SECTION("a multiplier that is no power of two") {
    file.set(table + multiplier_at, GENERATE(0.0f, -1.0f, 3.0f, 0x1p-140f, std::numeric_limits<float>::infinity(),
                                             std::numeric_limits<float>::quiet_NaN()));
    CHECK(what() == "the multiplier of the scales is no power of two");
  }
  SECTION("two entries with one name") {
    // The third entry follows the second, "norm".
    const std::size_t second = first_fields + 4 + 32 + 8 + 8 + 4 + 24;
    const std::size_t third = second + 8 + 4 + 4 + 32 + 8 + 8 + 4 + 24;
    REQUIRE(file.get<std::uint64_t>(table + third) == 10);
    std::memcpy(file.bytes.data() + table + third + 8, "layers.1.b", 10);
    CHECK(what() == "two entries have one name");
  }
}

TEST_CASE("Memory for a packed file must be aligned") {
  const Damaged file;
  auto memory = AlignedBuffer<std::byte>::allocate(file.bytes.size() + 4);
  REQUIRE(memory);
  std::memcpy(memory->data() + 4, file.bytes.data(), file.bytes.size());
  CHECK(PackedFile::parse({memory->data() + 4, file.bytes.size()}).error().code == Errc::bad_argument);
}

TEST_CASE("What is no packed file is refused and named") {
  const support::ScratchFolder folder;
  CHECK(PackedFile::open(folder / "missing").error().code == Errc::io);
  support::write_text(folder / "text", "hello");
  CHECK(message(PackedFile::open(folder / "text")) ==
        (folder / "text") + ": byte 0: not a packed file (got another magic, wanted CBQPACK)");
}

TEST_CASE("A file that shrinks after it was opened is noticed") {
  const support::ScratchFolder folder;
  Content().write(folder / "f", "");
  const auto file = PackedFile::open(folder / "f", FileMode::read);
  REQUIRE(file);
  std::filesystem::resize_file(folder / "f", 128);
  CHECK(message(file->check_unchanged("f")).starts_with("f: the file changed its size"));
  CHECK(file->verify());  // read into memory: unharmed
}
