// SPDX-License-Identifier: Apache-2.0
#pragma once

// What main registers, family by family. A benchmark is called once for each of its names:
// `family/.../M:1/.../threads:1`.

#include <benchmark/benchmark.h>

#include <cstddef>
#include <string>
#include <vector>

#include <cbq/core/cpu.hpp>

namespace bench {

/// Which names are registered.
struct Selection {
  cbq::Isa cap = cbq::Isa::scalar;
  bool everything = false;  ///< all shapes, for runs with a filter; else 4096 x 4096 only
};

/// One product y[M x N] = x[M x K] W[N x K]^T on some threads.
struct Shape {
  std::size_t m = 0;
  std::size_t n = 0;
  std::size_t k = 0;
  std::size_t threads = 1;
};

/// "M:1/N:4096/K:4096/threads:1"
[[nodiscard]] std::string text(const Shape& shape);

/// The shapes of a selection for kernels that are worth running on up to `most_rows` rows.
[[nodiscard]] std::vector<Shape> shapes(const Selection& selection, std::size_t most_rows);

/// Operations and bytes of one iteration as the counters GOPS and GBps (10^9 per second of wall time).
void set_rates(benchmark::State& state, double operations, double bytes);
/// 2 M N K operations, and `weight_bytes` read once.
void set_rates(benchmark::State& state, const Shape& shape, std::size_t weight_bytes);

/// Ends a benchmark with the text of an error, and makes the program fail.
void skip(benchmark::State& state, const cbq::Error& error);
/// Whether skip() was called.
[[nodiscard]] bool skipped_any();

/// Registers `run` under `name`, timed by wall time.
template <class Run>
void add(const std::string& name, Run&& run) {
  benchmark::RegisterBenchmark(name.c_str(), std::forward<Run>(run))->UseRealTime();
}

void register_ceilings(const Selection& selection);
void register_integer_matmul(const Selection& selection);
void register_four_bit_matmul(const Selection& selection);
void register_weight_only_matmul(const Selection& selection);
void register_float_matmul(const Selection& selection);
void register_eigen(const Selection& selection);
void register_attention(const Selection& selection);
void register_integer_attention(const Selection& selection);
void register_packing(const Selection& selection);
void register_rotated_input(const Selection& selection);
void register_channel_factors(const Selection& selection);
void register_reconstruction(const Selection& selection);

}  // namespace bench
