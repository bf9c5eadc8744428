// SPDX-License-Identifier: Apache-2.0

// pack/<source>/<scheme>/...: packing of cold sources into cold memory.

#include <cstring>
#include <memory>
#include <vector>

#include <cbq/core/element.hpp>
#include <cbq/gemm/pack_float.hpp>
#include <cbq/gemm/packed_weights.hpp>
#include <cbq/io/gguf_packing.hpp>
#include <cbq/io/stored_packing.hpp>

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

/// Normal numbers as T.
template <Scheme S, class T>
void run_float(benchmark::State& state, const PackShape& shape) {
  const float* floats = normal_floats(shape.n * shape.k);
  std::vector<T> values(shape.n * shape.k);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = cbq::from_float<T>(floats[i]);
  const std::size_t bytes = values.size() * sizeof(T);
  const auto rotation =
      copies("pack/float" + std::to_string(sizeof(T)) + "/" + std::to_string(shape.n) + "/" + std::to_string(shape.k),
             values.data(), {bytes, shape.k * sizeof(T)});
  if (!rotation) return skip(state, rotation.error());
  const Threads executor = threads(shape.threads);
  time(state, bytes, *cbq::packed_size<S>(shape.n, shape.k), [&](std::span<std::byte> target) {
    const auto* next = reinterpret_cast<const T*>((*rotation)->next());
    return status_of(
        cbq::pack_float<S>(cbq::matrix_view(next, shape.n, shape.k), target, cbq::MinMaxRange{}, executor));
  });
}

/// Blocks with small scales and random codes.
void run_gguf(benchmark::State& state, const PackShape& shape, cbq::GgufType type) {
  const cbq::GgufTypeLayout layout = *cbq::gguf_layout(static_cast<std::uint32_t>(type));
  const cbq::Grid grid = *cbq::gguf_grid(type);
  const std::size_t row_bytes = shape.k / layout.block * layout.bytes;
  std::vector<std::byte> blocks(shape.n * row_bytes);
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<std::byte>(i * 2654435761u >> 13 & 255);
  for (std::size_t i = 0; i < blocks.size(); i += layout.bytes) {
    blocks[i] = blocks[i + 1] = std::byte{0x20};  // the half 0x2020
    if (type == cbq::GgufType::q4_1) blocks[i + 2] = blocks[i + 3] = std::byte{0};
  }
  const std::string key =
      std::string("pack/gguf/") + layout.name + "/" + std::to_string(shape.n) + "/" + std::to_string(shape.k);
  const auto rotation = copies(key, blocks.data(), {blocks.size(), row_bytes});
  if (!rotation) return skip(state, rotation.error());
  cbq::GgufTensor tensor{.name = "w", .type = type, .shape = {.rank = 2, .sizes = {shape.n, shape.k}}, .bytes = {}};
  const Threads executor = threads(shape.threads);
  time(state, blocks.size(), cbq::packed_bytes(*cbq::packed_layout(grid, shape.n, shape.k)),
       [&](std::span<std::byte> target) {
         tensor.bytes = {(*rotation)->next(), blocks.size()};
         return status_of(cbq::pack_gguf(tensor, target, executor));
       });
}

