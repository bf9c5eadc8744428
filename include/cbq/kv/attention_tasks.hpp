// SPDX-License-Identifier: Apache-2.0
#pragma once

// How attention over quantized caches becomes tasks. With few rows, as in decoding, memory is what counts: a task is a
// span of some heads, and a second call of the executor merges what spans gathered. With many rows, as in a prompt, a
// task is 16 rows of one head, which visits all spans. Of the same rows both make the same bits. Tasks and what they
// share lie in the context's workspace.

#include <concepts>
#include <cstddef>
#include <span>

#include <cbq/core/context.hpp>
#include <cbq/kv/attention_checks.hpp>
#include <cbq/kv/attention_spans.hpp>
#include <cbq/kv/attention_tile.hpp>
#include <cbq/kv/dispatch.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace attention {

/// With at most so many tiles per head, spans are tasks of their own that bundle heads.
inline constexpr std::size_t few_tiles = 4;
/// Units of one task, at most.
inline constexpr std::size_t most_units = 16;
static_assert(few_tiles <= most_units);

[[nodiscard]] constexpr bool streams(const Sequence& sequence) noexcept {
  return sequence.tiles <= few_tiles;
}

/// Bundles of heads, each of at most `most_units` units: where there are few spans so many that there are 8 tasks, as
/// long as a bundle keeps 4 heads, which are still a long stream of each page.
[[nodiscard]] constexpr std::size_t bundles_of(const Sequence& sequence) noexcept {
  if (sequence.tiles == 0) return 0;
  const std::size_t wanted = smaller(divide_up(8, sequence.spans), divide_up(sequence.heads, 4));
  return larger(wanted, divide_up(sequence.heads, most_units / sequence.tiles));
}

/// Checks a sequence and fills its derived members. Errors of attend_batch(), but for what queries hold. A
/// template as kv_kernels() is.
template <std::same_as<Isa> I>
[[nodiscard]] Status make_ready(Sequence& sequence, I isa) noexcept {
  if (const Status shapes = check_shapes(sequence); !shapes) return shapes;
  const Sight all = extent(sequence);
  if (const Status sources = check_sources(sequence, all); !sources) return sources;
  plan(sequence, all);
  if (sequence.past.size == 0 && all.past.end != 0) sequence.kernels = kv_kernels(isa, sequence.cache.layout->bits);
  return {};
}

/// make_ready() for all; an error says which sequence.
template <std::same_as<Isa> I>
[[nodiscard]] Status make_all_ready(std::span<Sequence> sequences, I isa) noexcept {
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const Status fits = make_ready(sequences[i], isa);
    if (fits) continue;
    Error error = fits.error();
    ErrorText where = ErrorText("sequence ") << i;
    where << ", " << error.where.c_str();
    error.where = where;
    return error;
  }
  return {};
}

/// Some units that follow one another and one span of them; or one whole tile of a head.
struct Task {
  const Sequence* sequence = nullptr;
  std::span<const Unit> units = {};  ///< none: the tile and head below, all spans
  std::size_t span = 0;
  std::size_t head = 0;
  std::size_t tile = 0;
  bool finite = true;
};

/// Sums of one span of a unit.
[[nodiscard]] inline RowSums part_of(const Unit& unit, std::size_t span) noexcept {
  const std::size_t rows = unit.tile->rows;
  const std::size_t stride = padded_width(*unit.sequence);
  float* memory = unit.parts + span * unit.part_floats;
  return {rows,   unit.sequence->scale, memory + rows * stride, memory + rows * stride + rows, memory,
          stride, biases_of(unit)};
}

inline void gather_span(const Task& task, const Machine& machine) noexcept {
  Unit units[most_units];
  for (std::size_t u = 0; u < task.units.size(); ++u) {
    units[u] = task.units[u];
    units[u].sums = part_of(units[u], task.span);
  }
  gather({units, task.units.size()}, task.span, machine);
}

/// Merges the spans of a unit into its result.
inline void merge_spans(const Unit& unit, const Machine& machine) noexcept {
  const RowSums sums = part_of(unit, 0);
  for (std::size_t span = 1; span < unit.sequence->spans; ++span) merge(sums, part_of(unit, span));
  finish(unit, sums, machine.isa);
}

