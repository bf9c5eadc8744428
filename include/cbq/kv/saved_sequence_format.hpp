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
#include <span>

#include <cbq/core/checksum.hpp>
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
    return Error{Errc::bad_file, "the header is damaged: its checksum differs", "byte 136"};
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

/// Errc::not_finite where a scale or offset of a page is no number.
[[nodiscard]] inline Status check_page(const KvLayout& layout, const std::byte* page) noexcept {
  const auto finite = [](const std::byte* halves, std::size_t bytes) {
    bool fine = true;
    for (std::size_t i = 0; i < bytes; i += sizeof(half)) {
      half value;
      std::memcpy(&value, halves + i, sizeof value);
      fine = fine && (value.bits & 0x7c00u) != 0x7c00u;
    }
    return fine;
  };
  const std::size_t key_panels = layout.channel_keys ? 1 : kv_page_positions / panel_outputs;
  for (std::size_t head = 0; head < layout.heads; ++head) {
    const std::byte* const keys = page + kv_keys_offset(layout, head);
    const std::byte* const values = page + kv_values_offset(layout, head);
    bool fine = true;
    for (std::size_t i = 0; i < key_panels; ++i) {
      fine = fine && finite(keys + i * layout.key_panel_bytes, layout.key_header_bytes);
    }
    for (std::size_t i = 0; i < layout.groups; ++i) {
      fine = fine && finite(values + value_group_offset(layout, i), layout.value_header_bytes);
    }
    if (!fine) return Error{Errc::not_finite, "a saved scale or offset is NaN or infinite", ErrorText("head ") << head};
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
