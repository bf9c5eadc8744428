// SPDX-License-Identifier: Apache-2.0

// What this machine can do at most, measured in the same run as what is held against it: the rate of the multiply
// instructions of each kind of kernel, from registers, and of reading memory that lies in no cache.
//
//   vnni     vpdpbusd, 512 bits: what AVX-512 kernels multiply with
//   maddubs  8 vpmaddubsw summed in int16 before one vpmaddwd, 256 bits: the densest product AVX2 has for 4-bit weights
//   fma      vfmadd231ps of the widest registers
//   bf16     vdpbf16ps, 512 bits, where the CPU has it: what bfloat16 activations are multiplied with
//   amx      tdpbssd, 2 x 2 tiles of sums, where the machine has AMX
//   dram     reads of a buffer of at least 512 MiB, one sequential stream per thread

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "machine.hpp"
#include "rotation.hpp"
#include "suite.hpp"
#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cbq/gemm/amx_tiles.hpp>
#include <cbq/gemm/weight_only_kernels_avx512_bf16.hpp>
#endif

namespace bench {
namespace {

/// Some milliseconds of arithmetic; `operations` counts those of one round.
struct Peak {
  void (*run)(std::size_t rounds) noexcept = nullptr;
  double operations = 0;
};

using Read = void (*)(const std::byte* from, std::size_t bytes) noexcept;

/// Eight bytes at a time, which compilers vectorize for the flags of the file; `bytes` is a multiple of 512.
void read_baseline(const std::byte* from, std::size_t bytes) noexcept {
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i < bytes; i += sizeof sums) {
    for (std::size_t lane = 0; lane < 8; ++lane) {
      std::uint64_t value;
      std::memcpy(&value, from + i + lane * sizeof value, sizeof value);
      sums[lane] += value;
    }
  }
  for (std::uint64_t& sum : sums) benchmark::DoNotOptimize(sum);
}

#if defined(__x86_64__)

// An empty asm that claims to change a register keeps compilers from computing a product once instead of in every
// round, and one chain of sums instead of twelve that look alike.

namespace avx2 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX2)

constexpr double maddubs_operations = 4 * 8 * 64;

void maddubs(std::size_t rounds) noexcept {
  __m256i codes = _mm256_set1_epi8(15);
  __m256i activations = _mm256_set1_epi8(-3);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (std::size_t round = 0; round < rounds; ++round) {
    __m256i pairs[4];
    _Pragma("GCC unroll 8") for (int step = 0; step < 8; ++step) {
      _Pragma("GCC unroll 4") for (int chain = 0; chain < 4; ++chain) {
        asm volatile("" : "+x"(codes), "+x"(activations));
        const __m256i product = _mm256_maddubs_epi16(codes, activations);
        pairs[chain] = step == 0 ? product : _mm256_add_epi16(pairs[chain], product);
      }
    }
    _Pragma("GCC unroll 4") for (int chain = 0; chain < 4; ++chain) {
      sums[chain] = _mm256_add_epi32(sums[chain], _mm256_madd_epi16(pairs[chain], ones));
    }
  }
  _Pragma("GCC unroll 4") for (int chain = 0; chain < 4; ++chain) asm volatile("" : : "x"(sums[chain]));
}

constexpr double fma_operations = 12 * 16;

void fma(std::size_t rounds) noexcept {
  __m256 factor = _mm256_set1_ps(0.5f);
  asm volatile("" : "+x"(factor));
  __m256 sums[12];
  _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) {
    sums[chain] = factor;
    asm volatile("" : "+x"(sums[chain]));
  }
  for (std::size_t round = 0; round < rounds; ++round) {
    _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) {
      sums[chain] = _mm256_fmadd_ps(factor, factor, sums[chain]);
    }
  }
  _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) asm volatile("" : : "x"(sums[chain]));
}

