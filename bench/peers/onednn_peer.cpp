// SPDX-License-Identifier: Apache-2.0

// oneDNN's matmul: int8 by int8 with activations that are given as int8 (what a dense product reaches here, the figure
// to hold packed weights against), and 4-bit weights decompressed for bfloat16 products.

#include <oneapi/dnnl/dnnl.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <unordered_map>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "integer_codes.hpp"

namespace peers {
namespace {

using Memory = dnnl::memory;
using Kind = Memory::data_type;
using Tag = Memory::format_tag;

dnnl::engine& engine() {
  static dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

enum class Product8 { int8, decompressed };

class DnnlMatrix final : public Matrix {
 public:
  DnnlMatrix(const Weights& weights, Product8 kind)
      : codes_(weights, kind == Product8::int8 ? 8 : 4, kind == Product8::int8 ? weights.inputs : 32),
        kind_(kind),
        n_(static_cast<Memory::dim>(weights.outputs)),
        k_(static_cast<Memory::dim>(weights.inputs)),
        scales_({{groups(), n_}, Kind::f32, Tag::ab}, engine()),
        x_scale_({{1}, Kind::f32, Tag::a}, engine()) {
    auto* scales = static_cast<float*>(scales_.get_data_handle());
    for (Memory::dim n = 0; n < n_; ++n) {
      for (Memory::dim g = 0; g < groups(); ++g)
        scales[g * n_ + n] = codes_.scale_row(static_cast<std::size_t>(n))[static_cast<std::size_t>(g)];
    }
    make_primitive({.x = nullptr, .y = nullptr, .m = 1, .threads = 1});  // throws where it is not supported
  }

  std::size_t bytes() const override {
    return static_cast<std::size_t>(n_ * k_) * static_cast<std::size_t>(codes_.bits) / 8 +
           static_cast<std::size_t>(n_ * groups()) * sizeof(float);
  }
  void dequantize(std::size_t output, float* row) const override { codes_.dequantize(output, row); }

  std::size_t run(const Product& product) override {
    if (product.m != m_ || product.threads != threads_ || product.x != given_) make_primitive(product);
    std::unordered_map<int, Memory> arguments = {{DNNL_ARG_SRC, x_},
                                                 {DNNL_ARG_WEIGHTS, copies_[turn_++ % copies_.size()]},
                                                 {DNNL_ARG_DST, Memory(y_desc_, engine(), product.y)},
                                                 {DNNL_ARG_ATTR_SCALES | DNNL_ARG_WEIGHTS, scales_}};
    if (kind_ == Product8::int8) arguments.emplace(DNNL_ARG_ATTR_SCALES | DNNL_ARG_SRC, x_scale_);
    multiply_.execute(stream_, arguments);
    stream_.wait();
    return 1;
  }

 private:
  Memory::dim groups() const { return static_cast<Memory::dim>(codes_.groups()); }

  void make_primitive(const Product& product) {
#if defined(_OPENMP)
    omp_set_num_threads(static_cast<int>(product.threads));
#endif
    const bool int8 = kind_ == Product8::int8;
    const auto m = static_cast<Memory::dim>(product.m);
    dnnl::primitive_attr attributes;
    if (int8) {
      attributes.set_scales_mask(DNNL_ARG_SRC, 0);
      attributes.set_scales_mask(DNNL_ARG_WEIGHTS, 1 << 1);
    } else {
      attributes.set_fpmath_mode(dnnl::fpmath_mode::bf16, true);
      attributes.set_scales(DNNL_ARG_WEIGHTS, (1 << 0) | (1 << 1), {static_cast<Memory::dim>(codes_.group), 1},
                            Kind::f32);
    }
    const Memory::desc x_desc({m, k_}, int8 ? Kind::s8 : Kind::f32, Tag::ab);
    const Memory::desc w_desc({k_, n_}, int8 ? Kind::s8 : Kind::s4, Tag::any);
    y_desc_ = Memory::desc({m, n_}, Kind::f32, Tag::ab);
    const dnnl::matmul::primitive_desc description(engine(), x_desc, w_desc, y_desc_, attributes);
    if (std::string(description.impl_info_str()).starts_with("ref"))
      throw std::runtime_error("only the reference implementation takes these types on this processor");
    multiply_ = dnnl::matmul(description);
    if (copies_.empty() || copies_.front().get_desc() != description.weights_desc()) copy(description.weights_desc());
    if (product.x != nullptr) take(product, x_desc);
    m_ = product.m;
    threads_ = product.threads;
    given_ = product.x;
  }

  /// Copies in the order that the primitive wants.
  void copy(const Memory::desc& wanted) {
    copies_.clear();
    Memory floats({{k_, n_}, Kind::f32, Tag::ba}, engine());
    auto* values = static_cast<float*>(floats.get_data_handle());
    for (Memory::dim n = 0; n < n_; ++n) {
      const std::int8_t* codes = codes_.code_row(static_cast<std::size_t>(n));
      for (Memory::dim k = 0; k < k_; ++k) values[n * k_ + k] = static_cast<float>(codes[k]);
    }
    Memory first(wanted, engine());
    dnnl::reorder(floats, first).execute(stream_, floats, first);
    stream_.wait();
    copies_.push_back(first);
    for (std::size_t i = 1; i < copy_count(wanted.get_size()); ++i) {
      copies_.emplace_back(wanted, engine());
      std::memcpy(copies_.back().get_data_handle(), first.get_data_handle(), wanted.get_size());
    }
  }

  /// Activations as the primitive reads them; int8 ones share a scale.
  void take(const Product& product, const Memory::desc& wanted) {
    if (kind_ != Product8::int8) {
      x_ = Memory(wanted, engine(), const_cast<float*>(product.x));
      return;
    }
    const std::size_t count = product.m * static_cast<std::size_t>(k_);
    float most = 0;
    for (std::size_t i = 0; i < count; ++i) most = std::max(most, std::abs(product.x[i]));
    const float scale = most / 127;
    *static_cast<float*>(x_scale_.get_data_handle()) = scale;
    x_ = Memory(wanted, engine());
    auto* codes = static_cast<std::int8_t*>(x_.get_data_handle());
    for (std::size_t i = 0; i < count; ++i) codes[i] = static_cast<std::int8_t>(std::nearbyint(product.x[i] / scale));
  }

  IntegerCodes codes_;
  Product8 kind_;
  Memory::dim n_, k_;
  Memory scales_, x_scale_, x_;
  Memory::desc y_desc_;
  std::vector<Memory> copies_;
  dnnl::matmul multiply_;
  dnnl::stream stream_{engine()};
  std::size_t m_ = 0, threads_ = 0, turn_ = 0;
  const float* given_ = nullptr;
};

class OneDnn final : public Peer {
 public:
  std::string name() const override {
    const dnnl::version_t* version = dnnl::version();
    return "oneDNN " + std::to_string(version->major) + "." + std::to_string(version->minor) + "." +
           std::to_string(version->patch);
  }
  std::vector<Format> formats() const override {
    return {{"s8 x s8 (int8 given)", "w8", Activations::given_int8},
            {"bf16 x s4, group 32", "w4a16", Activations::bfloat16}};
  }
  std::unique_ptr<Matrix> prepare(std::size_t format, const Weights& weights) override {
    return std::make_unique<DnnlMatrix>(weights, format == 0 ? Product8::int8 : Product8::decompressed);
  }
};

}  // namespace

std::unique_ptr<Peer> make_peer() {
  return std::make_unique<OneDnn>();
}

}  // namespace peers
