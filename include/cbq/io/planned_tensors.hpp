// SPDX-License-Identifier: Apache-2.0
#pragma once

// PlannedTensors: where the tensors of a file that is being written lie, and how much of each is there already.
//
// SafetensorsWriter and GgufWriter add their plans in the order of the file; what is written then goes to its place
// whatever the order of the calls.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <cbq/core/checked.hpp>
#include <cbq/io/atomic_file.hpp>

namespace cbq::io_detail {
inline namespace CBQ_ABI {

/// `Plan` has the tensor's `name`.
template <class Plan>
class PlannedTensors {
 public:
  struct Slot {
    Plan plan;
    std::size_t offset = 0;  ///< from the start of the data
    std::size_t size = 0;
    std::size_t written = 0;
  };

  void reserve(std::size_t tensors) { slots_.reserve(tensors); }

  /// A tensor of `size` bytes that starts where those before it end, and its room: `size` up to a multiple of
  /// `alignment`. Errc::bad_shape where the sum of all is no size.
  [[nodiscard]] Status add(Plan plan, std::size_t size, std::size_t alignment = 1) {
    const Result<std::size_t> padded = checked_sum(size, alignment - 1);
    const Result<std::size_t> end = padded ? checked_sum(data_size_, *padded / alignment * alignment) : padded;
    if (!end) return in_context(end.error(), plan.name);
    slots_.push_back({.plan = std::move(plan), .offset = data_size_, .size = size, .written = 0});
    data_size_ = *end;
    return {};
  }

  /// After the last add(). Errc::bad_argument (a name twice).
  [[nodiscard]] Status sort_names() {
    by_name_.resize(slots_.size());
    for (std::size_t i = 0; i < by_name_.size(); ++i) by_name_[i] = i;
    const auto name = [this](std::size_t i) -> const std::string& { return slots_[i].plan.name; };
    std::sort(by_name_.begin(), by_name_.end(), [&](std::size_t a, std::size_t b) { return name(a) < name(b); });
    for (std::size_t i = 1; i < by_name_.size(); ++i) {
      if (name(by_name_[i]) == name(by_name_[i - 1])) {
        return Error{Errc::bad_argument, "a tensor name is taken", name(by_name_[i])};
      }
    }
    return {};
  }

  /// The next bytes of tensor `name` to their place in a file whose data start at `data_start`. Errc::bad_argument (not
  /// planned), Errc::bad_shape (more bytes than planned), Errc::io.
  [[nodiscard]] Status write(AtomicFile& file, std::size_t data_start, std::string_view name,
                             std::span<const std::byte> bytes) {
    const Slot* found = find(name);
    if (found == nullptr) return Error{Errc::bad_argument, "the tensor was not planned", name};
    Slot& slot = slots_[static_cast<std::size_t>(found - slots_.data())];
    if (bytes.size() > slot.size - slot.written) {
      return Error{Errc::bad_shape, "more bytes than the tensor has", name,
                   ErrorText(slot.written) << " + " << bytes.size(), ErrorText(slot.size) << " bytes"};
    }
    const Status done = file.write_at(data_start + slot.offset + slot.written, bytes);
    if (done) slot.written += bytes.size();
    return done;
  }

  /// Errc::bad_argument naming a tensor that is not complete.
  [[nodiscard]] Status check_complete() const {
    for (const Slot& slot : slots_) {
      if (slot.written != slot.size) {
        return Error{Errc::bad_argument, "a planned tensor is not complete", slot.plan.name,
                     ErrorText(slot.written) << " bytes", ErrorText(slot.size) << " bytes"};
      }
    }
    return {};
  }

  /// The plan of tensor `name`, or nullptr.
  [[nodiscard]] const Plan* planned(std::string_view name) const noexcept {
    const Slot* slot = find(name);
    return slot == nullptr ? nullptr : &slot->plan;
  }

  /// In the order of the file.
  [[nodiscard]] std::span<const Slot> slots() const noexcept { return slots_; }
  /// Indices of slots(), in the order of the names.
  [[nodiscard]] std::span<const std::size_t> by_name() const noexcept { return by_name_; }
  /// Bytes of all tensors with their room.
  [[nodiscard]] std::size_t data_size() const noexcept { return data_size_; }

 private:
  [[nodiscard]] const Slot* find(std::string_view name) const noexcept {
    const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                     [this](std::size_t i, std::string_view key) { return slots_[i].plan.name < key; });
    return at != by_name_.end() && slots_[*at].plan.name == name ? &slots_[*at] : nullptr;
  }

  std::vector<Slot> slots_;
  std::vector<std::size_t> by_name_;
  std::size_t data_size_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq::io_detail
