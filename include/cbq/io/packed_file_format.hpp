// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bytes of a packed file's header and table, and their checks; docs/packed_format.md states them one by one. For
// readers and writers: packed_file.hpp, packed_file_writer.hpp.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include <cbq/core/checksum.hpp>
#include <cbq/gemm/packed_layout.hpp>
#include <cbq/io/byte_cursor.hpp>

namespace cbq {

/// What an entry of a packed file holds.
enum class PackedKind : std::uint32_t { matrix = 1, floats = 2 };

inline namespace CBQ_ABI {

/// One entry of a packed file; `name` and `bytes` point into the file.
struct PackedEntry {
  std::string_view name;
  PackedKind kind = PackedKind::matrix;
  Scheme scheme = {};       ///< of matrices
  std::size_t rows = 0;     ///< outputs of a matrix
  std::size_t columns = 0;  ///< inputs of a matrix
  float multiplier = 1.0f;  ///< of matrices, see PackedMatrix
  std::span<const std::byte> bytes;
  std::uint64_t checksum = 0;
};

namespace packed_file {

inline constexpr char magic[8] = {'C', 'B', 'Q', 'P', 'A', 'C', 'K', '\0'};
inline constexpr std::uint32_t version = 1;  ///< of header and table
inline constexpr std::uint32_t layout = 1;   ///< of packed matrices: packed_layout.hpp
inline constexpr std::size_t alignment = 64;
inline constexpr std::size_t header_bytes = 64;
inline constexpr std::size_t longest_name = 256;
inline constexpr std::size_t longest_stamp = 4096;
inline constexpr std::size_t scheme_bytes = sizeof(SchemeName::characters);
/// Bytes of an entry of the table, without its name.
inline constexpr std::size_t entry_bytes = 8 + 4 + scheme_bytes + 2 * 8 + 4 + 3 * 8;

/// The least multiple of the alignment that is not below `size`; Errc::bad_shape on overflow.
[[nodiscard]] constexpr Result<std::size_t> aligned(std::size_t size) noexcept {
  const Result<std::size_t> sum = checked_sum(size, alignment - 1);
  if (!sum) return sum;
  return *sum / alignment * alignment;
}

using cbq::checksum;

/// The first 64 bytes of a file.
struct Header {
  char magic[8];
  std::uint32_t version;
  std::uint32_t layout;
  std::uint64_t file_bytes;
  std::uint64_t table_offset;
  std::uint64_t table_bytes;
  std::uint64_t entries;
  std::uint64_t table_checksum;
  std::uint64_t header_checksum;  ///< of the bytes before it
};
static_assert(sizeof(Header) == header_bytes);

[[nodiscard]] inline std::uint64_t header_checksum(const Header& header) noexcept {
  return checksum(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, header_checksum)));
}

/// Errc::bad_file or Errc::unsupported unless the file begins with a header that fits its size.
[[nodiscard]] inline Result<Header> read_header(std::span<const std::byte> bytes) noexcept {
  Header header = {};
  if (bytes.size() >= sizeof magic) std::memcpy(&header, bytes.data(), std::min(bytes.size(), sizeof header));
  if (std::memcmp(header.magic, magic, sizeof magic) != 0) {
    return Error{Errc::bad_file, "not a packed file", "byte 0", "another magic", "CBQPACK"};
  }
  if (bytes.size() < sizeof header) {
    return Error{Errc::bad_file, "the file ends inside its header", "", ErrorText(bytes.size()) << " bytes",
                 ErrorText(sizeof header) << " bytes"};
  }
  if (header.version != version) {
    return Error{Errc::unsupported, "a packed file of another version", "byte 8", header.version, version};
  }
  if (header.layout != layout) {
    return Error{Errc::unsupported, "a packed file with another layout of matrices", "byte 12", header.layout, layout};
  }
  if (header.header_checksum != header_checksum(header)) {
    return Error{Errc::bad_file, "the header is damaged: its checksum differs", "byte 56", header.header_checksum,
                 header_checksum(header)};
  }
  if (header.file_bytes != bytes.size()) {
    return Error{Errc::bad_file, "the file does not have the size that it was written with", "byte 16",
                 ErrorText(bytes.size()) << " bytes", ErrorText(header.file_bytes) << " bytes"};
  }
  const Result<std::size_t> end = checked_sum(header.table_offset, header.table_bytes);
  if (!end || *end > bytes.size() || header.table_offset < header_bytes || header.table_offset % alignment != 0) {
    return Error{Errc::bad_file, "the table does not lie in the file", "byte 24",
                 ErrorText(header.table_offset) << " + " << header.table_bytes,
                 ErrorText("a multiple of 64, at most ") << bytes.size()};
  }
  if (header.entries > header.table_bytes / entry_bytes) {
    return Error{Errc::bad_file, "the table is too short for its entries", "byte 40", header.entries,
                 ErrorText("at most ") << header.table_bytes / entry_bytes};
  }
  return header;
}

/// A finite power of two, as PackedMatrix::multiplier is.
[[nodiscard]] constexpr bool is_multiplier(float value) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, value);
  return (bits & 0x807fffffu) == 0 && bits != 0 && bits < 0x7f800000u;
}

