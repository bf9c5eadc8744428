// SPDX-License-Identifier: Apache-2.0
#pragma once

// AffineQuantizer: uniform quantization of a matrix onto any Grid of 2..8 bits, symmetric or affine, with one scale per
// tensor, row (a channel of weights, a token of activations) or group along the row. Parameters are found by a
// RangeFinder, or learned: fake_quantize() and backward() are the two halves of a straight-through step.
//
//   u = x / s   v = round(u) + z   q = clamp(v, 0, 2^b - 1)   x^ = s (q - z)   m = 1[0 <= v <= 2^b - 1]
//   dL/dx = g m      dL/ds = sum g ((q - z) - m u)      dL/dz = sum -g s (1 - m)
//
// Symmetric grids are the case z = 2^(b-1). Rounding is half to even; dL/ds as in Esser et al., Learned Step Size
// Quantization (2020), with the mask on the rounded value; dL/dz follows from the same straight-through rule. Computes
// in float, for double elements in double. Linear cost.

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/quant/quantizer.hpp>
#include <cbq/quant/range.hpp>
#include <cbq/quant/rows.hpp>

namespace cbq {

/// Where AffineQuantizer::backward writes; all are overwritten. Empty `scales` or `zeros`: not wanted.
template <class R>
struct AffineGradients {
  MatrixView<R> x;       ///< shape of x
  MatrixView<R> scales;  ///< shape of the parameters
  MatrixView<R> zeros;   ///< shape of the parameters; zero points that are rounded constants get no gradient
};

inline namespace CBQ_ABI {

/// Scale (finite, not 0, positive for affine grids) and zero point (0 .. 2^b - 1) of every segment: 1 x 1 per tensor,
/// else rows x groups. Owner.
template <class R>
class AffineParams {
 public:
  /// Uninitialized. Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] static Result<AffineParams> allocate(std::size_t rows, std::size_t groups) noexcept {
    const Result<std::size_t> size = checked_product(rows, groups);
    if (!size) return size.error();
    auto scales = AlignedBuffer<R>::allocate(*size);
    if (!scales) return scales.error();
    auto zeros = AlignedBuffer<std::uint8_t>::allocate(*size);
    if (!zeros) return zeros.error();
    AffineParams params;
    params.scales_ = std::move(*scales);
    params.zeros_ = std::move(*zeros);
    params.rows_ = rows;
    params.groups_ = groups;
    return params;
  }

  [[nodiscard]] MatrixView<R> scales() noexcept { return matrix_view(scales_.data(), rows_, groups_); }
  [[nodiscard]] MatrixView<const R> scales() const noexcept { return matrix_view(scales_.data(), rows_, groups_); }
  [[nodiscard]] MatrixView<std::uint8_t> zeros() noexcept { return matrix_view(zeros_.data(), rows_, groups_); }
  [[nodiscard]] MatrixView<const std::uint8_t> zeros() const noexcept {
    return matrix_view(zeros_.data(), rows_, groups_);
  }

 private:
  AlignedBuffer<R> scales_;
  AlignedBuffer<std::uint8_t> zeros_;
  std::size_t rows_ = 0;
  std::size_t groups_ = 0;
};

// The work, with the grid known at run time: AffineQuantizer<T, G> costs no code per grid.
namespace affine {

/// float, or double for double elements.
template <Element T>
using Compute = std::conditional_t<std::same_as<T, double>, double, float>;

/// The part of one row that shares a scale.
struct Segment {
  std::size_t row = 0;
  std::size_t first = 0;
  std::size_t size = 0;
  std::size_t params_row = 0;
  std::size_t group = 0;
};

/// Calls body(segment) for all segments, in order.
template <class Body>
void for_each_segment(std::size_t rows, std::size_t columns, const Grid& grid, Body&& body) {
  const std::size_t length = group_length(grid, columns);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t first = 0, group = 0; first < columns; first += length, ++group) {
      const std::size_t size = columns - first < length ? columns - first : length;
      body(Segment{r, first, size, grid.granularity == Granularity::per_tensor ? 0 : r, group});
    }
  }
}

