// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/stored_packing.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "oracle/gemm.hpp"
#include "oracle/packing.hpp"
#include "support/files.hpp"
#include "support/guarded.hpp"

using namespace cbq;
using support::message;

namespace {

/// The tensors of module "m" in memory that ends at forbidden pages.
class Stored {
 public:
  Stored(const oracle::Weights& w, bool dirty) {
    const std::size_t row_words = packed_words(w.inputs, w.bits);
    words_.resize(w.outputs * row_words);
    REQUIRE(pack_rows(matrix_view(w.codes.data(), w.outputs, w.inputs), w.bits, words_));
    const std::size_t used = w.inputs * static_cast<std::size_t>(w.bits) % 32;
    for (std::size_t n = 0; dirty && used != 0 && n < w.outputs; ++n) {
      std::int32_t& last = words_[(n + 1) * row_words - 1];
      last = static_cast<std::int32_t>(static_cast<std::uint32_t>(last) | ~std::uint32_t{0} << used);
    }
    zeros_.resize(w.affine ? packed_words(w.outputs, w.bits) * w.groups : 0);
    if (w.affine) REQUIRE(pack_zeros(matrix_view(w.zeros.data(), w.outputs, w.groups), w.bits, zeros_));
    shape_ = {static_cast<std::int64_t>(w.outputs), static_cast<std::int64_t>(w.inputs)};
    scales_ = w.scales;
    add("m.weight_packed", Dtype::i32, {w.outputs, row_words}, words_);
    add("m.weight_scale", Dtype::f32, {w.outputs, w.groups}, scales_);
    tensors_.push_back({.name = "m.weight_shape",
                        .dtype = Dtype::i64,
                        .shape = {.rank = 1, .sizes = {2}},
                        .bytes = std::as_bytes(std::span(shape_))});
    if (w.affine) add("m.weight_zero_point", Dtype::i32, {packed_words(w.outputs, w.bits), w.groups}, zeros_);
  }
  [[nodiscard]] const TensorView* find(std::string_view name) const {
    for (const TensorView& tensor : tensors_) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  TensorView& tensor(std::size_t index) { return tensors_[index]; }

 private:
  struct Sizes {
    std::size_t rows, columns;
  };
  template <class T>
  void add(const char* name, Dtype dtype, Sizes sizes, const std::vector<T>& values) {
    memory_.push_back(std::make_unique<support::GuardedBytes>(std::as_bytes(std::span(values))));
    tensors_.push_back({.name = name,
                        .dtype = dtype,
                        .shape = {.rank = 2, .sizes = {sizes.rows, sizes.columns}},
                        .bytes = memory_.back()->bytes()});
  }

  std::vector<std::int32_t> words_, zeros_;
  std::vector<std::int64_t> shape_;
  std::vector<float> scales_;
  std::vector<std::unique_ptr<support::GuardedBytes>> memory_;
  std::vector<TensorView> tensors_;
};

}  // namespace

TEST_CASE("Stored words are packed to the bytes of the format, whatever their unused bits are") {
  const int bits = GENERATE(2, 3, 4, 8);
  const int group = GENERATE(0, 32, 128);
  const Zero zero = GENERATE(Zero::symmetric, Zero::affine);
  const Grid grid = make_scheme(bits, 8, group, zero).weight;
  std::mt19937 random(3);
  for (const std::size_t outputs : {0u, 1u, 16u, 35u}) {
    for (const std::size_t inputs : {1u, 10u, 11u, 31u, 32u, 33u, 63u, 100u, 128u, 577u}) {
      CAPTURE(bits, group, outputs, inputs);
      const auto w = oracle::weights(grid, outputs, inputs, oracle::Codes::random, random);
      const Stored stored(w, inputs % 2 == 1);
      const std::vector<std::byte> wanted = oracle::packed(w);
      const support::Guarded<std::byte> got(wanted.size(), support::Edge::end);
      const auto packed = pack_stored(stored, "m", grid, got.span());
      INFO(message(packed));
      REQUIRE(packed);
      CHECK((wanted.empty() || std::memcmp(got.data(), wanted.data(), wanted.size()) == 0));
    }
  }
}

TEST_CASE("Stored modules that cannot be packed are refused and named") {
  const Grid grid = make_scheme(4, 8, 32, Zero::affine).weight;
  std::mt19937 random(3);
  auto w = oracle::weights(grid, 20, 64, oracle::Codes::random, random);
  Stored stored(w, false);
  std::vector<std::byte> memory(packed_bytes(*packed_layout(grid, 20, 64)));
  REQUIRE(pack_stored(stored, "m", grid, memory));
  SECTION("another module") {
    CHECK(message(pack_stored(stored, "n", grid, memory)) ==
          "n: a quantized module lacks a tensor (wanted weight_packed, _scale and _shape)");
  }
  SECTION("another grid") {
    CHECK(pack_stored(stored, "m", make_scheme(4, 8, 32, Zero::symmetric).weight, memory).error().code ==
          Errc::bad_file);
    CHECK(pack_stored(stored, "m", make_scheme(4, 8, 64, Zero::affine).weight, memory).error().code == Errc::bad_shape);
  }
  SECTION("words that are missing") {
    stored.tensor(0).shape.sizes[1] = 7;
    CHECK(pack_stored(stored, "m", grid, memory).error().code == Errc::bad_shape);
  }
  SECTION("little memory") {
    const auto packed = pack_stored(stored, "m", grid, std::span(memory).first(memory.size() - 1));
    CHECK(message(packed).starts_with("m: memory: [cbq] pack: the memory is too small"));
  }
  SECTION("a scale that is no number") {
    w.scales[5] = std::numeric_limits<float>::infinity();
    const Stored bad(w, false);
    const auto packed = pack_stored(bad, "m", grid, memory);
    REQUIRE_FALSE(packed);
    CHECK(packed.error().code == Errc::not_finite);
    CHECK(message(packed).starts_with("m: "));
  }
  SECTION("widths and groups without kernels") {
    const Grid five = make_scheme(5, 8, 32, Zero::symmetric).weight;
    w = oracle::weights(five, 4, 64, oracle::Codes::random, random);
    CHECK(pack_stored(Stored(w, false), "m", five, memory).error().code == Errc::unsupported);
    const Grid odd = make_scheme(4, 8, 24, Zero::symmetric).weight;
    w = oracle::weights(odd, 4, 64, oracle::Codes::random, random);
    CHECK(pack_stored(Stored(w, false), "m", odd, memory).error().code == Errc::unsupported);
  }
}
