// SPDX-License-Identifier: Apache-2.0

// attention/<kv>/<isa>/...: attention of one layer over a cold quantized cache, and attention_encode/<kv>/...: what
// appending a token to one costs.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <cbq/core/element.hpp>
#include <cbq/kv/kv_scheme.hpp>
#include <cbq/kv/packed_attention.hpp>
#include <cbq/kv/quantized_kv_cache.hpp>

#include "machine.hpp"
#include "rotation.hpp"
#include "suite.hpp"
#include "threads.hpp"

namespace bench {
namespace {

struct AttentionCase {
  const char* scheme = "";
  std::size_t heads = 0;
  std::size_t kv_heads = 0;
  std::size_t width = 0;
  std::size_t context = 0;  ///< positions, all of them quantized
  std::size_t rows = 0;     ///< query tokens, the last ones of the context
  std::size_t threads = 1;
};

std::string case_name(const AttentionCase& c) {
  return "heads:" + std::to_string(c.heads) + "x" + std::to_string(c.kv_heads) + "/width:" + std::to_string(c.width) +
         "/context:" + std::to_string(c.context) + "/rows:" + std::to_string(c.rows) +
         "/threads:" + std::to_string(c.threads);
}

/// Writes uniform codes with scales of 1/64 and offsets that center them: scores neither all equal nor one alone.
void fill_pages(const cbq::KvLayout& layout, std::byte* pages, std::size_t count) {
  std::uint64_t random = 1;
  for (std::size_t i = 0; i < count * layout.page_bytes; ++i) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    pages[i] = static_cast<std::byte>(random >> 56);
  }
  const float scale = 4.0f / static_cast<float>(1u << layout.bits);
  const cbq::half halves[2] = {cbq::to_half(scale), cbq::to_half(-2.0f)};
  const auto put = [&](std::byte* base, const cbq::AffineOffsets& at) {
    std::memcpy(base + at.scale, &halves[0], sizeof(cbq::half));
    std::memcpy(base + at.offset, &halves[1], sizeof(cbq::half));
  };
  for (std::size_t i = 0; i < count * layout.heads; ++i) {
    std::byte* head = pages + i * layout.head_bytes;
    for (std::size_t c = 0; layout.channel_keys && c < layout.key_blocks * cbq::block_inputs; ++c) {
      put(head, cbq::key_channel_affine(layout, c));
    }
    for (std::size_t g = 0; g < layout.groups; ++g) {
      for (std::size_t p = 0; p < cbq::kv_page_positions; ++p) {
        if (!layout.channel_keys) put(head, cbq::key_affine(layout, p, g));
        put(head + layout.key_bytes, cbq::value_affine(layout, p, g));
      }
    }
  }
}

/// Caches of one shape, of which each call reads another.
class RotatedCaches {
 public:
  [[nodiscard]] static cbq::Result<std::shared_ptr<RotatedCaches>> get(const AttentionCase& c) {
    const std::string key = std::string("attention/") + c.scheme + "/" + std::to_string(c.kv_heads) + "/" +
                            std::to_string(c.width) + "/" + std::to_string(c.context);
    const auto made = cached(key, [&](std::size_t& bytes) -> cbq::Result<std::shared_ptr<void>> {
      auto caches = std::make_shared<RotatedCaches>();
      if (const cbq::Status status = caches->make(c); !status) return status.error();
      bytes = caches->rotation_->bytes();
      return std::shared_ptr<void>(caches);
    });
    if (!made) return made.error();
    return std::static_pointer_cast<RotatedCaches>(*made);
  }

  [[nodiscard]] const cbq::QuantizedKvView& next() noexcept {
    const std::byte* memory = rotation_->next();
    for (std::size_t p = 0; p < pages_.size(); ++p) pages_[p] = memory + p * layout_.page_bytes;
    return view_;
  }
  [[nodiscard]] std::size_t bytes() const noexcept { return pages_.size() * layout_.page_bytes; }

 private:
  [[nodiscard]] cbq::Status make(const AttentionCase& c) {
    const auto scheme = cbq::parse_kv_scheme(c.scheme);
    if (!scheme) return scheme.error();
    const auto layout = cbq::kv_layout(*scheme, c.kv_heads, c.width);
    if (!layout) return layout.error();
    layout_ = *layout;
    pages_.resize(cbq::divide_up(c.context, cbq::kv_page_positions));
    const auto fill = [&](std::byte* memory) -> cbq::Status {
      fill_pages(layout_, memory, pages_.size());
      return {};
    };
    auto rotation = Rotation::make({.copy_bytes = bytes(), .piece_bytes = layout_.page_bytes}, fill);
    if (!rotation) return rotation.error();
    rotation_ = *rotation;
    view_ = {.layout = &layout_, .pages = pages_.data(), .packed = c.context, .size = c.context};
    return {};
  }

