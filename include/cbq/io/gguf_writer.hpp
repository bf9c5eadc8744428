// SPDX-License-Identifier: Apache-2.0
#pragma once

// GgufWriter: writes a GGUF file of version 3 tensor by tensor, atomically and without ever holding its data in memory.
//
// Keys (GgufKeys) and the names, types and shapes of all tensors come first; they fix the header and every offset, so
// tensors may then be written in any order and in pieces. In the file they stand in the order of the plan, each padded
// to the alignment with zeros, the last one too. The layout is that of gguf.hpp; what Gguf::parse() or the readers of
// other programs refuse is refused here before a byte is written. Memory: the header.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <cbq/io/atomic_file.hpp>
#include <cbq/io/gguf_blocks.hpp>
#include <cbq/io/gguf_keys.hpp>
#include <cbq/io/planned_tensors.hpp>
#include <cbq/io/tensor.hpp>

namespace cbq {

/// A tensor that will be written. The shape is outermost first, like everywhere in cbq: [N, K].
struct GgufTensorPlan {
  std::string name;
  GgufType type = GgufType::f32;
  TensorShape shape;
};

inline namespace CBQ_ABI {

class GgufWriter {
 public:
  /// Starts `path` and writes its header; another alignment than 32 becomes the key general.alignment. Errors:
  /// bad_argument (keys.status(), a name that is empty, above 63 bytes or not unique, an alignment that is no power of
  /// two of 8 to 2^20), bad_shape (an innermost size that is no multiple of the block, a rank above 4), io.
  [[nodiscard]] static Result<GgufWriter> create(const std::string& path, GgufKeys keys,
                                                 std::span<const GgufTensorPlan> tensors, std::size_t alignment = 32) {
    if (alignment < 8 || (alignment & (alignment - 1)) != 0 || alignment > (std::size_t{1} << 20)) {
      return Error{Errc::bad_argument, "not an alignment", "alignment", alignment, "a power of two of 8 to 1048576"};
    }
    if (keys.has("general.alignment")) {
      return Error{Errc::bad_argument, "the writer adds this key", "general.alignment"};
    }
    if (alignment != 32) keys.add("general.alignment", static_cast<std::uint32_t>(alignment));
    if (!keys.status()) return keys.status().error();
    GgufWriter writer;
    writer.alignment_ = alignment;
    if (const Status placed = writer.place(tensors); !placed) return placed.error();
    const std::string header = writer.header(keys);
    writer.data_start_ = header.size();
    if (!checked_sum(writer.data_start_, writer.tensors_.data_size())) {
      return Error{Errc::bad_shape, "a file cannot be this large", path};
    }
    Result<AtomicFile> file = AtomicFile::create(path);
    if (!file) return file.error();
    writer.file_ = std::move(*file);
    if (const Status ok = writer.file_.write(header); !ok) return ok.error();
    return writer;
  }

  /// The next bytes of tensor `name`: all of it, or pieces in order. Errc::bad_argument (not planned), Errc::bad_shape
  /// (more bytes than planned), Errc::io.
  [[nodiscard]] Status write(std::string_view name, std::span<const std::byte> bytes) {
    return tensors_.write(file_, data_start_, name, bytes);
  }
  template <class T>
  [[nodiscard]] Status write(std::string_view name, std::span<const T> values) {
    return write(name, std::as_bytes(values));
  }

  /// The plan of tensor `name`, or nullptr.
  [[nodiscard]] const GgufTensorPlan* planned(std::string_view name) const noexcept { return tensors_.planned(name); }

  /// Bytes of the complete file.
  [[nodiscard]] std::size_t file_size() const noexcept { return data_start_ + tensors_.data_size(); }

  /// Puts the file in its place. Errc::bad_argument naming a tensor that is not complete, Errc::io.
  [[nodiscard]] Status commit() {
    if (const Status complete = tensors_.check_complete(); !complete) return complete;
    for (const auto& slot : tensors_.slots()) {
      const std::string padding(padded(slot.size) - slot.size, '\0');
      const auto zeros = std::as_bytes(std::span(padding.data(), padding.size()));
      if (const Status ok = file_.write_at(data_start_ + slot.offset + slot.size, zeros); !ok) return ok;
    }
    return file_.commit();
  }

 private:
  [[nodiscard]] std::size_t padded(std::size_t size) const noexcept {
    return (size + alignment_ - 1) / alignment_ * alignment_;
  }

  Status place(std::span<const GgufTensorPlan> tensors) {
    tensors_.reserve(tensors.size());
    for (const GgufTensorPlan& tensor : tensors) {
      if (tensor.name.empty() || tensor.name.size() > 63) {
        return Error{Errc::bad_argument, "a tensor's name has 1 to 63 bytes", tensor.name, tensor.name.size(), "63"};
      }
      if (tensor.shape.rank > 4) {
        return Error{Errc::bad_shape, "the tensor has too many dimensions", tensor.name, tensor.shape.rank,
                     "at most 4"};
      }
      const Result<std::size_t> size = gguf_bytes(tensor.type, tensor.shape);
      if (!size) return in_context(size.error(), tensor.name);
      if (const Status added = tensors_.add(tensor, *size, alignment_); !added) return added;
    }
    return tensors_.sort_names();
  }

  [[nodiscard]] std::string header(const GgufKeys& keys) const {
    std::string bytes = "GGUF";
    const auto add = [&bytes](auto number) { bytes.append(reinterpret_cast<const char*>(&number), sizeof number); };
    add(std::uint32_t{3});
    add(std::uint64_t{tensors_.slots().size()});
    add(std::uint64_t{keys.size()});
    bytes += keys.bytes();
    for (const auto& slot : tensors_.slots()) {
      const TensorShape& shape = slot.plan.shape;
      add(std::uint64_t{slot.plan.name.size()});
      bytes += slot.plan.name;
      add(static_cast<std::uint32_t>(shape.rank));
      for (std::size_t i = shape.rank; i-- > 0;) add(std::uint64_t{shape.sizes[i]});
      add(static_cast<std::uint32_t>(slot.plan.type));
      add(std::uint64_t{slot.offset});
    }
    bytes.append(padded(bytes.size()) - bytes.size(), '\0');
    return bytes;
  }

  AtomicFile file_;
  io_detail::PlannedTensors<GgufTensorPlan> tensors_;
  std::size_t alignment_ = 32;
  std::size_t data_start_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