/// Errc::bad_shape unless both have `rows` x `columns`.
template <class A>
[[nodiscard]] Status same_shape(const MatrixView<A>& a, std::size_t rows, std::size_t columns,
                                const char* where) noexcept {
  if (a.rows == rows && a.columns == columns && a.stride >= a.columns) return {};
  return Error{Errc::bad_shape, "the shapes do not fit each other", where, ErrorText(a.rows) << " x " << a.columns,
               ErrorText(rows) << " x " << columns};
}

/// Shape of the parameters of a matrix.
[[nodiscard]] constexpr std::pair<std::size_t, std::size_t> params_shape(std::size_t rows, std::size_t columns,
                                                                         const Grid& grid) noexcept {
  return {grid.granularity == Granularity::per_tensor ? 1 : rows, group_count(grid, columns)};
}

template <class R>
[[nodiscard]] Status check_params(const AffineParams<R>& params, std::size_t rows, std::size_t columns,
                                  const Grid& grid) noexcept {
  const auto [params_rows, groups] = params_shape(rows, columns, grid);
  return same_shape(params.scales(), params_rows, groups, "params");
}

/// q - z of one element, in double.
struct DoubleStep {
  double u = 0;
  double rounded = 0;
  double d = 0;
};
[[nodiscard]] inline DoubleStep step(double x, double scale, int zero, int max_code) noexcept {
  const double u = x / scale;
  const double rounded = std::nearbyint(u);
  const double low = -zero, high = max_code - zero;
  return {u, rounded, rounded < low ? low : rounded > high ? high : rounded};
}

/// Elements of a segment in pieces of float: body(offset, floats).
template <Element T, class Body>
void for_each_piece(const T* x, std::size_t size, Body&& body) noexcept {
  if constexpr (std::same_as<T, float>) {
    body(std::size_t{0}, std::span<const float>(x, size));
  } else {
    std::array<float, 256> piece;
    for (std::size_t first = 0; first < size; first += piece.size()) {
      const std::size_t count = size - first < piece.size() ? size - first : piece.size();
      to_float_row(x + first, count, piece.data());
      body(first, std::span<const float>(piece.data(), count));
    }
  }
}

template <Element T>
void quantize_segment(const T* x, std::size_t size, Compute<T> scale, const CodeGrid& grid,
                      std::uint8_t* codes) noexcept {
  if constexpr (std::same_as<T, double>) {
    for (std::size_t i = 0; i < size; ++i) {
      codes[i] = static_cast<std::uint8_t>(step(x[i], scale, grid.zero, grid.max_code).d + grid.zero);
    }
  } else {
    for_each_piece(x, size, [&](std::size_t first, std::span<const float> piece) {
      quantize_row(piece, {scale, grid.zero, grid.max_code}, codes + first);
    });
  }
}

template <Element T>
void fake_quantize_segment(const T* x, std::size_t size, Compute<T> scale, const CodeGrid& grid, T* out) noexcept {
  if constexpr (std::same_as<T, double>) {
    for (std::size_t i = 0; i < size; ++i) out[i] = scale * step(x[i], scale, grid.zero, grid.max_code).d;
  } else {
    for_each_piece(x, size, [&](std::size_t first, std::span<const float> piece) {
      if constexpr (std::same_as<T, float>) {
        fake_quantize_row(piece, {scale, grid.zero, grid.max_code}, out + first);
      } else {
        std::array<float, 256> values;
        fake_quantize_row(piece, {scale, grid.zero, grid.max_code}, values.data());
        for (std::size_t i = 0; i < piece.size(); ++i) out[first + i] = from_float<T>(values[i]);
      }
    });
  }
}

/// What a segment adds to the gradients of its scale and zero point.
struct ParamsGradient {
  double scale = 0;
  double zero = 0;
};

