// SPDX-License-Identifier: Apache-2.0
#include "packed_cache.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include <sys/stat.h>

#include <cbq/io/atomic_folder.hpp>
#include <cbq/io/packed_file_writer.hpp>
#include <cbq/io/stored_packing.hpp>

#include "interrupt.hpp"
#include "threads.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::PackedFile;
using cbq::Result;
using cbq::Status;

namespace {

constexpr std::string_view first_line = "cbq-llama packed weights 1\n";

std::string hexadecimal(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  char digits[17] = {};
  (void)std::snprintf(digits, sizeof digits, "%016llx",
                      static_cast<unsigned long long>(cbq::packed_file::checksum(bytes)));
  return digits;
}

/// Names of the files that a quantized model is read from, in order. Errc::io.
Result<std::vector<std::string>> model_files(const std::string& folder) {
  Result<std::vector<std::string>> names = cbq::folder_entries(folder);
  if (!names) return names;
  std::erase_if(*names, [](const std::string& name) {
    return name != "config.json" && !name.ends_with(".safetensors") && !name.ends_with(".safetensors.index.json");
  });
  std::sort(names->begin(), names->end());
  return names;
}

/// What the cache of the model in `folder` is compared with.
Result<std::string> stamp_of(const std::string& folder) {
  const Result<std::vector<std::string>> names = model_files(folder);
  if (!names) return names.error();
  std::string stamp(first_line);
  for (const std::string& name : *names) {
    const std::string path = folder + "/" + name;
    struct stat status = {};
    if (::stat(path.c_str(), &status) != 0) return cbq::system_error("cannot ask for the file's size", path, errno);
    std::array<char, 96> numbers = {};
    (void)std::snprintf(numbers.data(), numbers.size(), " %lld %lld.%09ld\n", static_cast<long long>(status.st_size),
                        static_cast<long long>(status.st_mtim.tv_sec), status.st_mtim.tv_nsec);
    stamp += name + numbers.data();
  }
  if (stamp.size() > cbq::packed_file::longest_stamp) stamp = std::string(first_line) + hexadecimal(stamp) + "\n";
  return stamp;
}

/// The file of the model in `folder`: `path` itself, or one in the folder `path` that is named after the model.
std::string file_of(const std::string& path, const std::string& folder) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode)) return path;
  std::string model = folder;
  if (char* const whole = ::realpath(folder.c_str(), nullptr)) {
    model = whole;
    std::free(whole);
  }
  return path + "/" + model.substr(model.rfind('/') + 1) + "-" + hexadecimal(model) + ".cbqpack";
}

/// What lies where the cache is wanted.
enum class Found : unsigned char { nothing, packed_file, something_else };

Result<Found> look(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return Found::nothing;
    return cbq::system_error("cannot open the packed cache", path, errno);
  }
  const Result<cbq::FileBytes> file = cbq::FileBytes::open(path);
  if (!file) return file.error();
  constexpr std::size_t size = sizeof cbq::packed_file::magic;
  const bool ours =
      file->bytes().size() >= size && std::memcmp(file->bytes().data(), cbq::packed_file::magic, size) == 0;
  return ours ? Found::packed_file : Found::something_else;
}

Error foreign(const std::string& path) {
  return Error{Errc::bad_argument, "not a packed cache, and not overwritten: name another file or remove this one",
               path};
}

/// The modules that the record says are quantized.
std::vector<std::pair<MatrixModule, cbq::Scheme>> quantized_modules(const ModelConfig& config,
                                                                    const cbq::QuantizationRecord& record) {
  std::vector<MatrixModule> modules = all_block_modules(config);
  modules.push_back(embedding_module(config));
  if (!config.tied) modules.push_back(head_module(config));
  std::vector<std::pair<MatrixModule, cbq::Scheme>> quantized;
  for (MatrixModule& module : modules) {
    const cbq::ModuleScheme* const found = cbq::find_module(record, module.name);
    if (found != nullptr) quantized.emplace_back(std::move(module), found->scheme);
  }
  return quantized;
}

Status check_shape(const MatrixModule& module, std::size_t outputs, std::size_t inputs) {
  if (outputs == module.outputs && inputs == module.inputs) return {};
  return Error{Errc::bad_shape, "a tensor has the wrong shape", module.name + ".weight_shape",
               ErrorText("[") << outputs << ", " << inputs << "]",
               ErrorText("[") << module.outputs << ", " << module.inputs << "]"};
}