/// A tile from its queries to its result.
inline void run_tile(Task& task, const Machine& machine) noexcept {
  const Sequence& sequence = *task.sequence;
  const Tile tile = tile_of(sequence, task.tile);
  QueryRowsMemory queries;
  RowSumsMemory whole, part;
  Unit unit{.sequence = &sequence, .tile = &tile, .head = task.head, .queries = query_rows(queries)};
  prepare(unit, machine.isa);
  task.finite = unit.finite;
  if (!task.finite) return;
  RowSums sums = row_sums(whole, tile.rows, padded_width(sequence), sequence.scale);
  sums.biases = biases_of(unit);
  unit.sums = sums;
  gather({&unit, 1}, 0, machine);
  unit.sums = row_sums(part, tile.rows, padded_width(sequence), sequence.scale);
  unit.sums.biases = sums.biases;
  for (std::size_t span = 1; span < sequence.spans; ++span) {
    gather({&unit, 1}, span, machine);
    merge(sums, unit.sums);
  }
  finish(unit, sums, machine.isa);
}

/// Memory of one unit and all its spans. Errc::out_of_memory.
[[nodiscard]] inline Status take_memory(Unit& unit, Workspace& workspace) noexcept {
  const Sequence& sequence = *unit.sequence;
  const std::size_t rows = unit.tile->rows;
  const std::size_t blocks = sequence.cache.layout == nullptr ? 0 : sequence.cache.layout->key_blocks;
  unit.part_floats = divide_up(rows * (padded_width(sequence) + 2), float_panel_width) * float_panel_width;
  const auto floats = workspace.take<float>(rows * (sequence.width + 3 + most_groups));
  const auto codes = workspace.take<std::int8_t>(rows * blocks * block_inputs);
  const auto parts = workspace.take<float>(unit.part_floats * sequence.spans);
  if (!floats) return floats.error();
  if (!codes) return codes.error();
  if (!parts) return parts.error();
  float* scales = floats->data() + rows * sequence.width;
  float* slopes = scales + rows * (1 + most_groups);
  unit.queries = {floats->data(), codes->data(), scales, scales + rows, slopes, slopes + rows};
  unit.parts = parts->data();
  return {};
}

/// Units of a sequence, head by head with the tiles inside. Errc::out_of_memory.
[[nodiscard]] inline Status list_units(const Sequence& sequence, std::span<Unit> units, Workspace& workspace) noexcept {
  const auto tiles = workspace.take<Tile>(sequence.tiles);
  if (!tiles) return tiles.error();
  for (std::size_t t = 0; t < sequence.tiles; ++t) (*tiles)[t] = tile_of(sequence, t);
  for (std::size_t u = 0; u < units.size(); ++u) {
    units[u] = {.sequence = &sequence, .tile = &(*tiles)[u % sequence.tiles], .head = u / sequence.tiles};
    if (const Status taken = take_memory(units[u], workspace); !taken) return taken;
  }
  return {};
}

/// How many tasks a sequence is.
[[nodiscard]] inline std::size_t count_tasks(const Sequence& sequence) noexcept {
  return streams(sequence) ? bundles_of(sequence) * sequence.spans : sequence.heads * sequence.tiles;
}

/// Tasks of a sequence that streams: bundles of heads, span by span.
inline void list_spans(const Sequence& sequence, std::span<const Unit> units, std::span<Task> tasks) noexcept {
  const std::size_t bundles = bundles_of(sequence);
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const std::size_t first = sequence.heads * (i % bundles) / bundles * sequence.tiles;
    const std::size_t end = sequence.heads * (i % bundles + 1) / bundles * sequence.tiles;
    tasks[i] = {.sequence = &sequence, .units = units.subspan(first, end - first), .span = i / bundles};
  }
}

