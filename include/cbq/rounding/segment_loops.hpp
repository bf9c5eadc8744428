// SPDX-License-Identifier: Apache-2.0
#pragma once

// Loops of the trainable roundings over a segment: the part of a row of weights that shares one step. Registers of T,
// float or double, of whatever width the file is compiled for, with sixteen lanes per turn, so that sums are added in
// the same order for any width. Never reads or writes beyond the segment.

#include <xsimd/xsimd.hpp>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <cbq/config.hpp>

namespace cbq {

/// A segment of one row. The codes lie on d = code - zero = low .. high; `step` decides which one a weight gets and
/// `value` is what a code stands for: the trained step, or the one that will be stored.
template <class T>
struct SegmentGrid {
  T step = 1;
  T value = 1;
  T low = 0;
  T high = 0;
};

/// What the backward pass of one segment reads: weights, offsets and dL/dW^, `size` of each.
template <class T>
struct SegmentInput {
  const T* weights = nullptr;
  const T* offsets = nullptr;
  const T* upstream = nullptr;
  std::size_t size = 0;
};

inline namespace CBQ_ABI {
namespace segments {

inline constexpr std::size_t width = 16;
template <class T>
using Lanes = xsimd::batch<T>;
template <class T>
inline constexpr std::size_t registers = width / Lanes<T>::size;

/// Nearest integers, ties to even; |x| below 2^31.
template <class T>
[[nodiscard]] inline Lanes<T> round_even(const Lanes<T>& x) noexcept {
  if constexpr (std::is_same_v<T, float>) {
    return xsimd::to_float(xsimd::nearbyint_as_int(x));
  } else {
    return xsimd::nearbyint(x);
  }
}

template <class T>
[[nodiscard]] inline Lanes<T> clamp(const Lanes<T>& x, const Lanes<T>& low, const Lanes<T>& high) noexcept {
  return xsimd::min(xsimd::max(x, low), high);
}

/// Sums over a segment, one per register of a turn of sixteen lanes.
template <class T>
struct Sum {
  Lanes<T> parts[registers<T>];

  Sum() noexcept {
    for (Lanes<T>& part : parts) part = Lanes<T>(T{0});
  }
  /// As a tree whose shape does not depend on the register width.
  [[nodiscard]] T total() noexcept {
    for (std::size_t half = registers<T> / 2; half != 0; half /= 2) {
      for (std::size_t v = 0; v < half; ++v) parts[v] += parts[v + half];
    }
    T last[Lanes<T>::size];
    parts[0].store_unaligned(last);
    for (std::size_t half = Lanes<T>::size / 2; half != 0; half /= 2) {
      for (std::size_t j = 0; j < half; ++j) last[j] += last[j + half];
    }
    return last[0];
  }
};

/// For every register of a segment of `size` elements: out = body(v, in...), v being its place in the turn. Elements
/// behind the end are zero and their results dropped.
template <class T, class Body, class... In>
void transform(std::size_t size, T* out, Body&& body, const In*... in) noexcept {
  std::size_t i = 0;
  for (; size - i >= width; i += width) {
    for (std::size_t v = 0; v < registers<T>; ++v) {
      const std::size_t at = i + v * Lanes<T>::size;
      body(v, Lanes<T>::load_unaligned(in + at)...).store_unaligned(out + at);
    }
  }
  if (i == size) return;
  T pieces[sizeof...(In)][width] = {};
  const T* const sources[] = {in + i...};
  for (std::size_t s = 0; s < sizeof...(In); ++s) {
    for (std::size_t j = 0; j < size - i; ++j) pieces[s][j] = sources[s][j];
  }
  T results[width];
  for (std::size_t v = 0; v < registers<T>; ++v) {
    const std::size_t at = v * Lanes<T>::size;
    [&]<std::size_t... S>(std::index_sequence<S...>) {
      body(v, Lanes<T>::load_unaligned(pieces[S] + at)...).store_unaligned(results + at);
    }(std::make_index_sequence<sizeof...(In)>{});
  }
  for (std::size_t j = 0; j < size - i; ++j) out[i + j] = results[j];
}

}  // namespace segments
}  // namespace CBQ_ABI
}  // namespace cbq
