// SPDX-License-Identifier: Apache-2.0
#pragma once

// TRIP: power-of-two factors of the channels of a layer's input, so that one static grid serves channels with outliers
// and the others. For activations X [tokens x channels], after pruning, of range [min, max] and b bits:
//
//   s_K = the step of the whole range, s_1 = s_K / 2^K, z = the zero point of the whole range
//   alpha_c = argmin over a in 0 .. K of | X_c - deq(quant(X_c; s_1 2^a, z)) |^2, the smallest of equals
//
// A channel with outliers keeps the step s_K, others get a finer one. Two ways to run on it:
//
//   A  offline: x_c / 2^alpha_c and W_c 2^alpha_c. The producer of x (a norm's gain, rows of a linear layer) is
//   divided,
//      columns of W are multiplied before they are rounded (scale_channels() with trip_multipliers()). The operator's
//      activations are then static per tensor on grid() alone.
//   B  at run time: acc += (q_w q_x) << alpha_c, as one product per class of channels with equal alpha
//      (<cbq/nn/trip_linear.hpp>), where nothing in front of the layer can be divided.
//
// Agile-Quant (Shen et al., 2023), after the power-of-two factors of FQ-ViT (Lin et al., 2022). Cost: K + 1 passes over
// the rows; a sample of them is enough (ActivationRange::sample()).

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/quant/rows.hpp>
#include <cbq/scheme.hpp>
#include <cbq/scheme/activation_rules.hpp>

