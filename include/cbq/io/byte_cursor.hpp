// SPDX-License-Identifier: Apache-2.0
#pragma once

// ByteCursor: walks through the bytes of a binary header. Every read is checked against what is left; an error names
// the byte.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <cbq/io/tensor.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace io_detail {

class ByteCursor {
 public:
  explicit ByteCursor(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}

  [[nodiscard]] std::size_t position() const noexcept { return position_; }
  [[nodiscard]] std::size_t left() const noexcept { return bytes_.size() - position_; }
  [[nodiscard]] ErrorText where() const noexcept { return ErrorText("byte ") << position_; }

  template <class T>
  [[nodiscard]] Result<T> number() noexcept {
    if (left() < sizeof(T)) return ends(sizeof(T));
    const T value = load_unaligned<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return value;
  }

  [[nodiscard]] Result<std::span<const std::byte>> take(std::size_t size) noexcept {
    if (left() < size) return ends(size);
    const std::span<const std::byte> taken = bytes_.subspan(position_, size);
    position_ += size;
    return taken;
  }

  [[nodiscard]] Result<std::string_view> text(std::size_t limit) noexcept {
    const ErrorText start = where();
    const Result<std::uint64_t> size = number<std::uint64_t>();
    if (!size) return size.error();
    if (*size > limit) {
      return Error{Errc::bad_file, "a text is too long", start, *size, ErrorText("at most ") << limit << " bytes"};
    }
    const Result<std::span<const std::byte>> bytes = take(*size);
    if (!bytes) return bytes.error();
    return std::string_view(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  }

 private:
  [[nodiscard]] Error ends(std::size_t wanted) const noexcept {
    return Error{Errc::bad_file, "the file ends too early", where(), ErrorText(left()) << " bytes left",
                 ErrorText(wanted) << " bytes"};
  }

  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

}  // namespace io_detail
}  // namespace CBQ_ABI
}  // namespace cbq
