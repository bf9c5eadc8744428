// SPDX-License-Identifier: Apache-2.0
#pragma once

// ShardedWriter: the tensors of a Hugging Face folder, streamed into model.safetensors or, where they are to lie in
// files of limited size, into model-00001-of-0000M.safetensors with model.safetensors.index.json beside them.
//
// As SafetensorsWriter: everything is planned first, then tensors are written in any order and in pieces. Tensors fill
// the shards in the order of the plan; one that is larger than a shard has a shard of its own. Files appear on
// commit(); in an AtomicFolder all of them at once.

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/bad_alloc.hpp>
#include <cbq/io/atomic_file.hpp>
#include <cbq/io/json.hpp>
#include <cbq/io/safetensors_writer.hpp>

namespace cbq {
inline namespace CBQ_ABI {

class ShardedWriter {
 public:
  /// Starts the files in `folder`, which exists. `shard_bytes` limits the tensors of a file; 0: no limit. Errc::io,
  /// Errc::bad_argument (a name twice, more than 4096 shards), Errc::bad_shape, Errc::out_of_memory.
  [[nodiscard]] static Result<ShardedWriter> create(const std::string& folder, std::span<const TensorPlan> plan,
                                                    std::size_t shard_bytes = 0) {
    return bad_alloc_as_error(folder, [&] { return start(folder, plan, shard_bytes); });
  }

  /// The next bytes of tensor `name`; errors as SafetensorsWriter::write().
  [[nodiscard]] Status write(std::string_view name, std::span<const std::byte> bytes) {
    const Place* place = find(name);
    if (place == nullptr) return Error{Errc::bad_argument, "the tensor was not planned", name};
    return files_[place->second].write(name, bytes);
  }
  template <class T>
  [[nodiscard]] Status write(std::string_view name, std::span<const T> values) {
    return write(name, std::as_bytes(values));
  }

  /// The plan of tensor `name`, or nullptr.
  [[nodiscard]] const TensorPlan* planned(std::string_view name) const noexcept {
    const Place* place = find(name);
    return place == nullptr ? nullptr : files_[place->second].planned(name);
  }

  /// Bytes of all complete files, without the index.
  [[nodiscard]] std::size_t file_bytes() const noexcept { return file_bytes_; }
  [[nodiscard]] std::size_t shards() const noexcept { return files_.size(); }

  /// Puts the files in their places, and the index where there is more than one. Errors as SafetensorsWriter::commit().
  [[nodiscard]] Status commit() {
    for (SafetensorsWriter& file : files_) {
      if (const Status done = file.commit(); !done) return done;
    }
    if (files_.size() == 1) return {};
    return bad_alloc_as_error(folder_, [&] { return write_index(); });
  }

 private:
  using Place = std::pair<std::string, std::size_t>;  // a tensor and its shard
  static constexpr std::size_t max_shards = 4096;     // of Checkpoint

  static Result<ShardedWriter> start(const std::string& folder, std::span<const TensorPlan> plan,
                                     std::size_t shard_bytes) {
    ShardedWriter writer;
    writer.folder_ = folder;
    if (const Status placed = writer.place(plan, shard_bytes); !placed) return placed.error();
    std::vector<TensorPlan> shard;
    for (std::size_t i = 0, first = 0; i < writer.counts_.size(); first += writer.counts_[i++]) {
      shard.assign(plan.begin() + static_cast<std::ptrdiff_t>(first),
                   plan.begin() + static_cast<std::ptrdiff_t>(first + writer.counts_[i]));
      Result<SafetensorsWriter> file = SafetensorsWriter::create(folder + "/" + writer.file_name(i), shard);
      if (!file) return file.error();
      writer.file_bytes_ += file->file_size();
      writer.files_.push_back(*std::move(file));
    }
    return writer;
  }

  Status write_index() {
    Json map = Json::object();
    for (const Place& place : places_) map[place.first] = file_name(place.second);
    const Json index = {{"metadata", {{"total_size", tensor_bytes_}}}, {"weight_map", std::move(map)}};
    return write_file(folder_ + "/model.safetensors.index.json", json_text(index));
  }

  Status place(std::span<const TensorPlan> plan, std::size_t shard_bytes) {
    std::size_t filled = 0;
    counts_.push_back(0);
    for (const TensorPlan& tensor : plan) {
      const Result<std::size_t> size = byte_count(tensor.shape, tensor.dtype);
      if (!size) return in_context(size.error(), tensor.name);
      const Result<std::size_t> total = checked_sum(tensor_bytes_, *size);
      if (!total) return in_context(total.error(), tensor.name);
      tensor_bytes_ = *total;
      if (shard_bytes != 0 && counts_.back() != 0 && *size > shard_bytes - std::min(filled, shard_bytes)) {
        counts_.push_back(0);
        filled = 0;
      }
      ++counts_.back();
      filled += *size;
      places_.emplace_back(tensor.name, counts_.size() - 1);
    }
    if (counts_.size() > max_shards) {
      return Error{Errc::bad_argument, "too many shards", folder_, counts_.size(), ErrorText("at most ") << max_shards};
    }
    std::sort(places_.begin(), places_.end());
    for (std::size_t i = 1; i < places_.size(); ++i) {
      if (places_[i].first != places_[i - 1].first) continue;
      return Error{Errc::bad_argument, "a tensor name is taken", places_[i].first};
    }
    return {};
  }

  [[nodiscard]] std::string file_name(std::size_t shard) const {
    if (counts_.size() == 1) return "model.safetensors";
    char name[64] = {};
    (void)std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", shard + 1, counts_.size());
    return name;
  }

  [[nodiscard]] const Place* find(std::string_view name) const noexcept {
    const auto at = std::lower_bound(places_.begin(), places_.end(), name,
                                     [](const Place& place, std::string_view key) { return place.first < key; });
    return at != places_.end() && at->first == name ? &*at : nullptr;
  }

  std::string folder_;
  std::vector<std::size_t> counts_;  // tensors of each shard
  std::vector<Place> places_;        // sorted
  std::vector<SafetensorsWriter> files_;
  std::size_t tensor_bytes_ = 0;
  std::size_t file_bytes_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
