// SPDX-License-Identifier: Apache-2.0

// ONNX Runtime's MatMulNBits at accuracy level 4: int8 activations with a scale per block.

#include <onnxruntime_cxx_api.h>

#include <cstring>

#include "integer_codes.hpp"
#include "onnx_model.hpp"

namespace peers {
namespace {

Ort::Env& environment() {
  static Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "peer");
  return environment;
}

class OrtMatrix final : public Matrix {
 public:
  OrtMatrix(const Weights& weights, int bits, std::size_t block)
      : codes_(weights, bits, block), n_(weights.outputs), k_(weights.inputs) {}

  // Its kernels also read a float per block that they derive from the scales; that is their choice, not the format's.
  std::size_t bytes() const override {
    return n_ * k_ * static_cast<std::size_t>(codes_.bits) / 8 + n_ * codes_.groups() * sizeof(float);
  }
  void dequantize(std::size_t output, float* row) const override { codes_.dequantize(output, row); }

  std::size_t run(const Product& product) override {
    // A session runs all of its nodes. With many rows that would take seconds: fewer copies then, where the weights'
    // part of the time is small anyway.
    const double operations = 2.0 * static_cast<double>(product.m * n_ * k_);
    const std::size_t all = copy_count(bytes());
    const std::size_t few = std::min(all, std::max<std::size_t>(2, static_cast<std::size_t>(2e10 / operations)));
    const std::size_t copies = static_cast<double>(all) * operations > 2e10 ? few : all;
    if (copies != copies_ || product.threads != threads_) open(copies, product.threads);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto tensor = [&](float* data, std::size_t columns) {
      const std::int64_t shape[] = {static_cast<std::int64_t>(product.m), static_cast<std::int64_t>(columns)};
      return Ort::Value::CreateTensor<float>(memory, data, product.m * columns, shape, 2);
    };
    const Ort::Value x = tensor(const_cast<float*>(product.x), k_);
    std::vector<Ort::Value> results;
    std::vector<const char*> names;
    for (const std::string& name : outputs_) {
      results.push_back(tensor(product.y, n_));
      names.push_back(name.c_str());
    }
    const char* input = "x";
    session_.Run(Ort::RunOptions{nullptr}, &input, &x, 1, names.data(), results.data(), results.size());
    return copies;
  }

 private:
  void open(std::size_t copies, std::size_t threads) {
    session_ = Ort::Session(nullptr);  // frees the previous one first
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(static_cast<int>(threads));
    options.SetInterOpNumThreads(1);
    options.SetExecutionMode(ORT_SEQUENTIAL);
    const std::string model = make_model(copies);
    session_ = Ort::Session(environment(), model.data(), model.size(), options);
    copies_ = copies;
    threads_ = threads;
  }

  std::string make_model(std::size_t copies) {
    const auto bits = static_cast<std::size_t>(codes_.bits);
    const std::size_t row_bytes = k_ * bits / 8, groups = codes_.groups();
    std::string packed(n_ * row_bytes, '\0'), scales(n_ * groups * sizeof(float), '\0');
    for (std::size_t n = 0; n < n_; ++n) {
      codes_.pack(n, reinterpret_cast<std::uint8_t*>(packed.data()) + n * row_bytes);
      std::memcpy(scales.data() + n * groups * sizeof(float), codes_.scale_row(n), groups * sizeof(float));
    }
    onnx::Message graph;
    outputs_.clear();
    for (std::size_t i = 0; i < copies; ++i) {
      const std::string index = std::to_string(i);
      outputs_.push_back("y" + index);
      // Equal tensors would be stored once: copies differ in two weights of an output that is not checked.
      packed[n_ / 2 * row_bytes] = static_cast<char>(i);
      packed[n_ / 2 * row_bytes + 1] = static_cast<char>(i >> 8);
      packed[n_ / 2 * row_bytes + 2] = static_cast<char>(~i);
      const float tag = codes_.scale_row(n_ / 2)[0] * (1 + 0x1p-10f * static_cast<float>(i));
      std::memcpy(scales.data() + n_ / 2 * groups * sizeof tag, &tag, sizeof tag);
      graph.message(1, onnx::node({n_, k_, bits, codes_.group}, index));
      graph.message(5, onnx::tensor("b" + index, onnx::Type::uint8, {n_, groups, codes_.group * bits / 8}, packed));
      graph.message(5, onnx::tensor("s" + index, onnx::Type::float32, {n_ * groups}, scales));
      graph.message(12, onnx::matrix("y" + index, n_));
    }
    graph.bytes(2, "products").message(11, onnx::matrix("x", k_));
    return onnx::model(graph);
  }

  IntegerCodes codes_;
  std::size_t n_, k_, copies_ = 0, threads_ = 0;
  std::vector<std::string> outputs_;
  Ort::Session session_{nullptr};
};

class OnnxRuntime final : public Peer {
 public:
  std::string name() const override { return "ONNX Runtime " + Ort::GetVersionString(); }
  std::vector<Format> formats() const override {
    return {{"4 bits, block 32", "w4_g32"},
            {"4 bits, block 128", "w4_g128"},
            {"2 bits, block 64", "w2"},
            {"8 bits, block 128", "w8"}};
  }
  std::unique_ptr<Matrix> prepare(std::size_t format, const Weights& weights) override {
    constexpr struct {
      int bits;
      std::size_t block;
    } kinds[] = {{4, 32}, {4, 128}, {2, 64}, {8, 128}};
    return std::make_unique<OrtMatrix>(weights, kinds[format].bits, kinds[format].block);
  }
};

}  // namespace

std::unique_ptr<Peer> make_peer() {
  return std::make_unique<OnnxRuntime>();
}

}  // namespace peers
