// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory that a kernel asks for while it multiplies something else: what is read next, line by line. Into L2: L1 has
// too few misses in flight. Plain code that is inlined into any target region.
//
// A single row reads as fast as memory delivers. Where its stream goes on, some processors (Zen 4) run ahead by
// themselves, and asking for every line costs a tenth of the rate; one line of four does not. Others (Xeons with AMX)
// end a stream every 4 KiB: asking for every line takes them from 58..65 to 73..86 % of the rate of reading. Where
// memory jumps, and with more rows, whose products fill the time, every line is asked for.

#include <cstddef>
#include <cstdint>

#include <cbq/gemm/packed_layout.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// Lines to ask for, one after another. They may lie outside of any array.
struct LinesAhead {
  std::uintptr_t line = 0;  ///< 0: none
  bool every = true;        ///< line; else one of four for a single row
};

/// From `next` on, while memory around `own` is read; none where `next` is null. `every`: of a stream that goes on,
/// too.
[[gnu::always_inline]] inline LinesAhead lines_from(const std::byte* next, const std::byte* own, bool every) noexcept {
  constexpr std::uintptr_t nearby = 65536;
  const auto line = reinterpret_cast<std::uintptr_t>(next);
  return {line, every || line - reinterpret_cast<std::uintptr_t>(own) >= nearby};
}

/// Asks for the next `Lines` lines on behalf of `Rows` rows.
template <std::size_t Rows, std::size_t Lines>
[[gnu::always_inline]] inline void ask_for(LinesAhead& ahead) noexcept {
  if (ahead.line == 0) return;
  if (Rows == 1 && !ahead.every) {
    for (std::size_t i = 0; i < Lines; i += 4) {
      __builtin_prefetch(reinterpret_cast<const void*>(ahead.line + i * line_bytes), 0, 2);
    }
  } else {
    _Pragma("GCC unroll 16") for (std::size_t i = 0; i < Lines; ++i) {
      __builtin_prefetch(reinterpret_cast<const void*>(ahead.line + i * line_bytes), 0, 2);
    }
  }
  ahead.line += Lines * line_bytes;
}

}  // namespace CBQ_ABI
}  // namespace cbq
