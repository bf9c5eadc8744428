// SPDX-License-Identifier: Apache-2.0

// A packed matmul inside an engine that owns its memory and its threads: the engine asks how many bytes are needed,
// packs into memory of its own, and cuts the outputs among workers itself. After set-up nothing allocates. Here: the
// gated MLP of a transformer, silu(x G^T) * (x U^T), with one quantized input for both products.

#include <atomic>
#include <cbq/gemm.hpp>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

constexpr cbq::Scheme scheme = cbq::schemes::w4a8_g32;
constexpr std::size_t tokens = 5;
constexpr std::size_t inputs = 128;
constexpr std::size_t outputs = 320;
constexpr std::size_t workers = 3;

/// Codes as an engine may have them from a file of its own: here a pattern.
cbq::Result<cbq::PackedWeightsView<scheme>> pack_pattern(std::size_t seed, std::vector<std::byte>& memory) {
  std::vector<std::uint8_t> codes(outputs * inputs);
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>((i * 7 + i / inputs + seed) % 16);
  const std::vector<float> scales(outputs * cbq::group_count(scheme.weight, inputs), 0.01f);
  const cbq::QuantizedMatrixView matrix{
      .codes = cbq::matrix_view<const std::uint8_t>(codes.data(), outputs, inputs),
      .scales = cbq::matrix_view<const float>(scales.data(), outputs, cbq::group_count(scheme.weight, inputs)),
      .zeros = {}};
  const cbq::Result<std::size_t> size = cbq::packed_size<scheme>(outputs, inputs);
  if (!size) return size.error();
  memory.resize(*size);
  return cbq::pack<scheme>(matrix, memory);
}

/// Calls work(range) on every worker with its share of the outputs, in multiples of a panel of 16.
template <class Work>
void share(const Work& work) {
  std::vector<std::thread> threads;
  constexpr std::size_t share = cbq::divide_up(outputs / cbq::panel_outputs, workers) * cbq::panel_outputs;
  for (std::size_t first = 0; first < outputs; first += share) {
    const std::size_t count = outputs - first < share ? outputs - first : share;
    threads.emplace_back([&work, first, count] { work(cbq::OutputRange{.first = first, .count = count}); });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  std::vector<std::byte> gate_memory, up_memory;
  const auto gate = pack_pattern(1, gate_memory);
  const auto up = pack_pattern(5, up_memory);
  if (!gate || !up) return 1;

  std::vector<float> x(tokens * inputs);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 13) - 6.0f;
  std::vector<std::byte> quantized(*cbq::activations_size<scheme>(tokens, inputs));
  const auto input =
      cbq::quantize_activations<scheme>(cbq::matrix_view<const float>(x.data(), tokens, inputs), quantized);
  if (!input) {
    std::fprintf(stderr, "%s: %s\n", input.error().where.c_str(), input.error().what);
    return 1;
  }

  std::vector<float> gated(tokens * outputs), y(tokens * outputs);
  const auto gate_view = cbq::matrix_view(gated.data(), tokens, outputs);
  const auto y_view = cbq::matrix_view(y.data(), tokens, outputs);
  std::atomic<bool> fine = true;
  share([&](cbq::OutputRange range) {
    // A worker needs only its own columns of the gate: no barrier between the two products.
    const cbq::SiluMultiply silu{cbq::as_const(gate_view)};
    const bool done = cbq::matmul_outputs(*input, *gate, range, gate_view).has_value() &&
                      cbq::matmul_outputs(*input, *up, range, y_view, silu).has_value();
    if (!done) fine = false;
  });
  std::printf("%zu x %zu results by %zu workers, y[0][0] = %.4f\n", tokens, outputs, workers, y[0]);
  return fine ? 0 : 1;
}