void read(const std::byte* from, std::size_t bytes) noexcept {
  __m256i sums[8];
  _Pragma("GCC unroll 8") for (int lane = 0; lane < 8; ++lane) sums[lane] = _mm256_setzero_si256();
  for (std::size_t i = 0; i < bytes; i += sizeof sums) {
    _Pragma("GCC unroll 8") for (std::size_t lane = 0; lane < 8; ++lane) {
      const auto* line = reinterpret_cast<const __m256i*>(from + i + lane * sizeof sums[0]);
      sums[lane] = _mm256_add_epi32(sums[lane], _mm256_load_si256(line));
    }
  }
  _Pragma("GCC unroll 8") for (int lane = 0; lane < 8; ++lane) asm volatile("" : : "x"(sums[lane]));
}

CBQ_END_REGION
}  // namespace avx2

namespace avx512 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512VNNI)

constexpr double vnni_operations = 12 * 128;

void vnni(std::size_t rounds) noexcept {
  __m512i codes = _mm512_set1_epi8(15);
  __m512i activations = _mm512_set1_epi8(-3);
  asm volatile("" : "+v"(codes), "+v"(activations));
  __m512i sums[12];
  _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) {
    sums[chain] = _mm512_setzero_si512();
    asm volatile("" : "+v"(sums[chain]));
  }
  for (std::size_t round = 0; round < rounds; ++round) {
    _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) {
      sums[chain] = _mm512_dpbusd_epi32(sums[chain], codes, activations);
    }
  }
  _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) asm volatile("" : : "v"(sums[chain]));
}

constexpr double fma_operations = 12 * 32;

void fma(std::size_t rounds) noexcept {
  __m512 factor = _mm512_set1_ps(0.5f);
  asm volatile("" : "+v"(factor));
  __m512 sums[12];
  _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) {
    sums[chain] = factor;
    asm volatile("" : "+v"(sums[chain]));
  }
  for (std::size_t round = 0; round < rounds; ++round) {
    _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) {
      sums[chain] = _mm512_fmadd_ps(factor, factor, sums[chain]);
    }
  }
  _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) asm volatile("" : : "v"(sums[chain]));
}

void read(const std::byte* from, std::size_t bytes) noexcept {
  __m512i sums[8];
  _Pragma("GCC unroll 8") for (int lane = 0; lane < 8; ++lane) sums[lane] = _mm512_setzero_si512();
  for (std::size_t i = 0; i < bytes; i += sizeof sums) {
    _Pragma("GCC unroll 8") for (std::size_t lane = 0; lane < 8; ++lane) {
      sums[lane] = _mm512_add_epi32(sums[lane], _mm512_load_si512(from + i + lane * sizeof sums[0]));
    }
  }
  _Pragma("GCC unroll 8") for (int lane = 0; lane < 8; ++lane) asm volatile("" : : "v"(sums[lane]));
}

CBQ_END_REGION
}  // namespace avx512

namespace avx512_bf16 {
CBQ_BEGIN_REGION(CBQ_TARGET_AVX512BF16)

constexpr double operations = 12 * 64;

void multiply(std::size_t rounds) noexcept {
  __m512i ones = _mm512_set1_epi32(0x3f803f80);
  asm volatile("" : "+v"(ones));
  __m512 sums[12];
  _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) {
    sums[chain] = _mm512_setzero_ps();
    asm volatile("" : "+v"(sums[chain]));
  }
  for (std::size_t round = 0; round < rounds; ++round) {
    _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) {
      sums[chain] = cbq::isa::avx512_bf16::add_products(sums[chain], ones, ones);
    }
  }
  _Pragma("GCC unroll 12") for (int chain = 0; chain < 12; ++chain) asm volatile("" : : "v"(sums[chain]));
}

CBQ_END_REGION
}  // namespace avx512_bf16

