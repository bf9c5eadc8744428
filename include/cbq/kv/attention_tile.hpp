// SPDX-License-Identifier: Apache-2.0
#pragma once

// Tiles of attention over a quantized cache: up to 16 rows that read one key/value head, from queries to results.
// Queries are brought into the space of the cache's rows, a span is gathered from the sources in their order, results
// are brought back. Tiles of several heads gather together, page by page with the heads inside: a page is one
// sequential stream, which is what memory is fast at.

#include <cstddef>
#include <cstring>
#include <span>

#include <cbq/core/view.hpp>
#include <cbq/kv/attention_spans.hpp>
#include <cbq/kv/float_source.hpp>
#include <cbq/kv/packed_page.hpp>
#include <cbq/kv/query_rows.hpp>
#include <cbq/kv/row_source.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/quant/scale.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

/// What all tasks share.
struct Machine {
  Tiles tiles = {};
  Isa isa = Isa::scalar;
};

/// A tile of one head of a sequence.
struct Unit {
  const Sequence* sequence = nullptr;
  const Tile* tile = nullptr;
  std::size_t head = 0;
  QueryRows queries = {};
  RowSums sums = {};            ///< of the span at hand
  float* parts = nullptr;       ///< memory of the sums of all spans, where they are tasks of their own
  std::size_t part_floats = 0;  ///< from one span to the next
  bool finite = true;           ///< all queries are numbers up to largest_query
};

/// Query or result of row r of a tile.
template <class Float>
[[nodiscard]] Float* row_of(const MatrixView<Float>& x, const Unit& unit, std::size_t r) noexcept {
  const Sequence& sequence = *unit.sequence;
  const std::size_t index = unit.tile->first_row + r;
  const std::size_t head = unit.head * sequence.group + index % sequence.group;
  return row(x, index / sequence.group) + head * sequence.width;
}

[[nodiscard]] constexpr RowTransform transform_of(const QuantizedKvView& cache) noexcept {
  return {.key_scales = cache.key_scales,
          .key_offsets = cache.key_offsets,
          .value_scales = cache.value_scales,
          .value_offsets = cache.value_offsets,
          .hadamard = cache.hadamard};
}

/// Biases of the unit's rows.
[[nodiscard]] inline RowBiases biases_of(const Unit& unit) noexcept {
  return unit.sequence->slopes.empty() ? RowBiases{} : RowBiases{unit.queries.slopes, unit.queries.own};
}

/// Fills what biases_of() the unit look at.
inline void prepare_biases(const Unit& unit) noexcept {
  const Sequence& sequence = *unit.sequence;
  if (sequence.slopes.empty()) return;
  for (std::size_t r = 0; r < unit.tile->rows; ++r) {
    const std::size_t index = unit.tile->first_row + r;
    unit.queries.slopes[r] = sequence.slopes[unit.head * sequence.group + index % sequence.group] / sequence.scale;
    unit.queries.own[r] = static_cast<float>(position_of(sequence, index / sequence.group));
  }
}

/// Fills the unit's queries.
inline void prepare(Unit& unit, Isa isa) noexcept {
  const Sequence& sequence = *unit.sequence;
  unit.finite = true;
  prepare_biases(unit);
  for (std::size_t r = 0; r < unit.tile->rows; ++r) {
    const std::span<float> query(unit.queries.floats + r * sequence.width, sequence.width);
    std::memcpy(query.data(), row_of(sequence.q, unit, r), query.size_bytes());
    transform_query(transform_of(sequence.cache), unit.head, query, isa);
    const bool packed = sequence.kernels.keys != nullptr;
    const bool finite = packed ? quantize_query(*sequence.cache.layout, query, r, unit.queries)
                               : is_within(max_abs(query), largest_query);
    unit.finite = unit.finite && finite;
  }
}

/// Visits what the unit's rows see of a source of floats, of which the first one is of position `origin`.
template <class Source>
void visit_exact(const Unit& unit, const Source& source, std::size_t origin, const RowPositions& seen,
                 const Machine& machine) noexcept {
  RowSums sums = unit.sums;
  float own[block_rows];
  if (sums.biases.slopes != nullptr) {
    for (std::size_t r = 0; r < sums.rows; ++r) own[r] = unit.queries.own[r] - static_cast<float>(origin);
    sums.biases.own = own;
  }
  visit(source, seen, sums, machine.isa);
}

inline void visit_floats(const Unit& unit, const FloatKvView& floats, std::size_t origin, const RowPositions& seen,
                         const Machine& machine) noexcept {
  visit_exact(unit, FloatSource{machine.tiles, floats, unit.head, unit.queries.floats, floats.width, unit.tile->rows},
              origin, seen, machine);
}

