// SPDX-License-Identifier: Apache-2.0
#pragma once

// A group of keys or values as a quantized cache would keep it, with what its backward pass needs. Floats get the
// codes, scale and offset of <cbq/kv/affine_group.hpp>, refined as <cbq/kv/affine_refinement.hpp> does where the cache
// does; doubles, which only gradient tests use, a range that is not rounded to half.
//
//   w^ = step code + low     code = clamp(round((w - low) / step))     low = min w, step = (max w - low) / levels

#include <cmath>
#include <cstddef>
#include <span>
#include <type_traits>

#include <cbq/kv/affine_group.hpp>
#include <cbq/kv/affine_refinement.hpp>

namespace cbq {

/// How groups are quantized.
struct GroupRule {
  int bits = 4;
  int refinements = 0;  ///< least-squares steps; of floats alone

  [[nodiscard]] constexpr int levels() const noexcept { return (1 << bits) - 1; }
};

/// Where the extremes of a group are, and whether it could be quantized.
struct GroupExtremes {
  std::size_t smallest = 0;
  std::size_t largest = 0;
  bool good = false;
};

/// A group, and what a squared error of each element costs where groups are refined (null: the same).
template <class T>
struct WeightedGroup {
  std::span<const T> values = {};
  const T* weights = nullptr;
};

inline namespace CBQ_ABI {

/// Writes w^ and the residues code - (w - low) / step of all elements. A group that is not finite, or too large for
/// half, is not good, and nothing is written.
template <class T>
[[nodiscard]] GroupExtremes simulate_group(const WeightedGroup<T>& group, const GroupRule& rule, T* out,
                                           T* residues) noexcept {
  const std::span<const T> w = group.values;
  GroupExtremes found;
  bool finite = true;
  for (std::size_t i = 0; i < w.size(); ++i) {
    finite = finite && w[i] - w[i] == T(0);
    if (w[i] < w[found.smallest]) found.smallest = i;
    if (w[i] > w[found.largest]) found.largest = i;
  }
  const auto levels = static_cast<T>(rule.levels());
  T low = w[found.smallest], step = (w[found.largest] - low) / levels;
  if constexpr (std::is_same_v<T, float>) {
    const auto bits = static_cast<std::size_t>(rule.bits);
    const auto fit = finite ? fit_affine_group({low, w[found.largest]}, bits)
                            : Result<AffineGroup>(Error{Errc::not_finite, "a key or value is NaN or infinite"});
    if (!fit) return found;
    const AffineGroup stored = refine_affine_group(w, *fit, bits, {rule.refinements, group.weights});
    low = to_float(stored.offset);
    step = to_float(stored.scale);
  }
  for (std::size_t i = 0; i < w.size(); ++i) {
    const T place = step == T(0) ? T(0) : (w[i] - low) / step;
    const T code = std::nearbyint(place < T(0) ? T(0) : place > levels ? levels : place);
    out[i] = step * code + low;
    residues[i] = code - place;
  }
  found.good = finite;
  return found;
}

}  // namespace CBQ_ABI
}  // namespace cbq
