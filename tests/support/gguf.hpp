// SPDX-License-Identifier: Apache-2.0
#pragma once

// Builds GGUF files by hand, right or wrong.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include <cbq/io/gguf.hpp>

#include "support/files.hpp"

namespace support {

struct GgufBuilder {
  std::uint32_t version = 3;
  std::uint64_t keys = 0;
  std::uint64_t tensors = 0;
  std::size_t alignment = 32;
  ByteBuilder metadata;
  ByteBuilder infos;
  ByteBuilder data;

  /// Starts a key; the caller appends the value.
  ByteBuilder& key(std::string_view name, cbq::GgufKind kind) {
    ++keys;
    return metadata.counted(name).add(static_cast<std::uint32_t>(kind));
  }
  ByteBuilder& array(std::string_view name, cbq::GgufKind element, std::uint64_t count) {
    return key(name, cbq::GgufKind::array).add(static_cast<std::uint32_t>(element)).add(count);
  }
  /// A tensor with its sizes innermost first and its bytes, which are padded.
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& sizes, cbq::GgufType type,
                      std::span<const std::byte> bytes) {
    info(name, sizes, static_cast<std::uint32_t>(type), data.bytes().size());
    for (const std::byte b : bytes) data.add(b);
    data.align(alignment);
    return *this;
  }
  GgufBuilder& info(std::string_view name, const std::vector<std::uint64_t>& sizes, std::uint32_t type,
                    std::uint64_t offset) {
    ++tensors;
    infos.counted(name).add(static_cast<std::uint32_t>(sizes.size()));
    for (const std::uint64_t size : sizes) infos.add(size);
    infos.add(type).add(offset);
    return *this;
  }
  [[nodiscard]] std::vector<std::byte> bytes() const {
    ByteBuilder file;
    file.text("GGUF").add(version).add(tensors).add(keys);
    for (const ByteBuilder* part : {&metadata, &infos}) {
      for (const std::byte b : part->bytes()) file.add(b);
    }
    file.align(alignment);
    for (const std::byte b : data.bytes()) file.add(b);
    return file.bytes();
  }
};

/// A small valid file with a value of each kind and tensors of several types.
inline GgufBuilder small_gguf() {
  using cbq::GgufKind;
  GgufBuilder file;
  file.key("a.u8", GgufKind::u8).add(std::uint8_t{200});
  file.key("a.i8", GgufKind::i8).add(std::int8_t{-100});
  file.key("a.u16", GgufKind::u16).add(std::uint16_t{60000});
  file.key("a.i16", GgufKind::i16).add(std::int16_t{-30000});
  file.key("a.u32", GgufKind::u32).add(std::uint32_t{4000000000u});
  file.key("a.i32", GgufKind::i32).add(std::int32_t{-2000000000});
  file.key("a.u64", GgufKind::u64).add(~std::uint64_t{0});
  file.key("a.i64", GgufKind::i64).add(std::int64_t{-3});
  file.key("a.f32", GgufKind::f32).add(1.5f);
  file.key("a.f64", GgufKind::f64).add(2.25);
  file.key("a.bool", GgufKind::boolean).add(std::uint8_t{1});
  file.key("general.architecture", GgufKind::text).counted("llama");
  file.array("list.text", GgufKind::text, 3).counted("x").counted("").counted("yz");
  file.array("list.i32", GgufKind::i32, 2).add(std::int32_t{-1}).add(std::int32_t{7});
  file.array("list.f32", GgufKind::f32, 2).add(0.5f).add(-2.0f);
  file.array("list.empty", GgufKind::u64, 0);
  ByteBuilder floats;
  for (int i = 0; i < 6; ++i) floats.add(static_cast<float>(i));
  file.tensor("w.f32", {3, 2}, cbq::GgufType::f32, floats.bytes());
  std::vector<std::byte> blocks(4 * 34);
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<std::byte>(i % 34 == 1 ? 0x30 : i * 5 % 256);
  file.tensor("w.q8_0", {64, 2}, cbq::GgufType::q8_0, blocks);
  file.tensor("empty", {32, 0}, cbq::GgufType::q4_0, {});
  file.tensor("norm", {6}, cbq::GgufType::f32, floats.bytes());
  return file;
}

}  // namespace support
