// SPDX-License-Identifier: Apache-2.0
#pragma once

// Gguf: reads GGUF files of version 2 and 3 from bytes in memory or in a mapped file, without copying.
//
//   "GGUF" | u32 version | u64 tensors | u64 keys
//   key:    text name (u64 length + bytes) | u32 type | value          an array is u32 type | u64 count | values
//   tensor: text name | u32 rank | u64 sizes, innermost first | u32 type | u64 offset
//   padding to `general.alignment` (32) | data, each tensor padded to the alignment
//
// Every count is compared with the bytes that are left before anything is sized by it, and offsets must be the running
// sum of the padded sizes.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/gguf_blocks.hpp>
#include <cbq/io/gguf_metadata.hpp>
#include <cbq/io/mapped_file.hpp>
#include <cbq/io/tensor.hpp>

namespace cbq {

/// One tensor, still in the bytes of the file. The shape is outermost first, like everywhere in cbq: [N, K].
struct GgufTensor {
  std::string_view name;
  GgufType type = GgufType::f32;
  TensorShape shape;
  std::span<const std::byte> bytes;
  std::size_t offset = 0;  ///< from the start of the data
};

inline namespace CBQ_ABI {

class Gguf {
 public:
  /// The metadata and tensors of a whole file in memory; `bytes` must outlive this object. Errc::bad_file or
  /// Errc::unsupported, with key or tensor and byte offset.
  [[nodiscard]] static Result<Gguf> parse(std::span<const std::byte> bytes, const GgufLimits& limits = {}) {
    return bad_alloc_as_error("GGUF header", [&] { return parse_header(bytes, limits); });
  }

  Gguf(Gguf&&) noexcept = default;
  Gguf& operator=(Gguf&&) noexcept = default;
  Gguf(const Gguf&) = delete;
  Gguf& operator=(const Gguf&) = delete;
  ~Gguf() = default;

  [[nodiscard]] const GgufMetadata& metadata() const noexcept { return metadata_; }

  /// All tensors, sorted by name.
  [[nodiscard]] std::span<const GgufTensor> tensors() const noexcept { return tensors_; }

  /// The tensor of that name, or nullptr.
  [[nodiscard]] const GgufTensor* find(std::string_view name) const noexcept {
    const auto at =
        std::lower_bound(tensors_.begin(), tensors_.end(), name,
                         [](const GgufTensor& tensor, std::string_view other) { return tensor.name < other; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }

 private:
  struct Counts {
    std::size_t tensors = 0;
    std::size_t keys = 0;
  };

  Gguf() = default;

  static Result<Gguf> parse_header(std::span<const std::byte> bytes, const GgufLimits& limits) {
    Gguf file;
    if (bytes.size() > limits.bytes) {
      return Error{Errc::bad_file, "the file is larger than allowed", "byte 0", ErrorText(bytes.size()) << " bytes",
                   ErrorText("at most ") << limits.bytes};
    }
    io_detail::ByteCursor cursor(bytes);
    const Result<Counts> counts = read_header(cursor, limits);
    if (!counts) return counts.error();
    Result<GgufMetadata> metadata = GgufMetadata::read(cursor, counts->keys, limits);
    if (!metadata) return metadata.error();
    file.metadata_ = std::move(*metadata);
    const Result<std::size_t> alignment = file.read_alignment(limits);
    if (!alignment) return alignment.error();
    if (const Status read = file.read_tensors(cursor, counts->tensors, limits); !read) return read.error();
    if (const Status placed = file.place_tensors(bytes, cursor.position(), *alignment); !placed) return placed.error();
    return file;
  }

  static Result<Counts> read_header(io_detail::ByteCursor& cursor, const GgufLimits& limits) {
    const auto magic = cursor.number<std::uint32_t>();
    if (!magic) return magic.error();
    if (*magic != 0x46554747u) return Error{Errc::bad_file, "not a GGUF file", "byte 0", *magic, "the letters GGUF"};
    const auto version = cursor.number<std::uint32_t>();
    if (!version) return version.error();
    if ((*version & 0xffffu) == 0) {
      return Error{Errc::unsupported, "a big-endian GGUF file", "byte 4", *version, "little-endian"};
    }
    if (*version != 2 && *version != 3) return Error{Errc::unsupported, "GGUF version", "byte 4", *version, "2 or 3"};
    const auto tensors = cursor.number<std::uint64_t>();
    if (!tensors) return tensors.error();
    const auto keys = cursor.number<std::uint64_t>();
    if (!keys) return keys.error();
    constexpr std::size_t least_tensor = 8 + 4 + 4 + 8;  // empty name, rank 0
    constexpr std::size_t least_key = 8 + 1 + 4 + 1;
    if (*keys > limits.keys || *keys > cursor.left() / least_key) {
      return Error{Errc::bad_file, "more keys than the file can hold", "byte 16", *keys,
                   ErrorText("at most ") << limits.keys};
    }
    if (*tensors > limits.tensors || *tensors > cursor.left() / least_tensor) {
      return Error{Errc::bad_file, "more tensors than the file can hold", "byte 8", *tensors,
                   ErrorText("at most ") << limits.tensors};
    }
    return Counts{.tensors = *tensors, .keys = *keys};
  }

  [[nodiscard]] Result<std::size_t> read_alignment(const GgufLimits& limits) const {
    const GgufValue* entry = metadata_.value("general.alignment");
    if (entry == nullptr) return std::size_t{32};
    if (entry->kind != GgufKind::u32) {
      return Error{Errc::bad_file, "a metadata value has the wrong type", entry->key,
                   io_detail::gguf_kind_name(entry->kind), "u32"};
    }
    const std::size_t alignment = load_unaligned<std::uint32_t>(entry->bytes.data());
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > limits.alignment) {
      return Error{Errc::bad_file, "not an alignment", "general.alignment", alignment,
                   ErrorText("a power of two up to ") << limits.alignment};
    }
    return alignment;
  }

  Status read_tensors(io_detail::ByteCursor& cursor, std::size_t count, const GgufLimits& limits) {
    const std::size_t dims = std::min(limits.dims, TensorShape::max_rank);
    tensors_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      const Result<std::string_view> name = cursor.text(limits.name_bytes);
      if (!name) return in_context(name.error(), "tensors");
      GgufTensor tensor;
      tensor.name = *name;
      if (const Status read = read_tensor(cursor, dims, tensor); !read) return in_context(read.error(), *name);
      tensors_.push_back(tensor);
    }
    return {};
  }

  static Status read_tensor(io_detail::ByteCursor& cursor, std::size_t dims, GgufTensor& tensor) {
    const ErrorText where = cursor.where();
    const auto rank = cursor.number<std::uint32_t>();
    if (!rank) return rank.error();
    if (*rank > dims) {
      return Error{Errc::bad_file, "the tensor has too many dimensions", where, *rank, ErrorText("at most ") << dims};
    }
    tensor.shape.rank = *rank;
    for (std::size_t i = *rank; i-- > 0;) {
      const auto size = cursor.number<std::uint64_t>();
      if (!size) return size.error();
      tensor.shape.sizes[i] = *size;
    }
    const auto type = cursor.number<std::uint32_t>();
    if (!type) return type.error();
    const Result<GgufTypeLayout> layout = gguf_layout(*type);
    if (!layout) return in_context(layout.error(), where.c_str());
    tensor.type = layout->type;
    const auto offset = cursor.number<std::uint64_t>();
    if (!offset) return offset.error();
    tensor.offset = *offset;
    return {};
  }

  Status place_tensors(std::span<const std::byte> bytes, std::size_t header_end, std::size_t alignment) {
    const std::size_t padding = (alignment - header_end % alignment) % alignment;
    const std::size_t data_start = std::min(bytes.size(), header_end + padding);
    const std::span<const std::byte> data = bytes.subspan(data_start);
    std::size_t expected = 0;
    for (GgufTensor& tensor : tensors_) {
      const Result<std::size_t> size = gguf_bytes(tensor.type, tensor.shape);
      if (!size) return in_context(size.error(), (ErrorText(tensor.name) << ", data byte " << tensor.offset).c_str());
      if (tensor.offset != expected) {
        return Error{Errc::bad_file, "the tensor does not follow the one before it", tensor.name,
                     ErrorText("offset ") << tensor.offset, ErrorText("offset ") << expected};
      }
      if (expected > data.size() || *size > data.size() - expected) {
        return Error{Errc::bad_file, "the tensor does not fit in the file", tensor.name,
                     ErrorText(*size) << " bytes at data byte " << expected,
                     ErrorText(data.size()) << " bytes of data"};
      }
      tensor.bytes = data.subspan(expected, *size);
      // Both terms are below the size of the file plus the largest alignment: no overflow.
      expected += (*size + alignment - 1) / alignment * alignment;
    }
    std::sort(tensors_.begin(), tensors_.end(),
              [](const GgufTensor& a, const GgufTensor& b) { return a.name < b.name; });
    for (std::size_t i = 1; i < tensors_.size(); ++i) {
      if (tensors_[i].name == tensors_[i - 1].name)
        return Error{Errc::bad_file, "the same tensor twice", tensors_[i].name, "2 tensors", "1"};
    }
    return {};
  }

  GgufMetadata metadata_;
  std::vector<GgufTensor> tensors_;
};

/// Rows [first, first + out.rows) of a matrix to float; a tensor of rank 1 is one row. Errc::bad_shape,
/// Errc::unsupported (a type without a decoder), Errc::not_finite.
[[nodiscard]] inline Status copy_rows_to_float(const GgufTensor& tensor, std::size_t first,
                                               const MatrixView<float>& out,
                                               Finite finite = Finite::required) noexcept {
  const std::size_t rows = tensor.shape.rank == 2 ? tensor.shape.sizes[0] : 1;
  if (first > rows || out.rows > rows - first) {
    return Error{Errc::bad_shape, "rows outside the tensor", tensor.name, ErrorText(first) << " + " << out.rows,
                 ErrorText(rows) << " rows"};
  }
  if (const Status fits = io_detail::check_matrix_shape(tensor.shape, rows, out.columns); !fits) {
    return in_context(fits.error(), tensor.name);
  }
  const std::size_t row_bytes = rows == 0 ? 0 : tensor.bytes.size() / rows;
  if (out.columns == 0) return {};  // any number of empty rows
  for (std::size_t r = 0; r < out.rows; ++r) {
    const std::span<float> to(row(out, r), out.columns);
    const Status decoded = decode_gguf(tensor.type, tensor.bytes.subspan((first + r) * row_bytes, row_bytes), to);
    if (!decoded) return in_context(decoded.error(), tensor.name);
    if (const Status ok = io_detail::check_finite(to, first + r, finite); !ok)
      return in_context(ok.error(), tensor.name);
  }
  return {};
}

/// The whole tensor of shape [out.rows, out.columns] to float; a tensor of rank 1 fits a matrix of one row. Errors as
/// above.
[[nodiscard]] inline Status copy_to_float(const GgufTensor& tensor, const MatrixView<float>& out,
                                          Finite finite = Finite::required) noexcept {
  if (const Status fits = io_detail::check_matrix_shape(tensor.shape, out.rows, out.columns); !fits) {
    return in_context(fits.error(), tensor.name);
  }
  return copy_rows_to_float(tensor, 0, out, finite);
}

/// The same for a tensor of rank 1, [out.size()].
[[nodiscard]] inline Status copy_to_float(const GgufTensor& tensor, std::span<float> out,
                                          Finite finite = Finite::required) noexcept {
  return copy_to_float(tensor, matrix_view(out.data(), 1, out.size()), finite);
}

/// A GGUF file on disk with the bytes it refers to.
struct GgufFile {
  FileBytes file;
  Gguf content;

  /// Errc::io, Errc::bad_file, Errc::unsupported.
  [[nodiscard]] static Result<GgufFile> open(const std::string& path, FileMode mode = FileMode::map,
                                             const GgufLimits& limits = {}) {
    Result<FileBytes> file = FileBytes::open(path, mode, limits.bytes);
    if (!file) return file.error();
    Result<Gguf> content = Gguf::parse(file->bytes(), limits);
    if (!content) return in_context(content.error(), path);
    return GgufFile{.file = std::move(*file), .content = std::move(*content)};
  }
};

}  // namespace CBQ_ABI
}  // namespace cbq
