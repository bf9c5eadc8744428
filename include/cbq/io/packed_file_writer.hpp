// SPDX-License-Identifier: Apache-2.0
#pragma once

// PackedFileWriter: writes a packed file (packed_file.hpp) entry by entry, without a copy in memory. Nothing is at the
// path before commit(), and after a crash or an error there is what was there before.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/atomic_file.hpp>
#include <cbq/io/packed_file.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// `System` makes the system calls; see BasicAtomicFile.
template <class System = PosixSystem>
class BasicPackedFileWriter {
 public:
  /// Starts a file that will become `path`. `stamp` is kept for the reader, at most 4096 bytes: what the content was
  /// made from. Errc::io, Errc::bad_argument.
  [[nodiscard]] static Result<BasicPackedFileWriter> create(const std::string& path, std::string_view stamp = {}) {
    if (stamp.size() > packed_file::longest_stamp) {
      return Error{Errc::bad_argument, "the stamp is too long", path, ErrorText(stamp.size()) << " bytes",
                   ErrorText("at most ") << packed_file::longest_stamp};
    }
    return bad_alloc_as_error(path, [&]() -> Result<BasicPackedFileWriter> {
      Result<BasicAtomicFile<System>> file = BasicAtomicFile<System>::create(path);
      if (!file) return file.error();
      BasicPackedFileWriter writer;
      writer.file_ = std::move(*file);
      writer.put_text(stamp);
      return writer;
    });
  }

  /// Appends a packed matrix. Errc::bad_argument (name), Errc::unsupported (scheme without kernels), Errc::bad_shape
  /// (a layout that is not the scheme's), Errc::io.
  [[nodiscard]] Status add(std::string_view name, const Scheme& scheme, const PackedMatrix& matrix) {
    const std::size_t rows = matrix.layout.outputs;
    const std::size_t columns = matrix.layout.inputs;
    const Result<std::size_t> size = packed_file::size_of(PackedKind::matrix, scheme, rows, columns);
    if (!size) return in_context(size.error(), name);
    const auto bits = static_cast<std::size_t>(scheme.weight.bits);
    if (*size != packed_bytes(matrix.layout) || matrix.layout.bits != bits ||
        matrix.layout.zero != scheme.weight.zero || !packed_file::is_multiplier(matrix.multiplier)) {
      return Error{Errc::bad_shape, "the matrix is not packed under this scheme", name,
                   ErrorText(packed_bytes(matrix.layout)) << " bytes of " << matrix.layout.bits << "-bit codes",
                   ErrorText(*size) << " bytes of " << scheme_name(scheme).c_str()};
    }
    return append({.name = name,
                   .kind = PackedKind::matrix,
                   .scheme = scheme,
                   .rows = rows,
                   .columns = columns,
                   .multiplier = matrix.multiplier,
                   .bytes = {matrix.data, *size}});
  }

  /// Appends floats that lie without gaps: norms, biases, what is not quantized. Errc::bad_argument, Errc::bad_shape,
  /// Errc::io.
  [[nodiscard]] Status add(std::string_view name, const MatrixView<const float>& values) {
    const Result<std::size_t> size = packed_file::size_of(PackedKind::floats, {}, values.rows, values.columns);
    if (!size) return in_context(size.error(), name);
    if (values.stride != values.columns && values.rows > 1) {
      return Error{Errc::bad_shape, "the rows must lie without gaps", name, values.stride, values.columns};
    }
    return append({.name = name,
                   .kind = PackedKind::floats,
                   .rows = values.rows,
                   .columns = values.columns,
                   .bytes = {reinterpret_cast<const std::byte*>(values.data), *size}});
  }

  /// Writes table and header and puts the file in its place; afterwards the object is empty. Errc::io.
  [[nodiscard]] Status commit() {
    return bad_alloc_as_error(file_.path(), [&] { return finish(); });
  }

 private:
  BasicPackedFileWriter() noexcept = default;

  Status finish() {
    const Result<std::size_t> end = packed_file::aligned(offset_ + table_.size());
    if (!end) return end.error();
    const std::span<const std::byte> table(table_);
    packed_file::Header header = {};
    std::memcpy(header.magic, packed_file::magic, sizeof header.magic);
    header.version = packed_file::version;
    header.layout = packed_file::layout;
    header.file_bytes = *end;
    header.table_offset = offset_;
    header.table_bytes = table_.size();
    header.entries = names_.size();
    header.table_checksum = packed_file::checksum(table);
    header.header_checksum = packed_file::header_checksum(header);
    table_.resize(*end - offset_);  // the file ends on a boundary, too
    if (const Status ok = file_.write_at(offset_, std::span<const std::byte>(table_)); !ok) return ok;
    if (const Status ok = file_.write_at(0, std::as_bytes(std::span(&header, 1))); !ok) return ok;
    return file_.commit();
  }

  Status append(const PackedEntry& entry) {
    return bad_alloc_as_error(entry.name, [&] { return write_entry(entry); });
  }

  // A failure after the bytes are written leaves a gap that the next entry overwrites.
  Status write_entry(const PackedEntry& entry) {
    if (entry.name.empty() || entry.name.size() > packed_file::longest_name) {
      return Error{Errc::bad_argument, "a name has 1 to 256 bytes", entry.name, entry.name.size(), "1..256"};
    }
    for (const std::string& name : names_) {
      if (name == entry.name) return Error{Errc::bad_argument, "this name is taken", entry.name};
    }
    const Result<std::size_t> end = checked_sum(offset_, entry.bytes.size());
    if (!end) return end.error();
    const Result<std::size_t> next = packed_file::aligned(*end);
    if (!next) return next.error();
    if (const Status written = file_.write_at(offset_, entry.bytes); !written) return written;
    if (table_.capacity() - table_.size() < longest_entry) table_.reserve(2 * table_.size() + longest_entry);
    names_.emplace_back(entry.name);
    put_entry(entry);
    offset_ = *next;
    return {};
  }

  // Space for it is taken at once: all of an entry is in the table, or nothing.
  static constexpr std::size_t longest_entry = packed_file::longest_name + sizeof(SchemeName) + 64;

  template <class T>
  void put(const T& value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    table_.insert(table_.end(), bytes.begin(), bytes.end());
  }
  void put_text(std::string_view text) {
    put(std::uint64_t{text.size()});
    const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
    table_.insert(table_.end(), bytes.begin(), bytes.end());
  }
  void put_entry(const PackedEntry& entry) {
    put_text(entry.name);
    put(static_cast<std::uint32_t>(entry.kind));
    put(entry.kind == PackedKind::matrix ? scheme_name(entry.scheme) : SchemeName{});
    put(std::uint64_t{entry.rows});
    put(std::uint64_t{entry.columns});
    put(entry.multiplier);
    put(std::uint64_t{offset_});
    put(std::uint64_t{entry.bytes.size()});
    put(packed_file::checksum(entry.bytes));
  }

  BasicAtomicFile<System> file_;
  std::size_t offset_ = packed_file::header_bytes;  ///< of the next entry
  std::vector<std::byte> table_;
  std::vector<std::string> names_;
};

using PackedFileWriter = BasicPackedFileWriter<>;

}  // namespace CBQ_ABI
}  // namespace cbq
