// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/affine_group.hpp>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/guarded.hpp"
#include "support/nn.hpp"

using cbq::AffineGroup;
using cbq::AffineGroupCodec;
using cbq::Errc;
using cbq::half;

namespace {

constexpr std::size_t widths[] = {1, 7, 8, 15, 16, 17, 33, 64, 80, 96, 128, 129, 256, 300, 640};

// Finite halves in rising order, 0 once.
const std::vector<double>& halves() {
  static const std::vector<double> all = [] {
    std::vector<double> values;
    for (unsigned bits = 0; bits < 65536; ++bits) {
      if ((bits & 0x7c00u) == 0x7c00u || bits == 0x8000u) continue;
      values.push_back(static_cast<double>(cbq::to_float(half{static_cast<std::uint16_t>(bits)})));
    }
    std::sort(values.begin(), values.end());
    return values;
  }();
  return all;
}

double largest_half_at_most(double x) {
  return *std::prev(std::upper_bound(halves().begin(), halves().end(), x));
}

// The codec's bytes read bit by bit.
struct Decoded {
  std::vector<half> scales, offsets;  // by element
  std::vector<unsigned> codes;
};

Decoded read(const std::vector<std::byte>& bytes, std::size_t width, std::size_t group, std::size_t bits) {
  Decoded all;
  std::size_t at = 0;
  const auto byte = [&](std::size_t i) { return std::to_integer<unsigned>(bytes.at(i)); };
  for (std::size_t first = 0; first < width; first += group) {
    const std::size_t count = std::min(group, width - first);
    const half scale{static_cast<std::uint16_t>(byte(at) | byte(at + 1) << 8)};
    const half offset{static_cast<std::uint16_t>(byte(at + 2) | byte(at + 3) << 8)};
    at += 4;
    for (std::size_t i = 0; i < count; ++i) {
      unsigned code = 0;
      for (std::size_t b = 0; b < bits; ++b) {
        const std::size_t bit = i * bits + b;
        code |= (byte(at + bit / 8) >> (bit % 8) & 1u) << b;
      }
      all.scales.push_back(scale);
      all.offsets.push_back(offset);
      all.codes.push_back(code);
    }
    at += (count * bits + 7) / 8;
  }
  REQUIRE(at == bytes.size());
  return all;
}

template <class T>
double number(T x) {
  return static_cast<double>(cbq::to_float(x));
}

// Checks the rule of one group from its stored numbers: offset, scale, codes.
void check_group(const double* x, std::size_t count, std::size_t bits, double scale, double offset,
                 const unsigned* codes) {
  const auto [low, high] = std::minmax_element(x, x + count);
  const double top = std::pow(2.0, static_cast<double>(bits)) - 1;
  const double largest = std::max(std::fabs(*low), std::fabs(*high));
  REQUIRE(offset == largest_half_at_most(*low));
  if (scale == 0) {
    REQUIRE(*high - offset <= std::fabs(offset) * 0x1p-11 + largest * 0x1p-24);
    for (std::size_t i = 0; i < count; ++i) REQUIRE(codes[i] == 0);
    return;
  }
  REQUIRE(scale * top + offset >= *high - largest * 0x1p-23);
  const double smaller = largest_half_at_most(scale - 0x1p-30);
  REQUIRE(smaller * top + offset < *high);
  for (std::size_t i = 0; i < count; ++i) {
    const double steps = (x[i] - offset) / scale;
    REQUIRE(codes[i] <= static_cast<unsigned>(top));
    REQUIRE(std::fabs(std::min(steps, top) - codes[i]) <= 0.5 + 1e-4);
  }
}

// Rows that are hard in different ways, of elements that T holds.
std::vector<std::pair<const char*, std::vector<float>>> rows(std::size_t width) {
  std::vector<std::pair<const char*, std::vector<float>>> all;
  all.emplace_back("normal", support::normal(width, 1));
  auto row = support::normal(width, 2, 100.0f);
  for (float& v : row) v += 3000.0f;
  all.emplace_back("far from zero", row);
  row = support::normal(width, 3);
  row[width / 2] = 4000.0f;
  all.emplace_back("outlier", row);
  all.emplace_back("zeros", std::vector<float>(width, 0.0f));
  all.emplace_back("constant half", std::vector<float>(width, -1.5f));
  all.emplace_back("constant", std::vector<float>(width, 0.7001f));
  all.emplace_back("denormal", support::normal(width, 4, 1e-41f));
  all.emplace_back("small", support::normal(width, 5, 1e-6f));
  row.assign(width, 65280.0f);  // the largest number of both half and bfloat16
  row[0] = -65280.0f;
  all.emplace_back("extremes", row);
  return all;
}

// One row through a codec, with elements that T holds.
struct Trip {
  bool done = true;
  std::vector<double> x, decoded;
  std::vector<std::byte> bytes, again;  // of the decoded row
};

template <std::size_t Bits, class T>
Trip trip_of(std::size_t group, const std::vector<float>& floats) {
  const AffineGroupCodec<Bits, T> codec{group};
  const support::Guarded<T> in(floats.size(), support::Edge::end), decoded(floats.size(), support::Edge::end);
  const support::Guarded<std::byte> out(*codec.row_bytes(floats.size()), support::Edge::end);
  Trip trip;
  for (std::size_t i = 0; i < floats.size(); ++i) {
    in.data()[i] = cbq::from_float<T>(floats[i]);
    trip.x.push_back(number(in.data()[i]));
  }
  trip.done = codec.encode(in.span(), out.span()).has_value() && codec.decode(out.span(), decoded.span()).has_value();
  for (const T value : decoded.span()) trip.decoded.push_back(number(value));
  trip.bytes.assign(out.span().begin(), out.span().end());
  trip.done = codec.encode(decoded.span(), out.span()).has_value() && trip.done;
  trip.again.assign(out.span().begin(), out.span().end());
  return trip;
}

template <class T>
Trip trip_of(std::size_t bits, std::size_t group, const std::vector<float>& floats) {
  if (bits == 2) return trip_of<2, T>(group, floats);
  if (bits == 3) return trip_of<3, T>(group, floats);
  return bits == 4 ? trip_of<4, T>(group, floats) : trip_of<8, T>(group, floats);
}

// Checks bytes and decoded numbers; whether the header promises that the decoded row has the same bytes.
bool check_trip(const Trip& trip, std::size_t bits, std::size_t group, float (*rounded)(float)) {
  const std::size_t width = trip.x.size();
  const Decoded stored = read(trip.bytes, width, group, bits);
  bool same = true;
  for (std::size_t first = 0; first < width; first += group) {
    const std::size_t count = std::min(group, width - first);
    const double scale = number(stored.scales[first]), offset = number(stored.offsets[first]);
    const unsigned* codes = stored.codes.data() + first;
    check_group(trip.x.data() + first, count, bits, scale, offset, codes);
    const auto [low, high] = std::minmax_element(codes, codes + count);
    same = same && (scale == 0 || (*low == 0 && *high == (1u << bits) - 1));
    for (std::size_t i = first; i < first + count; ++i) {
      const float value = static_cast<float>(scale * stored.codes[i] + offset);
      REQUIRE(trip.decoded[i] == number(rounded(value)));
    }
  }
  return same;
}

}  // namespace

