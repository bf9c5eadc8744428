// SPDX-License-Identifier: Apache-2.0
#pragma once

// Offsets: the trained part of a rounding decision, one number per weight. Three ways to hold it, for OffsetRounding:
//
//   NoOffsets        zero everywhere; only steps are trained
//   DenseOffsets     a matrix: one parameter per weight
//   LowRankOffsets   a product A1 A2 of rank r: (N + K) r parameters (low_rank_offsets.hpp)

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/rounding/segment_loops.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {
inline namespace CBQ_ABI {

namespace offsets {

inline constexpr std::size_t tile_rows = 4;
inline constexpr std::size_t tile_columns = 256;

/// A place in the matrix: `rows` rows from `row`, `columns` columns from `column`.
struct Tile {
  std::size_t row = 0;
  std::size_t rows = 0;
  std::size_t column = 0;
  std::size_t columns = 0;
};

/// Calls body(tile) for the tiles of `part`, in order; rows from `rows` on do not exist.
template <class Body>
void for_each_tile(const Tile& part, std::size_t rows, const Body& body) noexcept {
  const auto least = [](std::size_t a, std::size_t b) { return a < b ? a : b; };
  const std::size_t last = part.row + least(part.rows, rows - part.row);
  for (std::size_t n = part.row; n < last; n += tile_rows) {
    for (std::size_t k = 0; k < part.columns; k += tile_columns) {
      body(Tile{n, least(tile_rows, last - n), k, least(tile_columns, part.columns - k)});
    }
  }
}

/// Calls body(group, first column in the tile, size) for the segments of a row of the tile, groups being `length` long.
template <class Body>
void for_each_segment(const Tile& tile, std::size_t length, const Body& body) noexcept {
  for (std::size_t k = 0; k < tile.columns;) {
    const std::size_t group = (tile.column + k) / length;
    const std::size_t end = (group + 1) * length - tile.column;
    const std::size_t next = end < tile.columns ? end : tile.columns;
    body(group, k, next - k);
    k = next;
  }
}

/// The offsets of a tile and where their gradients go: in the owner's memory or in `memory`.
template <class T>
struct TileData {
  const T* values[tile_rows] = {};
  T* gradients[tile_rows] = {};
  T value_memory[tile_rows][tile_columns];
  T gradient_memory[tile_rows][tile_columns];
};

/// The shape of the matrix and what the options of every rounding say about offsets.
struct Setup {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::size_t rank = 0;
  double rate = 0;
  std::uint64_t seed = 0;
};

/// `size` zeros.
template <class T>
[[nodiscard]] Result<AlignedBuffer<T>> zeros(std::size_t size) noexcept {
  auto memory = AlignedBuffer<T>::allocate(size);
  if (!memory) return memory;
  for (T& value : *memory) value = T{0};
  return memory;
}

/// Standard normal numbers that depend on seed and index alone (splitmix64, Box-Muller).
[[nodiscard]] inline double gaussian(std::uint64_t seed, std::uint64_t index) noexcept {
  const auto uniform = [&](std::uint64_t n) {
    std::uint64_t x = seed * 0xd1342543de82ef95u + (n + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (static_cast<double>((x ^ (x >> 31)) >> 11) + 0.5) * 0x1p-53;
  };
  return std::sqrt(-2 * std::log(uniform(2 * index))) * std::cos(6.283185307179586 * uniform(2 * index + 1));
}

}  // namespace offsets

template <class T>
class NoOffsets {
 public:
  static constexpr std::size_t rows_per_task = 16;
  [[nodiscard]] static Result<NoOffsets> create(const offsets::Setup&) noexcept { return NoOffsets{}; }
  [[nodiscard]] static std::size_t bytes_for(const offsets::Setup&) noexcept { return 0; }
  void read(const offsets::Tile& tile, offsets::TileData<T>& data) const noexcept {
    for (std::size_t i = 0; i < tile.rows; ++i) {
      for (std::size_t k = 0; k < tile.columns; ++k) data.value_memory[i][k] = T{0};
      data.values[i] = data.value_memory[i];
    }
  }
  void aim(const offsets::Tile& tile, offsets::TileData<T>& data) noexcept {
    for (std::size_t i = 0; i < tile.rows; ++i) data.gradients[i] = data.gradient_memory[i];
  }
  void start(std::size_t) noexcept {}
  void accumulate(std::size_t, const offsets::Tile&, const offsets::TileData<T>&) noexcept {}
  void finish() noexcept {}
  void clear_gradients() noexcept {}
  void limit(T) noexcept {}
  void append(ParameterList<T>&, double) noexcept {}
  [[nodiscard]] std::size_t size() const noexcept { return 0; }
  [[nodiscard]] std::size_t rank() const noexcept { return 0; }
};

template <class T>
class DenseOffsets {
 public:
  static constexpr std::size_t rows_per_task = 16;

  [[nodiscard]] static Result<DenseOffsets> create(const offsets::Setup& setup) noexcept {
    const Result<std::size_t> size = checked_product(setup.rows, setup.columns);
    if (!size) return size.error();
    auto values = offsets::zeros<T>(*size);
    if (!values) return values.error();
    auto gradients = offsets::zeros<T>(*size);
    if (!gradients) return gradients.error();
    DenseOffsets made;
    made.values_ = std::move(*values);
    made.gradients_ = std::move(*gradients);
    made.columns_ = setup.columns;
    made.rate_ = setup.rate;
    return made;
  }
  [[nodiscard]] static std::size_t bytes_for(const offsets::Setup& setup) noexcept {
    return 2 * sizeof(T) * setup.rows * setup.columns;
  }

  void read(const offsets::Tile& tile, offsets::TileData<T>& data) const noexcept {
    for (std::size_t i = 0; i < tile.rows; ++i) data.values[i] = values_.data() + at(tile, i);
  }
  void aim(const offsets::Tile& tile, offsets::TileData<T>& data) noexcept {
    for (std::size_t i = 0; i < tile.rows; ++i) data.gradients[i] = gradients_.data() + at(tile, i);
  }
  void start(std::size_t) noexcept {}
  void accumulate(std::size_t, const offsets::Tile&, const offsets::TileData<T>&) noexcept {}
  void finish() noexcept {}
  void clear_gradients() noexcept {
    for (T& gradient : gradients_) gradient = T{0};
  }
  /// Offsets into [-reach, reach].
  void limit(T reach) noexcept {
    for (T& value : values_) value = value < -reach ? -reach : value > reach ? reach : value;
  }
  /// `scale` is 0 while the offsets rest.
  void append(ParameterList<T>& list, double scale) noexcept {
    list.add({values_.data(), gradients_.data(), values_.size(), rate_ * scale});
  }
  [[nodiscard]] std::size_t size() const noexcept { return values_.size(); }
  [[nodiscard]] std::size_t rank() const noexcept { return 0; }

 private:
  [[nodiscard]] std::size_t at(const offsets::Tile& tile, std::size_t i) const noexcept {
    return (tile.row + i) * columns_ + tile.column;
  }

  AlignedBuffer<T> values_, gradients_;
  std::size_t columns_ = 0;
  double rate_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
