// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/kv_site.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <cbq/kv/key_block.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/kv_scheme.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/kv/value_block.hpp>

#include "support/nn.hpp"

using namespace cbq;

namespace {

constexpr std::size_t tokens = 70;  // more than a chunk of rows

template <class T>
std::vector<T> forward(const KvSite<T>& site, const std::vector<T>& x) {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  std::vector<T> out(x.size());
  const std::size_t rows = x.size() / site.channels();
  REQUIRE(site.forward(matrix_view<const T>(x.data(), rows, site.channels()),
                       matrix_view(out.data(), rows, site.channels()), context));
  return out;
}

template <class T, class E = SerialExecutor>
std::vector<T> backward(KvSite<T>& site, const std::vector<T>& x, std::vector<T> slopes, const E& executor = {}) {
  ExecutionContext<E> context(executor);
  const std::size_t rows = x.size() / site.channels();
  const auto in = matrix_view<const T>(x.data(), rows, site.channels());
  REQUIRE(site.backward(matrix_view(slopes.data(), rows, site.channels()), in, in, context));
  return slopes;
}

// The site in plain loops, for doubles. With `residues` rounding adds what they say to each place, so that what is left
// is smooth; without, it writes them.
struct Oracle {
  KvSiteOptions options;
  std::vector<double> sigma, offset;

  [[nodiscard]] std::vector<double> rotated(std::vector<double> head) const {
    if (options.rotation == InputRotation::none) return head;
    std::size_t block = 1;
    while (head.size() % (2 * block) == 0) block *= 2;
    std::vector<double> out(head.size());
    for (std::size_t i = 0; i < head.size(); ++i) {
      for (std::size_t j = i - i % block; j < i - i % block + block; ++j) {
        const bool odd = (__builtin_popcountll((i % block) & (j % block)) & 1) != 0;
        out[i] += (odd ? -head[j] : head[j]) / std::sqrt(static_cast<double>(block));
      }
    }
    return out;
  }

  [[nodiscard]] std::vector<double> run(const std::vector<double>& x, std::vector<double>& residues,
                                        bool smooth) const {
    const std::size_t width = options.width, channels = sigma.size();
    const double levels = std::pow(2.0, options.bits) - 1;
    residues.resize(x.size());
    std::vector<double> out(x.size());
    for (std::size_t at = 0; at < x.size(); at += width) {
      std::vector<double> head(width);
      const std::size_t c = at % channels;
      for (std::size_t i = 0; i < width; ++i) head[i] = (x[at + i] - offset[c + i]) / std::exp(sigma[c + i]);
      head = rotated(head);
      for (std::size_t first = 0; first < width; first += options.group) {
        const auto begin = head.begin() + static_cast<std::ptrdiff_t>(first);
        const auto end = head.begin() + static_cast<std::ptrdiff_t>(std::min(width, first + options.group));
        const double low = *std::min_element(begin, end), step = (*std::max_element(begin, end) - low) / levels;
        for (std::size_t i = first; i < width && i < first + options.group; ++i) {
          if (step == 0) continue;
          const double place = (head[i] - low) / step;
          if (!smooth) residues[at + i] = std::nearbyint(place) - place;
          head[i] = step * (place + residues[at + i]) + low;
        }
      }
      head = rotated(head);
      for (std::size_t i = 0; i < width; ++i) out[at + i] = head[i] * std::exp(sigma[c + i]) + offset[c + i];
    }
    return out;
  }
};

struct Case {
  KvSiteOptions options;
  std::vector<double> scales, offsets, x;
};

Case random_case(const KvSiteOptions& options, std::size_t heads) {
  Case made{options, {}, {}, support::doubles(support::normal(tokens * heads * options.width, 3))};
  for (const float v : support::normal(heads * options.width, 4, 0.5f)) made.scales.push_back(std::exp(v));
  made.offsets = support::doubles(support::normal(heads * options.width, 5));
  return made;
}

double weighted(const std::vector<double>& y, const std::vector<double>& slopes) {
  double sum = 0;
  for (std::size_t i = 0; i < y.size(); ++i) sum += y[i] * slopes[i];
  return sum;
}

// Central differences of the smooth site at some places of `values`; residues as they were.
void check_differences(const Oracle& oracle, const std::vector<double>& x, std::vector<double>& values,
                       const std::vector<double>& gradient, std::size_t stride) {
  const std::vector<double> slopes = support::doubles(support::normal(x.size(), 6));
  std::vector<double> residues;
  (void)oracle.run(x, residues, false);
  for (std::size_t i = 0; i < values.size(); i += stride) {
    constexpr double h = 1e-6;
    const double kept = values[i];
    values[i] = kept + h;
    const double above = weighted(oracle.run(x, residues, true), slopes);
    values[i] = kept - h;
    const double below = weighted(oracle.run(x, residues, true), slopes);
    values[i] = kept;
    CAPTURE(i);
    CHECK(gradient[i] == Catch::Approx((above - below) / (2 * h)).epsilon(1e-5).margin(1e-6));
  }
}

enum class CachePart : unsigned char { keys, values };

// What a cache that has the site's smoothing makes of rows: transformed, encoded, decoded and restored.
std::vector<float> cached(const KvSite<float>& site, const KvScheme& scheme, CachePart part, std::vector<float> x) {
  const std::size_t channels = site.channels(), width = site.width();
  std::vector<float> scales, offsets, weights;
  for (std::size_t c = 0; c < channels; ++c) {
    scales.push_back(site.scale(c));
    offsets.push_back(site.offset(c));
    weights.push_back(site.weight(c));
  }
  const RowTransform transform{.key_scales = scales.data(),
                               .key_offsets = offsets.data(),
                               .value_scales = scales.data(),  // restore_outputs() undoes either
                               .value_offsets = offsets.data(),
                               .hadamard = scheme.hadamard,
                               .key_weights = scheme.hadamard ? nullptr : weights.data(),
                               .refinements = 2};
  const KvHeads heads{channels / width, width};
  const auto rows = matrix_view(x.data(), x.size() / channels, channels);
  const bool keys = part == CachePart::keys;
  REQUIRE((keys ? transform_keys(transform, heads, rows) : transform_values(transform, heads, rows)));
  const KvLayout layout = *kv_layout(scheme, 1, width);
  std::vector<std::byte> page(layout.head_bytes);
  std::byte* const values = page.data() + layout.key_bytes;
  for (std::size_t first = 0; first < x.size(); first += width) {
    const std::span<float> head(x.data() + first, width);
    if (keys) {
      REQUIRE(encode_key(layout, 0, head, page.data(), key_refinement(transform, first % channels / width, width)));
      decode_key(layout, page.data(), 0, head.data());
    } else {
      REQUIRE(encode_value(layout, 0, head, values, value_refinement(transform)));
      decode_value(layout, values, 0, head.data());
    }
  }
  REQUIRE(restore_outputs(transform, heads, rows));
  return x;
}

}  // namespace

