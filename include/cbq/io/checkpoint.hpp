// SPDX-License-Identifier: Apache-2.0
#pragma once

// Checkpoint: the tensors of a Hugging Face folder, whether they lie in one safetensors file or in shards.
//
// Looks for model.safetensors, then for model.safetensors.index.json, whose `weight_map` names the shard of each
// tensor. Index and shards must agree: a tensor that only one of them knows, or that two shards hold, is an error.

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <sys/stat.h>

#include <cbq/io/safetensors.hpp>

namespace cbq {

/// What the reader refuses to hold.
struct CheckpointLimits {
  std::size_t shards = 4096;
  std::size_t tensors = 4'000'000;           ///< of all shards
  std::size_t bytes = std::size_t{1} << 44;  ///< of all shards
  JsonLimits index = {};
  SafetensorsLimits shard = {};
};

inline namespace CBQ_ABI {

class Checkpoint {
 public:
  /// Opens a `.safetensors` file, a `.safetensors.index.json`, or a folder that holds one of them. Errc::io,
  /// Errc::bad_file, Errc::bad_shape, Errc::unsupported, Errc::out_of_memory.
  [[nodiscard]] static Result<Checkpoint> open(const std::string& path, FileMode mode = FileMode::map,
                                               const CheckpointLimits& limits = {}) {
    return bad_alloc_as_error(path, [&] { return open_any(path, mode, limits); });
  }

  Checkpoint(Checkpoint&&) noexcept = default;
  Checkpoint& operator=(Checkpoint&&) noexcept = default;
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;
  ~Checkpoint() = default;

  /// All tensors, sorted by name.
  [[nodiscard]] std::span<const TensorView> tensors() const noexcept { return tensors_; }

  /// The tensor of that name, or nullptr.
  [[nodiscard]] const TensorView* find(std::string_view name) const noexcept {
    const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const TensorView& tensor, std::string_view key) { return tensor.name < key; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }

  /// The tensor of that name; Errc::bad_file when there is none.
  [[nodiscard]] Result<TensorView> tensor(std::string_view name) const noexcept {
    const TensorView* found = find(name);
    if (found == nullptr) return Error{Errc::bad_file, "the checkpoint has no such tensor", name};
    return *found;
  }

  /// Lets go of the memory that holds `tensor`, one of this checkpoint's; see FileBytes::release().
  void release(const TensorView& tensor) const noexcept {
    for (const Shard& shard : shards_) shard.file.release(tensor.bytes);
  }

  /// FileBytes::check_unchanged() of all its safetensors files.
  [[nodiscard]] Status check_unchanged() const noexcept {
    for (const Shard& shard : shards_) {
      if (const Status same = shard.file.check_unchanged(shard.path); !same) return same;
    }
    return {};
  }

  /// Bytes of all its safetensors files.
  [[nodiscard]] std::size_t file_bytes() const noexcept {
    std::size_t sum = 0;
    for (const Shard& shard : shards_) sum += shard.file.bytes().size();
    return sum;
  }

 private:
  struct Shard {
    std::string path;
    FileBytes file;
    Safetensors content;
  };

  Checkpoint(FileMode mode, const CheckpointLimits& limits) noexcept : mode_(mode), limits_(limits) {}

  static Result<Checkpoint> open_any(const std::string& path, FileMode mode, const CheckpointLimits& limits) {
    Checkpoint checkpoint(mode, limits);
    struct stat status = {};
    if (::stat(path.c_str(), &status) != 0) return system_error("cannot open the checkpoint", path, errno);
    if (!S_ISDIR(status.st_mode)) {
      const Status ok = path.ends_with(".json") ? checkpoint.open_index(path) : checkpoint.open_shard(path);
      return ok ? Result<Checkpoint>(std::move(checkpoint)) : ok.error();
    }
    for (const char* name : {"/model.safetensors", "/model.safetensors.index.json"}) {
      const std::string file = path + name;
      if (::stat(file.c_str(), &status) == 0) return open_any(file, mode, limits);
      if (errno != ENOENT) return system_error("cannot open the checkpoint", file, errno);
    }
    return Error{Errc::io, "the folder holds no checkpoint", path, "",
                 "model.safetensors or model.safetensors.index.json"};
  }

  Status open_shard(const std::string& path) {
    const std::size_t before = file_bytes();
    const std::size_t left = limits_.bytes - std::min(limits_.bytes, before);
    Result<FileBytes> file = FileBytes::open(path, mode_, std::min(limits_.shard.bytes, left));
    if (!file) return file.error();
    Result<Safetensors> content = Safetensors::parse(file->bytes(), limits_.shard);
    if (!content) return in_context(content.error(), path);
    if (content->tensors().size() > limits_.tensors - std::min(limits_.tensors, tensors_.size())) {
      return Error{Errc::bad_file, "too many tensors in all shards", path, tensors_.size() + content->tensors().size(),
                   ErrorText("at most ") << limits_.tensors};
    }
    tensors_.insert(tensors_.end(), content->tensors().begin(), content->tensors().end());
    shards_.push_back({path, std::move(*file), std::move(*content)});
    return {};
  }

  Status open_index(const std::string& path) {
    Result<Json> index = read_json_file(path, limits_.index);
    if (!index) return index.error();
    const io_detail::JsonRelease release(*index);
    const Json* map = json_find(std::as_const(*index), "weight_map");
    if (map == nullptr || !map->is_object()) {
      return Error{Errc::bad_file, "the index has no weight_map object", path,
                   map == nullptr ? "no weight_map" : map->type_name(), "an object"};
    }
    std::vector<std::string> names;
    for (const auto& [tensor, file] : map->items()) {
      const Result<std::string_view> name = json_string(*map, tensor);
      if (!name) return in_context(name.error(), path);
      // The name comes from an untrusted file: it must stay in this folder.
      if (name->empty() || name->find('/') != std::string_view::npos || name->find('\0') != std::string_view::npos ||
          !name->ends_with(".safetensors")) {
        return Error{Errc::bad_file, "the index names a file that is no shard of this folder",
                     ErrorText(path) << ": " << tensor, *name, "*.safetensors"};
      }
      names.emplace_back(*name);
    }
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    if (names.size() > limits_.shards) {
      return Error{Errc::bad_file, "too many shards", path, names.size(), ErrorText("at most ") << limits_.shards};
    }
    const std::string folder = path.substr(0, path.rfind('/') + 1);  // npos + 1 is 0
    for (const std::string& name : names) {
      const std::size_t before = tensors_.size();
      if (const Status opened = open_shard(folder + name); !opened) return opened;
      for (std::size_t i = before; i < tensors_.size(); ++i) {
        const Json* listed = json_find(*map, std::string(tensors_[i].name));
        if (listed == nullptr || *listed != name) {
          const std::string* other = listed == nullptr ? nullptr : listed->get_ptr<const std::string*>();
          return Error{Errc::bad_file, "a shard holds a tensor that the index places elsewhere",
                       ErrorText(path) << ": " << tensors_[i].name, name,
                       other == nullptr ? std::string_view("not in the index") : std::string_view(*other)};
        }
      }
    }
    std::sort(tensors_.begin(), tensors_.end(),
              [](const TensorView& a, const TensorView& b) { return a.name < b.name; });
    return check_complete(*map, path);
  }

  Status check_complete(const Json& map, std::string_view path) const {
    for (const auto& [tensor, file] : map.items()) {
      if (find(tensor) == nullptr) {
        const std::string* shard = file.template get_ptr<const std::string*>();
        return Error{Errc::bad_file, "a shard lacks a tensor that the index promises",
                     ErrorText(path) << ": " << tensor, "no such tensor",
                     shard == nullptr ? std::string_view() : std::string_view(*shard)};
      }
    }
    return {};
  }

  FileMode mode_ = FileMode::map;
  CheckpointLimits limits_;
  std::vector<Shard> shards_;
  std::vector<TensorView> tensors_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