/// The tensors of one module of a checkpoint.
struct Module {
  std::vector<cbq::TensorView> tensors;
  [[nodiscard]] const cbq::TensorView* find(std::string_view name) const {
    for (const cbq::TensorView& tensor : tensors) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
};

template <Scheme S>
void run_words(benchmark::State& state, const PackShape& shape) {
  const std::size_t row_words = cbq::packed_words(shape.k, S.weight.bits);
  const std::size_t groups = cbq::group_count(S.weight, shape.k);
  const std::vector<std::uint32_t> words(shape.n * row_words, 0x12345678u);
  const std::vector<cbq::half> scales(shape.n * groups, cbq::to_half(0.01f));
  const std::int64_t sizes[2] = {static_cast<std::int64_t>(shape.n), static_cast<std::int64_t>(shape.k)};
  const std::string key = std::string("pack/words/") + cbq::scheme_name(S).c_str() + "/" + std::to_string(shape.n) +
                          "/" + std::to_string(shape.k);
  const auto rotation = copies(key, words.data(), {words.size() * 4, row_words * 4});
  if (!rotation) return skip(state, rotation.error());
  Module module;
  module.tensors = {
      {"m.weight_packed", cbq::Dtype::i32, {.rank = 2, .sizes = {shape.n, row_words}}, {}},
      {"m.weight_scale", cbq::Dtype::f16, {.rank = 2, .sizes = {shape.n, groups}}, std::as_bytes(std::span(scales))},
      {"m.weight_shape", cbq::Dtype::i64, {.rank = 1, .sizes = {2}}, std::as_bytes(std::span(sizes))}};
  const Threads executor = threads(shape.threads);
  time(state, words.size() * 4 + scales.size() * 2, *cbq::packed_size<S>(shape.n, shape.k),
       [&](std::span<std::byte> target) {
         module.tensors[0].bytes = {(*rotation)->next(), words.size() * 4};
         return status_of(cbq::pack_stored(module, "m", S.weight, target, executor));
       });
}

/// What the C library copies: as many bytes read as written.
void run_copy(benchmark::State& state, const PackShape& shape) {
  const std::size_t bytes = shape.n * shape.k;
  const std::vector<std::byte> source(bytes, std::byte{1});
  const auto rotation =
      copies("pack/copy/" + std::to_string(shape.n) + "/" + std::to_string(shape.k), source.data(), {bytes, shape.k});
  if (!rotation) return skip(state, rotation.error());
  const Threads executor = threads(shape.threads);
  const std::size_t piece = bytes / shape.threads;
  time(state, bytes, bytes, [&](std::span<std::byte> target) -> cbq::Status {
    const std::byte* from = (*rotation)->next();
    executor.for_each_index(shape.threads,
                            [&](std::size_t i) { std::memcpy(target.data() + i * piece, from + i * piece, piece); });
    return {};
  });
}

/// Registers `run` for 4096 x 4096 and, with all shapes, for others.
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
  add_shapes(selection, std::string("pack/codes/") + cbq::scheme_name(S).c_str(), &run_codes<S>);
}
template <Scheme S>
void add_float(const Selection& selection) {
  add_shapes(selection, std::string("pack/float/") + cbq::scheme_name(S).c_str(), &run_float<S, float>);
  add_shapes(selection, std::string("pack/half/") + cbq::scheme_name(S).c_str(), &run_float<S, cbq::half>);
}
template <Scheme S>
void add_words(const Selection& selection) {
  add_shapes(selection, std::string("pack/words/") + cbq::scheme_name(S).c_str(), &run_words<S>);
}
void add_gguf(const Selection& selection, const char* name, cbq::GgufType type) {
  add_shapes(selection, std::string("pack/") + name,
             [type](benchmark::State& state, const PackShape& shape) { run_gguf(state, shape, type); });
}

}  // namespace

void register_packing(const Selection& selection) {
  using namespace cbq::schemes;
  add_codes<w4a8_g32>(selection);
  add_codes<w4a8_g128>(selection);
  add_codes<w8a8>(selection);
  add_codes<w2a8_g64_asym>(selection);
  add_codes<cbq::make_scheme(3, 8, 128, cbq::Zero::affine)>(selection);
  add_words<w4a8_g32>(selection);
  add_words<w4a8_g128>(selection);
  add_float<w4a8_g32>(selection);
  add_float<w4a8_g128>(selection);
  add_gguf(selection, "q4_0/w4a8_g32", cbq::GgufType::q4_0);
  add_gguf(selection, "q4_1/w4a8_g32_asym", cbq::GgufType::q4_1);
  add_gguf(selection, "q8_0/w8a8_g32", cbq::GgufType::q8_0);
  add_shapes(selection, "pack/copy", &run_copy);
}

}  // namespace bench
