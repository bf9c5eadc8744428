// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/aligned.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstdint>
#include <cstring>
#include <utility>

TEST_CASE("buffers are aligned, writable to the last element, and empty when asked for nothing") {
  for (const std::size_t size :
       {std::size_t{1}, std::size_t{63}, std::size_t{4096}, std::size_t{1} << 20, (std::size_t{1} << 20) + 1}) {
    CAPTURE(size);
    auto buffer = cbq::AlignedBuffer<float>::allocate(size);
    REQUIRE(buffer);
    REQUIRE(buffer->size() == size);
    const std::size_t alignment = size * sizeof(float) >= (std::size_t{4} << 20) ? std::size_t{2} << 20 : 64;
    CHECK(reinterpret_cast<std::uintptr_t>(buffer->data()) % alignment == 0);
    std::memset(buffer->data(), 1, size * sizeof(float));
    CHECK((*buffer)[size - 1] == (*buffer)[0]);
  }
  const auto empty = cbq::AlignedBuffer<float>::allocate(0);
  REQUIRE(empty);
  CHECK(empty->data() == nullptr);
  CHECK(empty->begin() == empty->end());
}

TEST_CASE("moving hands the memory over") {
  auto first = cbq::AlignedBuffer<int>::allocate(10);
  REQUIRE(first);
  (*first)[9] = 42;
  const int* memory = first->data();
  cbq::AlignedBuffer<int> second = std::move(*first);
  CHECK(second.data() == memory);
  CHECK(first->data() == nullptr);
  CHECK(first->size() == 0);
  cbq::AlignedBuffer<int> third;
  third = std::move(second);
  CHECK(third[9] == 42);
}

TEST_CASE("sizes that cannot be are errors") {
  CHECK(cbq::AlignedBuffer<double>::allocate(SIZE_MAX / 4).error().code == cbq::Errc::bad_shape);
#if !defined(__SANITIZE_ADDRESS__)  // the sanitizer ends the program instead of returning null
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CBQ_TEST_SANITIZED
#endif
#endif
#ifndef CBQ_TEST_SANITIZED
  const auto huge = cbq::AlignedBuffer<char>::allocate(SIZE_MAX / 4);
  REQUIRE(!huge);
  CHECK(huge.error().code == cbq::Errc::out_of_memory);
#endif
#endif
}
