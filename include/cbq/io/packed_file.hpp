// SPDX-License-Identifier: Apache-2.0
#pragma once

// PackedFile: reads a file of packed matrices and float tensors, by default mapped: packed once, a model is there again
// without being read, and shared by all processes that map it. The content is the same for every instruction set.
// Writer: packed_file_writer.hpp; the format, byte by byte: docs/packed_format.md.
//
//   header (64 bytes) | data, each entry on a multiple of 64 | table: stamp, then name, scheme, sizes, place of entries
//
// Everything but the numbers themselves is checked on load: magic, versions, checksums of header and table, names,
// schemes, sizes in checked arithmetic, and that the entries tile the data without gap or overlap. So every view is
// safe to multiply with. verify() compares the numbers with their checksums, which reads the whole file. Cost of
// opening: a few microseconds per entry.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/core/bad_alloc.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/gemm/packed_weights.hpp>
#include <cbq/io/byte_cursor.hpp>
#include <cbq/io/mapped_file.hpp>
#include <cbq/io/packed_file_format.hpp>

namespace cbq {

/// What the reader refuses to hold. Names and the stamp are bounded by the format: packed_file_format.hpp.
struct PackedFileLimits {
  std::size_t bytes = std::size_t{1} << 40;  ///< of the file
  std::size_t table_bytes = std::size_t{1} << 26;
  std::size_t entries = std::size_t{1} << 17;
};

inline namespace CBQ_ABI {

class PackedFile {
 public:
  PackedFile() noexcept = default;

  /// Opens and checks the file `path`. Errors of FileBytes::open(); Errc::bad_file and Errc::unsupported name the file,
  /// the entry or byte, what was found and what was wanted. Errc::out_of_memory.
  [[nodiscard]] static Result<PackedFile> open(const std::string& path, FileMode mode = FileMode::map,
                                               const PackedFileLimits& limits = {}) {
    Result<FileBytes> bytes = FileBytes::open(path, mode, limits.bytes);
    if (!bytes) return bytes.error();
    Result<PackedFile> file = parse(bytes->bytes(), limits);
    if (!file) return in_context(file.error(), path);
    file->file_ = std::move(*bytes);
    return file;
  }

  /// The same for a whole file in memory, on a boundary of 64 bytes; `bytes` must outlive this object.
  [[nodiscard]] static Result<PackedFile> parse(std::span<const std::byte> bytes, const PackedFileLimits& limits = {}) {
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % packed_file::alignment != 0) {
      return Error{Errc::bad_argument, "a packed file in memory must lie on a boundary of 64 bytes"};
    }
    const Result<packed_file::Header> header = packed_file::read_header(bytes);
    if (!header) return header.error();
    if (header->entries > limits.entries) {
      return Error{Errc::bad_file, "more entries than allowed", "byte 40", header->entries,
                   ErrorText("at most ") << limits.entries};
    }
    if (header->table_bytes > limits.table_bytes) {
      return Error{Errc::bad_file, "the table is longer than allowed", "byte 32", header->table_bytes,
                   ErrorText("at most ") << limits.table_bytes};
    }
    return bad_alloc_as_error("table", [&] { return parse_table(bytes, *header); });
  }

  /// What the writer was told about the origin of the content; a host compares it before it trusts a cache.
  [[nodiscard]] std::string_view stamp() const noexcept { return stamp_; }

  /// All entries, sorted by name.
  [[nodiscard]] std::span<const PackedEntry> entries() const noexcept { return entries_; }

  /// The entry with this name, or null.
  [[nodiscard]] const PackedEntry* find(std::string_view name) const noexcept {
    const auto at =
        std::lower_bound(entries_.begin(), entries_.end(), name,
                         [](const PackedEntry& entry, std::string_view wanted) { return entry.name < wanted; });
    return at != entries_.end() && at->name == name ? &*at : nullptr;
  }

  /// The matrix `name`, a view that lives as long as this file. Errc::bad_file when it is missing or holds floats.
  [[nodiscard]] Result<PackedMatrix> matrix(std::string_view name) const noexcept {
    const Result<const PackedEntry*> entry = find(name, PackedKind::matrix);
    if (!entry) return entry.error();
    const Result<PackedLayout> layout = packed_layout((*entry)->scheme.weight, (*entry)->rows, (*entry)->columns);
    if (!layout) return layout.error();
    return PackedMatrix{(*entry)->bytes.data(), *layout, (*entry)->multiplier};
  }

  /// The same for a scheme known at compile time; Errc::unsupported when the weights are on another grid.
  template <Scheme S>
  [[nodiscard]] Result<PackedWeightsView<S>> matrix(std::string_view name) const noexcept {
    const Result<PackedMatrix> packed = matrix(name);
    if (!packed) return packed.error();
    if (find(name)->scheme.weight != checked<S>().weight) {
      return Error{Errc::unsupported, "a matrix is packed on another grid", name,
                   scheme_name(find(name)->scheme).c_str(), scheme_name(S).c_str()};
    }
    return PackedWeightsView<S>{*packed};
  }

  /// The floats `name`. Errc::bad_file when they are missing or a matrix is there.
  [[nodiscard]] Result<MatrixView<const float>> floats(std::string_view name) const noexcept {
    const Result<const PackedEntry*> entry = find(name, PackedKind::floats);
    if (!entry) return entry.error();
    return matrix_view(reinterpret_cast<const float*>((*entry)->bytes.data()), (*entry)->rows, (*entry)->columns);
  }

  /// Reads everything and compares checksums, entries in parallel. Errc::bad_file names the first damaged entry;
  /// Errc::out_of_memory.
  template <Executor E = SerialExecutor>
  [[nodiscard]] Status verify(const E& executor = {}) const {
    auto damaged = AlignedBuffer<unsigned char>::allocate(entries_.size());
    if (!damaged) return in_context(damaged.error(), "checksums");
    executor.for_each_index(entries_.size(), [&](std::size_t i) {
      (*damaged)[i] = packed_file::checksum(entries_[i].bytes) != entries_[i].checksum;
    });
    for (std::size_t i = 0; i < entries_.size(); ++i) {
      if ((*damaged)[i] != 0)
        return Error{Errc::bad_file, "an entry is damaged: its checksum differs", entries_[i].name};
    }
    return {};
  }

  /// FileBytes::check_unchanged() of an opened file.
  [[nodiscard]] Status check_unchanged(std::string_view path) const noexcept { return file_.check_unchanged(path); }

 private:
  static Result<PackedFile> parse_table(std::span<const std::byte> bytes, const packed_file::Header& header) {
    const std::span<const std::byte> table = bytes.subspan(header.table_offset, header.table_bytes);
    if (packed_file::checksum(table) != header.table_checksum) {
      return Error{Errc::bad_file, "the table is damaged: its checksum differs",
                   ErrorText("byte ") << header.table_offset, packed_file::checksum(table), header.table_checksum};
    }
    PackedFile file;
    const Status read = file.read_table(table, header.entries, bytes.first(header.table_offset));
    if (!read) return read.error();
    return file;
  }

  Status read_table(std::span<const std::byte> table, std::size_t count, std::span<const std::byte> data) {
    io_detail::ByteCursor cursor(table);
    const Result<std::string_view> stamp = cursor.text(packed_file::longest_stamp);
    if (!stamp) return in_context(stamp.error(), "table");
    stamp_ = *stamp;
    packed_file::EntryReader reader(data);
    entries_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      const Result<PackedEntry> entry = reader.read(cursor);
      if (!entry) return in_context(entry.error(), "table");
      entries_.push_back(*entry);
    }
    if (cursor.left() != 0 || reader.offset() != data.size()) {
      return Error{Errc::bad_file, "the entries do not fill the file", "table",
                   ErrorText(reader.offset()) << " bytes of data", ErrorText(data.size()) << " bytes"};
    }
    const auto by_name = [](const PackedEntry& a, const PackedEntry& b) { return a.name < b.name; };
    std::sort(entries_.begin(), entries_.end(), by_name);
    for (std::size_t i = 1; i < entries_.size(); ++i) {
      if (entries_[i].name == entries_[i - 1].name) {
        return Error{Errc::bad_file, "two entries have one name", "table", entries_[i].name};
      }
    }
    return {};
  }

  [[nodiscard]] Result<const PackedEntry*> find(std::string_view name, PackedKind kind) const noexcept {
    const PackedEntry* entry = find(name);
    if (entry != nullptr && entry->kind == kind) return entry;
    return Error{Errc::bad_file, "the packed file lacks an entry", name,
                 entry == nullptr ? "" : "an entry of the other kind",
                 kind == PackedKind::matrix ? "a packed matrix" : "floats"};
  }

  FileBytes file_;
  std::string_view stamp_;
  std::vector<PackedEntry> entries_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