TEST_CASE("Codes are those of the dynamic range of a group") {
  auto site = KvSite<double>::create({.bits = 4, .width = 6}, std::vector<double>(6, 1.0));
  REQUIRE(site);
  const std::vector<double> x = {-1, -.25, 0, .4, 1.2, 2}, wanted = {-1, -.2, 0, .4, 1.2, 2};  // step 0.2
  const std::vector<double> out = forward(*site, x);
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(out[i] == Catch::Approx(wanted[i]).margin(1e-12));
  // A group of one value is kept as it is; its gradient passes.
  const std::vector<double> same(6, 0.7), slopes = {1, 2, 3, 4, 5, 6};
  CHECK(forward(*site, same) == same);
  CHECK(backward(*site, same, slopes) == slopes);
}

TEST_CASE("A site is the formula, and its gradients are central differences with the rounding held") {
  for (const KvSiteOptions options : {KvSiteOptions{.bits = 4, .width = 8},
                                      {.bits = 2, .width = 12, .group = 5},
                                      {.bits = 3, .width = 12, .group = 12, .rotation = InputRotation::hadamard}}) {
    Case given = random_case(options, 2);
    auto site = KvSite<double>::create(options, given.scales, given.offsets);
    REQUIRE(site);
    Oracle oracle{options, {}, given.offsets};
    if (oracle.options.group == 0) oracle.options.group = options.width;
    for (const double s : given.scales) oracle.sigma.push_back(std::log(s));
    std::vector<double> residues;
    const std::vector<double> wanted = oracle.run(given.x, residues, false), out = forward(*site, given.x);
    for (std::size_t i = 0; i < out.size(); ++i) CHECK(out[i] == Catch::Approx(wanted[i]).margin(1e-9));

    const std::vector<double> slopes = support::doubles(support::normal(given.x.size(), 6));
    const std::vector<double> dx = backward(*site, given.x, slopes);
    check_differences(oracle, given.x, given.x, dx, 13);
    const auto parameters = site->parameters();
    REQUIRE(parameters.size() == 2);
    const auto gradient = [&](std::size_t which, double unit) {
      std::vector<double> values(parameters[which].gradients, parameters[which].gradients + site->channels());
      if (which == 1) {  // shifts count in units of the first factors
        for (std::size_t c = 0; c < values.size(); ++c) values[c] *= unit / given.scales[c];
      }
      return values;
    };
    check_differences(oracle, given.x, oracle.sigma, gradient(0, 1), 1);
    check_differences(oracle, given.x, oracle.offset, gradient(1, 1), 1);
    // A second pass adds.
    const std::vector<double> once = gradient(0, 1);
    (void)backward(*site, given.x, slopes);
    for (std::size_t c = 0; c < once.size(); ++c) CHECK(gradient(0, 1)[c] == Catch::Approx(2 * once[c]));
    site->clear_gradients();
    CHECK(gradient(0, 1) == std::vector<double>(once.size()));
  }
}

