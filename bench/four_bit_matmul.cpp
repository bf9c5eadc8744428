// SPDX-License-Identifier: Apache-2.0

// What gemm/w4a4 is compared with (docs/nibble_multiplier.md), only with a filter:
//   nibble/w4a4/<isa>/...          the 4-bit multiplier: two products in one 16-bit lane. Weights are cold as
//   elsewhere;
//                                  activations are codes already
//   one_deep/<scheme>/avx2/...     the packed product by pmaddubsw as it is usually written, every product widened with
//                                  pmaddwd at once: same tile, driver and layout as gemm/<scheme>/avx2

#include <cbq/gemm.hpp>
#include <cbq/gemm/nibble_matmul.hpp>

#include <vector>

#include "machine.hpp"
#include "rotated_weights.hpp"
#include "suite.hpp"
#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bench {
namespace {

using cbq::Scheme;

#if defined(__x86_64__)
namespace one_deep {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

using cbq::isa::avx2::decode_step;

template <int Step, std::size_t Rows>
[[gnu::always_inline]] inline void multiply_steps(__m256i (&sums)[Rows][2], const std::byte* block,
                                                  const std::int8_t* codes) noexcept {
  const __m256i weights[2] = {decode_step<4, Step>(block), decode_step<4, Step>(block + 32)};
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    std::int32_t four;
    __builtin_memcpy(&four, codes + r * cbq::block_inputs + Step * 4, sizeof four);
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) {
      const __m256i pairs = _mm256_maddubs_epi16(weights[h], _mm256_set1_epi32(four));
      sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
      asm("" : "+x"(sums[r][h]));  // as in cbq's kernel: keeps the additions a chain
    }
  }
  if constexpr (Step < 7) multiply_steps<Step + 1>(sums, block, codes);
}

template <std::size_t Rows>
inline void multiply_rows(const cbq::IntegerTile& tile, const std::byte* panel, std::size_t row, float* out) noexcept {
  __m256 totals[Rows][2];
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) totals[r][0] = totals[r][1] = _mm256_setzero_ps();
  const std::int8_t* codes = tile.codes + row * cbq::block_inputs;
  std::size_t blocks_left = tile.blocks;
  for (std::size_t group = 0; group < tile.groups; ++group, panel += tile.group_bytes) {
    __m256i sums[Rows][2];
    _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
      sums[r][0] = sums[r][1] = _mm256_set1_epi32(tile.zero_terms[group * tile.panel_rows + row + r]);
    }
    const std::byte* block = panel + tile.header_bytes;
    const std::size_t count = blocks_left < tile.blocks_per_group ? blocks_left : tile.blocks_per_group;
    blocks_left -= count;
    for (std::size_t i = 0; i < count; ++i) {
      multiply_steps<0>(sums, block, codes);
      block += 4 * 64;
      codes += cbq::block_inputs * tile.panel_rows;
    }
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) {
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel) + h));
      _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
        totals[r][h] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums[r][h]), totals[r][h]);
      }
    }
  }
  _Pragma("GCC unroll 4") for (std::size_t r = 0; r < Rows; ++r) {
    const __m256 scale = _mm256_set1_ps(tile.row_scales[row + r] * tile.weight_multiplier);
    _Pragma("GCC unroll 2") for (std::size_t h = 0; h < 2; ++h) {
      _mm256_storeu_ps(out + (row + r) * tile.out_stride + 8 * h, _mm256_mul_ps(totals[r][h], scale));
    }
  }
}

void integer_tile(const cbq::IntegerTile& tile) noexcept {
  for (std::size_t p = 0; p < tile.panels; ++p) {
    const std::byte* panel = tile.panel + p * tile.panel_bytes;
    float* out = tile.out + p * cbq::panel_outputs;
    std::size_t row = 0;
    for (; row + 4 <= tile.panel_rows; row += 4) multiply_rows<4>(tile, panel, row, out);
    for (; row < tile.panel_rows; ++row) multiply_rows<1>(tile, panel, row, out);
  }
}

CBQ_END_REGION

/// matmul() with this kernel.
struct Kernels {
  template <int Bits, cbq::Zero Z>
  [[nodiscard]] static cbq::IntegerKernel integer_tile(cbq::Isa) noexcept {
    static_assert(Bits == 4 && Z == cbq::Zero::symmetric);
    return &one_deep::integer_tile;
  }
};
}  // namespace one_deep

