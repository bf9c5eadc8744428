// SPDX-License-Identifier: Apache-2.0
#pragma once

// recode: the same weights on another grid, where that is exact: groups of equal scales become one longer group (or the
// reverse), and codes move by the difference of the zero points. For matrices that passed through a format with fewer
// forms, GGUF's blocks for instance. One pass over the codes, one byte per weight for the result.

#include <cstddef>
#include <cstdint>

#include <cbq/quant/quantized_matrix.hpp>

namespace cbq {
inline namespace CBQ_ABI {

namespace quant_detail {

/// Part of a row that lies in one group of each grid.
struct RecodedPart {
  std::size_t first = 0;
  std::size_t end = 0;
  std::size_t group = 0;  // of the old grid
};

template <class F>
void for_each_part(const Grid& from, std::size_t first, std::size_t end, std::size_t inputs, F&& f) {
  const std::size_t length = group_length(from, inputs);
  while (first < end) {
    const std::size_t group = first / length;
    const std::size_t stop = (group + 1) * length < end ? (group + 1) * length : end;
    f(RecodedPart{first, stop, group});
    first = stop;
  }
}

inline int zero_of(const QuantizedMatrixView& matrix, const Grid& grid, std::size_t r, std::size_t group) noexcept {
  return grid.zero == Zero::affine ? int{row(matrix.zeros, r)[group]} : symmetric_zero(grid);
}

/// What inputs first .. end of a row have in common.
struct RecodedGroup {
  bool one_scale = true;
  bool one_zero = true;
  int least = 255;  // of code - zero
  int most = -255;
};

inline RecodedGroup survey(const QuantizedMatrixView& matrix, const Grid& from, std::size_t r, std::size_t first,
                           std::size_t end) {
  RecodedGroup found;
  const std::size_t start = first / group_length(from, matrix.codes.columns);
  for_each_part(from, first, end, matrix.codes.columns, [&](const RecodedPart& part) {
    const int zero = zero_of(matrix, from, r, part.group);
    found.one_scale = found.one_scale && row(matrix.scales, r)[part.group] == row(matrix.scales, r)[start];
    found.one_zero = found.one_zero && zero == zero_of(matrix, from, r, start);
    for (std::size_t k = part.first; k < part.end; ++k) {
      const int value = int{row(matrix.codes, r)[k]} - zero;
      found.least = value < found.least ? value : found.least;
      found.most = value > found.most ? value : found.most;
    }
  });
  return found;
}

/// The zero point of a new group: the old one where it can stay, else the least that brings all codes onto the grid.
inline int recoded_zero(const RecodedGroup& found, int old, const Grid& to) noexcept {
  if (to.zero == Zero::symmetric) return symmetric_zero(to);
  const bool stays =
      found.one_zero && old <= max_code(to) && found.least + old >= 0 && found.most + old <= max_code(to);
  if (stays) return old;
  return found.least < 0 ? -found.least : 0;
}

/// The inputs of row `r` that become group `g` of `to`.
inline Status recode_group(const QuantizedMatrixView& matrix, const Grid& from, std::size_t r, std::size_t g,
                           QuantizedMatrix& to) noexcept {
  const Grid grid = to.grid();
  const std::size_t inputs = matrix.codes.columns;
  const std::size_t length = group_length(grid, inputs);
  const std::size_t first = g * length;
  const std::size_t end = inputs - first < length ? inputs : first + length;
  const std::size_t old_group = first / group_length(from, inputs);
  const RecodedGroup found = survey(matrix, from, r, first, end);
  const float scale = row(matrix.scales, r)[old_group];
  const int zero = recoded_zero(found, zero_of(matrix, from, r, old_group), grid);
  const bool inside = zero <= max_code(grid) && found.least + zero >= 0 && found.most + zero <= max_code(grid);
  if (!inside || !found.one_scale || (grid.zero == Zero::affine && !(scale > 0))) {
    return Error{Errc::unsupported, "the weights have no exact place on this grid",
                 ErrorText("row ") << r << ", group " << g,
                 found.one_scale ? ErrorText(found.least) << ".." << found.most : ErrorText("several scales"),
                 ErrorText(grid.bits) << " bits, one scale"};
  }
  row(to.scales(), r)[g] = scale;
  if (grid.zero == Zero::affine) row(to.zeros(), r)[g] = static_cast<std::uint8_t>(zero);
  for_each_part(from, first, end, inputs, [&](const RecodedPart& part) {
    const int shift = zero - zero_of(matrix, from, r, part.group);
    for (std::size_t k = part.first; k < part.end; ++k) {
      row(to.codes(), r)[k] = static_cast<std::uint8_t>(int{row(matrix.codes, r)[k]} + shift);
    }
  });
  return {};
}

}  // namespace quant_detail

/// `matrix`, which is on the grid `from`, on the grid `to`: every weight is the same float. Zero points of affine grids
/// stay where they can and are chosen anew elsewhere. Errc::unsupported naming row and group where the new grid has no
/// place for the old weights, Errc::bad_shape, Errc::bad_argument, Errc::out_of_memory.
[[nodiscard]] inline Result<QuantizedMatrix> recode(const QuantizedMatrixView& matrix, const Grid& from,
                                                    const Grid& to) noexcept {
  if (const Status ok = check_shape(matrix, from); !ok) return ok.error();
  Result<QuantizedMatrix> made = QuantizedMatrix::allocate(matrix.codes.rows, matrix.codes.columns, to);
  if (!made) return made;
  for (std::size_t r = 0; r < matrix.codes.rows; ++r) {
    for (std::size_t g = 0; g < made->groups(); ++g) {
      if (const Status done = quant_detail::recode_group(matrix, from, r, g, *made); !done) return done.error();
    }
  }
  return made;
}

}  // namespace CBQ_ABI
}  // namespace cbq
