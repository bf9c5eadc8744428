// SPDX-License-Identifier: Apache-2.0
#include "commands.hpp"

#include <string_view>
#include <utility>

#include <unistd.h>

#include <cbq/io/atomic_file.hpp>

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;
using cbq::Status;

Result<Machine> machine_of(const CommonOptions& common) {
  Machine machine;
  machine.threads = common.threads == 0 ? available_threads() : common.threads;
  if (common.isa.empty()) return machine;
  const Result<cbq::Isa> isa = cbq::parse_isa(common.isa.c_str());
  if (!isa) return isa.error();
  machine.isa = cbq::capped(*isa);
  if (machine.isa != *isa) {
    return Error{Errc::unsupported, "this machine cannot run that instruction set", "isa", common.isa,
                 cbq::isa_name(machine.isa)};
  }
  return machine;
}

Result<ModelSource> open_source(const ModelPath& model) {
  return ModelSource::open(model.path, model.pre_tokenizer, model.mode);
}

Result<LoadedModel> load_model(const ModelPath& model, const LoadOptions& options) {
  Result<ModelSource> source = open_source(model);
  if (!source) return source.error();
  const Result<double> bits = bits_per_weight(*source);
  if (!bits) return bits.error();
  LoadOptions own = options;
  own.packed_cache.mode = model.mode;
  Result<Model> loaded = Model::load(*source, own);
  if (!loaded) return loaded.error();
  if (const Status same = source->check_unchanged(); !same) return same.error();
  return LoadedModel{*std::move(source), *std::move(loaded), *bits};
}

Report describe(const std::string& path, const LoadedModel& loaded, const Machine& machine) {
  Report report;
  report.model = path;
  report.scheme = loaded.model.scheme();
  report.method = loaded.model.method();
  report.isa = cbq::isa_name(machine.isa);
  report.threads = machine.threads;
  report.bits_per_weight = loaded.bits_per_weight;
  report.file_bytes = loaded.source.file_bytes();
  report.calibration_tokens = loaded.model.calibration_tokens();
  return report;
}

std::string base_name(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);
}

Result<std::string> read_text(const std::string& path) {
  const Result<cbq::FileBytes> file = cbq::FileBytes::open(path, cbq::FileMode::read, std::size_t{1} << 30);
  if (!file) return file.error();
  const std::string_view bytes(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  std::string text;
  text.reserve(bytes.size());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != '\r' || i + 1 == bytes.size() || bytes[i + 1] != '\n') text += bytes[i];
  }
  return text;
}

Result<std::string> default_text(const std::string& model) {
  std::string base = model;
  while (base.size() > 1 && base.back() == '/') base.pop_back();
  const std::string path = base + "-evaluation.txt";
  if (::access(path.c_str(), F_OK) != 0) {
    return Error{Errc::bad_argument, "no text to evaluate with", model, "", "--text FILE"};
  }
  return path;
}

Status write_json(const CommonOptions& common, const cbq::Json& json, const Console& console) {
  if (common.json.empty()) return {};
  const std::string text = cbq::json_text(json);
  if (common.json != "-") return cbq::write_file(common.json, text);
  if (std::fwrite(text.data(), 1, text.size(), console.out) != text.size() || std::fflush(console.out) != 0) {
    return cbq::system_error("cannot write", "standard output", errno);
  }
  return {};
}

}  // namespace cbq_llama
