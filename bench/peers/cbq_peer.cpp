// SPDX-License-Identifier: Apache-2.0

// cbq itself: quantized activations in every call, as its peers do.

#include <cbq/gemm.hpp>
#include <cbq/gemm/weight_only_matmul.hpp>
#include <cbq/rounding/nearest.hpp>

#include "../machine.hpp"
#include "../rotation.hpp"
#include "../threads.hpp"
#include "peer.hpp"

namespace peers {
namespace {

using cbq::Scheme;

template <class T>
T value_or_throw(cbq::Result<T> result) {
  if (result) return std::move(*result);
  std::string message;
  cbq::append_message(message, result.error());
  throw std::runtime_error(message);
}

void check(const cbq::Status& status) {
  if (status) return;
  std::string message;
  cbq::append_message(message, status.error());
  throw std::runtime_error(message);
}

/// Rows of `distinct`, repeated until there are `outputs`.
cbq::QuantizedMatrix repeat_rows(const cbq::QuantizedMatrix& distinct, std::size_t outputs, const cbq::Grid& grid) {
  const cbq::QuantizedMatrixView from = distinct.view();
  auto matrix = value_or_throw(cbq::QuantizedMatrix::allocate(outputs, from.codes.columns, grid));
  for (std::size_t n = 0; n < outputs; ++n) {
    const auto copy = [&](const auto& source, const auto& target) {
      for (std::size_t i = 0; i < target.columns; ++i) row(target, n)[i] = row(source, n % source.rows)[i];
    };
    copy(from.codes, matrix.codes());
    copy(from.scales, matrix.scales());
    if (grid.zero == cbq::Zero::affine) copy(from.zeros, matrix.zeros());
  }
  return matrix;
}

template <Scheme S>
class CbqMatrix final : public Matrix {
 public:
  explicit CbqMatrix(const Weights& weights) : n_(weights.outputs), k_(weights.inputs) {
    const auto floats = cbq::matrix_view(weights.values, Weights::distinct_rows, k_);
    distinct_ = value_or_throw(cbq::round_nearest(floats, S.weight, cbq::MinMaxRange{}));
    const cbq::QuantizedMatrix matrix = repeat_rows(distinct_, n_, S.weight);
    const auto layout = value_or_throw(cbq::packed_layout(S.weight, n_, k_));
    bytes_ = cbq::packed_bytes(layout);
    const auto fill = [&](std::byte* memory) -> cbq::Status {
      const auto view = cbq::pack<S>(matrix.view(), {memory, bytes_});
      if (!view) return view.error();
      view_ = *view;
      return {};
    };
    // Copies are permuted by whole copies only: all are equal.
    rotation_ = value_or_throw(bench::Rotation::make({.copy_bytes = bytes_, .piece_bytes = bytes_}, fill));
  }

  std::size_t bytes() const override { return bytes_; }

  void dequantize(std::size_t output, float* to) const override {
    const cbq::QuantizedMatrixView view = distinct_.view();
    const std::size_t length = cbq::group_length(S.weight, k_);
    for (std::size_t i = 0; i < k_; ++i) {
      int zero = cbq::symmetric_zero(S.weight);
      if constexpr (S.weight.zero == cbq::Zero::affine) zero = row(view.zeros, output)[i / length];
      to[i] = row(view.scales, output)[i / length] * static_cast<float>(row(view.codes, output)[i] - zero);
    }
  }

  std::size_t run(const Product& product) override {
    const auto x = cbq::matrix_view(product.x, product.m, k_);
    const auto y = cbq::matrix_view(product.y, product.m, n_);
    const bench::Threads executor = bench::threads(product.threads);
    view_.data = rotation_->next();
    if constexpr (S.activation.bits == 16) {
      check(cbq::matmul<S>(x, view_, y, {}, executor, isa_));
    } else {
      check(activations_.quantize(x, executor, isa_));
      check(cbq::matmul<S>(activations_.view(), view_, y, {}, executor, isa_));
    }
    return 1;
  }

 private:
  struct None {};
  std::size_t n_ = 0, k_ = 0, bytes_ = 0;
  cbq::Isa isa_ = value_or_throw(bench::isa_cap());
  cbq::QuantizedMatrix distinct_;
  cbq::PackedWeightsView<S> view_ = {};
  std::shared_ptr<bench::Rotation> rotation_;
  std::conditional_t<S.activation.bits == 16, None, cbq::QuantizedActivations<S>> activations_;
};

class Cbq final : public Peer {
 public:
  std::string name() const override { return std::string("cbq ") + cbq::isa_name(value_or_throw(bench::isa_cap())); }

  std::vector<Format> formats() const override {
    return {{"w4a8_g32", "w4_g32"},  {"w4a8_g128", "w4_g128"}, {"w4a8", "w4_channel"},
            {"w2a8_g64_asym", "w2"}, {"w8a8", "w8"},           {"w4a16_g32", "w4a16", Activations::bfloat16}};
  }

  std::unique_ptr<Matrix> prepare(std::size_t format, const Weights& weights) override {
    using namespace cbq::schemes;
    switch (format) {
      case 0:
        return std::make_unique<CbqMatrix<w4a8_g32>>(weights);
      case 1:
        return std::make_unique<CbqMatrix<w4a8_g128>>(weights);
      case 2:
        return std::make_unique<CbqMatrix<w4a8>>(weights);
      case 3:
        return std::make_unique<CbqMatrix<w2a8_g64_asym>>(weights);
      case 4:
        return std::make_unique<CbqMatrix<w8a8>>(weights);
      default:
        return std::make_unique<CbqMatrix<w4a16_g32>>(weights);
    }
  }
};

}  // namespace

std::unique_ptr<Peer> make_peer() {
  return std::make_unique<Cbq>();
}

}  // namespace peers