/// Writes dL/dx of a segment and returns its parameters' gradient. `upstream` and `dx` may be the same.
template <Element T>
[[nodiscard]] ParamsGradient backward_segment(std::span<const T> x, Compute<T> scale, const CodeGrid& grid,
                                              const Compute<T>* upstream, Compute<T>* dx) noexcept {
  ParamsGradient sum;
  if constexpr (std::same_as<T, double>) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      const DoubleStep s = step(x[i], scale, grid.zero, grid.max_code);
      const double inside = s.rounded == s.d ? 1.0 : 0.0;
      sum.scale += upstream[i] * (s.d - inside * s.u);
      sum.zero -= upstream[i] * scale * (1 - inside);
      dx[i] = upstream[i] * inside;
    }
  } else {
    for_each_piece(x.data(), x.size(), [&](std::size_t first, std::span<const float> piece) {
      const RowGradient added = backward_row(piece, {scale, grid.zero, grid.max_code}, upstream + first, dx + first);
      sum.scale += added.scale;
      sum.zero += added.zero;
    });
  }
  return sum;
}

/// Scales and zero points from data; Errc::not_finite names row and column.
template <Element T, RangeFinder Finder>
[[nodiscard]] Result<AffineParams<Compute<T>>> fit(const MatrixView<const T>& x, const Grid& grid, const Finder& finder,
                                                   ScalePrecision precision) noexcept {
  if (const Status valid = check_grid(grid); !valid) return valid.error();
  const auto [params_rows, groups] = params_shape(x.rows, x.columns, grid);
  auto params = AffineParams<Compute<T>>::allocate(params_rows, groups);
  if (!params) return params;
  // Finders want contiguous floats: a segment, or with one scale per tensor everything.
  const bool whole = grid.granularity == Granularity::per_tensor;
  const Result<std::size_t> size = checked_product(whole ? x.rows : std::size_t{1}, group_length(grid, x.columns));
  if (!size) return size.error();
  auto floats = AlignedBuffer<float>::allocate(*size);
  if (!floats) return floats.error();
  std::size_t filled = 0;
  bool failed = false;
  Error error;
  const auto find = [&](std::size_t r, std::size_t group) {
    const CodeGrid found = finder.find({floats->data(), filled}, grid, precision);
    row(params->scales(), r)[group] = found.scale != 0 ? found.scale : smallest_scale;
    row(params->zeros(), r)[group] = static_cast<std::uint8_t>(found.zero);
    filled = 0;
  };
  for_each_segment(x.rows, x.columns, grid, [&](const Segment& s) {
    if (failed) return;
    to_float_row(row(x, s.row) + s.first, s.size, floats->data() + filled);
    for (std::size_t i = 0; i < s.size; ++i) {
      if (is_finite((*floats)[filled + i])) continue;
      error = {Errc::not_finite, "an element is NaN or beyond the range of float",
               ErrorText("row ") << s.row << ", column " << s.first + i};
      failed = true;
      return;
    }
    filled += s.size;
    if (!whole) find(s.params_row, s.group);
  });
  if (failed) return error;
  if (whole && groups != 0) find(0, 0);
  return params;
}

}  // namespace affine

/// Quantizer of matrices of T onto G. `finder` and `precision` choose what fit() returns.
template <Element T, Grid G, RangeFinder Finder = MinMaxRange>
class AffineQuantizer {
  static_assert(G.bits >= 2 && G.bits <= 8, "[cbq] AffineQuantizer: Grid.bits must be 2..8");
  static_assert(G.group >= 0 && (G.granularity == Granularity::per_group) == (G.group > 0),
                "[cbq] AffineQuantizer: Grid.group must be set with per_group, and only then");

 public:
  using Value = T;
  using Compute = affine::Compute<T>;  ///< of scales and gradients
  using Params = AffineParams<Compute>;
  using Gradients = AffineGradients<Compute>;
  static constexpr Grid grid = G;

  Finder finder = {};
  ScalePrecision precision = ScalePrecision::full;

  /// Parameters for x; segments of zeros get `smallest_scale`. Ranges are found in float, for double elements too.
  /// Errc::not_finite, Errc::out_of_memory.
  [[nodiscard]] Result<Params> fit(const MatrixView<const T>& x) const noexcept {
    return affine::fit(x, G, finder, precision);
  }

  /// Codes of x, in its shape. x must be finite. Errc::bad_shape.
  [[nodiscard]] Status quantize(const MatrixView<const T>& x, const Params& params,
                                const MatrixView<std::uint8_t>& codes) const noexcept {
    return map(x, params, codes, [&](const affine::Segment& s, Compute scale, const CodeGrid& codes_grid) {
      affine::quantize_segment(row(x, s.row) + s.first, s.size, scale, codes_grid, row(codes, s.row) + s.first);
    });
  }

