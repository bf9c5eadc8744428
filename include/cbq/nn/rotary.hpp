// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rotary position embedding in the half-split order of Hugging Face checkpoints: element i of a head is rotated with
// element i + width / 2 by the angle position * frequency[i]. Cosines and sines come from a table computed once in
// double. Cost: one pass over queries and keys; table of 4 * width bytes per position.
//
//   frequency[i] = base^(-2 i / width)
//   x'[i] = x[i] cos - x[i + width/2] sin,   x'[i + width/2] = x[i + width/2] cos + x[i] sin
//
// Scaling divides the frequencies f, of wavelength L = 2 pi / f: linear all by `factor`; llama3 keeps L < original /
// high, divides L > original / low by `factor`, and blends in between: f becomes (1 - s) f / factor + s f with s =
// (original / L - low) / (high - low); per_pair has a factor for each f. Su et al., RoFormer, 2021; the LLaMA 3 rule is
// that of the LLaMA 3.1 model card.

#include <xsimd/xsimd.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <cbq/core/context.hpp>

namespace cbq {
inline namespace CBQ_ABI {

enum class RotaryScaling : unsigned char { none, linear, llama3, per_pair };

/// To a position, or back from it.
enum class RotaryDirection : unsigned char { forward, backward };

/// Frequencies of a rotary embedding. `factor` and what follows is read only where `scaling` needs it.
struct RotaryConfig {
  double base = 10000.0;
  RotaryScaling scaling = RotaryScaling::none;
  double factor = 1.0;
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;
  double original_positions = 8192.0;
  std::vector<float> pair_factors = {};  ///< width / 2 of them
};

/// What divides the frequency of element pair `index` of a head of `width` elements; 1 where nothing is scaled. The
/// configuration is one that check_rotary() accepts.
[[nodiscard]] inline double rotary_factor(const RotaryConfig& config, std::size_t width, std::size_t index) noexcept {
  if (config.scaling == RotaryScaling::none) return 1.0;
  if (config.scaling == RotaryScaling::linear) return config.factor;
  if (config.scaling == RotaryScaling::per_pair) return static_cast<double>(config.pair_factors[index]);
  constexpr double two_pi = 6.283185307179586476925;
  const double frequency = std::pow(config.base, -2.0 * static_cast<double>(index) / static_cast<double>(width));
  const double turns = config.original_positions * frequency / two_pi;  // over the original context
  if (turns > config.high_frequency_factor) return 1.0;
  if (turns < config.low_frequency_factor) return config.factor;
  const double smooth =
      (turns - config.low_frequency_factor) / (config.high_frequency_factor - config.low_frequency_factor);
  return 1.0 / ((1.0 - smooth) / config.factor + smooth);
}

/// Radians per position of element pair `index` of a head of `width` elements. The configuration is one that
/// check_rotary() accepts.
[[nodiscard]] inline double rotary_frequency(const RotaryConfig& config, std::size_t width,
                                             std::size_t index) noexcept {
  const double frequency = std::pow(config.base, -2.0 * static_cast<double>(index) / static_cast<double>(width));
  return frequency / rotary_factor(config, width, index);
}

/// Whether heads of `width` elements can be rotated so. Errc::bad_shape: an odd width, another number of factors than
/// pairs. Errc::bad_argument: numbers that are not positive and finite, a high frequency factor not above the low.
[[nodiscard]] inline Status check_rotary(const RotaryConfig& config, std::size_t width) noexcept {
  if (width == 0 || width % 2 != 0) {
    return Error{Errc::bad_shape, "rotary embedding needs heads of an even width", "head width", width};
  }
  const auto positive = [](double value) { return value > 0 && std::isfinite(value); };
  const bool llama3 = config.scaling == RotaryScaling::llama3;
  if (!positive(config.base) || !positive(config.factor) ||
      (llama3 && (!positive(config.high_frequency_factor - config.low_frequency_factor) ||
                  !positive(config.original_positions)))) {
    return Error{Errc::bad_argument,
                 "rotary base and factors must be positive, the high frequency factor above the low", "rope"};
  }
  if (config.scaling != RotaryScaling::per_pair) return {};
  if (config.pair_factors.size() != width / 2) {
    return Error{Errc::bad_shape, "rotary embedding needs one factor for each pair of elements", "pair_factors",
                 config.pair_factors.size(), width / 2};
  }
  for (std::size_t i = 0; i < width / 2; ++i) {
    const float factor = config.pair_factors[i];
    if (positive(static_cast<double>(factor))) continue;
    return Error{Errc::bad_argument, "rotary factors must be positive numbers", ErrorText("pair_factors[") << i << "]",
                 factor == 0             ? "0"
                 : std::isfinite(factor) ? "a negative number"
                                         : "no number",
                 "above 0"};
  }
  return {};
}

/// Cosines and sines of all positions up to a maximum.
class RotaryTable {
 public:
  RotaryTable() noexcept = default;

  /// For heads of `width` elements (even) and positions [0, positions). Errors of check_rotary(), Errc::out_of_memory.
  [[nodiscard]] static Result<RotaryTable> create(const RotaryConfig& config, std::size_t width,
                                                  std::size_t positions) noexcept {
    if (const Status ok = check_rotary(config, width); !ok) return ok.error();
    const Result<std::size_t> size = checked_product(positions, width);
    if (!size) return size.error();
    Result<AlignedBuffer<float>> memory = AlignedBuffer<float>::allocate(*size);
    if (!memory) return memory.error();
    RotaryTable table;
    table.memory_ = *std::move(memory);
    table.width_ = width;
    table.positions_ = positions;
    for (std::size_t i = 0; i < width / 2; ++i) {
      const double frequency = rotary_frequency(config, width, i);
      for (std::size_t position = 0; position < positions; ++position) {
        const double angle = static_cast<double>(position) * frequency;
        table.memory_[position * width + i] = static_cast<float>(std::cos(angle));
        table.memory_[position * width + width / 2 + i] = static_cast<float>(std::sin(angle));
      }
    }
    return table;
  }

  [[nodiscard]] std::size_t width() const noexcept { return width_; }
  [[nodiscard]] std::size_t positions() const noexcept { return positions_; }
  /// Cosines of the width / 2 angles of a position, then their sines; position < positions().
  [[nodiscard]] const float* angles(std::size_t position) const noexcept { return memory_.data() + position * width_; }

  /// Rotates every head of each row t of x [tokens x heads * width] to position positions[t], or back from it.
  /// Errc::bad_shape, and Errc::bad_argument for a position beyond the table.
  template <Executor E>
  [[nodiscard]] Status rotate(const MatrixView<float>& x, std::span<const std::uint32_t> positions,
                              ExecutionContext<E>& context,
                              RotaryDirection direction = RotaryDirection::forward) const noexcept {
    if (width_ == 0 || x.columns % width_ != 0 || x.rows != positions.size()) {
      return Error{Errc::bad_shape, "rotary embedding needs whole heads and one position per row", "x",
                   ErrorText(x.rows) << " x " << x.columns, ErrorText(positions.size()) << " x heads * " << width_};
    }
    for (const std::uint32_t position : positions) {
      if (position >= positions_) {
        return Error{Errc::bad_argument, "a position lies beyond the model's context", "position", position,
                     ErrorText("below ") << positions_};
      }
    }
    const float sign = direction == RotaryDirection::forward ? 1.0f : -1.0f;
    for_each_row_block(context.executor(), x.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        const float* row_angles = angles(positions[r]);
        for (std::size_t first = 0; first < x.columns; first += width_) {
          rotate_head(row(x, r) + first, row_angles, sign);
        }
      }
    });
    return {};
  }

 private:
  // By the angles times `sign`, 1 or -1.
  void rotate_head(float* head, const float* cosines, float sign) const noexcept {
    using Floats = xsimd::batch<float>;
    const std::size_t pairs = width_ / 2;
    const float* sines = cosines + pairs;
    std::size_t i = 0;
    for (; i + Floats::size <= pairs; i += Floats::size) {
      const Floats low = Floats::load_unaligned(head + i), high = Floats::load_unaligned(head + pairs + i);
      const Floats cosine = Floats::load_unaligned(cosines + i);
      const Floats sine = Floats(sign) * Floats::load_unaligned(sines + i);
      (low * cosine - high * sine).store_unaligned(head + i);
      (high * cosine + low * sine).store_unaligned(head + pairs + i);
    }
    for (; i < pairs; ++i) {
      const float low = head[i], high = head[pairs + i];
      const float sine = sign * sines[i];
      head[i] = low * cosines[i] - high * sine;
      head[pairs + i] = high * cosines[i] + low * sine;
    }
  }

  AlignedBuffer<float> memory_;  // [position][cosines | sines]
  std::size_t width_ = 0;
  std::size_t positions_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
