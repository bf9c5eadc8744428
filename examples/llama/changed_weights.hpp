// SPDX-License-Identifier: Apache-2.0
#pragma once

// A model's weights, some of which a transformation replaced before quantization.

#include <cstring>
#include <map>
#include <string>
#include <utility>

#include "model_source.hpp"

namespace cbq_llama {

class ChangedWeights {
 public:
  explicit ChangedWeights(const ModelSource& source) : source_(source), config_(source.config()) {}

  [[nodiscard]] const ModelSource& source() const { return source_; }
  /// Of the changed model.
  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] bool is_changed(const std::string& name) const { return changed_.contains(name); }

  void replace(const std::string& name, FloatMatrix matrix) { changed_.insert_or_assign(name, std::move(matrix)); }

  /// Gives the model a head of its own, which replace() has set.
  void untie() { config_.tied = false; }

  /// As ModelSource::read_matrix().
  [[nodiscard]] cbq::Result<FloatMatrix> read_matrix(const std::string& name, std::size_t rows,
                                                     std::size_t columns) const {
    const auto found = changed_.find(name);
    if (found == changed_.end()) return source_.read_matrix(name, rows, columns);
    const cbq::AlignedBuffer<float>& values = found->second.memory;
    cbq::Result<cbq::AlignedBuffer<float>> memory = cbq::AlignedBuffer<float>::allocate(values.size());
    if (!memory) return memory.error();
    std::memcpy(memory->data(), values.data(), values.size() * sizeof(float));
    FloatMatrix copy{*std::move(memory), {}};
    copy.view = cbq::matrix_view(copy.memory.data(), rows, columns);
    return copy;
  }

 private:
  const ModelSource& source_;
  ModelConfig config_;
  std::map<std::string, FloatMatrix> changed_;
};

}  // namespace cbq_llama