  /// What the codes stand for. Errc::bad_shape.
  [[nodiscard]] Status dequantize(const MatrixView<const std::uint8_t>& codes, const Params& params,
                                  const MatrixView<T>& out) const noexcept {
    return map(codes, params, out, [&](const affine::Segment& s, Compute scale, const CodeGrid& codes_grid) {
      for (std::size_t i = s.first; i < s.first + s.size; ++i) {
        const Compute value = scale * static_cast<Compute>(row(codes, s.row)[i] - codes_grid.zero);
        if constexpr (std::same_as<T, double>) {
          row(out, s.row)[i] = value;
        } else {
          row(out, s.row)[i] = from_float<T>(value);
        }
      }
    });
  }

  /// dequantize(quantize(x)) in one pass; out may be x. Errc::bad_shape.
  [[nodiscard]] Status fake_quantize(const MatrixView<const T>& x, const Params& params,
                                     const MatrixView<T>& out) const noexcept {
    return map(x, params, out, [&](const affine::Segment& s, Compute scale, const CodeGrid& codes_grid) {
      affine::fake_quantize_segment(row(x, s.row) + s.first, s.size, scale, codes_grid, row(out, s.row) + s.first);
    });
  }

  /// Straight-through gradients of fake_quantize for dL/dx^ = upstream. Errc::bad_shape.
  [[nodiscard]] Status backward(const MatrixView<const T>& x, const Params& params,
                                const MatrixView<const Compute>& upstream, const Gradients& gradients) const noexcept {
    const auto [params_rows, groups] = affine::params_shape(x.rows, x.columns, G);
    if (const Status fits = affine::same_shape(upstream, x.rows, x.columns, "upstream"); !fits) return fits;
    for (const MatrixView<Compute>& wanted : {gradients.scales, gradients.zeros}) {
      if (wanted.data == nullptr) continue;
      if (const Status fits = affine::same_shape(wanted, params_rows, groups, "gradients"); !fits) return fits;
      for (std::size_t r = 0; r < params_rows; ++r) {
        for (std::size_t g = 0; g < groups; ++g) row(wanted, r)[g] = 0;
      }
    }
    return map(x, params, gradients.x, [&](const affine::Segment& s, Compute scale, const CodeGrid& codes_grid) {
      const affine::ParamsGradient added =
          affine::backward_segment(std::span<const T>(row(x, s.row) + s.first, s.size), scale, codes_grid,
                                   row(upstream, s.row) + s.first, row(gradients.x, s.row) + s.first);
      if (gradients.scales.data != nullptr)
        row(gradients.scales, s.params_row)[s.group] += static_cast<Compute>(added.scale);
      if (gradients.zeros.data != nullptr)
        row(gradients.zeros, s.params_row)[s.group] += static_cast<Compute>(added.zero);
    });
  }

 private:
  /// Checks the shapes, then calls body(segment, scale, grid of the segment) for all segments.
  template <class A, class B, class Body>
  [[nodiscard]] static Status map(const MatrixView<A>& in, const Params& params, const MatrixView<B>& out,
                                  const Body& body) noexcept {
    if (const Status fits = affine::same_shape(in, in.rows, in.columns, "input"); !fits) return fits;
    if (const Status fits = affine::same_shape(out, in.rows, in.columns, "output"); !fits) return fits;
    if (const Status fits = affine::check_params(params, in.rows, in.columns, G); !fits) return fits;
    affine::for_each_segment(in.rows, in.columns, G, [&](const affine::Segment& s) {
      const int zero = row(params.zeros(), s.params_row)[s.group];
      body(s, row(params.scales(), s.params_row)[s.group], CodeGrid{1, zero, max_code(G)});
    });
    return {};
  }
};

static_assert(DifferentiableQuantizer<AffineQuantizer<float, Grid{.bits = 4}>>);
static_assert(DifferentiableQuantizer<AffineQuantizer<half, Grid{.bits = 8, .zero = Zero::affine}>>);

}  // namespace CBQ_ABI
}  // namespace cbq
