// SPDX-License-Identifier: Apache-2.0

// integer_attention/<kind>/<isa>/...: attention of one layer of SmolLM2 over floats or INT8, with softmax weights as
// they are or rounded to powers of two, and log2_values/<how>/<isa>/...: log2 weights times a page of values as two dot
// products, or by shifts.

#include <xsimd/xsimd.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <cbq/kv/integer_attention.hpp>

#include "machine.hpp"
#include "rotation.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

constexpr std::size_t heads = 9, kv_heads = 3, width = 64;

struct Call {
  std::size_t context = 0;
  std::size_t rows = 0;  ///< query tokens, the last ones of the context
  cbq::SoftmaxWeights weights = cbq::SoftmaxWeights::exact;
  cbq::Isa isa = cbq::Isa::scalar;
};

template <class Cache>
void run(benchmark::State& state, const Call& call, cbq::Result<Cache> cache) {
  if (!cache) return skip(state, cache.error());
  const float* floats = normal_floats((call.context * 2 * kv_heads + call.rows * heads) * width);
  const auto rows = [&](std::size_t count, std::size_t columns) {
    const auto view = cbq::matrix_view(floats, count, columns);
    floats += count * columns;
    return view;
  };
  const auto keys = rows(call.context, kv_heads * width), values = rows(call.context, kv_heads * width);
  if (const cbq::Status status = cache->append(keys, values); !status) return skip(state, status.error());
  const auto q = rows(call.rows, heads * width);
  std::vector<float> result(call.rows * heads * width);
  const auto out = cbq::matrix_view(result.data(), call.rows, heads * width);
  const Threads executor = threads(1);
  cbq::ExecutionContext<Threads> context(executor, call.isa);
  cbq::AttentionScores scores(0.125f);
  scores.weights = call.weights;
  for ([[maybe_unused]] auto _ : state) {
    if (const cbq::Status status = attend(q, *cache, scores, out, context); !status) {
      return skip(state, status.error());
    }
    benchmark::ClobberMemory();
  }
  const double pairs = static_cast<double>(call.rows * heads) * static_cast<double>(call.context - call.rows / 2);
  set_rates(state, 4.0 * pairs * static_cast<double>(width), 0);
}

/// Products of one page: 64 positions x 64 elements.
struct Page {
  std::vector<std::byte> values = std::vector<std::byte>(cbq::int8_value_bytes(width), std::byte{77});
  std::vector<std::uint8_t> codes = std::vector<std::uint8_t>(cbq::kv_tile_rows * cbq::kv_page_positions, 9);
  std::vector<float> out = std::vector<float>(cbq::kv_tile_rows * width);
  float ones[cbq::kv_tile_rows] = {};
  std::int32_t sums[cbq::kv_tile_rows] = {};
};

/// isa::scalar::shift_tile() in vectors, which no instruction set here prefers to two planes. The 4 positions of a step
/// lie in the 4 bytes of a lane.
void shift_lanes(const cbq::ShiftTile& tile) {
  using Sums = xsimd::batch<std::int32_t>;
  using Totals = xsimd::batch<float>;
  static_assert(cbq::panel_outputs % Sums::size == 0);
  const Sums signs(static_cast<std::int32_t>(0x80808080u));
  for (std::size_t c = 0; c < tile.panels * cbq::panel_outputs; c += Sums::size) {
    const std::byte* values = tile.blocks + c / cbq::panel_outputs * cbq::panel_outputs * cbq::kv_page_positions +
                              c % cbq::panel_outputs * cbq::step_inputs;
    for (std::size_t r = 0; r < tile.rows; ++r) {
      Sums sum(0);
      for (std::size_t p = 0; p < cbq::kv_page_positions; ++p) {
        const int q = tile.codes[r * cbq::kv_page_positions + p];
        if (q == cbq::no_shift) continue;
        std::int32_t lanes[Sums::size];
        std::memcpy(lanes, values + p / cbq::step_inputs * (cbq::panel_outputs * cbq::step_inputs), sizeof lanes);
        const Sums step = Sums::load_unaligned(lanes) ^ signs;
        const Sums value = (step << static_cast<int>(24 - 8 * (p % cbq::step_inputs))) >> 24;
        sum += value << (15 - q);
      }
      float* out = tile.out + r * tile.out_stride + c;
      (Totals::load_unaligned(out) + xsimd::to_float(sum)).store_unaligned(out);
    }
  }
}

void run_values(benchmark::State& state, std::size_t rows, cbq::Isa isa, const std::string& how) {
  Page page;
  const cbq::KvKernels kernels = cbq::kv_kernels_of<8>(isa);
  const cbq::ValueTile tile{.blocks = page.values.data(),
                            .panels = width / cbq::panel_outputs,
                            .rows = rows,
                            .weights = page.codes.data(),
                            .weight_sums = page.sums,
                            .weight_scales = page.ones,
                            .offset_sums = page.ones,
                            .out = page.out.data(),
                            .out_stride = width};
  const cbq::ShiftTile shift{tile.blocks, tile.panels, rows, page.codes.data(), page.out.data(), width};
  for ([[maybe_unused]] auto _ : state) {
    if (how == "planes") {
      kernels.values(tile);
      kernels.values(tile);
    } else if (isa == cbq::Isa::scalar) {
      cbq::isa::scalar::shift_tile(shift);
    } else {
      shift_lanes(shift);
    }
    benchmark::ClobberMemory();
  }
  set_rates(state, 2.0 * static_cast<double>(rows * cbq::kv_page_positions * width), 0);
}

void register_call(const std::string& kind, const Call& call) {
  const std::string name = "integer_attention/" + kind + (call.weights == cbq::SoftmaxWeights::log2 ? "_log2/" : "/") +
                           cbq::isa_name(call.isa) + "/context:" + std::to_string(call.context) +
                           "/rows:" + std::to_string(call.rows);
  add(name, [=](benchmark::State& state) {
    if (kind == "float") return run(state, call, cbq::FloatKvCache::create(kv_heads, width, call.context));
    run(state, call, cbq::Int8KvCache::create({kv_heads, width}, call.context));
  });
}

}  // namespace

void register_integer_attention(const Selection& selection) {
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    if (isa == cbq::Isa::amx_int8 || isa == cbq::Isa::neon_i8mm || isa == cbq::Isa::avx_vnni) continue;
    for (const Call& shape : {Call{512, 512}, Call{2048, 1}, Call{16384, 1}, Call{128, 8}}) {
      if (!selection.everything) break;
      for (const auto weights : {cbq::SoftmaxWeights::exact, cbq::SoftmaxWeights::log2}) {
        for (const char* kind : {"float", "int8"}) register_call(kind, {shape.context, shape.rows, weights, isa});
      }
    }
    for (const std::size_t rows : {std::size_t{1}, cbq::kv_tile_rows}) {
      for (const char* how : {"planes", "shifts"}) {
        if (!selection.everything) break;
        const std::string name =
            std::string("log2_values/") + how + "/" + cbq::isa_name(isa) + "/rows:" + std::to_string(rows);
        add(name, [=](benchmark::State& state) { run_values(state, rows, isa, how); });
      }
    }
  }
}

}  // namespace bench
