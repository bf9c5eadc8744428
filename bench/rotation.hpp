// SPDX-License-Identifier: Apache-2.0
#pragma once

// Cold weights: copies of one matrix back to back, larger together than the caches, of which each call takes the next.
// Every copy holds the pieces (panels or rows, all of one size) of the first in another order, so that no two copies
// are equal and each is as valid as the first.

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include <cbq/core/aligned.hpp>

namespace bench {

class Rotation {
 public:
  /// Bytes of one copy, and of the pieces that copies permute; piece_bytes divides copy_bytes.
  struct Shape {
    std::size_t copy_bytes = 0;
    std::size_t piece_bytes = 0;
  };

  /// Copies of what `fill` writes; errors as AlignedBuffer::allocate(), or those of `fill`.
  [[nodiscard]] static cbq::Result<std::shared_ptr<Rotation>> make(const Shape& shape,
                                                                   const std::function<cbq::Status(std::byte*)>& fill);

  /// The next copy, on a 64-byte boundary.
  [[nodiscard]] const std::byte* next() noexcept {
    const std::byte* copy = memory_.data() + turn_ * stride_;
    turn_ = turn_ + 1 < copies_ ? turn_ + 1 : 0;
    return copy;
  }
  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size(); }

 private:
  cbq::AlignedBuffer<std::byte> memory_;
  std::size_t stride_ = 0;
  std::size_t copies_ = 0;
  std::size_t turn_ = 0;
};

/// The object that `make` made for `key`. Google Benchmark calls every benchmark several times, interleaved with
/// others: the most recently used objects are kept, about 3 GiB of them.
[[nodiscard]] cbq::Result<std::shared_ptr<void>> cached(
    const std::string& key, const std::function<cbq::Result<std::shared_ptr<void>>(std::size_t& bytes)>& make);

/// At least `count` floats, normally distributed, always the same.
[[nodiscard]] const float* normal_floats(std::size_t count);

}  // namespace bench