namespace cbq {

/// What TRIP searches.
struct TripOptions {
  Grid grid = {.bits = 4, .granularity = Granularity::per_tensor};  ///< bits and zero of the activations
  int largest_exponent = 3;                                         ///< K, 0 .. trip::most_exponent
};

/// Factors that TRIP found: channel c is on the grid with step grid.scale 2^exponents[c].
struct ChannelFactors {
  std::span<const std::uint8_t> exponents = {};
  StaticGrid grid = {};
};

inline namespace CBQ_ABI {
namespace trip {

/// Largest K: 2^K is exact and, beside any scale of a trained model, far from the ends of float's range.
inline constexpr int most_exponent = 20;

/// Squared errors of 16 channels under each exponent.
struct BlockErrors {
  double sums[most_exponent + 1][lanes::width] = {};
};

/// Adds the errors of channels [first, first + 16), or those there are, in units of s_1.
inline void add_errors(const MatrixView<const float>& x, std::size_t first, const StaticGrid& fine,
                       const TripOptions& options, BlockErrors& errors) noexcept {
  using lanes::Floats;
  constexpr std::size_t piece_rows = 64;  // whose squares are added in float
  const CodeLimits limits = code_limits(options.grid, fine);
  const Floats low(static_cast<float>(limits.lowest)), high(static_cast<float>(limits.highest));
  const std::size_t valid = x.columns - first < lanes::width ? x.columns - first : lanes::width;
  float block[piece_rows][lanes::width] = {};
  for (std::size_t begin = 0; begin < x.rows; begin += piece_rows) {
    const std::size_t count = x.rows - begin < piece_rows ? x.rows - begin : piece_rows;
    for (std::size_t r = 0; r < count; ++r) {
      for (std::size_t c = 0; c < valid; ++c) block[r][c] = row(x, begin + r)[first + c] * (1.0f / fine.scale);
    }
    for (int exponent = 0; exponent <= options.largest_exponent; ++exponent) {
      const Floats step(static_cast<float>(1 << exponent)), inverse(1.0f / static_cast<float>(1 << exponent));
      for (std::size_t v = 0; v < lanes::count; ++v) {
        Floats sum(0.0f);
        for (std::size_t r = 0; r < count; ++r) {
          const Floats u = Floats::load_unaligned(block[r] + v * Floats::size) * inverse;
          const Floats code = xsimd::to_float(xsimd::nearbyint_as_int(xsimd::min(xsimd::max(u, low), high)));
          const Floats error = (u - code) * step;
          sum += error * error;
        }
        float values[Floats::size];
        sum.store_unaligned(values);
        for (std::size_t i = 0; i < Floats::size; ++i)
          errors.sums[exponent][v * Floats::size + i] += static_cast<double>(values[i]);
      }
    }
  }
}

}  // namespace trip

/// Exponents of all channels, and the grid that every channel divided by its 2^alpha is on.
class TripFactors {
 public:
  /// alpha of every channel.
  [[nodiscard]] std::span<const std::uint8_t> exponents() const noexcept {
    return {exponents_.data(), exponents_.size()};
  }
  /// s_1 and z.
  [[nodiscard]] const StaticGrid& grid() const noexcept { return grid_; }
  [[nodiscard]] ChannelFactors view() const noexcept { return {exponents(), grid_}; }

 private:
  friend Result<TripFactors> find_trip_factors(const MatrixView<const float>&, const Interval&,
                                               const TripOptions&) noexcept;
  AlignedBuffer<std::uint8_t> exponents_;
  StaticGrid grid_ = {};
};

/// Factors for activations of `range` (min-max or a percentile, over all calibration rows), found on rows x [tokens x
/// channels]. A range of nothing but zero gives exponents 0 and a scale of 0. Errc::bad_argument: bits outside 2..8, K
/// outside 0 .. 20, a range whose s_1 is too small for float; Errc::bad_shape; Errc::not_finite naming the token;
/// Errc::out_of_memory.
[[nodiscard]] inline Result<TripFactors> find_trip_factors(const MatrixView<const float>& x, const Interval& range,
                                                           const TripOptions& options) noexcept {
  if (const Status valid = check_grid(options.grid); !valid) return valid.error();
  if (options.largest_exponent < 0 || options.largest_exponent > trip::most_exponent) {
    return Error{Errc::bad_argument, "the largest exponent of channel factors", "largest_exponent",
                 options.largest_exponent, ErrorText("0 .. ") << trip::most_exponent};
  }
  if (x.rows > 1 && x.stride < x.columns) {
    return Error{Errc::bad_shape, "a stride is shorter than a row", "x", x.stride, x.columns};
  }
  if (!is_finite(range.low) || !is_finite(range.high)) return Error{Errc::not_finite, "a range is not finite", "range"};
  for (std::size_t t = 0; t < x.rows; ++t) {
    if (is_finite(max_abs({row(x, t), x.columns}))) continue;
    return Error{Errc::not_finite, "an activation is NaN or infinite", ErrorText("token ") << t};
  }
  auto exponents = AlignedBuffer<std::uint8_t>::allocate(x.columns);
  if (!exponents) return exponents.error();
  TripFactors factors;
  factors.grid_ = static_grid(options.grid, range.low, range.high);
  factors.grid_.scale /= static_cast<float>(1 << options.largest_exponent);
  if (const Status valid = check_static_grid(factors.grid_, options.grid); !valid) return valid.error();
  for (std::size_t first = 0; first < x.columns; first += lanes::width) {
    trip::BlockErrors errors;
    if (factors.grid_.scale != 0.0f) trip::add_errors(x, first, factors.grid_, options, errors);
    for (std::size_t c = first; c < x.columns && c < first + lanes::width; ++c) {
      int best = 0;
      for (int a = 1; a <= options.largest_exponent; ++a) {
        if (errors.sums[a][c - first] < errors.sums[best][c - first]) best = a;
      }
      (*exponents)[c] = static_cast<std::uint8_t>(best);
    }
  }
  factors.exponents_ = *std::move(exponents);
  return factors;
}

/// out[c] = 2^exponents[c]: what the producer of channel c is divided by, and column c of the weights multiplied.
/// Errc::bad_shape, Errc::bad_argument for an exponent above 20.
[[nodiscard]] inline Status trip_multipliers(std::span<const std::uint8_t> exponents, std::span<float> out) noexcept {
  if (out.size() != exponents.size()) {
    return Error{Errc::bad_shape, "there is one factor for each channel", "factors", out.size(), exponents.size()};
  }
  for (std::size_t c = 0; c < exponents.size(); ++c) {
    if (exponents[c] > trip::most_exponent) {
      return Error{Errc::bad_argument, "the exponent of a channel factor", ErrorText("channel ") << c,
                   int{exponents[c]}, ErrorText("0 .. ") << trip::most_exponent};
    }
    out[c] = static_cast<float>(std::uint32_t{1} << exponents[c]);
  }
  return {};
}

/// Whether the sums of products of each class of channels with equal exponents fit in int32, whatever the codes (shifts
/// are left to the scales, which are floats):
///
///   (2^bits of weights - 1) max|q_x| channels of the class <= 2^31 - 1,   max|q_x| = 2^(b-1) - 1, affine 2^b - 1
///
/// Errc::bad_argument, for exponents above 20, too.
[[nodiscard]] inline Status check_trip_sums(const Scheme& scheme, std::span<const std::uint8_t> exponents) noexcept {
  const auto code = static_cast<std::uint64_t>(
      scheme.activation.zero == Zero::affine ? max_code(scheme.activation) : symmetric_levels(scheme.activation));
  const std::uint64_t most = 0x7fffffffu / (static_cast<std::uint64_t>(max_code(scheme.weight)) * code);
  std::uint64_t channels[trip::most_exponent + 1] = {};
  for (std::size_t c = 0; c < exponents.size(); ++c) {
    if (exponents[c] > trip::most_exponent) {
      return Error{Errc::bad_argument, "the exponent of a channel factor", ErrorText("channel ") << c,
                   int{exponents[c]}, ErrorText("0 .. ") << trip::most_exponent};
    }
    if (++channels[exponents[c]] <= most) continue;
    return Error{Errc::bad_argument, "channels of one exponent could overflow the sum of their products",
                 ErrorText("channel ") << c, channels[exponents[c]], most};
  }
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
