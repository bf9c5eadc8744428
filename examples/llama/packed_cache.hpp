// SPDX-License-Identifier: Apache-2.0
#pragma once

// `--packed-cache`: the packed weights of a quantized model in a file beside it, so that only its first start packs;
// later ones map the file, which takes no memory of their own and no time but that of comparing checksums. The file is
// the same for every instruction set. It notes which files it was packed from: config.json and all .safetensors of the
// folder, by name, size and time of last change. A change that keeps all three goes unnoticed.

#include <cstddef>
#include <cstdio>
#include <string>

#include <cbq/io/packed_file.hpp>
#include <cbq/io/quantization_config.hpp>

#include "model_layout.hpp"
#include "model_source.hpp"

namespace cbq_llama {

struct PackedCacheOptions {
  std::string path;              ///< a file, or a folder in which each model has a file of its own; empty: no cache
  std::size_t threads = 1;       ///< that pack and compare checksums
  std::FILE* notices = nullptr;  ///< where is said that a file was packed and why; null: nowhere
  cbq::FileMode mode = cbq::FileMode::map;
};

class PackedCache {
 public:
  /// Maps the packed weights of `source`. A file that is missing, damaged, of another version or packed from other
  /// files is written anew, atomically. Errc::bad_argument for a model that is not quantized and for a file that
  /// `--packed-cache` did not write, which stays as it is; Errc::io; errors of packing; Errc::interrupted.
  [[nodiscard]] static cbq::Result<PackedCache> open(const ModelSource& source, const cbq::QuantizationRecord& record,
                                                     const PackedCacheOptions& options);

  /// The packed weights of a module, which live as long as the cache. Errc::bad_file when the file does not hold them
  /// in this shape.
  [[nodiscard]] cbq::Result<cbq::PackedMatrix> matrix(const MatrixModule& module, const cbq::Scheme& scheme) const;

 private:
  cbq::PackedFile file_;
};

}  // namespace cbq_llama
