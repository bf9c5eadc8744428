// SPDX-License-Identifier: Apache-2.0

#include "rotation.hpp"

#include <cstring>
#include <list>
#include <random>
#include <utility>
#include <vector>

#include "machine.hpp"

namespace bench {

cbq::Result<std::shared_ptr<Rotation>> Rotation::make(const Shape& shape,
                                                      const std::function<cbq::Status(std::byte*)>& fill) {
  constexpr std::size_t line = 64;
  auto rotation = std::make_shared<Rotation>();
  rotation->stride_ = (shape.copy_bytes + line - 1) / line * line;
  rotation->copies_ = rotation_bytes() / rotation->stride_ + 1;
  auto memory = cbq::AlignedBuffer<std::byte>::allocate(rotation->copies_ * rotation->stride_);
  if (!memory) return memory.error();
  rotation->memory_ = std::move(*memory);
  std::byte* first = rotation->memory_.data();
  if (const cbq::Status filled = fill(first); !filled) return filled.error();
  for (std::size_t c = 1; c < rotation->copies_; ++c) {
    const std::size_t cut = c * shape.piece_bytes % shape.copy_bytes;
    std::byte* copy = first + c * rotation->stride_;
    std::memcpy(copy, first + cut, shape.copy_bytes - cut);
    std::memcpy(copy + shape.copy_bytes - cut, first, cut);
  }
  return rotation;
}

cbq::Result<std::shared_ptr<void>> cached(
    const std::string& key, const std::function<cbq::Result<std::shared_ptr<void>>(std::size_t& bytes)>& make) {
  struct Entry {
    std::string key;
    std::shared_ptr<void> object;
    std::size_t bytes = 0;
  };
  constexpr std::size_t budget = std::size_t{3} << 30;
  static std::list<Entry> entries;  // the most recently used first
  for (auto entry = entries.begin(); entry != entries.end(); ++entry) {
    if (entry->key == key) {
      entries.splice(entries.begin(), entries, entry);
      return entry->object;
    }
  }
  // Room first: the new object is of about the size of the others.
  std::size_t total = rotation_bytes();
  for (const Entry& entry : entries) total += entry.bytes;
  while (total > budget && !entries.empty()) {
    total -= entries.back().bytes;
    entries.pop_back();
  }
  std::size_t bytes = 0;
  const cbq::Result<std::shared_ptr<void>> object = make(bytes);
  if (!object) return object.error();
  entries.push_front({key, *object, bytes});
  return *object;
}

const float* normal_floats(std::size_t count) {
  static std::vector<float> values;
  static std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  while (values.size() < count) values.push_back(normal(generator));
  return values.data();
}

}  // namespace bench
