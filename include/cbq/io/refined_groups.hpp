// SPDX-License-Identifier: Apache-2.0
#pragma once

// RefinedGroups: the same quantized matrix with shorter groups, whose scales and zero points repeat. Every weight keeps
// its value. For forms that cannot hold a shorter last group, want one group size for all modules, or none per channel.
// Memory: 4 or 5 bytes per new group; codes are borrowed.

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/scheme.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The longest groups that divide both `inputs` and the groups of `grid`, at most `longest`; 0 for no inputs.
[[nodiscard]] constexpr std::size_t dividing_group(const Grid& grid, std::size_t inputs, std::size_t longest) noexcept {
  const std::size_t group = std::gcd(group_length(grid, inputs), inputs);
  return grid.granularity == Granularity::per_group ? std::gcd(group, longest) : std::gcd(inputs, longest);
}

class RefinedGroups {
 public:
  /// `matrix` on `grid` in groups of `group` inputs, which divides the groups it has (per channel: any). The codes must
  /// outlive the result. Errc::bad_argument, Errc::out_of_memory.
  [[nodiscard]] static Result<RefinedGroups> create(const QuantizedMatrixView& matrix, const Grid& grid, int group) {
    const bool grouped = grid.granularity == Granularity::per_group;
    if (group <= 0 || (grouped && grid.group % group != 0)) {
      return Error{Errc::bad_argument, "refined groups divide those of the matrix", "group", group, grid.group};
    }
    RefinedGroups refined;
    refined.codes_ = matrix.codes;
    refined.grid_ = grid;
    refined.grid_.granularity = Granularity::per_group;
    refined.grid_.group = group;
    const Result<std::size_t> count = checked_product(matrix.codes.rows, refined.groups());
    if (!count) return count.error();
    auto scales = AlignedBuffer<float>::allocate(*count);
    if (!scales) return scales.error();
    auto zeros = AlignedBuffer<std::uint8_t>::allocate(grid.zero == Zero::affine ? *count : 0);
    if (!zeros) return zeros.error();
    refined.scales_ = std::move(*scales);
    refined.zeros_ = std::move(*zeros);
    refined.fill(matrix, group_length(grid, matrix.codes.columns));
    return refined;
  }

  [[nodiscard]] QuantizedMatrixView view() const noexcept {
    return {codes_, matrix_view(scales_.data(), codes_.rows, groups()),
            grid_.zero == Zero::affine ? matrix_view(zeros_.data(), codes_.rows, groups())
                                       : MatrixView<const std::uint8_t>{}};
  }
  [[nodiscard]] const Grid& grid() const noexcept { return grid_; }

 private:
  [[nodiscard]] std::size_t groups() const noexcept { return group_count(grid_, codes_.columns); }

  void fill(const QuantizedMatrixView& matrix, std::size_t length) noexcept {
    const auto group = static_cast<std::size_t>(grid_.group);
    const std::size_t count = groups();
    for (std::size_t n = 0; n < codes_.rows; ++n) {
      for (std::size_t g = 0; g < count; ++g) {
        const std::size_t from = g * group / length;
        scales_[n * count + g] = row(matrix.scales, n)[from];
        if (grid_.zero == Zero::affine) zeros_[n * count + g] = row(matrix.zeros, n)[from];
      }
    }
  }

  MatrixView<const std::uint8_t> codes_;
  AlignedBuffer<float> scales_;
  AlignedBuffer<std::uint8_t> zeros_;
  Grid grid_ = {.bits = 8};
};

}  // namespace CBQ_ABI
}  // namespace cbq
