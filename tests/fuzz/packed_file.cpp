// SPDX-License-Identifier: Apache-2.0

// Packed cache files, as they come and with checksums made right, which a mutated file never has.

#include <cstring>
#include <string>

#include <cbq/core/aligned.hpp>
#include <cbq/io/packed_file.hpp>
#include <cbq/io/packed_file_writer.hpp>

#include "targets.hpp"

namespace fuzz {

namespace {

void read(Bytes bytes) {
  const auto file = cbq::PackedFile::parse(bytes);
  if (!accepted(file)) return;
  (void)accepted(file->verify());
  std::uint64_t sum = 0;  // every byte that a view promises is there
  for (const cbq::PackedEntry& entry : file->entries()) {
    require(file->find(entry.name) == &entry);
    for (const std::byte b : entry.bytes) sum += static_cast<std::uint64_t>(b);
    const auto matrix = file->matrix(entry.name);
    require(bool(matrix) == (entry.kind == cbq::PackedKind::matrix));
    if (matrix) require(cbq::packed_bytes(matrix->layout) == entry.bytes.size());
    const auto floats = file->floats(entry.name);
    require(bool(floats) == (entry.kind == cbq::PackedKind::floats));
  }
  require(sum <= 255 * bytes.size());
}

}  // namespace

void packed_file(Bytes bytes) {
  auto memory = cbq::AlignedBuffer<std::byte>::allocate(bytes.size());
  require(bool(memory));
  if (!bytes.empty()) std::memcpy(memory->data(), bytes.data(), bytes.size());
  read({memory->data(), bytes.size()});
  cbq::packed_file::Header header;
  if (bytes.size() < sizeof header) return;
  std::memcpy(&header, bytes.data(), sizeof header);
  header.file_bytes = bytes.size();
  if (header.table_offset <= bytes.size() && header.table_bytes <= bytes.size() - header.table_offset) {
    header.table_checksum = cbq::packed_file::checksum(bytes.subspan(header.table_offset, header.table_bytes));
  }
  header.header_checksum = cbq::packed_file::header_checksum(header);
  std::memcpy(memory->data(), &header, sizeof header);
  read({memory->data(), bytes.size()});
}

// Any bytes are weights once the sizes fit, so nothing is packed here.
void packed_file_seeds(const std::string& folder) {
  constexpr cbq::Scheme schemes[] = {cbq::schemes::w4a16_g128, cbq::schemes::w2a16_g64_asym, cbq::schemes::w4a8_g128};
  auto writer = cbq::PackedFileWriter::create(folder + "/entries", "stamp");
  require(bool(writer));
  const float values[6] = {1, -2, 3, 0.5f, 0, 9};
  require(bool(writer->add("norm", cbq::matrix_view<const float>(values, 2, 3))));
  for (const cbq::Scheme& scheme : schemes) {
    const auto layout = cbq::packed_layout(scheme.weight, 2, 128);
    require(bool(layout));
    auto memory = cbq::AlignedBuffer<std::byte>::allocate(cbq::packed_bytes(*layout));
    require(bool(memory));
    std::memset(memory->data(), 0, memory->size());
    const std::string name = cbq::scheme_name(scheme).c_str();
    require(bool(writer->add(name, scheme, cbq::PackedMatrix{memory->data(), *layout, 1.0f})));
  }
  require(bool(writer->commit()));
  auto empty = cbq::PackedFileWriter::create(folder + "/empty", "");
  require(empty && empty->commit());
}

}  // namespace fuzz
