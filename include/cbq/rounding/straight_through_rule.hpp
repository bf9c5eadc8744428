// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rule of straight-through rounding with offsets v, per weight w of a segment with step s:
//
//   w^ = s d,   d = clamp(round(w / s + v), low, high)          m = 1[low <= round(w / s + v) <= high]
//   dL/dv = g s m      dL/ds = sum g (d - m w / s)              g = dL/dw^
//
// which is the gradient of the same formulas with `round` as a constant distance: round(t) = t + const. With v beyond
// +-reach the limit counts and its gradient is 0. Hard and soft weights are the same.

#include <cstddef>

#include <cbq/quant/divide.hpp>
#include <cbq/rounding/segment_loops.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// What OffsetRounding asks of a rule: `soft` and `hard` write w^ = value * d (hard: with integers d); `backward`
/// writes dL/dv and returns dL/ds for the soft forward pass, `backward_hard` for the hard one; `term` says how the
/// compensation loss counts, `measure` and `weighed` set its weight by the gradients of both losses where it
/// `has_penalty`.
template <class T>
class StraightThroughRule {
 public:
  static constexpr bool has_penalty = false;
  static constexpr bool limited = true;
  struct Sums {};
  struct Term {};

  template <class Options>
  explicit StraightThroughRule(const Options& options) noexcept : reach_(static_cast<T>(options.reach)) {}

  [[nodiscard]] T reach() const noexcept { return reach_; }
  [[nodiscard]] Term term(const Penalty&, std::size_t) const noexcept { return {}; }

  void soft(const SegmentInput<T>& in, const SegmentGrid<T>& grid, T* out) const noexcept {
    const Lanes step(grid.step), value(grid.value), low(grid.low), high(grid.high), reach(reach_);
    segments::transform<T>(
        in.size, out,
        [&](std::size_t, const Lanes& w, const Lanes& v) {
          const Lanes t = divide(w, step) + segments::clamp<T>(v, -reach, reach);
          // The limits are integers: clamping first gives the same code and keeps the conversion in range.
          return value * segments::round_even<T>(segments::clamp<T>(t, low, high));
        },
        in.weights, in.offsets);
  }
  void hard(const SegmentInput<T>& in, const SegmentGrid<T>& grid, T* out) const noexcept { soft(in, grid, out); }

  [[nodiscard]] T backward(const SegmentInput<T>& in, const SegmentGrid<T>& grid, const Term&, T* out) const noexcept {
    const Lanes step(grid.step), low(grid.low), high(grid.high), reach(reach_), none(T{0}), one(T{1});
    segments::Sum<T> sum;
    segments::transform<T>(
        in.size, out,
        [&](std::size_t place, const Lanes& w, const Lanes& v, const Lanes& g) {
          const Lanes u = divide(w, step);
          const Lanes bounded = segments::clamp<T>(v, -reach, reach);
          // Rounding reaches the grid from half a step beyond it.
          const Lanes near = segments::round_even<T>(segments::clamp<T>(u + bounded, low - one, high + one));
          const Lanes d = segments::clamp<T>(near, low, high);
          const auto inside = near == d;
          sum.parts[place] += g * xsimd::select(inside, d - u, d);
          return xsimd::select(inside && bounded == v, g * step, none);
        },
        in.weights, in.offsets, in.upstream);
    return sum.total();
  }
  [[nodiscard]] T backward_hard(const SegmentInput<T>& in, const SegmentGrid<T>& grid, const Term& term,
                                T* out) const noexcept {
    return backward(in, grid, term, out);
  }

 private:
  using Lanes = segments::Lanes<T>;
  T reach_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
