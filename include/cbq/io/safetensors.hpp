// SPDX-License-Identifier: Apache-2.0
#pragma once

// Safetensors: reads the container of Hugging Face checkpoints from bytes in memory or in a mapped file, without
// copying.
//
//   u64 n (little-endian) | n bytes of JSON, may end in blanks | data
//   JSON: { "name": { "dtype": "F16", "shape": [N, K], "data_offsets": [begin, end) }, ..., "__metadata__": { text:
//   text } }
//
// Accepted is what the format's reference reader accepts: offsets that tile the data area without holes or overlaps and
// end with the file, sizes that equal shape x type in exact arithmetic. Beyond it, the same name twice is an error.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/json.hpp>
#include <cbq/io/tensor.hpp>

namespace cbq {

/// What the reader refuses to hold.
struct SafetensorsLimits {
  std::size_t header_bytes = 100'000'000;  ///< the reference reader's limit
  std::size_t tensors = 1'000'000;
  std::size_t text_bytes = std::size_t{1} << 20;  ///< of a name and of a text of the metadata
  std::size_t dims = TensorShape::max_rank;       ///< at most that
  std::size_t bytes = std::size_t{1} << 40;       ///< of the file
};

inline namespace CBQ_ABI {

class Safetensors {
 public:
  /// The tensors of a whole file in memory; `bytes` must outlive this object. Errc::bad_file, Errc::bad_shape or
  /// Errc::unsupported, with tensor and byte offset; Errc::out_of_memory.
  [[nodiscard]] static Result<Safetensors> parse(std::span<const std::byte> bytes,
                                                 const SafetensorsLimits& limits = {}) {
    return bad_alloc_as_error("header", [&] { return parse_header(bytes, limits); });
  }

  Safetensors(Safetensors&&) noexcept = default;
  Safetensors& operator=(Safetensors&&) noexcept = default;
  Safetensors(const Safetensors&) = delete;
  Safetensors& operator=(const Safetensors&) = delete;
  ~Safetensors() = default;

  /// All tensors, sorted by name.
  [[nodiscard]] std::span<const TensorView> tensors() const noexcept { return tensors_; }

  /// The tensor of that name, or nullptr.
  [[nodiscard]] const TensorView* find(std::string_view name) const noexcept {
    const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const TensorView& tensor, std::string_view key) { return tensor.name < key; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }

  /// The text pairs of `__metadata__`, sorted by key.
  [[nodiscard]] std::span<const std::pair<std::string, std::string>> metadata() const noexcept { return metadata_; }

 private:
  static Result<Safetensors> parse_header(std::span<const std::byte> bytes, const SafetensorsLimits& limits) {
    if (bytes.size() > limits.bytes) {
      return Error{Errc::bad_file, "the file is larger than allowed", "byte 0", ErrorText(bytes.size()) << " bytes",
                   ErrorText("at most ") << limits.bytes};
    }
    if (bytes.size() < 8) {
      return Error{Errc::bad_file, "too short for a safetensors file", "byte 0", ErrorText(bytes.size()) << " bytes",
                   "at least 8"};
    }
    const auto header = load_unaligned<std::uint64_t>(bytes.data());
    if (header > limits.header_bytes) {
      return Error{Errc::bad_file, "the header is too long", "byte 0", header,
                   ErrorText("at most ") << limits.header_bytes};
    }
    if (header > bytes.size() - 8) {
      return Error{Errc::bad_file, "the header does not fit in the file", "byte 0", header,
                   ErrorText("at most ") << bytes.size() - 8};
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header);
    if (!text.starts_with('{')) {
      return Error{Errc::bad_file, "the header does not start with '{'", "byte 8", text.substr(0, 1), "{"};
    }
    // An entry of 8 dimensions is 14 values; names in keys are none.
    const Result<std::size_t> values = checked_product(limits.tensors, std::size_t{16});
    Result<Json> json = parse_json(text, {.bytes = limits.header_bytes,
                                          .values = values ? *values : ~std::size_t{0},
                                          .depth = 3,
                                          .text_bytes = limits.text_bytes});
    if (!json) return in_context(json.error(), "header");
    const io_detail::JsonRelease release(*json);
    Safetensors file;
    const Status read = file.read_entries(*json, text, bytes.subspan(8 + header), limits);
    if (!read) return read.error();
    if (const Status tiled = file.check_tiling(bytes.size() - 8 - header); !tiled) return tiled.error();
    return file;
  }

  Safetensors() = default;

  Status read_entries(const Json& json, std::string_view header, std::span<const std::byte> data,
                      const SafetensorsLimits& limits) {
    if (json.size() > limits.tensors) {
      return Error{Errc::bad_file, "too many tensors", "header", json.size(), ErrorText("at most ") << limits.tensors};
    }
    names_.reserve(json.size());  // views of the names must stay valid
    tensors_.reserve(json.size());
    for (const auto& [name, entry] : json.items()) {  // nlohmann::json keeps keys sorted
      const Status read = name == "__metadata__" ? read_metadata(entry) : read_tensor(name, entry, data, limits);
      if (!read) return in_context(read.error(), (place_of(name, header) << ", " << name).c_str());
    }
    return {};
  }

  // Where the entry `name` begins; names that JSON spells with escapes are not found.
  static ErrorText place_of(const std::string& name, std::string_view header) {
    const std::size_t at = header.find("\"" + name + "\"");
    return ErrorText("byte ") << 8 + (at == std::string_view::npos ? 0 : at);
  }

  Status read_metadata(const Json& entry) {
    if (!entry.is_object()) return Error{Errc::bad_file, "the metadata is no object", "", entry.type_name(), "object"};
    for (const auto& [key, value] : entry.items()) {
      const Result<std::string_view> text = json_string(entry, key);
      if (!text) return text.error();
      metadata_.emplace_back(key, *text);
    }
    return {};
  }

  Status read_tensor(const std::string& name, const Json& entry, std::span<const std::byte> data,
                     const SafetensorsLimits& limits) {
    if (!entry.is_object()) {
      return Error{Errc::bad_file, "a tensor's entry is no object", "", entry.type_name(), "object"};
    }
    for (const auto& [key, value] : entry.items()) {
      if (key != "dtype" && key != "shape" && key != "data_offsets") {
        return Error{Errc::bad_file, "an unknown key in a tensor's entry", "", key, "dtype, shape, data_offsets"};
      }
    }
    const Result<std::string_view> type_name = json_string(entry, "dtype");
    if (!type_name) return type_name.error();
    const Result<Dtype> dtype = parse_dtype(*type_name);
    if (!dtype) return dtype.error();
    TensorView tensor{.name = {}, .dtype = *dtype, .shape = {}, .bytes = {}, .offset = 0};
    if (const Status shaped = read_shape(entry, tensor.shape, limits.dims); !shaped) return shaped;
    std::size_t range[2] = {};
    if (const Status read = read_numbers(entry, "data_offsets", range); !read) return read;
    if (range[0] > range[1] || range[1] > data.size()) {
      return Error{Errc::bad_file, "the tensor's bytes are outside the data area", ErrorText("data byte ") << range[0],
                   ErrorText("[") << range[0] << ", " << range[1] << ")",
                   ErrorText("within [0, ") << data.size() << ")"};
    }
    const Result<std::size_t> size = byte_count(tensor.shape, tensor.dtype);
    if (!size) return size.error();
    if (*size != range[1] - range[0]) {
      return Error{
          Errc::bad_file, "the tensor's size does not equal shape x type", ErrorText("data byte ") << range[0],
          ErrorText(range[1] - range[0]) << " bytes",
          ErrorText(*size) << " bytes for " << dtype_name(tensor.dtype) << " " << shape_text(tensor.shape).c_str()};
    }
    tensor.name = names_.emplace_back(name);
    tensor.bytes = data.subspan(range[0], *size);
    tensor.offset = range[0];
    tensors_.push_back(tensor);
    return {};
  }

  static Status read_shape(const Json& entry, TensorShape& shape, std::size_t limit) {
    const std::size_t most = std::min(limit, TensorShape::max_rank);
    const Json* sizes = json_find(entry, "shape");
    if (sizes != nullptr && sizes->is_array() && sizes->size() > most) {
      return Error{Errc::unsupported, "the tensor has too many dimensions", "shape", sizes->size(),
                   ErrorText("at most ") << most};
    }
    shape.rank = sizes != nullptr && sizes->is_array() ? sizes->size() : 0;
    return read_numbers(entry, "shape", std::span(shape.sizes).first(shape.rank));
  }

  // The array `key`, which must hold exactly out.size() non-negative integers.
  static Status read_numbers(const Json& entry, const char* key, std::span<std::size_t> out) {
    const Json* list = json_find(entry, key);
    if (list == nullptr) return Error{Errc::bad_file, "a JSON key is missing", key, "none", key};
    if (!list->is_array() || list->size() != out.size()) {
      return Error{Errc::bad_file, "a JSON value has the wrong type", key, list->type_name(),
                   ErrorText("an array of ") << out.size() << " integers"};
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      const Json& value = (*list)[i];
      if (!value.is_number_unsigned()) {
        return Error{Errc::bad_file, "a JSON value has the wrong type", key, value.type_name(),
                     "integers from 0 to 2^64-1"};
      }
      out[i] = *value.get_ptr<const Json::number_unsigned_t*>();
    }
    return {};
  }

  Status check_tiling(std::size_t data_size) const {
    std::vector<const TensorView*> order;
    order.reserve(tensors_.size());
    for (const TensorView& tensor : tensors_) order.push_back(&tensor);
    std::sort(order.begin(), order.end(), [](const TensorView* a, const TensorView* b) {
      return a->offset != b->offset ? a->offset < b->offset : a->bytes.size() < b->bytes.size();
    });
    std::size_t end = 0;
    for (const TensorView* tensor : order) {
      if (tensor->offset != end) {
        return Error{Errc::bad_file, tensor->offset < end ? "tensors overlap" : "a hole before a tensor", tensor->name,
                     ErrorText("data byte ") << tensor->offset, ErrorText("data byte ") << end};
      }
      end += tensor->bytes.size();
    }
    if (end != data_size) {
      return Error{Errc::bad_file, "the data area does not end with the last tensor", ErrorText("data byte ") << end,
                   ErrorText(data_size) << " bytes", ErrorText(end) << " bytes"};
    }
    return {};
  }

  std::vector<std::string> names_;
  std::vector<TensorView> tensors_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
