// SPDX-License-Identifier: Apache-2.0
#pragma once

// The element types of GGUF files and their decoding to float.
//
// A row is stored as blocks of 32 or 256 elements: scales, then codes. With q the code, d and m half-precision numbers
// of the block, sc and mn 6- or 8-bit numbers of a sub-block:
//   Q8_0            x = d q              Q4_0, Q5_0   x = d (q - 8), d (q - 16)       Q4_1, Q5_1   x = d q + m
//   Q4_K (256, 32)  x = d sc q - m mn    Q6_K (256, 16)   x = d sc (q - 32)
// All in float, in this order of operations.

#include <cstddef>
#include <cstdint>
#include <span>

#include <cbq/core/element.hpp>
#include <cbq/core/result.hpp>
#include <cbq/io/tensor.hpp>

namespace cbq {

/// Element types by their number in the file. Those without a decoder can be listed but not read as float.
enum class GgufType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
};

/// How a type lays out its elements.
struct GgufTypeLayout {
  GgufType type;
  const char* name;
  std::size_t block;  ///< elements of a block
  std::size_t bytes;  ///< bytes of a block
};

inline namespace CBQ_ABI {

inline constexpr GgufTypeLayout gguf_layouts[] = {
    {GgufType::f32, "F32", 1, 4},
    {GgufType::f16, "F16", 1, 2},
    {GgufType::bf16, "BF16", 1, 2},
    {GgufType::f64, "F64", 1, 8},
    {GgufType::i8, "I8", 1, 1},
    {GgufType::i16, "I16", 1, 2},
    {GgufType::i32, "I32", 1, 4},
    {GgufType::i64, "I64", 1, 8},
    {GgufType::q4_0, "Q4_0", 32, 18},
    {GgufType::q4_1, "Q4_1", 32, 20},
    {GgufType::q5_0, "Q5_0", 32, 22},
    {GgufType::q5_1, "Q5_1", 32, 24},
    {GgufType::q8_0, "Q8_0", 32, 34},
    {GgufType::q2_k, "Q2_K", 256, 84},
    {GgufType::q3_k, "Q3_K", 256, 110},
    {GgufType::q4_k, "Q4_K", 256, 144},
    {GgufType::q5_k, "Q5_K", 256, 176},
    {GgufType::q6_k, "Q6_K", 256, 210},
    {GgufType::iq2_xxs, "IQ2_XXS", 256, 66},
    {GgufType::iq2_xs, "IQ2_XS", 256, 74},
    {GgufType::iq3_xxs, "IQ3_XXS", 256, 98},
    {GgufType::iq1_s, "IQ1_S", 256, 50},
    {GgufType::iq4_nl, "IQ4_NL", 32, 18},
    {GgufType::iq3_s, "IQ3_S", 256, 110},
    {GgufType::iq2_s, "IQ2_S", 256, 82},
    {GgufType::iq4_xs, "IQ4_XS", 256, 136},
    {GgufType::iq1_m, "IQ1_M", 256, 56},
    {GgufType::tq1_0, "TQ1_0", 256, 54},
    {GgufType::tq2_0, "TQ2_0", 256, 66},
    {GgufType::mxfp4, "MXFP4", 32, 17},
    {GgufType::nvfp4, "NVFP4", 64, 36},
};

/// The layout of the type with number `id`. Errc::unsupported.
[[nodiscard]] constexpr Result<GgufTypeLayout> gguf_layout(std::uint32_t id) noexcept {
  for (const GgufTypeLayout& layout : gguf_layouts) {
    if (static_cast<std::uint32_t>(layout.type) == id) return layout;
  }
  return Error{Errc::unsupported, "unknown GGUF element type", "", ErrorText("number ") << id,
               "a type that GGUF names"};
}

/// Bytes of a tensor of that type and shape. Errc::bad_shape: an innermost size that is no multiple of the block, or
/// more bytes than a size holds.
[[nodiscard]] constexpr Result<std::size_t> gguf_bytes(GgufType type, const TensorShape& shape) noexcept {
  const Result<std::size_t> count = element_count(shape);
  if (!count) return count;
  const Result<GgufTypeLayout> layout = gguf_layout(static_cast<std::uint32_t>(type));
  if (!layout) return layout.error();
  const std::size_t inner = shape.rank == 0 ? 1 : shape.sizes[shape.rank - 1];
  if (inner % layout->block != 0) {
    return Error{Errc::bad_shape, "the innermost size is no multiple of the block", layout->name, inner,
                 ErrorText("a multiple of ") << layout->block};
  }
  const Result<std::size_t> bytes = checked_product(*count / layout->block, layout->bytes);
  if (bytes) return bytes;
  return Error{Errc::bad_shape, "the tensor's bytes do not fit in 64 bits", layout->name, shape_text(shape),
               "fewer than 2^64 bytes"};
}

namespace io_detail {

inline float load_half(const std::byte* from) noexcept {
  return to_float(load_unaligned<half>(from));
}
inline unsigned load_code(const std::byte* from) noexcept {
  return std::to_integer<unsigned>(*from);
}

inline void decode_q8_0(const std::byte* block, float* out) noexcept {
  const float d = load_half(block);
  for (std::size_t i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
}

// Q4_0 and Q4_1: byte j holds element j in its low and element j + 16 in its high half.
inline void decode_q4_0(const std::byte* block, float* out) noexcept {
  const float d = load_half(block);
  for (std::size_t i = 0; i < 16; ++i) {
    const unsigned code = load_code(block + 2 + i);
    out[i] = d * (static_cast<float>(code & 15u) - 8.0f);
    out[i + 16] = d * (static_cast<float>(code >> 4) - 8.0f);
  }
}

inline void decode_q4_1(const std::byte* block, float* out) noexcept {
  const float d = load_half(block);
  const float m = load_half(block + 2);
  for (std::size_t i = 0; i < 16; ++i) {
    const unsigned code = load_code(block + 4 + i);
    const float low = d * static_cast<float>(code & 15u);
    const float high = d * static_cast<float>(code >> 4);
    out[i] = low + m;
    out[i + 16] = high + m;
  }
}

// Q5_0 and Q5_1: the same, with the fifth bit of element j in bit j of a 32-bit word.
inline void decode_q5_0(const std::byte* block, float* out) noexcept {
  const float d = load_half(block);
  const auto fifth = load_unaligned<std::uint32_t>(block + 2);
  for (std::size_t i = 0; i < 16; ++i) {
    const unsigned code = load_code(block + 6 + i);
    const unsigned low = (code & 15u) | (((fifth >> i) & 1u) << 4);
    const unsigned high = (code >> 4) | (((fifth >> (i + 16)) & 1u) << 4);
    out[i] = d * (static_cast<float>(low) - 16.0f);
    out[i + 16] = d * (static_cast<float>(high) - 16.0f);
  }
}

inline void decode_q5_1(const std::byte* block, float* out) noexcept {
  const float d = load_half(block);
  const float m = load_half(block + 2);
  const auto fifth = load_unaligned<std::uint32_t>(block + 4);
  for (std::size_t i = 0; i < 16; ++i) {
    const unsigned code = load_code(block + 8 + i);
    const float low = d * static_cast<float>((code & 15u) | (((fifth >> i) & 1u) << 4));
    const float high = d * static_cast<float>((code >> 4) | (((fifth >> (i + 16)) & 1u) << 4));
    out[i] = low + m;
    out[i + 16] = high + m;
  }
}

// Q4_K: half d, half m, 12 bytes of eight 6-bit pairs (sc, mn), 128 bytes of codes; each 32 bytes hold 64 elements, low
// halves first. Pairs 0..3 lie in the low 6 bits of bytes j and j + 4; pairs 4..7 in the halves of byte j + 4 and the
// top bits of bytes j - 4 and j.
inline void decode_q4_k(const std::byte* block, float* out) noexcept {
  const float d = load_half(block);
  const float m = load_half(block + 2);
  const std::byte* pairs = block + 4;
  for (std::size_t j = 0; j < 8; ++j) {
    unsigned scale = 0;
    unsigned minimum = 0;
    if (j < 4) {
      scale = load_code(pairs + j) & 63u;
      minimum = load_code(pairs + j + 4) & 63u;
    } else {
      scale = (load_code(pairs + j + 4) & 15u) | ((load_code(pairs + j - 4) >> 6) << 4);
      minimum = (load_code(pairs + j + 4) >> 4) | ((load_code(pairs + j) >> 6) << 4);
    }
    const float sub_scale = d * static_cast<float>(scale);
    const float sub_minimum = m * static_cast<float>(minimum);
    const std::byte* codes = block + 16 + (j / 2) * 32;
    for (std::size_t i = 0; i < 32; ++i) {
      const unsigned code = j % 2 == 0 ? load_code(codes + i) & 15u : load_code(codes + i) >> 4;
      const float product = sub_scale * static_cast<float>(code);
      out[j * 32 + i] = product - sub_minimum;
    }
  }
}

// Q6_K: 128 bytes of low halves, 64 bytes of bit pairs, 16 signed scales, half d; two halves of 128 elements, each of
// four runs of 32: low halves of 64 bytes, then high halves of the same bytes.
inline void decode_q6_k(const std::byte* block, float* out) noexcept {
  const float d = load_half(block + 208);
  for (std::size_t part = 0; part < 2; ++part) {
    const std::byte* low = block + part * 64;
    const std::byte* top = block + 128 + part * 32;
    const std::byte* scales = block + 192 + part * 8;
    for (std::size_t run = 0; run < 4; ++run) {
      for (std::size_t i = 0; i < 32; ++i) {
        const unsigned byte = load_code(low + (run % 2) * 32 + i);
        const unsigned four = run < 2 ? byte & 15u : byte >> 4;
        const unsigned two = (load_code(top + i) >> (2 * run)) & 3u;
        const float scale = d * static_cast<float>(static_cast<std::int8_t>(scales[i / 16 + 2 * run]));
        out[part * 128 + run * 32 + i] = scale * (static_cast<float>(four | (two << 4)) - 32.0f);
      }
    }
  }
}

using DecodeBlock = void (*)(const std::byte*, float*) noexcept;

constexpr DecodeBlock gguf_decoder(GgufType type) noexcept {
  switch (type) {
    case GgufType::q8_0:
      return &decode_q8_0;
    case GgufType::q4_0:
      return &decode_q4_0;
    case GgufType::q4_1:
      return &decode_q4_1;
    case GgufType::q5_0:
      return &decode_q5_0;
    case GgufType::q5_1:
      return &decode_q5_1;
    case GgufType::q4_k:
      return &decode_q4_k;
    case GgufType::q6_k:
      return &decode_q6_k;
    default:
      return nullptr;
  }
}

}  // namespace io_detail

/// Decodes `out.size()` elements of `type`, a whole number of blocks, from exactly that many blocks of `bytes`.
/// Errc::bad_shape, Errc::unsupported (a type without a decoder).
[[nodiscard]] inline Status decode_gguf(GgufType type, std::span<const std::byte> bytes,
                                        std::span<float> out) noexcept {
  const Result<GgufTypeLayout> layout = gguf_layout(static_cast<std::uint32_t>(type));
  if (!layout) return layout.error();
  const std::size_t blocks = out.size() / layout->block;
  if (out.size() % layout->block != 0 || bytes.size() / layout->bytes != blocks || bytes.size() % layout->bytes != 0) {
    return Error{Errc::bad_shape, "the bytes do not hold that many elements", layout->name,
                 ErrorText(bytes.size()) << " bytes",
                 ErrorText(out.size()) << " elements in blocks of " << layout->block};
  }
  switch (type) {
    case GgufType::f32:
      decode_elements<float>(bytes.data(), out);
      return {};
    case GgufType::f16:
      decode_elements<half>(bytes.data(), out);
      return {};
    case GgufType::bf16:
      decode_elements<bfloat16>(bytes.data(), out);
      return {};
    case GgufType::f64:
      decode_elements<double>(bytes.data(), out);
      return {};
    default:
      break;
  }
  const io_detail::DecodeBlock decode = io_detail::gguf_decoder(type);
  if (decode == nullptr) {
    return Error{Errc::unsupported, "no decoder for this GGUF element type", "", layout->name,
                 "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K or Q6_K"};
  }
  for (std::size_t b = 0; b < blocks; ++b) decode(bytes.data() + b * layout->bytes, out.data() + b * layout->block);
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
