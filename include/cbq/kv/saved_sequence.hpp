// SPDX-License-Identifier: Apache-2.0
#pragma once

// A QuantizedKvCache as bytes, for prompts that are kept on disk or sent to another process: pages as they are, exact
// rows as floats (saved_sequence_format.hpp). Loading checks everything before the cache changes: that the bytes are
// a saved sequence of this version, whole and undamaged, that scheme, shape, policy and factors are the cache's own,
// that counts fit it, and that all numbers are such as encoders write. Costs a copy and two passes over the bytes.

#include <cstddef>
#include <cstring>
#include <span>

#include <cbq/kv/quantized_kv_cache.hpp>
#include <cbq/kv/saved_sequence_format.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// What save_sequence() and load_sequence() do with the parts of a cache.
class SavedSequence {
 public:
  using Header = saved_sequence::Header;
  using Parts = saved_sequence::Parts;

  /// The header of a cache, but for the checksums. Errc::bad_argument for a cache that was moved from.
  [[nodiscard]] static Result<Header> describe(const QuantizedKvCache& cache) noexcept {
    if (const Status alive = cache.check_alive(); !alive) return alive.error();
    const QuantizedKvOptions& options = cache.options_;
    Header header;
    header.version = saved_sequence::version;
    header.layout = saved_sequence::page_layout;
    header.heads = options.heads;
    header.width = options.width;
    header.recent = options.policy.recent;
    header.sinks = options.policy.sinks;
    header.window = options.policy.window;
    header.transform = saved_sequence::transform_checksum(cache.transform_, cache.columns());
    header.size = cache.size_;
    header.packed = cache.packed_;
    header.first = cache.first_;
    std::memcpy(header.magic, saved_sequence::magic, sizeof header.magic);
    std::memcpy(header.scheme, kv_scheme_name(options.scheme).characters, sizeof header.scheme);
    const Result<Parts> parts = saved_sequence::parts_of(header, cache.layout_.page_bytes);
    if (!parts) return parts.error();
    header.bytes = sizeof header + parts->bytes;
    return header;
  }

  /// Writes what follows the header.
  static void write(const QuantizedKvCache& cache, const Parts& parts, std::byte* out) noexcept {
    const std::size_t page_bytes = cache.layout_.page_bytes;
    for (std::size_t i = parts.pages.first; i < parts.pages.last; ++i, out += page_bytes) {
      std::memcpy(out, cache.table_.data()[i], page_bytes);
    }
    out = write_rows(cache.exact_, write_rows(cache.sinks_, out));
    const KvRow newest = cache.newest();
    if (newest.key != nullptr) std::memcpy(out, newest.key, 2 * newest.columns * sizeof(float));
  }

  /// Errc::bad_shape unless a saved sequence fits the cache, whose header is `own`.
  [[nodiscard]] static Status check(const Header& header, const Header& own, const QuantizedKvCache& cache) noexcept {
    const auto other = [](const char* what, std::uint64_t got, std::uint64_t wanted) {
      return Error{Errc::bad_shape, what, "saved sequence", got, wanted};
    };
    if (std::memcmp(header.scheme, own.scheme, sizeof own.scheme) != 0) {
      char name[sizeof own.scheme + 1] = {};
      std::memcpy(name, header.scheme, sizeof own.scheme);
      return Error{Errc::bad_shape, "a sequence of another scheme", "byte 16", static_cast<const char*>(name),
                   own.scheme};
    }
    if (header.heads != own.heads) return other("a sequence with another number of heads", header.heads, own.heads);
    if (header.width != own.width) return other("a sequence with heads of another width", header.width, own.width);
    if (header.recent != own.recent || header.sinks != own.sinks || header.window != own.window) {
      return Error{Errc::bad_shape, "a sequence with another policy: recent, sinks, window", "byte 64",
                   ErrorText(header.recent) << ", " << header.sinks << ", " << header.window,
                   ErrorText(own.recent) << ", " << own.sinks << ", " << own.window};
    }
    if (header.transform != own.transform) {
      return Error{Errc::bad_shape, "a sequence with other smoothing factors: their checksums differ", "byte 88"};
    }
    if (header.size > cache.options_.capacity) {
      return other("the sequence is longer than the cache", header.size, cache.options_.capacity);
    }
    const std::size_t sinks = least(header.sinks, header.size);
    if (header.packed < sinks || header.packed > header.size || header.first > header.size) {
      return Error{Errc::bad_file, "counts of positions contradict each other: packed, first, size", "byte 96",
                   ErrorText(header.packed) << ", " << header.first << ", " << header.size};
    }
    const std::size_t exact = header.size - header.packed, room = exact_room(cache, header.size);
    if (exact > room) {
      return other("more exact positions than appends to this cache leave: see largest_append", exact, room);
    }
    return {};
  }

  /// Makes the checked header and body the sequence of the cache. Errc::out_of_memory where the pool has too few
  /// pages; nothing has changed then.
  [[nodiscard]] static Status read(const Header& header, const Parts& parts, std::span<const std::byte> body,
                                   QuantizedKvCache& cache) noexcept {
    const std::size_t wanted = parts.pages.last - parts.pages.first;
    const std::size_t own = cache.table_.releasable({0, cache.table_.size()});
    if (wanted > own) {
      if (const Status pages = cache.table_.pages().check_free(wanted - own); !pages) return pages;
    }
    cache.reset();
    const std::size_t page_bytes = cache.layout_.page_bytes;
    for (std::size_t i = 0; i < wanted; ++i) {
      std::memcpy(*cache.table_.writable(parts.pages.first + i), body.data() + i * page_bytes, page_bytes);
    }
    read_rows(body.subspan(parts.sinks_at, parts.exact_at - parts.sinks_at), cache, cache.sinks_);
    read_rows(body.subspan(parts.exact_at), cache, cache.exact_);
    cache.size_ = header.size;
    cache.packed_ = header.packed;
    cache.first_ = header.first;
    cache.keep_newest();
    return {};
  }

