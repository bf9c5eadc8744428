// SPDX-License-Identifier: Apache-2.0
#pragma once

// What keys and values become before they are quantized: per channel of a head (x - offset) / scale, then, as an
// option, the head's Hadamard rotation H (largest power-of-two blocks, <cbq/transform/hadamard.hpp>). Attention stays
// the same function: with q' = H (q * key scale) and k' = H ((k - key offset) / key scale),
//
//   q' . k' = q . k - q . key offset,   the same for every key of a query, so softmax drops it;
//   value scale * H o' + value offset = o,   for o' = sum p v' with weights p of sum 1
//
// as long as *all* keys and values are transformed, exact ones too. (Channel smoothing of WKVQuant, arXiv 2402.12065;
// post-rotary keys need no constraint on their scales this way.) One pass over each row and the butterflies; in place,
// without allocation.

#include <concepts>
#include <cstddef>
#include <span>

#include <cbq/core/checked.hpp>
#include <cbq/core/cpu.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/kv/affine_refinement.hpp>
#include <cbq/quant/divide.hpp>
#include <cbq/quant/scale.hpp>
#include <cbq/transform/hadamard.hpp>

namespace cbq {

/// Scales and offsets [key/value heads * width] of a layer, in memory of somebody else; null: all 1, all 0. Beside them
/// what encoders are told of transformed rows (<cbq/kv/affine_refinement.hpp>).
struct RowTransform {
  const float* key_scales = nullptr;
  const float* key_offsets = nullptr;
  const float* value_scales = nullptr;
  const float* value_offsets = nullptr;
  bool hadamard = false;  ///< heads are rotated after scaling
  /// Of squared errors of transformed keys, [key/value heads * width], not negative; null: equal ones.
  const float* key_weights = nullptr;
  int refinements = 0;  ///< least-squares steps when a group is encoded
};

/// Heads of keys and values.
struct KvHeads {
  std::size_t heads = 0;
  std::size_t width = 0;  ///< elements per head
};

inline namespace CBQ_ABI {

namespace row_transform {

/// x[i] = body(x[i], scale[i], offset[i]) in registers, then one by one; absent scales are 1, absent offsets 0.
template <std::floating_point T, class Body>
void for_each(std::span<T> x, const float* scales, const float* offsets, Body&& body) noexcept {
  std::size_t i = 0;
  if constexpr (std::same_as<T, float>) {
    using Floats = xsimd::batch<float>;
    for (; x.size() - i >= Floats::size; i += Floats::size) {
      const Floats scale = scales == nullptr ? Floats(1.0f) : Floats::load_unaligned(scales + i);
      const Floats offset = offsets == nullptr ? Floats(0.0f) : Floats::load_unaligned(offsets + i);
      body(Floats::load_unaligned(x.data() + i), scale, offset).store_unaligned(x.data() + i);
    }
  }
  for (; i < x.size(); ++i) {
    const T scale = scales == nullptr ? T{1} : static_cast<T>(scales[i]);
    const T offset = offsets == nullptr ? T{0} : static_cast<T>(offsets[i]);
    x[i] = body(x[i], scale, offset);
  }
}

template <std::floating_point T>
[[nodiscard]] constexpr T quotient(T x, T y) noexcept {
  return x / y;
}
template <class Architecture>
[[nodiscard]] inline xsimd::batch<float, Architecture> quotient(const xsimd::batch<float, Architecture>& x,
                                                                const xsimd::batch<float, Architecture>& y) noexcept {
  return divide(x, y);
}

[[nodiscard]] constexpr const float* of_head(const float* all, std::size_t first) noexcept {
  return all == nullptr ? nullptr : all + first;
}

template <std::floating_point T>
void rotate(const RowTransform& transform, std::span<T> x, Isa isa) noexcept {
  if (transform.hadamard) hadamard_row(x, hadamard_size(x.size()), isa);
}

template <std::floating_point T>
void smooth(std::span<T> x, const float* scales, const float* offsets) noexcept {
  if (scales == nullptr && offsets == nullptr) return;
  for_each(x, scales, offsets,
           [](const auto& v, const auto& scale, const auto& offset) { return quotient(v - offset, scale); });
}

/// body(key/value head, elements, isa) for each of the `heads` heads of every row.
template <std::floating_point T, class Body>
[[nodiscard]] Status for_each_head(const KvHeads& kv, std::size_t heads, const MatrixView<T>& x, Isa cap,
                                   Body&& body) noexcept {
  if (kv.heads == 0 || kv.width == 0 || heads == 0 || heads % kv.heads != 0 || x.columns / kv.width != heads ||
      x.columns % kv.width != 0 || x.stride < x.columns) {
    return Error{Errc::bad_shape, "rows do not hold these heads", "elements", x.columns,
                 ErrorText("heads of ") << kv.width << " for " << kv.heads << " key/value heads"};
  }
  const Isa isa = capped(cap);
  for (std::size_t t = 0; t < x.rows; ++t) {
    for (std::size_t h = 0; h < heads; ++h) {
      body(h / (heads / kv.heads), std::span<T>(row(x, t) + h * kv.width, kv.width), isa);
    }
  }
  return {};
}

[[nodiscard]] constexpr std::size_t heads_of(std::size_t columns, const KvHeads& kv) noexcept {
  return kv.width == 0 ? 0 : columns / kv.width;
}

}  // namespace row_transform

/// How groups of transformed keys of a head are refined. Without weights only those of rotated heads are: others lose
/// more where channels matter most than they gain.
[[nodiscard]] constexpr AffineRefinement key_refinement(const RowTransform& transform, std::size_t head,
                                                        std::size_t width) noexcept {
  const bool refined = transform.hadamard || transform.key_weights != nullptr;
  return {refined ? transform.refinements : 0, row_transform::of_head(transform.key_weights, head * width)};
}

/// How groups of transformed values are.
[[nodiscard]] constexpr AffineRefinement value_refinement(const RowTransform& transform) noexcept {
  return {.steps = transform.refinements};
}

/// Key of key/value head `head`, x.size() elements, in place. `isa` is already capped (capped()), for all of these.
template <std::floating_point T>
void transform_key(const RowTransform& transform, std::size_t head, std::span<T> x, Isa isa) noexcept {
  row_transform::smooth(x, row_transform::of_head(transform.key_scales, head * x.size()),
                        row_transform::of_head(transform.key_offsets, head * x.size()));
  row_transform::rotate(transform, x, isa);
}

/// Value of key/value head `head`.
template <std::floating_point T>
void transform_value(const RowTransform& transform, std::size_t head, std::span<T> x, Isa isa) noexcept {
  row_transform::smooth(x, row_transform::of_head(transform.value_scales, head * x.size()),
                        row_transform::of_head(transform.value_offsets, head * x.size()));
  row_transform::rotate(transform, x, isa);
}

/// Query that reads key/value head `head`.
template <std::floating_point T>
void transform_query(const RowTransform& transform, std::size_t head, std::span<T> x, Isa isa) noexcept {
  if (transform.key_scales != nullptr) {
    row_transform::for_each(x, transform.key_scales + head * x.size(), nullptr,
                            [](const auto& v, const auto& scale, const auto&) { return v * scale; });
  }
  row_transform::rotate(transform, x, isa);
}

/// Weighted sum of transformed values of key/value head `head`, weights of sum 1: back to that of the values.
template <std::floating_point T>
void restore_output(const RowTransform& transform, std::size_t head, std::span<T> x, Isa isa) noexcept {
  row_transform::rotate(transform, x, isa);
  const float* scales = row_transform::of_head(transform.value_scales, head * x.size());
  const float* offsets = row_transform::of_head(transform.value_offsets, head * x.size());
  if (scales == nullptr && offsets == nullptr) return;
  row_transform::for_each(x, scales, offsets,
                          [](const auto& v, const auto& scale, const auto& offset) { return v * scale + offset; });
}

/// transform_key for rows [tokens x heads * width]. Errc::bad_shape for another width.
template <std::floating_point T>
[[nodiscard]] Status transform_keys(const RowTransform& transform, const KvHeads& kv, const MatrixView<T>& x,
                                    Isa cap = Isa::amx_int8) noexcept {
  return row_transform::for_each_head(kv, kv.heads, x, cap, [&](std::size_t head, std::span<T> part, Isa isa) {
    transform_key(transform, head, part, isa);
  });
}

/// transform_value for rows [tokens x heads * width]. Errc::bad_shape for another width.
template <std::floating_point T>
[[nodiscard]] Status transform_values(const RowTransform& transform, const KvHeads& kv, const MatrixView<T>& x,
                                      Isa cap = Isa::amx_int8) noexcept {
  return row_transform::for_each_head(kv, kv.heads, x, cap, [&](std::size_t head, std::span<T> part, Isa isa) {
    transform_value(transform, head, part, isa);
  });
}

/// transform_query for rows [tokens x query heads * width]; as many consecutive query heads read each key/value head.
/// Errc::bad_shape where the query heads are no multiple of the others.
template <std::floating_point T>
[[nodiscard]] Status transform_queries(const RowTransform& transform, const KvHeads& kv, const MatrixView<T>& x,
                                       Isa cap = Isa::amx_int8) noexcept {
  return row_transform::for_each_head(
      kv, row_transform::heads_of(x.columns, kv), x, cap,
      [&](std::size_t head, std::span<T> part, Isa isa) { transform_query(transform, head, part, isa); });
}

/// restore_output for rows [tokens x query heads * width], as transform_queries.
template <std::floating_point T>
[[nodiscard]] Status restore_outputs(const RowTransform& transform, const KvHeads& kv, const MatrixView<T>& x,
                                     Isa cap = Isa::amx_int8) noexcept {
  return row_transform::for_each_head(
      kv, row_transform::heads_of(x.columns, kv), x, cap,
      [&](std::size_t head, std::span<T> part, Isa isa) { restore_output(transform, head, part, isa); });
}

/// Whether the transform of `kv` can be undone: Errc::bad_argument for a scale of 0 or a negative weight,
/// Errc::not_finite, naming the channel.
[[nodiscard]] inline Status check_row_transform(const RowTransform& transform, const KvHeads& kv) noexcept {
  const Result<std::size_t> count = checked_product(kv.heads, kv.width);
  if (!count) return count.error();
  const auto check = [&count](const float* factors, const char* name, bool (*fits)(float), const char* rule) -> Status {
    for (std::size_t i = 0; factors != nullptr && i < *count; ++i) {
      const ErrorText where = ErrorText(name) << " of channel " << i;
      if (!is_finite(factors[i])) return Error{Errc::not_finite, "a factor of the transform is not finite", where};
      if (!fits(factors[i])) return Error{Errc::bad_argument, rule, where};
    }
    return {};
  };
  const auto any = [](float) { return true; };
  const auto not_zero = [](float x) { return x != 0; };
  const auto not_negative = [](float x) { return x >= 0; };
  const Status parts[] = {check(transform.key_scales, "key scale", not_zero, "scales are not 0"),
                          check(transform.value_scales, "value scale", not_zero, "scales are not 0"),
                          check(transform.key_weights, "key weight", not_negative, "weights are not negative"),
                          check(transform.key_offsets, "key offset", any, ""),
                          check(transform.value_offsets, "value offset", any, "")};
  for (const Status& part : parts) {
    if (!part) return part;
  }
  if (transform.refinements < 0) {
    return Error{Errc::bad_argument, "refinements are not negative", "refinements", transform.refinements};
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
