// SPDX-License-Identifier: Apache-2.0

// pack/<source>/<scheme>/...: packing of cold sources into cold memory.

#include <cstring>
#include <memory>

#include <cbq/gemm/packed_weights.hpp>

#include "machine.hpp"
#include "rotated_weights.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

using cbq::Scheme;

/// Memory that is written in turns, large enough to lie in no cache.
class Targets {
 public:
  [[nodiscard]] static cbq::Result<std::shared_ptr<Targets>> get(std::size_t bytes) {
    const auto made =
        cached("pack/target/" + std::to_string(bytes), [&](std::size_t& total) -> cbq::Result<std::shared_ptr<void>> {
          auto targets = std::make_shared<Targets>();
          targets->bytes_ = bytes;
          const std::size_t count = rotation_bytes() / (bytes == 0 ? 1 : bytes) + 1;
          auto memory = cbq::AlignedBuffer<std::byte>::allocate(count * bytes);
          if (!memory) return memory.error();
          std::memset(memory->data(), 0, memory->size());
          targets->memory_ = std::move(*memory);
          total = targets->memory_.size();
          return std::shared_ptr<void>(targets);
        });
    if (!made) return made.error();
    return std::static_pointer_cast<Targets>(*made);
  }
  [[nodiscard]] std::span<std::byte> next() noexcept {
    turn_ = turn_ + 2 * bytes_ <= memory_.size() ? turn_ + bytes_ : 0;
    return {memory_.data() + turn_, bytes_};
  }

 private:
  cbq::AlignedBuffer<std::byte> memory_;
  std::size_t bytes_ = 0;
  std::size_t turn_ = 0;
};

struct PackShape {
  std::size_t n = 0;
  std::size_t k = 0;
  std::size_t threads = 1;
};

/// Cold copies of `bytes` bytes, `pieces` of which may change places.
cbq::Result<std::shared_ptr<Rotation>> copies(const std::string& key, const void* data, const Rotation::Shape& shape) {
  const auto made = cached(key, [&](std::size_t& bytes) -> cbq::Result<std::shared_ptr<void>> {
    auto rotation = Rotation::make(shape, [&](std::byte* to) -> cbq::Status {
      std::memcpy(to, data, shape.copy_bytes);
      return {};
    });
    if (!rotation) return rotation.error();
    bytes = (*rotation)->bytes();
    return std::shared_ptr<void>(*rotation);
  });
  if (!made) return made.error();
  return std::static_pointer_cast<Rotation>(*made);
}

/// Runs `pack(target)` and counts source and packed bytes.
template <class Pack>
void time(benchmark::State& state, std::size_t source_bytes, std::size_t packed_bytes, const Pack& pack) {
  const auto targets = Targets::get(packed_bytes);
  if (!targets) return skip(state, targets.error());
  for ([[maybe_unused]] auto _ : state) {
    const cbq::Status status = pack((*targets)->next());
    if (!status) return skip(state, status.error());
    benchmark::ClobberMemory();
  }
  set_rates(state, 0, static_cast<double>(source_bytes + packed_bytes));
}

template <class T>
cbq::Status status_of(const cbq::Result<T>& result) {
  return result ? cbq::Status() : cbq::Status(result.error());
}

template <Scheme S>
void run_codes(benchmark::State& state, const PackShape& shape) {
  const std::string key = std::string("pack/codes/") + cbq::scheme_name(S).c_str() + "/" + std::to_string(shape.n) +
                          "/" + std::to_string(shape.k);
  const auto matrix = random_matrix(shape.n, shape.k, S.weight);
  if (!matrix) return skip(state, matrix.error());
  cbq::QuantizedMatrixView view = matrix->view();
  const std::size_t row_scales = view.scales.columns * sizeof(float);
  const auto codes = copies(key, view.codes.data, {shape.n * shape.k, shape.k});
  const auto scales = copies(key + "/scales", view.scales.data, {shape.n * row_scales, row_scales});
  if (!codes) return skip(state, codes.error());
  if (!scales) return skip(state, scales.error());
  const Threads executor = threads(shape.threads);
  time(state, shape.n * (shape.k + row_scales), *cbq::packed_size<S>(shape.n, shape.k),
       [&](std::span<std::byte> target) {
         view.codes.data = reinterpret_cast<const std::uint8_t*>((*codes)->next());
         view.scales.data = reinterpret_cast<const float*>((*scales)->next());
         return status_of(cbq::pack<S>(view, target, executor));
       });
}

/// Registers `run` for 4096 x 4096 and, with all shapes, for 576 x 1536.
template <class Run>
void add_shapes(const Selection& selection, const std::string& family, const Run& run) {
  std::vector<std::pair<std::size_t, std::size_t>> sizes{{4096, 4096}};
  if (selection.everything) sizes.insert(sizes.end(), {{11008, 4096}, {576, 1536}, {256, 256}});
  for (const auto& [n, k] : sizes) {
    for (const std::size_t count : thread_counts()) {
      const PackShape shape{n, k, count};
      const std::string name =
          family + "/N:" + std::to_string(n) + "/K:" + std::to_string(k) + "/threads:" + std::to_string(count);
      add(name, [shape, run](benchmark::State& state) { run(state, shape); });
    }
  }
}

template <Scheme S>
void add_codes(const Selection& selection) {
  add_shapes(selection, std::string("pack/codes/") + cbq::scheme_name(S).c_str(),
             [](benchmark::State& state, const PackShape& shape) { run_codes<S>(state, shape); });
}

}  // namespace

void register_packing(const Selection& selection) {
  using namespace cbq::schemes;
  add_codes<w4a8_g32>(selection);
  add_codes<w4a8_g128>(selection);
  add_codes<w8a8>(selection);
  add_codes<w2a8_g64_asym>(selection);
  add_codes<cbq::make_scheme(3, 8, 128, cbq::Zero::affine)>(selection);
}

}  // namespace bench