TEST_CASE("halves next to a number are those of a sorted table") {
  std::mt19937 random(7);
  const auto check = [](float x) {
    CAPTURE(x);
    const auto above = std::lower_bound(halves().begin(), halves().end(), static_cast<double>(x));
    const half low = cbq::half_at_most(x), high = cbq::half_at_least(x);
    if (x >= -65504) {
      REQUIRE(number(low) == largest_half_at_most(static_cast<double>(x)));
    } else {
      REQUIRE(low.bits == 0xfc00);
    }
    if (x <= 65504) {
      REQUIRE(number(high) == *above);
    } else {
      REQUIRE(high.bits == 0x7c00);
    }
  };
  for (const double h : halves()) {
    const auto x = static_cast<float>(h);
    for (const float v : {x, std::nextafter(x, 1e6f), std::nextafter(x, -1e6f)}) check(v);
  }
  for (const float x : {-0.0f, 1e-45f, -1e-45f, 1e-9f, -1e-9f, 65519.0f, 65520.0f, -65520.0f, 1e38f, -1e38f}) check(x);
  std::uniform_real_distribution<float> exponent(-30.0f, 17.0f);
  for (int i = 0; i < 20000; ++i) check((i % 2 == 0 ? 1.0f : -1.0f) * std::exp2(exponent(random)));
}

TEST_CASE("the vector of the specification") {
  const std::vector<float> x = {-1.0f, -0.25f, 0.0f, 0.4f, 1.2f, 2.0f};
  const AffineGroupCodec<4> codec{6};
  std::vector<std::byte> bytes(*codec.row_bytes(6));
  REQUIRE(bytes.size() == 7);
  REQUIRE(codec.encode(x, bytes));
  // scale 0x3267 = 0.2000732, the half above 0.2; offset 0xbc00 = -1; codes 0, 4, 5, 7, 11, 15 from the lowest bits up.
  const unsigned wanted[] = {0x67, 0x32, 0x00, 0xbc, 0x40, 0x75, 0xfb};
  for (std::size_t i = 0; i < 7; ++i) CHECK(std::to_integer<unsigned>(bytes[i]) == wanted[i]);
  std::vector<float> decoded(6);
  REQUIRE(codec.decode(bytes, decoded));
  const float values[] = {-1.0f, -0.2f, 0.0f, 0.4f, 1.2f, 2.0f};
  for (std::size_t i = 0; i < 6; ++i) CHECK(std::fabs(decoded[i] - values[i]) < 2e-3f);
}