TEST_CASE("Without its range a gradient passes as it is, and parameters get what rounding loses") {
  KvSiteOptions options{.bits = 2, .width = 8, .range = RangeGradient::detached};
  const Case given = random_case(options, 1);
  auto site = KvSite<double>::create(options, given.scales, given.offsets);
  REQUIRE(site);
  const std::vector<double> slopes = support::doubles(support::normal(given.x.size(), 6));
  const std::vector<double> dx = backward(*site, given.x, slopes), out = forward(*site, given.x);
  for (std::size_t i = 0; i < dx.size(); ++i) CHECK(dx[i] == Catch::Approx(slopes[i]));
  const auto parameters = site->parameters();
  for (std::size_t c = 0; c < 8; ++c) {
    double wanted = 0;
    for (std::size_t i = c; i < dx.size(); i += 8) wanted += slopes[i] * (out[i] - given.x[i]);
    CHECK(parameters[0].gradients[c] == Catch::Approx(wanted));
    CHECK(parameters[1].gradients[c] == Catch::Approx(0).margin(1e-9));
  }
}

TEST_CASE("Parameters move factors and offsets, and stay near the start") {
  auto site = KvSite<float>::create({.width = 2, .scale_rate = 0.5, .offset_rate = 0.25}, std::vector<float>{2, 4},
                                    std::vector<float>{1, -1});
  REQUIRE(site);
  CHECK(site->is_trained());
  const auto parameters = site->parameters();
  CHECK(parameters[0].learning_rate == 0.5);
  CHECK(parameters[1].learning_rate == 0.25);
  parameters[0].values[0] += std::log(3.0f);
  parameters[1].values[1] += 0.5f;
  CHECK(site->scale(0) == Catch::Approx(6));
  CHECK(site->offset(1) == Catch::Approx(1));
  CHECK(site->offset(0) == 1);
  parameters[0].values[0] = 100;
  site->project();
  CHECK(site->scale(0) == Catch::Approx(2 * 1048576.0).epsilon(1e-4));
  auto still = KvSite<float>::create({.width = 2, .scale_rate = 0, .offset_rate = 0}, std::vector<float>{2, 4});
  REQUIRE(still);
  CHECK_FALSE(still->is_trained());
  CHECK(KvSite<float>().is_identity());
}

TEST_CASE("Floats are stored in halves, and have the same bits for any executor") {
  const KvSiteOptions options{.bits = 4, .width = 64, .rotation = InputRotation::hadamard};
  const std::vector<float> x = support::normal(200 * 128, 7), slopes = support::normal(200 * 128, 8);
  std::vector<float> scales;
  for (const float v : support::normal(128, 9, 0.3f)) scales.push_back(std::exp(v));
  auto one = KvSite<float>::create(options, scales), other = KvSite<float>::create(options, scales);
  auto exact = KvSite<double>::create(options, support::doubles(scales));
  REQUIRE((one && other && exact));
  const std::vector<float> out = forward(*one, x);
  const std::vector<double> wanted = forward(*exact, support::doubles(x));
  double error = 0, lost = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    error += std::pow(static_cast<double>(out[i]) - wanted[i], 2);
    lost += std::pow(static_cast<double>(x[i]) - wanted[i], 2);
  }
  CHECK(error < 0.05 * lost);  // codes at the border of two steps
  CHECK(error > 0);
  CHECK(backward(*one, x, slopes) == backward(*other, x, slopes, support::ThreadExecutor{}));
  const auto a = one->parameters(), b = other->parameters();
  for (std::size_t c = 0; c < 128; ++c) {
    CHECK(a[0].gradients[c] == b[0].gradients[c]);
    CHECK(a[1].gradients[c] == b[1].gradients[c]);
  }
}

