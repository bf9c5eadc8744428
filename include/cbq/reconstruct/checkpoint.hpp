// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bytes of a reconstruction's state, little-endian as in memory: a header that says what it belongs to, reports of
// the windows done, codes of finished blocks, parameters of open ones, and a checksum of everything before it. Reading
// checks every size and value: bytes may come from anywhere.

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <cbq/core/checked.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Continues the hash `start` over `bytes`, eight at a time; every byte counts. For fingerprints and checksums, not
/// against adversaries.
[[nodiscard]] inline std::uint64_t hash_bytes(std::span<const std::byte> bytes,
                                              std::uint64_t start = 0xcbf29ce484222325u) noexcept {
  std::uint64_t hash = start;
  const auto mix = [&](std::uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
  };
  for (std::size_t i = 0; i < bytes.size(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, bytes.size() - i < 8 ? bytes.size() - i : 8);
    mix(word);
  }
  mix(bytes.size());
  return hash;
}

/// Appends numbers, reports of matrices and parameters.
class CheckpointWriter {
 public:
  template <class T>
    requires std::is_arithmetic_v<T>
  void number(T value) {
    append(&value, sizeof value);
  }
  void bytes(std::span<const std::byte> content) { append(content.data(), content.size()); }

  void codes(const QuantizedMatrixView& matrix) {
    number<std::uint64_t>(matrix.codes.rows);
    number<std::uint64_t>(matrix.codes.columns);
    rows_of(matrix.codes);
    rows_of(matrix.scales);
    rows_of(matrix.zeros);
  }

  template <class T>
  void parameters(const ParameterView<T>& view) {
    number<std::uint64_t>(view.size);
    append(view.values, view.size * sizeof(T));
  }

  /// Ends the state with its checksum.
  [[nodiscard]] std::vector<std::byte> finish() && {
    number(hash_bytes(content_));
    return std::move(content_);
  }
  [[nodiscard]] std::span<const std::byte> content() const noexcept { return content_; }

 private:
  void append(const void* from, std::size_t size) {
    const auto* first = static_cast<const std::byte*>(from);
    content_.insert(content_.end(), first, first + size);
  }
  template <class T>
  void rows_of(const MatrixView<const T>& matrix) {
    for (std::size_t r = 0; r < matrix.rows; ++r) append(row(matrix, r), matrix.columns * sizeof(T));
  }

  std::vector<std::byte> content_;
};

/// Reads what CheckpointWriter wrote. Errors are Errc::bad_file.
class CheckpointReader {
 public:
  /// Checks the checksum.
  [[nodiscard]] static Result<CheckpointReader> open(std::span<const std::byte> bytes) noexcept {
    std::uint64_t checksum = 0;
    if (bytes.size() < sizeof checksum) return damaged("byte 0: checksum", bytes.size(), "at least 8 bytes");
    const auto content = bytes.first(bytes.size() - sizeof checksum);
    std::memcpy(&checksum, bytes.data() + content.size(), sizeof checksum);
    if (checksum != hash_bytes(content)) {
      return damaged(ErrorText("byte ") << content.size() << ": checksum", checksum, hash_bytes(content));
    }
    return CheckpointReader(content);
  }

  template <class T>
    requires std::is_arithmetic_v<T>
  [[nodiscard]] Status number(T& value) noexcept {
    return take(&value, sizeof value, "number");
  }
  [[nodiscard]] Result<std::size_t> count() noexcept {
    std::uint64_t value = 0;
    if (const Status done = number(value); !done) return done.error();
    return static_cast<std::size_t>(value);
  }

  /// Codes of a matrix that must have this shape and grid.
  [[nodiscard]] Result<QuantizedMatrix> codes(std::size_t outputs, std::size_t inputs, const Grid& grid) noexcept {
    const Result<std::size_t> rows = count();
    if (!rows) return rows.error();
    const Result<std::size_t> columns = count();
    if (!columns) return columns.error();
    if (*rows != outputs || *columns != inputs) {
      return damaged(at("shape of a matrix"), ErrorText(*rows) << " x " << *columns,
                     ErrorText(outputs) << " x " << inputs);
    }
    Result<QuantizedMatrix> matrix = QuantizedMatrix::allocate(outputs, inputs, grid);
    if (!matrix) return matrix;
    for (const Status& done :
         {take(matrix->codes(), "codes"), take(matrix->scales(), "scales"), take(matrix->zeros(), "zero points")}) {
      if (!done) return done.error();
    }
    if (const Status valid = check_values(matrix->view(), grid); !valid)
      return damaged(at("values of a matrix"), valid.error().what, "values of the grid");
    return matrix;
  }

  template <class T>
  [[nodiscard]] Status parameters(const ParameterView<T>& view) noexcept {
    const Result<std::size_t> size = count();
    if (!size) return size.error();
    if (*size != view.size) return damaged(at("number of parameters"), *size, view.size);
    return take(view.values, view.size * sizeof(T), "parameters");
  }

  [[nodiscard]] Status finish() const noexcept {
    if (left_.empty()) return {};
    return damaged(at("the end"), ErrorText(left_.size()) << " bytes more", "the checksum");
  }

  [[nodiscard]] static Error damaged(const ErrorText& where, const ErrorText& got = {},
                                     const ErrorText& wanted = {}) noexcept {
    return {Errc::bad_file, "the checkpoint is damaged or not a checkpoint", where, got, wanted};
  }

 private:
  explicit CheckpointReader(std::span<const std::byte> content) noexcept : left_(content), size_(content.size()) {}

  /// "byte 40: codes"
  [[nodiscard]] ErrorText at(const char* what) const noexcept {
    return ErrorText("byte ") << size_ - left_.size() << ": " << what;
  }

  [[nodiscard]] Status take(void* to, std::size_t size, const char* where) noexcept {
    if (left_.size() < size) {
      return damaged(at(where), ErrorText(left_.size()) << " bytes left", ErrorText(size) << " bytes");
    }
    if (size != 0) std::memcpy(to, left_.data(), size);
    left_ = left_.subspan(size);
    return {};
  }
  /// Of a whole matrix without gaps between its rows.
  template <class T>
  [[nodiscard]] Status take(const MatrixView<T>& matrix, const char* where) noexcept {
    return take(matrix.data, matrix.rows * matrix.columns * sizeof(T), where);
  }

  std::span<const std::byte> left_;
  std::size_t size_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
