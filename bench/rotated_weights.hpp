// SPDX-License-Identifier: Apache-2.0
#pragma once

// Cold packed weights of one scheme.

#include <memory>
#include <string>

#include <cbq/gemm/packed_weights.hpp>
#include <cbq/quant/quantized_matrix.hpp>

#include "rotation.hpp"

namespace bench {

/// Uniform codes and scales around 1/100: values do not change the time of any kernel.
[[nodiscard]] cbq::Result<cbq::QuantizedMatrix> random_matrix(std::size_t outputs, std::size_t inputs,
                                                              const cbq::Grid& grid);

/// Packed weights of one scheme and shape, of which each call multiplies with another copy.
template <cbq::Scheme S>
class RotatedWeights {
 public:
  [[nodiscard]] static cbq::Result<std::shared_ptr<RotatedWeights>> get(std::size_t outputs, std::size_t inputs) {
    const std::string key =
        std::string(cbq::scheme_name(S).c_str()) + "/" + std::to_string(outputs) + "/" + std::to_string(inputs);
    const auto made = cached(key, [&](std::size_t& bytes) -> cbq::Result<std::shared_ptr<void>> {
      auto weights = std::make_shared<RotatedWeights>();
      if (const cbq::Status status = weights->make(outputs, inputs); !status) return status.error();
      bytes = weights->rotation_->bytes();
      return std::shared_ptr<void>(weights);
    });
    if (!made) return made.error();
    return std::static_pointer_cast<RotatedWeights>(*made);
  }

  [[nodiscard]] const cbq::PackedWeightsView<S>& next() noexcept {
    view_.data = rotation_->next();
    return view_;
  }
  [[nodiscard]] std::size_t bytes() const noexcept { return cbq::packed_bytes(view_.layout); }

 private:
  [[nodiscard]] cbq::Status make(std::size_t outputs, std::size_t inputs) {
    const auto matrix = random_matrix(outputs, inputs, S.weight);
    if (!matrix) return matrix.error();
    const auto layout = cbq::packed_layout(S.weight, outputs, inputs);
    if (!layout) return layout.error();
    const std::size_t bytes = cbq::packed_bytes(*layout);
    const auto fill = [&](std::byte* memory) -> cbq::Status {
      const auto view = cbq::pack<S>(matrix->view(), {memory, bytes});
      if (!view) return view.error();
      view_ = *view;
      return {};
    };
    auto rotation = Rotation::make({.copy_bytes = bytes, .piece_bytes = layout->panel_bytes}, fill);
    if (!rotation) return rotation.error();
    rotation_ = *rotation;
    return {};
  }

  std::shared_ptr<Rotation> rotation_;
  cbq::PackedWeightsView<S> view_ = {};
};

}  // namespace bench