TEST_CASE("Refined groups are those of the cache after factors have moved") {
  constexpr std::size_t heads = 2, width = 32;
  const std::vector<float> x = support::normal(20 * heads * width, 11);
  std::vector<float> scales, weights;
  for (const float v : support::normal(heads * width, 13, 0.3f)) scales.push_back(std::exp(v));
  for (const float v : support::normal(heads * width, 14)) weights.push_back(std::fabs(v));
  for (const char* name : {"kv4_2d_past", "kv3_2d_past_hadamard"}) {
    const KvScheme scheme = *parse_kv_scheme(name);
    for (const CachePart part : {CachePart::keys, CachePart::values}) {
      CAPTURE(name, part == CachePart::keys);
      auto site = KvSite<float>::create({.bits = scheme.bits,
                                         .width = width,
                                         .rotation = scheme.hadamard ? InputRotation::hadamard : InputRotation::none,
                                         .refinements = 2},
                                        scales, support::normal(heads * width, 15));
      REQUIRE(site);
      if (part == CachePart::keys) REQUIRE(site->set_weights(weights));
      const std::vector<float> moves = support::normal(heads * width, 16, 0.4f);
      for (std::size_t c = 0; c < moves.size(); ++c) site->parameters()[0].values[c] += moves[c];
      const std::vector<float> out = forward(*site, x), kept = cached(*site, scheme, part, x);
      double apart = 0, lost = 0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        apart += std::pow(static_cast<double>(out[i]) - static_cast<double>(kept[i]), 2);
        lost += std::pow(static_cast<double>(x[i]) - static_cast<double>(kept[i]), 2);
      }
      CHECK(apart < 1e-4 * lost);
      const std::vector<float> slopes = support::normal(x.size(), 12), dx = backward(*site, x, slopes);
      for (std::size_t i = 0; i < dx.size(); ++i) CHECK(dx[i] == Catch::Approx(slopes[i]).margin(1e-5));
    }
  }
}

TEST_CASE("Weights grow with the square of factors, and are finite and not negative") {
  auto site = KvSite<float>::create({.width = 4}, std::vector<float>{1, 2, 3, 4});
  REQUIRE(site);
  REQUIRE(site->set_weights(std::vector<float>{1, 0, 3, 4}));
  site->parameters()[0].values[2] += std::log(2.0f);
  CHECK(site->weight(2) == Catch::Approx(12));
  CHECK(site->set_weights(std::vector<float>(3)).error().code == Errc::bad_shape);
  for (const float wrong : {-1.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const Status set = site->set_weights(std::vector<float>{9, 9, 9, wrong});
    REQUIRE_FALSE(set);
    CHECK(set.error().code == Errc::bad_argument);
    CHECK(site->weight(0) == 1);
  }
}

TEST_CASE("Rows of other channels are refused; the identity copies") {
  auto site = KvSite<float>::create({.width = 4}, std::vector<float>(8, 1.0f));
  REQUIRE(site);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const std::size_t columns : {4u, 16u}) {
    const std::vector<float> x(2 * columns);
    std::vector<float> out(2 * columns);
    CHECK(site->forward(support::input(x, columns), support::view(out, columns), context).error().code ==
          Errc::bad_shape);
    CHECK(site->backward(support::view(out, columns), support::input(x, columns), {}, context).error().code ==
          Errc::bad_shape);
  }
  const std::vector<float> x = support::normal(16, 17);
  std::vector<float> out(24);
  CHECK(site->forward(support::input(x, 8), support::view(out, 8), context).error().code == Errc::bad_shape);
  CHECK(site->backward(support::view(out, 8), support::input(x, 8), {}, context).error().code == Errc::bad_shape);
  out.resize(16);
  KvSite<float> identity;
  REQUIRE(identity.forward(support::input(x, 8), support::view(out, 8), context));
  CHECK(out == x);
  REQUIRE(identity.backward(support::view(out, 8), support::input(x, 8), {}, context));
  CHECK(out == x);
}

TEST_CASE("What a site cannot do is an error") {
  const std::vector<float> ones(8, 1.0f);
  CHECK(KvSite<float>::create({.bits = 5, .width = 8}, ones).error().code == Errc::unsupported);
  CHECK(KvSite<float>::create({.width = 257}, std::vector<float>(257, 1.0f)).error().code == Errc::unsupported);
  CHECK(KvSite<float>::create({.width = 3}, ones).error().code == Errc::bad_shape);
  CHECK(KvSite<float>::create({.width = 8}, ones, std::vector<float>(4)).error().code == Errc::bad_shape);
  std::vector<float> bad = ones;
  bad[2] = 0;
  CHECK(KvSite<float>::create({.width = 8}, bad).error().code == Errc::bad_argument);
  auto site = KvSite<float>::create({.width = 8}, ones);
  REQUIRE(site);
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  for (const float wrong : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 2e6f}) {
    std::vector<float> x(3 * 8), out(3 * 8, 5.0f);
    x[17] = wrong;
    const Status done = site->forward(support::input(x, 8), support::view(out, 8), context);
    REQUIRE_FALSE(done);
    CHECK(done.error().code == Errc::not_finite);
    CHECK(std::string(done.error().where.c_str()) == "token 2");
    CHECK(out[15] == 0.0f);
    for (std::size_t i = 16; i < 24; ++i) CHECK(out[i] == 5.0f);  // nothing that was never computed
  }
}