  std::shared_ptr<Rotation> rotation_;
  cbq::KvLayout layout_;
  std::vector<const std::byte*> pages_;
  cbq::QuantizedKvView view_;
};

void run(benchmark::State& state, const AttentionCase& c, cbq::Isa isa) {
  const auto caches = RotatedCaches::get(c);
  if (!caches) return skip(state, caches.error());
  const std::size_t columns = c.heads * c.width;
  auto result = cbq::AlignedBuffer<float>::allocate(c.rows * columns);
  if (!result) return skip(state, result.error());
  const auto q = cbq::matrix_view(normal_floats(c.rows * columns), c.rows, columns);
  const auto out = cbq::matrix_view(result->data(), c.rows, columns);
  const Threads executor = threads(c.threads);
  cbq::ExecutionContext<Threads> context(executor, isa);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.width));
  const auto call = [&] { return cbq::attend(q, (*caches)->next(), scale, out, context); };
  if (const cbq::Status status = call(); !status) return skip(state, status.error());
  for ([[maybe_unused]] auto _ : state) {
    const cbq::Status status = call();
    benchmark::DoNotOptimize(status.has_value());
    benchmark::ClobberMemory();
  }
  const double pairs = static_cast<double>(c.rows * c.heads) * static_cast<double>(c.context);
  set_rates(state, 4.0 * pairs * static_cast<double>(c.width), static_cast<double>((*caches)->bytes()));
}

/// Appends one token after another; each call quantizes one, with `_kivi` every 64th call 64.
void run_encode(benchmark::State& state, const char* name, std::size_t heads, std::size_t width) {
  const auto scheme = cbq::parse_kv_scheme(name);
  if (!scheme) return skip(state, scheme.error());
  const auto layout = cbq::kv_layout(*scheme, heads, width);
  if (!layout) return skip(state, layout.error());
  constexpr std::size_t capacity = 4096;
  auto memory = cbq::AlignedBuffer<std::byte>::allocate((capacity / cbq::kv_page_positions) * layout->page_bytes);
  if (!memory) return skip(state, memory.error());
  std::memset(memory->data(), 0, memory->size());
  auto pool = cbq::KvPagePool::create({memory->data(), memory->size()}, layout->page_bytes);
  if (!pool) return skip(state, pool.error());
  const std::size_t columns = heads * width;
  const std::vector<float> scales(columns, 1.5f), offsets(columns, 0.25f);
  cbq::RowTransform transform;
  if (scheme->smoothed) {
    transform = {.key_scales = scales.data(),
                 .key_offsets = offsets.data(),
                 .value_scales = scales.data(),
                 .value_offsets = offsets.data()};
  }
  auto cache = cbq::QuantizedKvCache::create(
      *pool, {.scheme = *scheme, .heads = heads, .width = width, .capacity = capacity, .largest_append = 1}, transform);
  if (!cache) return skip(state, cache.error());
  constexpr std::size_t different = 64;
  const float* floats = normal_floats(2 * different * columns);
  std::size_t turn = 0;
  for ([[maybe_unused]] auto _ : state) {
    if (cache->size() == capacity) cache->reset();
    const float* keys = floats + turn++ % different * 2 * columns;
    const auto view = [&](const float* row) { return cbq::matrix_view(row, 1, columns); };
    if (const cbq::Status status = cache->append(view(keys), view(keys + columns)); !status) {
      return skip(state, status.error());
    }
    benchmark::ClobberMemory();
  }
  set_rates(state, 0, static_cast<double>(2 * columns * sizeof(float)));
}

/// Layers of LLaMA 2 7B and LLaMA 3 8B; with all shapes also longer ones, SmolLM2, and a small one to see that it runs.
std::vector<AttentionCase> shapes_of(const Selection& selection, std::string_view scheme) {
  const bool main_scheme = scheme == "kv4";
  std::vector<AttentionCase> shapes{{"", 32, 32, 128, 4096}, {"", 32, 8, 128, 4096}};
  if (selection.everything) shapes.insert(shapes.end(), {{"", 9, 3, 64, 4096}, {"", 4, 2, 64, 128}});
  if (selection.everything && main_scheme) {
    shapes.insert(shapes.end(), {{"", 32, 32, 128, 16384}, {"", 32, 8, 128, 16384}});
  }
  const bool all_rows = selection.everything && main_scheme;
  std::vector<AttentionCase> all;
  for (AttentionCase c : shapes) {
    for (const std::size_t rows :
         all_rows ? std::vector<std::size_t>{1, 2, 4, 8, 16} : std::vector<std::size_t>{1, 8}) {
      for (const std::size_t count : thread_counts()) {
        c.rows = rows;
        c.threads = count;
        all.push_back(c);
      }
    }
  }
  return all;
}

void register_scheme(const Selection& selection, const char* scheme) {
  for (const cbq::Isa isa : instruction_sets(selection.cap)) {
    if (isa == cbq::Isa::neon_i8mm) continue;  // runs neon_dotprod's
    const bool slow = isa <= cbq::Isa::portable;
    if (slow && !selection.everything) continue;
    const std::string family = std::string("attention/") + scheme + "/" + cbq::isa_name(isa) + "/";
    for (AttentionCase c : shapes_of(selection, scheme)) {
      if (slow && (c.rows > 1 || c.threads > 1 || c.context > 4096)) continue;
      c.scheme = scheme;
      add(family + case_name(c), [c, isa](benchmark::State& state) { run(state, c, isa); });
    }
  }
}

}  // namespace

void register_attention(const Selection& selection) {
  register_scheme(selection, "kv4");
  for (const char* scheme : {"kv8", "kv3", "kv2", "kv4_kivi"}) {
    if (selection.everything) register_scheme(selection, scheme);
  }
  for (const char* scheme : {"kv4", "kv8", "kv4_2d_past", "kv4_2d_past_hadamard", "kv4_kivi"}) {
    for (const std::size_t heads : {std::size_t{32}, std::size_t{8}}) {
      const std::string name =
          std::string("attention_encode/") + scheme + "/heads:" + std::to_string(heads) + "/width:128";
      add(name, [=](benchmark::State& state) { run_encode(state, scheme, heads, 128); });
    }
  }
}

}  // namespace bench
