// SPDX-License-Identifier: Apache-2.0

#include "commands.hpp"
#include "gguf_import.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

Status run(const ImportCommand& command, const Console& console) {
  const Stopwatch watch;
  const Result<ModelSource> source = open_source(command.common.model);
  if (!source) return source.error();
  Result<ExportReport> done =
      source->is_gguf() ? import_gguf(*source, command.output) : import_checkpoint(*source, command.output);
  if (!done) return done.error();
  return report_conversion(command.common, {command.output, "packed", *std::move(done), watch.seconds()}, console);
}

}  // namespace cbq_llama
