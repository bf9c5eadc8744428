// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bytes of a saved sequence, and what of them can be checked without a cache; for saved_sequence.hpp.
// Little-endian, without gaps:
//
//   header  144 bytes, struct Header below
//   pages   those with codes that a query can see, in order
//   sinks   per position floats: keys [heads * width], then values [heads * width], both transformed
//   exact   likewise, positions packed .. size - 1

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>

#include <cbq/core/checksum.hpp>
#include <cbq/core/element.hpp>
#include <cbq/kv/encodable.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_page_table.hpp>
#include <cbq/kv/row_transform.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace saved_sequence {

inline constexpr char magic[8] = {'C', 'B', 'Q', 'K', 'V', 'S', 'E', 'Q'};
inline constexpr std::uint32_t version = 1;      ///< of header and order
inline constexpr std::uint32_t page_layout = 1;  ///< of pages: kv_layout.hpp

struct Header {
  char magic[8] = {};
  std::uint32_t version = 0;
  std::uint32_t layout = 0;
  char scheme[sizeof(KvSchemeName::characters)] = {};  ///< its name, filled up with zeros
  std::uint64_t heads = 0;
  std::uint64_t width = 0;
  std::uint64_t recent = 0;  ///< KvPolicy, as the next two
  std::uint64_t sinks = 0;
  std::uint64_t window = 0;
  std::uint64_t transform = 0;  ///< checksum of the factors, 0 without any
  std::uint64_t size = 0;       ///< QuantizedKvView, as the next two
  std::uint64_t packed = 0;
  std::uint64_t first = 0;
  std::uint64_t bytes = 0;            ///< header and all that follows
  std::uint64_t body_checksum = 0;    ///< of all that follows
  std::uint64_t header_checksum = 0;  ///< of the bytes before it
};
static_assert(sizeof(Header) == 144);

[[nodiscard]] inline std::uint64_t header_checksum(const Header& header) noexcept {
  return checksum(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, header_checksum)));
}

/// Of all factors of a transform; 0 where there are none.
[[nodiscard]] inline std::uint64_t transform_checksum(const RowTransform& transform, std::size_t columns) noexcept {
  const float* const factors[] = {transform.key_scales, transform.key_offsets, transform.value_scales,
                                  transform.value_offsets};
  std::uint64_t sums[4] = {};
  bool any = false;
  for (std::size_t i = 0; i < 4; ++i) {
    if (factors[i] == nullptr) continue;
    sums[i] = checksum(std::as_bytes(std::span(factors[i], columns)));
    any = true;
  }
  return any ? checksum(std::as_bytes(std::span(sums))) : 0;
}

/// The header of bytes that are whole and of this version. Errc::bad_file, Errc::unsupported.
[[nodiscard]] inline Result<Header> read_header(std::span<const std::byte> bytes) noexcept {
  Header header;
  if (!bytes.empty()) std::memcpy(&header, bytes.data(), std::min(bytes.size(), sizeof header));
  if (std::memcmp(header.magic, magic, sizeof magic) != 0) {
    return Error{Errc::bad_file, "not a saved sequence", "byte 0", "another magic", "CBQKVSEQ"};
  }
  if (bytes.size() < sizeof header) {
    return Error{Errc::bad_file, "the bytes end inside their header", "", ErrorText(bytes.size()) << " bytes",
                 ErrorText(sizeof header) << " bytes"};
  }
  if (header.version != version) {
    return Error{Errc::unsupported, "a saved sequence of another version", "byte 8", header.version, version};
  }
  if (header.layout != page_layout) {
    return Error{Errc::unsupported, "a saved sequence with another layout of pages", "byte 12", header.layout,
                 page_layout};
  }
  if (header.header_checksum != header_checksum(header)) {
    return Error{Errc::bad_file, "the header is damaged: its checksum differs", "byte 136", header.header_checksum,
                 header_checksum(header)};
  }
  if (header.bytes != bytes.size()) {
    return Error{Errc::bad_file, "the sequence does not have the size that it was saved with", "byte 120",
                 ErrorText(bytes.size()) << " bytes", ErrorText(header.bytes) << " bytes"};
  }
  return header;
}

/// Where the parts of a sequence lie, in bytes behind the header.
struct Parts {
  KvPageRange pages;
  std::size_t sinks = 0;  ///< rows
  std::size_t exact = 0;  ///< rows
  std::size_t row_bytes = 0;
  std::size_t sinks_at = 0;
  std::size_t exact_at = 0;
  std::size_t bytes = 0;
};