 private:
  [[nodiscard]] static std::size_t least(std::size_t a, std::size_t b) noexcept { return a < b ? a : b; }

  /// Exact rows that a cache of `size` positions may have, so that its next append finds room.
  [[nodiscard]] static std::size_t exact_room(const QuantizedKvCache& cache, std::size_t size) noexcept {
    const KvScheme& scheme = cache.options_.scheme;
    const std::size_t room = cache.exact_.capacity();
    return scheme.past_only ? room : least(room, size - quantized_positions(scheme, cache.options_.policy, size));
  }

  static std::byte* write_rows(const FloatKvCache& rows, std::byte* out) noexcept {
    const FloatKvView shape = rows.view();
    const std::size_t bytes = shape.width * sizeof(float);
    float x[key_codes::most_channels];
    for (std::size_t p = 0; p < shape.size; ++p) {
      for (std::size_t head = 0; head < shape.heads; ++head, out += bytes) {
        rows.copy_key(head, p, x);
        std::memcpy(out, x, bytes);
      }
      for (std::size_t head = 0; head < shape.heads; ++head, out += bytes) {
        rows.copy_value(head, p, x);
        std::memcpy(out, x, bytes);
      }
    }
    return out;
  }

  static void read_rows(std::span<const std::byte> bytes, QuantizedKvCache& cache, FloatKvCache& to) noexcept {
    const std::size_t columns = cache.columns(), row_bytes = 2 * columns * sizeof(float);
    const float* row = cache.scratch_.data();
    for (; !bytes.empty(); bytes = bytes.subspan(row_bytes)) {
      std::memcpy(cache.scratch_.data(), bytes.data(), row_bytes);
      (void)to.append(matrix_view(row, 1, columns), matrix_view(row + columns, 1, columns));
    }
  }
};

/// Bytes of a cache, saved. Errc::bad_argument for one that was moved from.
[[nodiscard]] inline Result<std::size_t> saved_sequence_size(const QuantizedKvCache& cache) noexcept {
  const Result<saved_sequence::Header> header = SavedSequence::describe(cache);
  if (!header) return header.error();
  return static_cast<std::size_t>(header->bytes);
}

/// Writes a cache to `out`, which has saved_sequence_size() bytes: Errc::bad_shape otherwise. Errc::bad_argument for a
/// cache that was moved from.
[[nodiscard]] inline Status save_sequence(const QuantizedKvCache& cache, std::span<std::byte> out) noexcept {
  Result<saved_sequence::Header> header = SavedSequence::describe(cache);
  if (!header) return header.error();
  if (out.size() != header->bytes) {
    return Error{Errc::bad_shape, "the bytes do not have the size of the saved sequence", "", out.size(),
                 header->bytes};
  }
  const std::span<std::byte> body = out.subspan(sizeof *header);
  SavedSequence::write(cache, *saved_sequence::parts_of(*header, cache.layout().page_bytes), body.data());
  header->body_checksum = checksum(body);
  header->header_checksum = saved_sequence::header_checksum(*header);
  std::memcpy(out.data(), &*header, sizeof *header);
  return {};
}

/// Makes what was saved the sequence of `cache`, which was created with the same scheme, heads, width, policy and
/// factors; what it held before is gone. On an error it is as before: Errc::bad_file (not a saved sequence, truncated,
/// damaged), Errc::unsupported (another version), Errc::bad_shape (of another scheme, shape, policy or factors, or too
/// long), Errc::not_finite (numbers), Errc::out_of_memory (a full pool), Errc::bad_argument (a cache that was moved
/// from). Errc::bad_file also for scales that no encoder writes. Exact rows may not be more than appends to this cache
/// leave.
[[nodiscard]] inline Status load_sequence(std::span<const std::byte> bytes, QuantizedKvCache& cache) noexcept {
  const Result<saved_sequence::Header> own = SavedSequence::describe(cache);
  if (!own) return own.error();
  const Result<saved_sequence::Header> header = saved_sequence::read_header(bytes);
  if (!header) return header.error();
  if (const Status fits = SavedSequence::check(*header, *own, cache); !fits) return fits;
  const KvLayout& layout = cache.layout();
  const Result<saved_sequence::Parts> parts = saved_sequence::parts_of(*header, layout.page_bytes);
  if (!parts) return parts.error();
  const std::span<const std::byte> body = bytes.subspan(sizeof *header);
  if (body.size() != parts->bytes) {
    return Error{Errc::bad_file, "the bytes do not fit the counts of positions", "byte 120", header->bytes,
                 ErrorText(sizeof *header + parts->bytes)};
  }
  if (checksum(body) != header->body_checksum) {
    return Error{Errc::bad_file, "the sequence is damaged: its checksum differs", "byte 128", header->body_checksum,
                 checksum(body)};
  }
  for (std::size_t at = 0; at < parts->sinks_at; at += layout.page_bytes) {
    if (const Status fine = saved_sequence::check_page(layout, body.data() + at); !fine) {
      Error error = fine.error();
      error.where = ErrorText("page at byte ") << sizeof *header + at << ", " << fine.error().where.c_str();
      return error;
    }
  }
  if (const Status fine = saved_sequence::check_rows(body.subspan(parts->sinks_at)); !fine) return fine;
  return SavedSequence::read(*header, *parts, body, cache);
}

}  // namespace CBQ_ABI
}  // namespace cbq