inline void visit_row(const Unit& unit, const KvRow& row, std::size_t origin, const RowPositions& seen,
                      const Machine& machine) noexcept {
  const std::size_t width = unit.sequence->width, first = unit.head * width;
  visit_exact(unit, RowSource{row.key + first, row.value + first, width, unit.queries.floats, unit.tile->rows}, origin,
              seen, machine);
}

/// Visits what the units' rows see of the pages of a span. Units are of one sequence; those that follow one another
/// read the same head, or the next one.
inline void visit_pages(std::span<const Unit> units, const Positions& span, const Machine& machine) noexcept {
  const Sequence& sequence = *units.front().sequence;
  const QuantizedKvView& cache = sequence.cache;
  const std::size_t front = units.front().head;
  Positions all;
  for (const Unit& unit : units) all = join(all, both(cover(unit.tile->past, unit.tile->rows), span));
  PackedPage page{.layout = *cache.layout, .kernels = sequence.kernels, .isa = machine.isa};
  for (std::size_t begin = all.first / kv_page_positions * kv_page_positions; begin < all.end;
       begin += kv_page_positions) {
    const Positions here = both({begin, begin + kv_page_positions}, span);
    page.begin = begin;
    const std::byte* bytes = cache.pages[begin / kv_page_positions];
    const bool last = begin + kv_page_positions >= all.end;
    const std::byte* behind = last ? nullptr : cache.pages[begin / kv_page_positions + 1];
    for (std::size_t u = 0; u < units.size(); ++u) {
      const Unit& unit = units[u];
      for (std::size_t r = 0; r < unit.tile->rows; ++r) {
        const Positions seen = both(unit.tile->past[r], here);
        page.first[r] = seen.end <= seen.first ? 0 : seen.first - begin;
        page.valid[r] = seen.end <= seen.first ? 0 : seen.end - begin;
      }
      page.bytes = bytes + kv_keys_offset(*cache.layout, unit.head);
      page.next = nullptr;
      if (u == 0 || units[u - 1].head != unit.head) {
        page.next = unit.head != units.back().head ? bytes + kv_keys_offset(*cache.layout, unit.head + 1)
                    : behind == nullptr            ? nullptr
                                                   : behind + kv_keys_offset(*cache.layout, front);
      }
      visit_page(page, unit.queries, unit.sums);
    }
  }
}

/// Gathers one span for all units, which are of one sequence, from nothing.
inline void gather(std::span<const Unit> units, std::size_t span, const Machine& machine) noexcept {
  const Sequence& sequence = *units.front().sequence;
  const QuantizedKvView& cache = sequence.cache;
  const FloatKvView& sinks = sequence.time == Time::decoding ? cache.exact : cache.sinks;
  RowPositions part;
  for (const Unit& unit : units) {
    clear(unit.sums);
    if (span == 0) visit_floats(unit, sinks, 0, unit.tile->sinks, machine);
  }
  if (span < sequence.past_spans) {
    const std::size_t first = sequence.past_begin + span * span_positions;
    const Positions past{first, first + span_positions};
    if (sequence.past.size == 0) visit_pages(units, past, machine);
    for (const Unit& unit : units) {
      if (sequence.past.size == 0) break;
      clip(unit.tile->past, unit.tile->rows, past, part);
      visit_floats(unit, sequence.past, 0, part, machine);
    }
  }
  const std::size_t joint = larger(1, sequence.past_spans) - 1;
  if (span < joint) return;
  const std::size_t first = (span - joint) * span_positions;
  for (const Unit& unit : units) {
    clip(unit.tile->exact, unit.tile->rows, {first, first + span_positions}, part);
    if (cache.newest.key != nullptr) {
      visit_row(unit, cache.newest, cache.packed, part, machine);
    } else {
      visit_floats(unit, cache.exact, sequence.time == Time::decoding ? 0 : cache.packed, part, machine);
    }
  }
}

/// Width of a value, padded to whole panels.
[[nodiscard]] constexpr std::size_t padded_width(const Sequence& sequence) noexcept {
  return divide_up(sequence.width, float_panel_width) * float_panel_width;
}

/// Results of a unit whose spans were all gathered into `sums`.
inline void finish(const Unit& unit, const RowSums& sums, Isa isa) noexcept {
  const Sequence& sequence = *unit.sequence;
  for (std::size_t r = 0; r < unit.tile->rows; ++r) {
    float* out = row_of(sequence.out, unit, r);
    normalize(sums, r, out, sequence.width);
    restore_output(transform_of(sequence.cache), unit.head, std::span<float>(out, sequence.width), isa);
  }
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
