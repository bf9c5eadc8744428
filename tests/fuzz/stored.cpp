// SPDX-License-Identifier: Apache-2.0

// Quantized checkpoints: the description in config.json, and tensors unpacked and packed as it says.

#include <string>

#include <cbq/core/aligned.hpp>
#include <cbq/io/compressed_tensors.hpp>
#include <cbq/io/safetensors.hpp>
#include <cbq/io/stored_input_grid.hpp>
#include <cbq/io/stored_packing.hpp>

#include "targets.hpp"

namespace fuzz {

namespace {

void read_module(const cbq::Safetensors& file, const cbq::ModuleScheme& module) {
  const cbq::Grid& grid = module.scheme.weight;
  const auto tensors = cbq::find_stored(file, module.module, grid);
  if (!accepted(tensors)) return;
  const auto elements = cbq::checked_product(tensors->outputs, tensors->inputs);
  if (!elements || *elements > most_elements) return;
  const auto matrix = cbq::StoredMatrix::read(file, module.module, grid);
  if (accepted(matrix)) {
    const cbq::QuantizedMatrixView view = matrix->view();
    for (std::size_t r = 0; r < view.codes.rows; ++r) {
      for (std::size_t c = 0; c < view.codes.columns; ++c) require(cbq::row(view.codes, r)[c] >> grid.bits == 0);
    }
  }
  const auto layout = cbq::packed_layout(grid, tensors->outputs, tensors->inputs);
  if (!layout) return;
  // Groups of one input make the packed form some tens of times larger than the codes.
  if (cbq::packed_bytes(*layout) > std::size_t{1} << 24) return;
  auto memory = cbq::AlignedBuffer<std::byte>::allocate(cbq::packed_bytes(*layout));
  require(bool(memory));
  (void)accepted(cbq::pack_stored(file, module.module, grid, std::span(memory->data(), memory->size())));
  if (module.scheme.activation.bits != 16)
    (void)accepted(cbq::read_input_grid(file, module.module, module.scheme.activation));
}

}  // namespace

void stored(Bytes bytes) {
  const TextAndBytes parts = split(bytes);
  const auto config = cbq::parse_json(parts.text);
  const auto file = cbq::Safetensors::parse(parts.bytes);
  if (!accepted(config) || !accepted(file)) return;
  const auto record = cbq::parse_quantization(*config, cbq::packed_modules(*file));
  if (!accepted(record)) return;
  for (const cbq::ModuleScheme& module : record->modules) read_module(*file, module);
}

}  // namespace fuzz