/// The bytes that an entry of this kind and size has. Errc::bad_shape, Errc::unsupported.
[[nodiscard]] constexpr Result<std::size_t> size_of(PackedKind kind, const Scheme& scheme, std::size_t rows,
                                                    std::size_t columns) noexcept {
  if (kind == PackedKind::floats) return checked_product(rows, columns, sizeof(float));
  if (std::find(packed_schemes.begin(), packed_schemes.end(), scheme) == packed_schemes.end()) {
    return Error{Errc::unsupported, "no packed kernel for this scheme", "", scheme_name(scheme).c_str()};
  }
  const Result<PackedLayout> packed = packed_layout(scheme.weight, rows, columns);
  if (!packed) return packed.error();
  return packed_bytes(*packed);
}

/// Reads one entry of the table, whose data must begin at `offset`, and moves `offset` behind it.
class EntryReader {
 public:
  explicit EntryReader(std::span<const std::byte> data) noexcept : data_(data) {}

  [[nodiscard]] Result<PackedEntry> read(io_detail::ByteCursor& cursor) noexcept {
    const ErrorText where = ErrorText("table byte ") << cursor.position();
    const Result<std::string_view> name = cursor.text(longest_name);
    if (!name) return name.error();
    if (name->empty()) return Error{Errc::bad_file, "an entry without a name", where, "an empty text", "a name"};
    Fixed fixed = {};
    const Result<std::span<const std::byte>> bytes = cursor.take(entry_bytes - 8);
    if (!bytes) return bytes.error();
    unpack(*bytes, fixed);
    PackedEntry entry;
    entry.name = *name;
    Status status = interpret(fixed, entry);
    if (status) status = place(fixed, entry);
    if (!status) return in_context(in_context(status.error(), *name), where.c_str());
    return entry;
  }
  /// Where the next entry begins.
  [[nodiscard]] std::size_t offset() const noexcept { return offset_; }

 private:
  struct Fixed {
    std::uint32_t kind;
    char scheme[scheme_bytes];
    std::uint64_t rows, columns;
    float multiplier;
    std::uint64_t offset, bytes, checksum;
  };

  static void unpack(std::span<const std::byte> bytes, Fixed& fixed) noexcept {
    const std::byte* from = bytes.data();
    const auto take = [&from](auto& field) {
      std::memcpy(&field, from, sizeof field);
      from += sizeof field;
    };
    take(fixed.kind);
    take(fixed.scheme);
    take(fixed.rows);
    take(fixed.columns);
    take(fixed.multiplier);
    take(fixed.offset);
    take(fixed.bytes);
    take(fixed.checksum);
  }

  static Status interpret(const Fixed& fixed, PackedEntry& entry) noexcept {
    entry.kind = static_cast<PackedKind>(fixed.kind);
    entry.rows = fixed.rows;
    entry.columns = fixed.columns;
    entry.multiplier = fixed.multiplier;
    entry.checksum = fixed.checksum;
    if (entry.kind != PackedKind::matrix && entry.kind != PackedKind::floats) {
      return Error{Errc::unsupported, "an entry of an unknown kind", "", fixed.kind, "1 (matrix) or 2 (floats)"};
    }
    if (!is_multiplier(fixed.multiplier)) {
      return Error{Errc::bad_file, "the multiplier of the scales is no power of two", "",
                   ErrorText("bits ") << __builtin_bit_cast(std::uint32_t, fixed.multiplier), "a power of two"};
    }
    if (entry.kind == PackedKind::floats) return {};
    if (fixed.scheme[scheme_bytes - 1] != '\0') {
      return Error{Errc::bad_file, "the name of the scheme has no end", "",
                   std::string_view(fixed.scheme, scheme_bytes), "a name and a zero byte"};
    }
    const Result<Scheme> scheme = parse_scheme(fixed.scheme);
    if (!scheme) return scheme.error();
    entry.scheme = *scheme;
    return {};
  }

  Status place(const Fixed& fixed, PackedEntry& entry) noexcept {
    const Result<std::size_t> wanted = size_of(entry.kind, entry.scheme, entry.rows, entry.columns);
    if (!wanted) return wanted.error();
    if (fixed.bytes != *wanted) {
      return Error{Errc::bad_file, "the bytes do not fit scheme and shape", "", fixed.bytes, *wanted};
    }
    if (fixed.offset != offset_) {
      return Error{Errc::bad_file, "an entry does not begin where the one before it ends", "", fixed.offset, offset_};
    }
    if (*wanted > data_.size() - offset_) {
      return Error{Errc::bad_file, "an entry reaches into the table", "", fixed.bytes,
                   ErrorText("at most ") << data_.size() - offset_};
    }
    entry.bytes = data_.subspan(offset_, *wanted);
    offset_ = *aligned(offset_ + *wanted);  // at most the size of the data, a multiple itself
    return {};
  }

  std::span<const std::byte> data_;  ///< the file up to its table
  std::size_t offset_ = header_bytes;
};

}  // namespace packed_file

}  // namespace CBQ_ABI
}  // namespace cbq