TEMPLATE_TEST_CASE("rows keep the rule of scale, offset and codes, and decoded rows their bytes", "", float, double,
                   half, cbq::bfloat16) {
  const auto rounded = [](float value) { return cbq::to_float(cbq::from_float<TestType>(value)); };
  const bool exact = sizeof(TestType) >= sizeof(float);
  for (const std::size_t bits : {2u, 3u, 4u, 8u}) {
    for (const std::size_t width : widths) {
      for (const std::size_t group : {128u, 32u, 300u, 5u}) {
        if (group == 5 && width > 40) continue;
        for (const auto& [name, floats] : rows(width)) {
          CAPTURE(bits, width, group, name);
          const Trip trip = trip_of<TestType>(bits, group, floats);
          REQUIRE(trip.done);
          const bool same = check_trip(trip, bits, group, rounded);
          if (same && exact) REQUIRE(trip.again == trip.bytes);
        }
      }
    }
  }
}

TEST_CASE("decoded random rows keep their bytes and errors stay within half a step") {
  const AffineGroupCodec<4> codec;
  std::size_t kept = 0;
  for (unsigned seed = 0; seed < 2000; ++seed) {
    const auto x = support::normal(128, seed, std::exp2(static_cast<float>(seed % 20) - 9.0f));
    std::vector<std::byte> bytes(68), again(68);
    std::vector<float> decoded(128);
    REQUIRE(codec.encode(x, bytes));
    REQUIRE(codec.decode(bytes, decoded));
    REQUIRE(codec.encode(decoded, again));
    if (again == bytes) ++kept;
    AffineGroup group;
    std::memcpy(&group, bytes.data(), sizeof group);
    for (std::size_t i = 0; i < 128; ++i) {
      REQUIRE(std::fabs(number(x[i]) - number(decoded[i])) <= number(group.scale) * 0.5001);
    }
  }
  CHECK(kept == 2000);
}

TEST_CASE("what half cannot hold is an error that names its group") {
  const float infinity = std::numeric_limits<float>::infinity();
  const AffineGroupCodec<4> codec{16};
  const auto encoded = [&](float value, std::size_t at) {
    std::vector<float> x = support::normal(40, 1);
    x[at] = value;
    std::vector<std::byte> bytes(*codec.row_bytes(40));
    return codec.encode(x, bytes);
  };
  for (const float bad :
       {infinity, -infinity, std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::size_t at : {0u, 15u, 16u, 39u}) {
      const cbq::Status status = encoded(bad, at);
      REQUIRE_FALSE(status);
      CHECK(status.error().code == Errc::not_finite);
      CHECK(std::string(status.error().where.c_str()) == "group " + std::to_string(at / 16));
    }
  }
  CHECK(encoded(65504.0f, 20));
  CHECK(encoded(-65504.0f, 20));
  CHECK(encoded(900000.0f, 20));  // a range of 15 steps
  for (const float bad : {-65504.01f, -70000.0f, 1e6f, 3e38f, -3e38f}) {
    const cbq::Status status = encoded(bad, 20);
    REQUIRE_FALSE(status);
    CHECK(status.error().code == Errc::bad_argument);
  }
  const AffineGroupCodec<4, double> doubles{16};
  std::vector<double> x(16, 1.0);
  x[3] = -1e5;
  std::vector<std::byte> bytes(12);
  CHECK(doubles.encode(x, bytes).error().code == Errc::bad_argument);
}

TEST_CASE("wrong sizes are errors") {
  std::vector<float> x(40);
  std::vector<std::byte> bytes(100);
  const AffineGroupCodec<3> codec{16};
  REQUIRE(*codec.row_bytes(40) == 2 * (4 + 6) + 4 + 3);
  CHECK(*codec.row_bytes(0) == 0);
  CHECK(*AffineGroupCodec<3>{.group = 1}.row_bytes(3) == 15);
  CHECK(codec.encode(x, std::span(bytes).first(26)).error().code == Errc::bad_shape);
  CHECK(codec.decode(std::span(bytes).first(28), x).error().code == Errc::bad_shape);
  CHECK(codec.encode(x, std::span(bytes).first(27)));
  CHECK(AffineGroupCodec<4>{.group = 0}.row_bytes(40).error().code == Errc::bad_argument);
  constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
  CHECK(AffineGroupCodec<8>{.group = 1}.row_bytes(most).error().code == Errc::bad_shape);
  CHECK(AffineGroupCodec<8>{.group = most}.row_bytes(most / 16));
}
