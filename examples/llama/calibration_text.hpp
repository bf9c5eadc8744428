// SPDX-License-Identifier: Apache-2.0
#pragma once

// A calibration text that is part of the program: the beginning of models/pocket-llama-calibration.txt, a sample of
// the embedded model itself.

#include <string_view>

namespace cbq_llama {

/// About 60,000 bytes.
[[nodiscard]] std::string_view embedded_calibration_text();

}  // namespace cbq_llama
