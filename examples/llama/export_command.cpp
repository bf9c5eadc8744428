// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "commands.hpp"
#include "gguf_export.hpp"
#include "stopwatch.hpp"

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

Status report_conversion(const CommonOptions& common, const Conversion& done, const Console& console) {
  const std::size_t bytes = done.report.bytes_read + done.report.bytes_written;
  const double rate = done.seconds > 0 ? static_cast<double>(bytes) * 1e-6 / done.seconds : 0;
  const auto peak = peak_memory_bytes();
  if (prints_text(common)) {
    for (const std::string& note : done.report.notes) (void)std::fprintf(console.out, "note: %s\n", note.c_str());
    (void)std::fprintf(console.out, "%s: %s, read %s, wrote %s, %.2f s, %.0f MB/s, peak memory %s\n",
                       done.output.c_str(), done.format.c_str(), size_text(done.report.bytes_read).c_str(),
                       size_text(done.report.bytes_written).c_str(), done.seconds, rate,
                       peak ? size_text(*peak).c_str() : "unknown");
  }
  const cbq::Json json = {{"model", common.model.path},
                          {"output", done.output},
                          {"format", done.format},
                          {"bytes_read", done.report.bytes_read},
                          {"bytes_written", done.report.bytes_written},
                          {"seconds", done.seconds},
                          {"megabytes_per_second", rate},
                          {"peak_memory_bytes", peak ? cbq::Json(*peak) : cbq::Json(nullptr)},
                          {"notes", done.report.notes}};
  return write_json(common, json, console);
}

Status run(const ExportCommand& command, const Console& console) {
  const Stopwatch watch;
  const Result<ModelSource> source = open_source(command.common.model);
  if (!source) return source.error();
  const bool one_file = command.options.format == ExportFormat::gguf;
  if (one_file && command.options.shard_bytes != 0) {
    return cbq::Error{cbq::Errc::bad_argument, "a GGUF model is one file", "--shard-size"};
  }
  Result<ExportReport> done =
      one_file ? export_gguf(*source, command.output) : export_checkpoint(*source, command.output, command.options);
  if (!done) return done.error();
  const char* format = export_format_names[static_cast<std::size_t>(command.options.format)];
  return report_conversion(command.common, {command.output, format, *std::move(done), watch.seconds()}, console);
}

}  // namespace cbq_llama
