// SPDX-License-Identifier: Apache-2.0
#pragma once

// Ctrl-C and SIGTERM as a question that long loops ask. The tool then unwinds like after any error: temporary files
// go, nothing half-written stays.

#include <cbq/core/result.hpp>

namespace cbq_llama {

/// Catches SIGINT and SIGTERM from now on.
void catch_interrupts();

/// The signal that was caught, or 0.
[[nodiscard]] int interrupt_signal();

/// Errc::interrupted once a signal was caught.
[[nodiscard]] cbq::Status check_interrupt();

}  // namespace cbq_llama