namespace amx {
CBQ_BEGIN_REGION(CBQ_TARGET_AMX)

constexpr double operations = 4 * 2 * 16 * 16 * 64;

/// Tiles as kernels use them: sums of 32 rows x 32 outputs, of which each product adds 64 inputs of a quarter.
void multiply(std::size_t rounds) noexcept {
  using namespace cbq::isa::amx_int8;
  alignas(64) std::int8_t codes[16 * 64];
  for (std::int8_t& code : codes) code = 3;
  configure_tiles(2 * tile_rows, 64);
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  load_tile<4>(codes, 64);
  load_tile<5>(codes, 64);
  load_tile<6>(codes, 64);
  load_tile<7>(codes, 64);
  for (std::size_t round = 0; round < rounds; ++round) {
    multiply_tiles<0, 4, 6>();
    multiply_tiles<1, 4, 7>();
    multiply_tiles<2, 5, 6>();
    multiply_tiles<3, 5, 7>();
  }
  release_tiles();
}

CBQ_END_REGION
}  // namespace amx

#endif

void add_peak(const std::string& name, const Peak& peak) {
  for (const std::size_t count : thread_counts()) {
    add("ceiling/" + name + "/threads:" + std::to_string(count), [peak, count](benchmark::State& state) {
      constexpr std::size_t rounds = 500'000;
      const Threads executor = threads(count);
      for ([[maybe_unused]] auto _ : state) {
        executor.for_each_index(count, [&](std::size_t) { peak.run(rounds); });
      }
      set_rates(state, peak.operations * static_cast<double>(rounds * count), 0);
    });
  }
}

/// The buffer is read whole by every iteration, so that caches hold at most a small part of what the next one reads.
cbq::Result<std::shared_ptr<cbq::AlignedBuffer<std::byte>>> dram_buffer() {
  const auto made = cached("ceiling/dram", [](std::size_t& bytes) -> cbq::Result<std::shared_ptr<void>> {
    constexpr std::size_t least = std::size_t{512} << 20;
    bytes = 4 * rotation_bytes() > least ? 4 * rotation_bytes() : least;
    bytes = bytes / (std::size_t{1} << 20) << 20;
    auto memory = cbq::AlignedBuffer<std::byte>::allocate(bytes);
    if (!memory) return memory.error();
    std::memset(memory->data(), 1, memory->size());
    return std::shared_ptr<void>(std::make_shared<cbq::AlignedBuffer<std::byte>>(std::move(*memory)));
  });
  if (!made) return made.error();
  return std::static_pointer_cast<cbq::AlignedBuffer<std::byte>>(*made);
}

void add_dram(Read read) {
  for (const std::size_t count : thread_counts()) {
    add("ceiling/dram/threads:" + std::to_string(count), [read, count](benchmark::State& state) {
      const auto buffer = dram_buffer();
      if (!buffer) return skip(state, buffer.error());
      const std::byte* data = (*buffer)->data();
      const std::size_t piece = (*buffer)->size() / count / 512 * 512;
      const Threads executor = threads(count);
      for ([[maybe_unused]] auto _ : state) {
        executor.for_each_index(count, [&](std::size_t index) { read(data + index * piece, piece); });
      }
      set_rates(state, 0, static_cast<double>(piece * count));
    });
  }
}

}  // namespace

void register_ceilings(const Selection& selection) {
  Read read = &read_baseline;
#if defined(__x86_64__)
  switch (cbq::floating_point_isa(selection.cap)) {
    case cbq::Isa::avx512_vnni:
      add_peak("vnni", {&avx512::vnni, avx512::vnni_operations});
      add_peak("maddubs", {&avx2::maddubs, avx2::maddubs_operations});
      add_peak("fma", {&avx512::fma, avx512::fma_operations});
      if (cbq::usable_features().avx512_bf16) add_peak("bf16", {&avx512_bf16::multiply, avx512_bf16::operations});
      if (selection.cap == cbq::Isa::amx_int8) add_peak("amx", {&amx::multiply, amx::operations});
      read = &avx512::read;
      break;
    case cbq::Isa::avx2:
      add_peak("maddubs", {&avx2::maddubs, avx2::maddubs_operations});
      add_peak("fma", {&avx2::fma, avx2::fma_operations});
      read = &avx2::read;
      break;
    default:
      break;
  }
#endif
  add_dram(read);
}

}  // namespace bench