/// Tasks of one that does not. Late queries see the most: first and last tiles alternate, so that every contiguous
/// share of the tasks is about equal work.
inline void list_tiles(const Sequence& sequence, std::span<Task> tasks) noexcept {
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const std::size_t turn = i % sequence.tiles;
    const std::size_t tile = turn % 2 == 0 ? turn / 2 : sequence.tiles - 1 - turn / 2;
    tasks[i] = {.sequence = &sequence, .head = i / sequence.tiles, .tile = tile};
  }
}

/// All work of a call.
struct Work {
  std::span<Unit> units = {};
  std::span<Task> tasks = {};
};

/// Lists the work of sequences that are ready. Errc::out_of_memory.
[[nodiscard]] inline Result<Work> list_work(std::span<const Sequence> sequences, Workspace& workspace) noexcept {
  std::size_t unit_count = 0;
  std::size_t task_count = 0;
  for (const Sequence& sequence : sequences) {
    unit_count += streams(sequence) ? sequence.heads * sequence.tiles : 0;
    task_count += count_tasks(sequence);
  }
  const auto units = workspace.take<Unit>(unit_count);
  const auto tasks = workspace.take<Task>(task_count);
  if (!units) return units.error();
  if (!tasks) return tasks.error();
  unit_count = task_count = 0;
  for (const Sequence& sequence : sequences) {
    const auto own = tasks->subspan(task_count, count_tasks(sequence));
    task_count += own.size();
    if (!streams(sequence)) {
      list_tiles(sequence, own);
      continue;
    }
    const auto own_units = units->subspan(unit_count, sequence.heads * sequence.tiles);
    unit_count += own_units.size();
    if (const Status listed = list_units(sequence, own_units, workspace); !listed) return listed.error();
    list_spans(sequence, own_units, own);
  }
  return Work{*units, *tasks};
}

[[nodiscard]] inline Error infinite_query(const Sequence* sequence, std::span<const Sequence> sequences,
                                          std::size_t head) noexcept {
  return Error{Errc::not_finite, "a query is NaN, infinite or beyond 2^100",
               ErrorText("sequence ") << sequence - sequences.data() << ", key/value head " << head};
}

/// Calls task(i) for all i in [0, count), on the calling thread where `floats`, what all of them together write, is
/// less than waking others costs.
template <Executor E, class F>
void for_each_unit(const E& executor, std::size_t count, std::size_t floats, const F& task) {
  constexpr std::size_t worth_waking = 16384;
  if (floats >= worth_waking) return executor.for_each_index(count, task);
  for (std::size_t i = 0; i < count; ++i) task(i);
}

/// Computes all sequences; their derived members are filled here.
template <Executor E>
[[nodiscard]] Status compute(std::span<Sequence> sequences, ExecutionContext<E>& context) noexcept {
  if (const Status ready = make_all_ready(sequences, context.isa()); !ready) return ready;
  const Workspace::Frame frame(context.workspace());
  const Result<Work> work = list_work(sequences, context.workspace());
  if (!work) return work.error();
  const std::span<Unit> units = work->units;
  const std::span<Task> tasks = work->tasks;
  const Machine machine{float_tiles(context.isa()), context.isa()};
  const E& executor = context.executor();
  std::size_t queries = 0;
  std::size_t parts = 0;
  for (const Sequence& sequence : sequences) {
    queries += streams(sequence) ? sequence.q.rows * sequence.q.columns : 0;
    parts += streams(sequence) ? sequence.q.rows * sequence.q.columns * sequence.spans : 0;
  }
  for_each_unit(executor, units.size(), 2 * queries, [&](std::size_t i) { prepare(units[i], machine.isa); });
  for (const Unit& unit : units) {
    if (!unit.finite) return infinite_query(unit.sequence, sequences, unit.head);
  }
  executor.for_each_index(tasks.size(), [&](std::size_t i) {
    tasks[i].units.empty() ? run_tile(tasks[i], machine) : gather_span(tasks[i], machine);
  });
  for_each_unit(executor, units.size(), parts, [&](std::size_t i) { merge_spans(units[i], machine); });
  for (const Task& task : tasks) {
    if (!task.finite) return infinite_query(task.sequence, sequences, task.head);
  }
  return {};
}

}  // namespace attention
}  // namespace CBQ_ABI
}  // namespace cbq
