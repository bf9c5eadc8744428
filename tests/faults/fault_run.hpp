// SPDX-License-Identifier: Apache-2.0
#pragma once

// Runs an operation once for each call that it makes, with that call failing, each run in a process of its own, and
// checks what every run must keep: an error as a value with one line of text, or success with the same bytes; the files
// that were there or the whole new ones; nothing left behind, in memory or on disk.

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "interposer.hpp"

namespace faults {

/// How an operation ended. `text` of a success is compared with that of the undisturbed run.
struct Ending {
  bool succeeded = false;
  std::string text;  ///< of an error: its message
};

struct Operation {
  std::string name;
  std::string folder;                       ///< what the operation reads and writes lies here
  std::function<Ending()> body;             ///< must release what it takes
  std::vector<std::string> progress = {};   ///< files, relative to `folder`, that a failed run may leave changed
  std::function<Ending()> afterwards = {};  ///< a run that must repair everything after a fault, to the same bytes
  std::size_t used_up_from = 4096;          ///< bytes of the allocations that all fail once memory is used up
  bool from_start = false;                  ///< count calls from the beginning, not from the first touch of `folder`
};

/// Tries every kind of fault, each at every n, or with `points` != 0 at about so many spread over all. The outcomes and
/// what is wrong go to standard output; returns how many runs were wrong. The files are as before afterwards.
[[nodiscard]] std::size_t try_all_faults(const Operation& operation, std::size_t points);

}  // namespace faults
