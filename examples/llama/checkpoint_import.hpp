// SPDX-License-Identifier: Apache-2.0
#pragma once

// `cbq-llama import`: a quantized folder of another program as cbq's own, which every command runs. Codes, scales and
// zero points stay bit for bit what they are; what cbq cannot hold so is refused. One module is in memory at a time.

#include <string>

#include <cbq/core/result.hpp>

#include "checkpoint_export.hpp"
#include "model_source.hpp"

namespace cbq_llama {

/// Writes `source`, a folder in one of the forms that `export` writes, as the folder `output`, which appears only when
/// it is complete; an existing folder is replaced only if cbq wrote it. Errc::bad_argument (a model in floating point,
/// or cbq's own), Errc::unsupported naming what cbq cannot hold, Errc::bad_file, Errc::bad_shape, Errc::io,
/// Errc::interrupted.
[[nodiscard]] cbq::Result<ExportReport> import_checkpoint(const ModelSource& source, const std::string& output);

}  // namespace cbq_llama
