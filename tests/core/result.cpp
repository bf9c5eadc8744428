// SPDX-License-Identifier: Apache-2.0
#include <cbq/core/result.hpp>

#include <catch2/catch_test_macros.hpp>

#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

using cbq::Errc;
using cbq::Error;
using cbq::ErrorText;
using cbq::Result;
using cbq::Status;

namespace {

// Counts live objects, so that a missed or doubled destructor shows.
struct Counted {
  static inline int alive = 0;
  int value;
  explicit Counted(int v) : value(v) { ++alive; }
  Counted(const Counted& other) : value(other.value) { ++alive; }
  Counted(Counted&& other) noexcept : value(std::exchange(other.value, -1)) { ++alive; }
  Counted& operator=(const Counted&) = default;
  Counted& operator=(Counted&&) = default;
  ~Counted() { --alive; }
};

}  // namespace

TEST_CASE("a Result of a trivial type is trivial and works in constants") {
  STATIC_REQUIRE(std::is_trivially_copyable_v<Result<int>>);
  STATIC_REQUIRE(std::is_trivially_destructible_v<Result<double>>);
  constexpr Result<int> value = 7;
  constexpr Result<int> failed = Error{Errc::io, "no"};
  STATIC_REQUIRE(value.has_value());
  STATIC_REQUIRE(*value == 7);
  STATIC_REQUIRE(!failed);
  STATIC_REQUIRE(failed.error().code == Errc::io);
}

TEST_CASE("a Result holds a move-only value") {
  STATIC_REQUIRE(!std::is_copy_constructible_v<Result<std::unique_ptr<int>>>);
  Result<std::unique_ptr<int>> result = std::make_unique<int>(3);
  Result<std::unique_ptr<int>> moved = std::move(result);
  REQUIRE(moved.has_value());
  const std::unique_ptr<int> owner = *std::move(moved);
  CHECK(*owner == 3);
}

TEST_CASE("a Result constructs and destroys its value once") {
  REQUIRE(Counted::alive == 0);
  {
    Result<Counted> first = Counted(5);
    CHECK(Counted::alive == 1);
    const Result<Counted> copy = first;
    CHECK(Counted::alive == 2);
    CHECK(copy->value == 5);
    const Result<Counted> moved = std::move(first);
    CHECK(moved->value == 5);
    CHECK(first->value == -1);
    const Result<Counted> failed = Error{Errc::bad_shape, "shape"};
    const Result<Counted> failed_copy = failed;
    CHECK(failed_copy.error().what == std::string_view("shape"));
    CHECK(Counted::alive == 3);
  }
  CHECK(Counted::alive == 0);
}

TEST_CASE("a long string survives copy and move") {
  const std::string text(1000, 'x');
  Result<std::string> result = text;
  const Result<std::string> copy = result;
  const Result<std::string> moved = std::move(result);
  CHECK(*copy == text);
  CHECK(moved->size() == 1000);
}

TEST_CASE("value() throws the error") {
  Result<int> failed = Error{Errc::bad_file, "bad"};
  CHECK_THROWS_AS(failed.value(), cbq::BadResult);
  CHECK_THROWS_AS(Status(Error{}).value(), cbq::BadResult);
  Result<int> good = 1;
  CHECK(good.value() == 1);
  CHECK_NOTHROW(Status().value());
}

TEST_CASE("Status is success unless made from an Error") {
  CHECK(Status().has_value());
  const Status failed = Error{Errc::interrupted, "stopped"};
  CHECK(!failed);
  CHECK(failed.error().code == Errc::interrupted);
}

TEST_CASE("ErrorText prints numbers at their limits and cuts long text") {
  CHECK(std::string(ErrorText(0).c_str()) == "0");
  CHECK(std::string(ErrorText(-1).c_str()) == "-1");
  CHECK(std::string(ErrorText(INT64_MIN).c_str()) == "-9223372036854775808");
  CHECK(std::string(ErrorText(UINT64_MAX).c_str()) == "18446744073709551615");
  CHECK(std::string((ErrorText("row ") << 3 << ':' << std::string("k")).c_str()) == "row 3:k");
  const ErrorText exact(std::string(ErrorText::capacity, 'a'));
  CHECK(std::string(exact.c_str()) == std::string(ErrorText::capacity, 'a'));
  const ErrorText cut(std::string(ErrorText::capacity + 1, 'a'));
  CHECK(std::string(cut.c_str()) == std::string(ErrorText::capacity - 3, 'a') + "...");
  CHECK(ErrorText().empty());
}

TEST_CASE("messages name where, what, got and wanted") {
  const auto message = [](const Error& error) {
    std::string text;
    cbq::append_message(text, error);
    return text;
  };
  CHECK(message({Errc::io, "cannot open"}) == "cannot open");
  CHECK(message({Errc::bad_shape, "wrong size", "w", 3, 4}) == "w: wrong size (got 3, wanted 4)");
  CHECK(message({Errc::bad_shape, "wrong size", "", "", "even"}) == "wrong size (wanted even)");
  CHECK(message({Errc::bad_shape, "wrong size", "", 5}) == "wrong size (got 5)");
}
