// SPDX-License-Identifier: Apache-2.0

// safetensors, checkpoints with an index, GGUF: parsed, asked for everything, decoded.

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <cbq/core/aligned.hpp>
#include <cbq/io/checkpoint.hpp>
#include <cbq/io/gguf.hpp>
#include <cbq/io/gguf_packing.hpp>
#include <cbq/io/safetensors.hpp>

#include "targets.hpp"

namespace fuzz {

namespace {

// Where the tensors of an accepted file may lie.
void check_inside(Bytes part, Bytes whole) {
  if (part.empty()) return;
  require(part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size());
}

template <class Tensor>
void decode(const Tensor& tensor) {
  const auto count = cbq::element_count(tensor.shape);
  require(bool(count));
  if (*count > most_elements) return;
  const std::size_t columns = tensor.shape.rank == 0 ? 1 : tensor.shape.sizes[tensor.shape.rank - 1];
  const std::size_t rows = columns == 0 || tensor.shape.rank < 2 ? 1 : *count / columns;
  auto memory = cbq::AlignedBuffer<float>::allocate(*count);
  require(bool(memory));
  (void)accepted(cbq::copy_to_float(tensor, cbq::matrix_view(memory->data(), rows, columns)));
  (void)accepted(cbq::copy_to_float(tensor, cbq::matrix_view(memory->data(), rows, columns), cbq::Finite::unchecked));
}

void check_tensors(std::span<const cbq::TensorView> tensors, Bytes whole) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    require(i == 0 || tensors[i - 1].name < tensors[i].name);
    const auto size = cbq::byte_count(tensors[i].shape, tensors[i].dtype);
    require(size && *size == tensors[i].bytes.size());
    if (!whole.empty()) check_inside(tensors[i].bytes, whole);
    decode(tensors[i]);
  }
}

// A folder of its own for this process, in memory where the system has such a place.
struct ScratchFolder {
  ScratchFolder() {
    std::error_code absent;
    path = std::filesystem::exists("/dev/shm", absent) ? "/dev/shm" : std::filesystem::temp_directory_path().string();
    path += "/cbq-fuzz-XXXXXX";
    require(::mkdtemp(path.data()) != nullptr);
  }
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::string path;
};

const std::string& scratch_folder() {
  static const ScratchFolder folder;
  return folder.path;
}

void write_file(const char* name, std::string_view text) {
  std::ofstream(scratch_folder() + name, std::ios::binary)
      .write(text.data(), static_cast<std::streamsize>(text.size()));
}

}  // namespace

void safetensors(Bytes bytes) {
  const auto file = cbq::Safetensors::parse(bytes);
  if (accepted(file)) check_tensors(file->tensors(), bytes);
  // A host's own limits hold, too.
  const auto limited = cbq::Safetensors::parse(bytes, {.header_bytes = 200, .tensors = 2});
  require(!limited || (file && limited->tensors().size() <= 2));
}

void checkpoint_index(Bytes bytes) {
  static const bool second = [] {
    const std::string_view header = R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
    std::string shard(8, '\0');
    shard[0] = static_cast<char>(header.size());
    write_file("/b.safetensors", shard.append(header).append("\0\0\0\0", 4));
    return true;
  }();
  (void)second;
  const TextAndBytes parts = split(bytes);
  write_file("/model.safetensors.index.json", parts.text);
  write_file("/a.safetensors", text_of(parts.bytes));
  const auto checkpoint = cbq::Checkpoint::open(scratch_folder(), cbq::FileMode::read);
  if (accepted(checkpoint)) check_tensors(checkpoint->tensors(), {});
}

void gguf(Bytes bytes) {
  const auto file = cbq::Gguf::parse(bytes);
  if (!accepted(file)) return;
  const cbq::GgufMetadata& metadata = file->metadata();
  std::string_view before;
  for (const cbq::GgufValue& value : metadata.values()) {
    require(before.empty() || before < value.key);
    before = value.key;
    require(metadata.value(value.key) == &value);
    check_inside(value.bytes, bytes);
    (void)accepted(metadata.unsigned_value(value.key));
    (void)accepted(metadata.number_value(value.key));
    (void)accepted(metadata.boolean_value(value.key));
    (void)accepted(metadata.text_value(value.key));
    (void)accepted(metadata.text_array(value.key));
    (void)accepted(metadata.integer_array(value.key));
    (void)accepted(metadata.float_array(value.key));
  }
  for (const cbq::GgufTensor& tensor : file->tensors()) {
    check_inside(tensor.bytes, bytes);
    require(file->find(tensor.name) == &tensor);
  }
}

void gguf_decode(Bytes bytes) {
  const auto file = cbq::Gguf::parse(bytes);
  if (!accepted(file)) return;
  for (const cbq::GgufTensor& tensor : file->tensors()) {
    decode(tensor);
    const auto grid = cbq::gguf_grid(tensor.type);
    if (!grid || tensor.shape.rank != 2) continue;
    const auto layout = cbq::packed_layout(*grid, tensor.shape.sizes[0], tensor.shape.sizes[1]);
    if (!accepted(layout) || cbq::packed_bytes(*layout) > 64 * bytes.size() + (std::size_t{1} << 20)) continue;
    auto memory = cbq::AlignedBuffer<std::byte>::allocate(cbq::packed_bytes(*layout));
    require(bool(memory));
    (void)accepted(cbq::pack_gguf(tensor, std::span(memory->data(), memory->size())));
  }
}

}  // namespace fuzz
