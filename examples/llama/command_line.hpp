// SPDX-License-Identifier: Apache-2.0
#pragma once

// The command line of `cbq-llama`.

#include "commands.hpp"

namespace cbq_llama {

/// Reads the command line and runs the command. The exit code: 0, 1 after an error (one line on console.err), 2 for a
/// wrong command line, 128 + signal after an interrupt.
[[nodiscard]] int run_tool(int count, const char* const* arguments, const Console& console);

}  // namespace cbq_llama