template <Scheme S>
void run_one_deep(benchmark::State& state, const Shape& shape) {
  const auto weights = RotatedWeights<S>::get(shape.n, shape.k);
  if (!weights) return skip(state, weights.error());
  std::vector<float> result(shape.m * shape.n);
  const auto x = cbq::matrix_view(normal_floats(shape.m * shape.k), shape.m, shape.k);
  const auto y = cbq::matrix_view(result.data(), shape.m, shape.n);
  const Threads executor = threads(shape.threads);
  cbq::QuantizedActivations<S> activations;
  for ([[maybe_unused]] auto _ : state) {
    cbq::Status status = activations.quantize(x, executor, cbq::Isa::avx2);
    if (status) {
      status = cbq::matmul<S, cbq::NoEpilogue, one_deep::Kernels>(activations.view(), (*weights)->next(), y, {},
                                                                  executor, cbq::Isa::avx2);
    }
    if (!status) return skip(state, status.error());
    benchmark::ClobberMemory();
  }
  set_rates(state, shape, (*weights)->bytes());
}

template <Scheme S>
void register_one_deep(const Selection& selection) {
  for (const Shape& shape : shapes(selection, 512)) {
    add(std::string("one_deep/") + cbq::scheme_name(S).c_str() + "/avx2/" + text(shape),
        [shape](benchmark::State& state) { run_one_deep<S>(state, shape); });
  }
}
#endif

/// Packed weights for the 4-bit multiplier, of which each call multiplies with another copy.
class NibbleCopies {
 public:
  [[nodiscard]] static cbq::Result<std::shared_ptr<NibbleCopies>> get(const Shape& shape) {
    const auto made = cached("nibble/" + text({.n = shape.n, .k = shape.k}),
                             [&](std::size_t& bytes) -> cbq::Result<std::shared_ptr<void>> {
                               auto copies = std::make_shared<NibbleCopies>();
                               if (const cbq::Status status = copies->make(shape); !status) return status.error();
                               bytes = copies->rotation_->bytes();
                               return std::shared_ptr<void>(copies);
                             });
    if (!made) return made.error();
    return std::static_pointer_cast<NibbleCopies>(*made);
  }

  [[nodiscard]] cbq::NibbleWeightsView next() noexcept {
    const std::byte* copy = rotation_->next();
    const auto moved = [&]<class T>(const T* part) {
      const auto offset = reinterpret_cast<const std::byte*>(part) - first_.pairs;
      return reinterpret_cast<const T*>(copy + offset);
    };
    return {copy, moved(first_.scales), moved(first_.zeros), moved(first_.sums), first_.outputs, first_.inputs};
  }

 private:
  [[nodiscard]] cbq::Status make(const Shape& shape) {
    const auto matrix = random_matrix(shape.n, shape.k, {.bits = 4});
    if (!matrix) return matrix.error();
    const auto size = cbq::nibble_weights_size(shape.n, shape.k);
    if (!size) return size.error();
    const auto fill = [&](std::byte* memory) -> cbq::Status {
      const auto view = cbq::pack_nibbles(matrix->view(), {memory, *size});
      if (!view) return view.error();
      first_ = *view;
      return {};
    };
    auto rotation = Rotation::make({.copy_bytes = *size, .piece_bytes = *size}, fill);
    if (!rotation) return rotation.error();
    rotation_ = *rotation;
    return {};
  }

  std::shared_ptr<Rotation> rotation_;
  cbq::NibbleWeightsView first_ = {};
};

void run_nibbles(benchmark::State& state, const Shape& shape, cbq::Isa isa) {
  const auto weights = NibbleCopies::get(shape);
  if (!weights) return skip(state, weights.error());
  std::vector<float> result(shape.m * shape.n);
  std::vector<std::uint8_t> codes(shape.m * shape.k);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 7 % 16);
  const std::vector<float> scales(shape.m, 0.5f);
  const cbq::NibbleTokens x{cbq::matrix_view<const std::uint8_t>(codes.data(), shape.m, shape.k), scales};
  const auto y = cbq::matrix_view(result.data(), shape.m, shape.n);
  const Threads executor = threads(shape.threads);
  for ([[maybe_unused]] auto _ : state) {
    const cbq::Status status = cbq::nibble_matmul(x, (*weights)->next(), y, executor, isa);
    if (!status) return skip(state, status.error());
    benchmark::ClobberMemory();
  }
  set_rates(state, shape, shape.n * shape.k / 2);
}

}  // namespace

void register_four_bit_matmul(const Selection& selection) {
  if (!selection.everything) return;
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    if (cbq::floating_point_isa(isa) != isa || isa == cbq::Isa::portable) continue;  // no kernel of its own
    for (const Shape& shape : shapes(selection, isa == cbq::Isa::scalar ? 8 : 512)) {
      add(std::string("nibble/w4a4/") + cbq::isa_name(isa) + "/" + text(shape),
          [shape, isa](benchmark::State& state) { run_nibbles(state, shape, isa); });
    }
  }
#if defined(__x86_64__)
  if (cbq::capped(cbq::Isa::avx2) == cbq::Isa::avx2) {
    register_one_deep<cbq::schemes::w4a4>(selection);
    register_one_deep<cbq::make_scheme(4, 4, 128, cbq::Zero::symmetric)>(selection);
  }
#endif
}

}  // namespace bench