/// Parts of a sequence whose counts are checked: min(sinks, size) <= packed <= size, first <= size. Errc::bad_shape
/// where they do not fit in 64 bits.
[[nodiscard]] inline Result<Parts> parts_of(const Header& header, std::size_t page_bytes) noexcept {
  Parts parts;
  parts.sinks = header.sinks < header.size ? header.sinks : header.size;
  parts.exact = header.size - header.packed;
  const std::size_t seen = header.first > parts.sinks ? header.first : parts.sinks;
  if (seen < header.packed) parts.pages = {seen / kv_page_positions, divide_up(header.packed, kv_page_positions)};
  const Result<std::size_t> row = checked_product(2 * sizeof(float), header.heads, header.width);
  const Result<std::size_t> pages = checked_product(parts.pages.last - parts.pages.first, page_bytes);
  if (!row) return row.error();
  if (!pages) return pages.error();
  const Result<std::size_t> sinks = checked_product(parts.sinks, *row);
  const Result<std::size_t> exact = checked_product(parts.exact, *row);
  if (!sinks) return sinks.error();
  if (!exact) return exact.error();
  const Result<std::size_t> all = checked_sum(*pages, *sinks, *exact, sizeof(Header));
  if (!all) return all.error();
  parts.row_bytes = *row;
  parts.sinks_at = *pages;
  parts.exact_at = *pages + *sinks;
  parts.bytes = *all - sizeof(Header);
  return parts;
}

/// Beyond what a code stands for in groups of numbers up to 65504, whose range is 2 * 65504 and whose scales are
/// rounded up by less than 2^-10.
inline constexpr double decoded_limit = 65504.0 + 2 * 65504.0 * 0x1p-10;

/// Scales, and their offsets `offsets_at` bytes behind them, as encoders write them: Errc::not_finite, Errc::bad_file.
/// `limit` is that of decoded numbers.
[[nodiscard]] inline Status check_groups(std::span<const std::byte> scales, std::size_t offsets_at, std::size_t bits,
                                         double limit) noexcept {
  constexpr unsigned infinite = 0x7c00, negative = 0x8000;
  const double top = static_cast<double>((1u << bits) - 1);
  for (std::size_t i = 0; i < scales.size(); i += sizeof(half)) {
    half scale, offset;
    std::memcpy(&scale, scales.data() + i, sizeof scale);
    std::memcpy(&offset, scales.data() + offsets_at + i, sizeof offset);
    if ((scale.bits & infinite) == infinite || (offset.bits & infinite) == infinite) {
      return Error{Errc::not_finite, "a saved scale or offset is NaN or infinite", "",
                   ErrorText("bits ") << scale.bits << " and " << offset.bits, "finite numbers"};
    }
    if ((scale.bits & negative) != 0) {
      return Error{Errc::bad_file, "a saved scale is negative", "", ErrorText("bits ") << scale.bits, "0 or more"};
    }
    const double highest = static_cast<double>(to_float(offset)) + top * static_cast<double>(to_float(scale));
    if (highest > limit) {
      return Error{Errc::bad_file, "a saved scale and offset decode to more than was encoded", "",
                   ErrorText("bits ") << scale.bits << " and " << offset.bits, "numbers up to 65504"};
    }
  }
  return {};
}

/// Errc::not_finite where a scale or offset of a page is no number, Errc::bad_file where no encoder writes it. Keys
/// with scales per channel must be able to be encoded again; refined groups may reach beyond their numbers.
[[nodiscard]] inline Status check_page(const KvLayout& layout, const std::byte* page) noexcept {
  const double any = std::numeric_limits<double>::infinity();
  const auto groups = [&layout](const std::byte* header, std::size_t bytes, double limit) {
    return check_groups({header, bytes / 2}, bytes / 2, layout.bits, limit);
  };
  for (std::size_t head = 0; head < layout.heads; ++head) {
    const std::byte* const keys = page + kv_keys_offset(layout, head);
    const std::byte* const values = page + kv_values_offset(layout, head);
    Status fine;
    if (layout.channel_keys) fine = groups(keys, layout.key_header_bytes, decoded_limit);
    for (std::size_t p = 0; fine && !layout.channel_keys && p < kv_page_positions; p += panel_outputs) {
      for (std::size_t g = 0; fine && g < layout.groups; ++g) {
        fine = groups(keys + key_affine(layout, p, g).scale, 2 * group_scales_bytes, any);
      }
    }
    for (std::size_t g = 0; fine && g < layout.groups; ++g) {
      fine = groups(values + value_group_offset(layout, g), layout.value_header_bytes, any);
    }
    if (fine) continue;
    Error error = fine.error();
    error.where = ErrorText("head ") << head;
    return error;
  }
  return {};
}

/// Errc::not_finite where floats are no numbers or too large to be quantized later.
[[nodiscard]] inline Status check_rows(std::span<const std::byte> floats) noexcept {
  constexpr std::size_t piece = 64 * sizeof(float);
  for (std::size_t at = 0; at < floats.size(); at += piece) {
    const auto part = floats.subspan(at, floats.size() - at < piece ? floats.size() - at : piece);
    float values[64];
    std::memcpy(values, part.data(), part.size());
    const std::size_t count = part.size() / sizeof(float);
    const std::size_t bad = first_beyond({values, count}, largest_kv_element);
    if (bad == count) continue;
    return Error{Errc::not_finite, "a saved key or value is NaN, infinite or beyond half",
                 ErrorText("float ") << at / sizeof(float) + bad << " of the exact rows"};
  }
  return {};
}

}  // namespace saved_sequence
}  // namespace CBQ_ABI
}  // namespace cbq
