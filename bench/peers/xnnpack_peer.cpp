// SPDX-License-Identifier: Apache-2.0

// XNNPACK's fully connected operators with dynamically quantized activations: qb4w (blocks), qc4w, qc8w (channels).

#include <pthreadpool.h>
#include <xnnpack.h>

#include <cmath>
#include <map>

#include "integer_codes.hpp"

namespace peers {
namespace {

void check(xnn_status status) {
  if (status != xnn_status_success) throw std::runtime_error("XNNPACK answers " + std::to_string(status));
}

using Operator = std::unique_ptr<xnn_operator, void (*)(xnn_operator*)>;
Operator owned(xnn_operator_t made) {
  return {made, [](xnn_operator* old) { xnn_delete_operator(old); }};
}

pthreadpool_t pool(std::size_t threads) {
  static std::map<std::size_t, pthreadpool_t> made;
  pthreadpool_t& pool = made[threads];
  if (pool == nullptr) pool = pthreadpool_create(threads);
  return pool;
}

enum class Kind { qb4w, qc4w, qc8w };

class XnnMatrix final : public Matrix {
 public:
  XnnMatrix(const Weights& weights, Kind kind, std::size_t block)
      : codes_(weights, kind == Kind::qc8w ? 8 : 4, kind == Kind::qb4w ? block : weights.inputs),
        kind_(kind),
        n_(weights.outputs),
        k_(weights.inputs) {
    make_operators();
  }

  // Per output it adds a sum of the weights and a bias; per channel also a float scale, per block a bfloat16 one.
  std::size_t bytes() const override {
    const std::size_t scales = kind_ == Kind::qb4w ? codes_.groups() * 2 : 4;
    return n_ * (k_ * static_cast<std::size_t>(codes_.bits) / 8 + scales + 8);
  }
  void dequantize(std::size_t output, float* row) const override { codes_.dequantize(output, row); }

  std::size_t run(const Product& product) override {
    if (product.m != m_ || product.threads != threads_ || product.x != x_ || product.y != y_) set_up(product);
    xnn_operator_t multiply = operators_[turn_++ % operators_.size()].get();
    check(xnn_run_operator(convert_.get(), pool(threads_)));
    check(xnn_run_operator(multiply, pool(threads_)));
    return 1;
  }

 private:
  void make_operators() {
    const std::size_t row_bytes = k_ * static_cast<std::size_t>(codes_.bits) / 8;
    std::vector<std::uint8_t> packed(n_ * row_bytes);
    std::vector<float> scales, bias(n_, 0.0f);
    std::vector<std::uint16_t> halves;
    for (std::size_t n = 0; n < n_; ++n) {
      codes_.pack(n, packed.data() + n * row_bytes);
      for (std::size_t g = 0; g < codes_.groups(); ++g) {
        scales.push_back(codes_.scale_row(n)[g]);
        halves.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(scales.back()) >> 16));
      }
    }
    if (kind_ == Kind::qc8w) {
      for (std::uint8_t& code : packed) code = static_cast<std::uint8_t>(code ^ 0x80u);  // signed
    }
    const std::size_t count = copy_count(bytes());
    for (std::size_t i = 0; i < count; ++i) {
      xnn_operator_t made = nullptr;
      if (kind_ == Kind::qb4w) {
        check(xnn_create_fully_connected_nc_qd8_f32_qb4w(k_, n_, k_, n_, codes_.group, 8, halves.data(), packed.data(),
                                                         bias.data(), -INFINITY, INFINITY, 0, nullptr, nullptr, &made));
      } else if (kind_ == Kind::qc4w) {
        check(xnn_create_fully_connected_nc_qd8_f32_qc4w(k_, n_, k_, n_, 8, scales.data(), packed.data(), bias.data(),
                                                         -INFINITY, INFINITY, 0, nullptr, nullptr, &made));
      } else {
        check(xnn_create_fully_connected_nc_qd8_f32_qc8w(k_, n_, k_, n_, scales.data(),
                                                         reinterpret_cast<const std::int8_t*>(packed.data()),
                                                         bias.data(), -INFINITY, INFINITY, 0, nullptr, nullptr, &made));
      }
      operators_.push_back(owned(made));
    }
    xnn_operator_t convert = nullptr;
    check(xnn_create_convert_nc_f32_qd8(0, &convert));
    convert_ = owned(convert);
  }

  void set_up(const Product& product) {
    const pthreadpool_t threads = pool(product.threads);
    quantized_.resize(product.m * k_ + XNN_EXTRA_BYTES);
    params_.resize(product.m + XNN_EXTRA_QUANTIZATION_PARAMS);
    check(xnn_reshape_convert_nc_f32_qd8(convert_.get(), product.m, k_, k_, k_, threads));
    check(xnn_setup_convert_nc_f32_qd8(convert_.get(), product.x, quantized_.data(), params_.data()));
    for (const Operator& each : operators_) set_up(each.get(), product, threads);
    m_ = product.m;
    threads_ = product.threads;
    x_ = product.x;
    y_ = product.y;
  }

  void set_up(xnn_operator_t each, const Product& product, pthreadpool_t threads) const {
    const std::int8_t* x = quantized_.data();
    if (kind_ == Kind::qb4w) {
      check(xnn_reshape_fully_connected_nc_qd8_f32_qb4w(each, product.m, threads));
      check(xnn_setup_fully_connected_nc_qd8_f32_qb4w(each, x, product.y, params_.data()));
    } else if (kind_ == Kind::qc4w) {
      check(xnn_reshape_fully_connected_nc_qd8_f32_qc4w(each, product.m, threads));
      check(xnn_setup_fully_connected_nc_qd8_f32_qc4w(each, x, product.y, params_.data()));
    } else {
      check(xnn_reshape_fully_connected_nc_qd8_f32_qc8w(each, product.m, threads));
      check(xnn_setup_fully_connected_nc_qd8_f32_qc8w(each, x, product.y, params_.data()));
    }
  }

  IntegerCodes codes_;
  Kind kind_;
  std::size_t n_, k_, turn_ = 0;
  std::vector<Operator> operators_;
  Operator convert_ = owned(nullptr);
  std::vector<std::int8_t> quantized_;
  std::vector<xnn_quantization_params> params_;
  std::size_t m_ = 0, threads_ = 0;
  const float* x_ = nullptr;
  const float* y_ = nullptr;
};

class Xnnpack final : public Peer {
 public:
  Xnnpack() { check(xnn_initialize(nullptr)); }
  std::string name() const override { return "XNNPACK"; }
  std::vector<Format> formats() const override {
    return {{"qd8 qb4w, block 32", "w4_g32"},
            {"qd8 qb4w, block 128", "w4_g128"},
            {"qd8 qc4w", "w4_channel"},
            {"qd8 qc8w", "w8"}};
  }
  std::unique_ptr<Matrix> prepare(std::size_t format, const Weights& weights) override {
    constexpr struct {
      Kind kind;
      std::size_t block;
    } kinds[] = {{Kind::qb4w, 32}, {Kind::qb4w, 128}, {Kind::qc4w, 0}, {Kind::qc8w, 0}};
    return std::make_unique<XnnMatrix>(weights, kinds[format].kind, kinds[format].block);
  }
};

}  // namespace

std::unique_ptr<Peer> make_peer() {
  return std::make_unique<Xnnpack>();
}

}  // namespace peers
