// SPDX-License-Identifier: Apache-2.0
#pragma once

// SafetensorsWriter: writes a safetensors file tensor by tensor, atomically and without ever holding it in memory.
//
// Names, types and shapes are planned first; that fixes the header and every offset, so tensors may then be written in
// any order and in pieces. In the file they are sorted by falling element size, which keeps each aligned to its type as
// PyTorch wants it (the format allows no padding between tensors); the header is padded so that the data starts at a
// multiple of 64.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/atomic_file.hpp>
#include <cbq/io/json.hpp>
#include <cbq/io/planned_tensors.hpp>
#include <cbq/io/tensor.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// A tensor that will be written.
struct TensorPlan {
  std::string name;
  Dtype dtype = Dtype::f32;
  TensorShape shape;
};

class SafetensorsWriter {
 public:
  using Metadata = std::vector<std::pair<std::string, std::string>>;

  /// Starts `path` and writes its header. `format: pt` is always part of the metadata, as Transformers expects it.
  /// Errc::bad_argument (a name twice, or "__metadata__"), Errc::bad_shape, Errc::io, Errc::out_of_memory.
  [[nodiscard]] static Result<SafetensorsWriter> create(const std::string& path, std::span<const TensorPlan> plan,
                                                        const Metadata& metadata = {}) {
    return bad_alloc_as_error(path, [&] { return start(path, plan, metadata); });
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
  [[nodiscard]] const TensorPlan* planned(std::string_view name) const noexcept { return tensors_.planned(name); }

  /// Bytes of the complete file.
  [[nodiscard]] std::size_t file_size() const noexcept { return data_start_ + tensors_.data_size(); }

  /// Puts the file in its place. Errc::bad_argument naming a tensor that is not complete, Errc::io.
  [[nodiscard]] Status commit() {
    if (const Status complete = tensors_.check_complete(); !complete) return complete;
    return file_.commit();
  }

 private:
  static constexpr std::string_view metadata_key = "__metadata__";

  static Result<SafetensorsWriter> start(const std::string& path, std::span<const TensorPlan> plan,
                                         const Metadata& metadata) {
    SafetensorsWriter writer;
    if (const Status placed = writer.place(plan); !placed) return placed.error();
    std::string text = writer.header_text(metadata);
    text.append((64 - (8 + text.size()) % 64) % 64, ' ');
    writer.data_start_ = 8 + text.size();
    Result<AtomicFile> file = AtomicFile::create(path);
    if (!file) return file.error();
    writer.file_ = std::move(*file);
    const std::uint64_t length = text.size();
    if (const Status ok = writer.file_.write(std::as_bytes(std::span(&length, 1))); !ok) return ok.error();
    if (const Status ok = writer.file_.write(text); !ok) return ok.error();
    return writer;
  }

  static std::string quoted(const std::string& text) {
    return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  static std::string metadata_text(const Metadata& metadata) {
    std::map<std::string, std::string> values = {{"format", "pt"}};
    for (const auto& [key, value] : metadata) values[key] = value;
    std::string text;
    for (const auto& [key, value] : values) {
      text.append(text.empty() ? "{" : ",").append(quoted(key)).append(":").append(quoted(value));
    }
    return text + "}";
  }

  // Written out: a tree of values would be larger than its text, and needs memory to be destroyed. Sorted by name.
  [[nodiscard]] std::string header_text(const Metadata& metadata) const {
    std::string text = "{";
    const auto add_metadata = [&] {
      text.append(text.size() == 1 ? "" : ",").append(quoted(std::string(metadata_key))).append(":");
      text += metadata_text(metadata);
    };
    bool described = false;
    for (const std::size_t i : tensors_.by_name()) {
      const auto& slot = tensors_.slots()[i];
      if (!described && slot.plan.name > metadata_key) {
        add_metadata();
        described = true;
      }
      text.append(text.size() == 1 ? "" : ",").append(quoted(slot.plan.name)).append(":{\"data_offsets\":[");
      text.append(std::to_string(slot.offset)).append(",").append(std::to_string(slot.offset + slot.size));
      text.append("],\"dtype\":\"").append(dtype_name(slot.plan.dtype)).append("\",\"shape\":[");
      for (std::size_t d = 0; d < slot.plan.shape.rank; ++d) {
        text.append(d == 0 ? "" : ",").append(std::to_string(slot.plan.shape.sizes[d]));
      }
      text += "]}";
    }
    if (!described) add_metadata();
    return text + "}";
  }

  Status place(std::span<const TensorPlan> plan) {
    std::vector<const TensorPlan*> order;
    order.reserve(plan.size());
    for (const TensorPlan& tensor : plan) {
      if (tensor.name == metadata_key) return Error{Errc::bad_argument, "a tensor name is taken", tensor.name};
      order.push_back(&tensor);
    }
    std::stable_sort(order.begin(), order.end(), [](const TensorPlan* a, const TensorPlan* b) {
      return dtype_bits(a->dtype) > dtype_bits(b->dtype);
    });
    tensors_.reserve(order.size());
    for (const TensorPlan* tensor : order) {
      const Result<std::size_t> size = byte_count(tensor->shape, tensor->dtype);
      if (!size) return in_context(size.error(), tensor->name);
      if (const Status added = tensors_.add(*tensor, *size); !added) return added;
    }
    return tensors_.sort_names();
  }

  AtomicFile file_;
  io_detail::PlannedTensors<TensorPlan> tensors_;
  std::size_t data_start_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