/// Packs all quantized modules into the file `path`, one after another.
Status write(const std::string& path, const std::string& stamp, const ModelSource& source,
             const cbq::QuantizationRecord& record, std::size_t threads) {
  Result<cbq::PackedFileWriter> writer = cbq::PackedFileWriter::create(path, stamp);
  if (!writer) return writer.error();
  for (const auto& [module, scheme] : quantized_modules(source.config(), record)) {
    if (const Status ok = check_interrupt(); !ok) return ok;
    const Result<cbq::PackedLayout> layout = cbq::packed_layout(scheme.weight, module.outputs, module.inputs);
    if (!layout) return cbq::in_context(layout.error(), module.name);
    auto memory = cbq::AlignedBuffer<std::byte>::allocate(cbq::packed_bytes(*layout));
    if (!memory) return cbq::in_context(memory.error(), module.name);
    const Result<cbq::PackedMatrix> packed =
        cbq::pack_stored(*source.checkpoint(), module.name, scheme.weight, std::span(memory->data(), memory->size()),
                         make_executor(threads));
    if (!packed) return packed.error();
    if (const Status fits = check_shape(module, packed->layout.outputs, packed->layout.inputs); !fits) return fits;
    if (const Status added = writer->add(module.name, scheme, *packed); !added) return added;
  }
  return writer->commit();
}

/// Opens the cache and checks every byte of it. Errc::unsupported when it was packed from other files.
Result<PackedFile> read(const std::string& path, const std::string& stamp, const PackedCacheOptions& options) {
  Result<PackedFile> file = PackedFile::open(path, options.mode);
  if (!file) return file;
  if (file->stamp() != stamp) return Error{Errc::unsupported, "it was packed from other files than the model's", path};
  if (const Status intact = file->verify(make_executor(options.threads)); !intact) {
    return cbq::in_context(intact.error(), path);
  }
  if (const Status same = file->check_unchanged(path); !same) return same.error();
  return file;
}

bool is_stale(const Error& error) {
  return error.code == Errc::bad_file || error.code == Errc::unsupported || error.code == Errc::bad_shape;
}

void say(std::FILE* to, const std::string& path, const std::string& why) {
  if (to != nullptr) (void)std::fprintf(to, "cbq-llama: packing the model into %s%s\n", path.c_str(), why.c_str());
}

/// Whether a readable cache says that something else wrote it.
bool is_foreign(const std::string& path) {
  const Result<PackedFile> file = PackedFile::open(path);
  return file && !file->stamp().starts_with(first_line.substr(0, first_line.find('1')));
}

}  // namespace

Result<PackedCache> PackedCache::open(const ModelSource& source, const cbq::QuantizationRecord& record,
                                      const PackedCacheOptions& options) {
  if (source.is_gguf() || record.modules.empty()) {
    return Error{Errc::bad_argument, "only models that cbq-llama quantized can have a packed cache", source.path()};
  }
  const Result<std::string> stamp = stamp_of(source.path());
  if (!stamp) return stamp.error();
  const std::string path = file_of(options.path, source.path());
  const Result<Found> found = look(path);
  if (!found) return found.error();
  if (*found == Found::something_else || (*found == Found::packed_file && is_foreign(path))) return foreign(path);
  PackedCache cache;
  std::string why;
  if (*found == Found::packed_file) {
    Result<PackedFile> file = read(path, *stamp, options);
    if (file) {
      cache.file_ = *std::move(file);
      return cache;
    }
    if (!is_stale(file.error())) return file.error();
    why = " again: ";
    cbq::append_message(why, file.error());
  }
  say(options.notices, path, why);
  if (const Status written = write(path, *stamp, source, record, options.threads); !written) return written.error();
  Result<PackedFile> file = read(path, *stamp, options);
  if (!file) return file.error();
  cache.file_ = *std::move(file);
  return cache;
}

Result<cbq::PackedMatrix> PackedCache::matrix(const MatrixModule& module, const cbq::Scheme& scheme) const {
  Result<cbq::PackedMatrix> packed = file_.matrix(module.name);
  if (!packed) return packed;
  if (file_.find(module.name)->scheme != scheme) {
    return Error{Errc::bad_file, "the packed cache holds a module under another scheme", module.name,
                 cbq::scheme_name(file_.find(module.name)->scheme).c_str(), cbq::scheme_name(scheme).c_str()};
  }
  if (const Status fits = check_shape(module, packed->layout.outputs, packed->layout.inputs); !fits) {
    return fits.error();
  }
  return packed;
}

}  // namespace cbq_llama
