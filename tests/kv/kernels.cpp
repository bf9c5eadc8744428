// SPDX-License-Identifier: Apache-2.0
// Kernels of attention on packed keys and values, every one that this machine can run.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cbq/kv/dispatch.hpp>

#include "oracle/kv_attention.hpp"
#include "support/guarded.hpp"
#include "support/isas.hpp"
#include "support/kv_kernels.hpp"

using namespace cbq;

namespace {

constexpr std::size_t widths[] = {16, 64, 80, 96, 128, 256};
constexpr int bit_widths[] = {2, 3, 4, 8};

/// Every kernel of this machine.
template <class Test>
void for_each_kernel(int bits, const Test& test) {
  for (const Isa isa : support::machine_isas()) {
    INFO("instruction set " << isa_name(isa) << ", " << bits << " bits");
    test(kv_kernels(isa, static_cast<std::size_t>(bits)));
  }
}

void store_half(std::vector<std::byte>& bytes, std::size_t at, float value) {
  const half h = to_half(value);
  std::memcpy(bytes.data() + at, &h, sizeof h);
}

enum class Codes { random, lowest, highest };

/// A page of one head.
struct Head {
  KvLayout layout;
  std::vector<std::byte> bytes;
  [[nodiscard]] oracle::KvPage page() const {
    return {bytes.data(), 1, layout.width, layout.bits, layout.channel_keys};
  }
};

/// Codes of the given kind, of unused positions too, and of padding; scales 1 and 2 and whole offsets at the positions
/// before `used` or in every channel, so that no sum below is rounded; scale and offset 0 from there on. Keys with
/// scales per channel have scales of 1 here.
Head make_head(const KvScheme& scheme, std::size_t width, Codes kind, std::size_t used, std::mt19937& random) {
  Head head{*kv_layout(scheme, 1, width), {}};
  head.bytes.resize(head.layout.page_bytes);
  for (std::byte& b : head.bytes) {
    b = static_cast<std::byte>(kind == Codes::random ? random() & 255u : kind == Codes::lowest ? 0u : 255u);
  }
  const auto put = [&](const AffineOffsets& at, std::size_t base, bool valid) {
    store_half(head.bytes, base + at.scale, valid ? static_cast<float>(1 + random() % 2) : 0.0f);
    store_half(head.bytes, base + at.offset, valid ? static_cast<float>(random() % 9) - 4.0f : 0.0f);
  };
  for (std::size_t g = 0; g < head.layout.groups; ++g) {
    for (std::size_t p = 0; p < kv_page_positions; ++p) {
      if (!scheme.channel_keys) put(key_affine(head.layout, p, g), 0, p < used);
      put(value_affine(head.layout, p, g), kv_values_offset(head.layout, 0), p < used);
    }
  }
  for (std::size_t c = 0; scheme.channel_keys && c < head.layout.key_blocks * block_inputs; ++c) {
    store_half(head.bytes, key_channel_affine(head.layout, c).scale, 1.0f);
    store_half(head.bytes, key_channel_affine(head.layout, c).offset, 0.0f);
  }
  return head;
}

/// Quantized queries, as the driver hands them over.
struct Queries {
  std::vector<std::int8_t> codes;
  std::vector<float> scales;
  std::vector<float> sums;
  oracle::Matrix values;  ///< dequantized, without padding
};

/// Index of a channel in a query padded as the blocks are.
std::size_t padded(const KvLayout& layout, std::size_t channel) {
  return channel / layout.group * layout.blocks_per_group * block_inputs + channel % layout.group;
}

Queries make_queries(const KvLayout& layout, std::size_t rows, Codes kind, std::mt19937& random) {
  const std::size_t length = layout.key_blocks * block_inputs;
  Queries q{std::vector<std::int8_t>(rows * length), {}, std::vector<float>(rows * layout.groups), {}};
  q.values = oracle::Matrix(rows, layout.width);
  for (std::size_t r = 0; r < rows; ++r) {
    q.scales.push_back(random() % 2 == 0 ? 1.0f : 0.5f);
    const int sign = random() % 2 == 0 ? 1 : -1;
    for (std::size_t c = 0; c < layout.width; ++c) {
      const int code = kind == Codes::random   ? static_cast<int>(random() % 255) - 127
                       : kind == Codes::lowest ? 0
                                               : 127 * sign;
      q.codes[r * length + padded(layout, c)] = static_cast<std::int8_t>(code);
      q.values(r, c) = static_cast<double>(q.scales[r]) * code;
      q.sums[r * layout.groups + c / layout.group] += q.scales[r] * static_cast<float>(code);
    }
  }
  return q;
}

/// Scores of `panels` panels, everything at the edge of forbidden pages; between rows nothing may be written.
std::vector<float> scores_of(KeyKernel kernel, const Head& head, const Queries& queries, std::size_t panels,
                             support::Edge edge) {
  const KvLayout& layout = head.layout;
  const std::size_t rows = queries.scales.size();
  const std::size_t stride = kv_page_positions + 16;
  const std::size_t key_bytes = (layout.channel_keys ? layout.key_header_bytes : 0) + panels * layout.key_panel_bytes;
  const support::Guarded<std::byte> keys(std::span(head.bytes).first(key_bytes), edge);
  const support::Guarded<std::int8_t> codes(std::span(queries.codes), edge);
  const support::Guarded<float> scales(std::span(queries.scales), edge);
  const support::Guarded<float> sums(std::span(queries.sums), edge);
  const support::Guarded<float> scores((rows - 1) * stride + 16 * panels, edge);
  std::fill(scores.data(), scores.data() + scores.size(), -7.0f);
  kernel({.keys = keys.data(),
          .panels = panels,
          .key_header_bytes = layout.key_header_bytes,
          .key_panel_bytes = layout.key_panel_bytes,
          .groups = layout.groups,
          .blocks_per_group = layout.blocks_per_group,
          .key_blocks = layout.key_blocks,
          .channel_keys = layout.channel_keys,
          .rows = rows,
          .queries = codes.data(),
          .query_scales = scales.data(),
          .query_sums = sums.data(),
          .scores = scores.data(),
          .score_stride = stride,
          .next = panels % 2 == 0 ? head.bytes.data() : nullptr,
          .every_line = panels == 4});
  return {scores.data(), scores.data() + scores.size()};
}

std::vector<float> expected_scores(const Head& head, const Queries& queries, std::size_t panels) {
  const std::size_t rows = queries.scales.size();
  const std::size_t stride = kv_page_positions + 16;
  const oracle::Matrix keys = oracle::decoded_rows({head.page()}, 0, 16 * panels).keys;
  std::vector<float> scores((rows - 1) * stride + 16 * panels, -7.0f);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t p = 0; p < 16 * panels; ++p) {
      double sum = 0;
      for (std::size_t c = 0; c < keys.columns; ++c) sum += queries.values(r, c) * keys(p, c);
      scores[r * stride + p] = static_cast<float>(sum);
    }
  }
  return scores;
}

/// The weights of some rows, and what is added.
struct Weights {
  std::vector<std::uint8_t> codes;
  std::vector<std::int32_t> sums;
  std::vector<float> scales;
  std::vector<float> offsets;
};

Weights make_weights(std::size_t rows, Codes kind, std::mt19937& random) {
  Weights w{std::vector<std::uint8_t>(rows * kv_page_positions), std::vector<std::int32_t>(rows), {}, {}};
  for (std::size_t i = 0; i < w.codes.size(); ++i) {
    const unsigned code = kind == Codes::random ? random() % 256 : kind == Codes::lowest ? 0u : 255u;
    w.codes[i] = static_cast<std::uint8_t>(code);
    w.sums[i / kv_page_positions] += static_cast<std::int32_t>(code);
  }
  for (std::size_t r = 0; r < rows; ++r) {
    w.scales.push_back(random() % 2 == 0 ? 1.0f : 0.5f);
    w.offsets.push_back(static_cast<float>(random() % 100) - 50.0f);
  }
  return w;
}

/// What values of one group of channels add to whole numbers, everything at the edge of forbidden pages.
std::vector<float> values_of(ValueKernel kernel, const Head& head, const Weights& weights, std::size_t group,
                             support::Edge edge) {
  const KvLayout& layout = head.layout;
  const std::size_t panels = divide_up(group_channels(layout, group), std::size_t{16});
  const std::size_t rows = weights.scales.size();
  const std::size_t stride = 16 * panels + 16;
  const auto bytes = std::span(head.bytes)
                         .subspan(kv_values_offset(layout, 0) + value_panel_offset(layout, group, 0),
                                  panels * layout.value_panel_bytes);
  const support::Guarded<std::byte> blocks(bytes, edge);
  const support::Guarded<std::uint8_t> codes(std::span(weights.codes), edge);
  const support::Guarded<std::int32_t> sums(std::span(weights.sums), edge);
  const support::Guarded<float> scales(std::span(weights.scales), edge);
  const support::Guarded<float> offsets(std::span(weights.offsets), edge);
  const support::Guarded<float> out((rows - 1) * stride + 16 * panels, edge);
  for (std::size_t i = 0; i < out.size(); ++i) out.data()[i] = static_cast<float>(i % 5);
  kernel({.blocks = blocks.data(),
          .panels = panels,
          .rows = rows,
          .weights = codes.data(),
          .weight_sums = sums.data(),
          .weight_scales = scales.data(),
          .offset_sums = offsets.data(),
          .out = out.data(),
          .out_stride = stride,
          .next = rows % 2 == 0 ? head.bytes.data() : nullptr,
          .every_line = rows % 4 == 0});
  return {out.data(), out.data() + out.size()};
}

std::vector<float> expected_values(const Head& head, const Weights& weights, std::size_t group) {
  // Codes as values: scale 1 and offset 0. Channels beyond the last hold whatever their codes say.
  const KvLayout& layout = head.layout;
  const std::size_t panels = divide_up(group_channels(layout, group), std::size_t{16});
  const std::size_t rows = weights.scales.size();
  const std::size_t stride = 16 * panels + 16;
  const std::byte* blocks = head.bytes.data() + kv_values_offset(layout, 0) + value_panel_offset(layout, group, 0);
  std::vector<float> out((rows - 1) * stride + 16 * panels);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>(i % 5);
  for (std::size_t c = 0; c < 16 * panels; ++c) {
    for (std::size_t r = 0; r < rows; ++r) {
      std::int64_t sum = 0;
      for (std::size_t p = 0; p < kv_page_positions; ++p) {
        const std::byte* block = blocks + c / 16 * layout.value_panel_bytes + p / 32 * block_bytes(layout.bits);
        sum += static_cast<std::int64_t>(block_code(block, layout.bits, c % 16, p % 32)) *
               weights.codes[r * kv_page_positions + p];
      }
      out[r * stride + c] += weights.scales[r] * static_cast<float>(sum) + weights.offsets[r];
    }
  }
  return out;
}

struct WeightResult {
  std::vector<std::uint8_t> codes;
  std::int32_t sum = 0;
  float step = 0;
  float offset_sum = 0;
};

WeightResult weights_of(WeightKernel kernel, const std::vector<float>& softmax, const std::vector<float>& scales,
                        const std::vector<float>& offsets, float middle) {
  std::vector<std::byte> header(4 * kv_page_positions);
  for (std::size_t p = 0; p < kv_page_positions; ++p) {
    store_half(header, 2 * p, scales[p]);
    store_half(header, 2 * (kv_page_positions + p), offsets[p]);
  }
  WeightResult result;
  for (const support::Edge edge : {support::Edge::start, support::Edge::end}) {
    const support::Guarded<float> in{std::span(softmax), edge};
    const support::Guarded<std::byte> halves(std::span(std::as_const(header)), edge);
    const support::Guarded<std::uint8_t> codes(kv_page_positions, edge);
    std::fill(codes.data(), codes.data() + codes.size(), std::uint8_t{99});
    WeightRow row{.softmax = in.data(), .scales = halves.data(), .codes = codes.data(), .middle = middle};
    row.code_sum = -5;
    row.step = row.offset_sum = NAN;
    kernel(row);
    result = {{codes.data(), codes.data() + codes.size()}, row.code_sum, row.step, row.offset_sum};
  }
  return result;
}

/// From the definition; `largest` below 2^-100 counts as 0.
WeightResult expected_weights(const std::vector<float>& softmax, const std::vector<float>& scales) {
  std::vector<float> weights;
  for (std::size_t p = 0; p < kv_page_positions; ++p) weights.push_back(softmax[p] * scales[p]);
  const float largest = *std::max_element(weights.begin(), weights.end());
  WeightResult result;
  result.codes.resize(kv_page_positions);
  if (largest < 0x1p-100f) return result;
  const float inverse = 255.0f / largest;
  for (std::size_t p = 0; p < kv_page_positions; ++p) {
    const float scaled = weights[p] * inverse;
    result.codes[p] = static_cast<std::uint8_t>(std::nearbyint(static_cast<double>(scaled)));
    result.sum += result.codes[p];
  }
  result.step = largest / 255.0f;
  return result;
}

void check_weights(const std::vector<float>& softmax, const std::vector<float>& scales,
                   const std::vector<float>& offsets) {
  const WeightResult wanted = expected_weights(softmax, scales);
  for (const float middle : {0.0f, 7.5f}) {
    // What rounding took from the weights is added at the middle of the codes.
    double offset_sum = -static_cast<double>(middle) * static_cast<double>(wanted.step) * wanted.sum;
    double magnitude = -offset_sum;
    for (std::size_t p = 0; p < kv_page_positions; ++p) {
      const auto s = static_cast<double>(softmax[p]);
      offset_sum +=
          s * (static_cast<double>(offsets[p]) + static_cast<double>(middle) * static_cast<double>(scales[p]));
      magnitude += s * std::fabs(static_cast<double>(offsets[p]));
    }
    for_each_kernel(4, [&](const KvKernels& kernels) {
      const WeightResult got = weights_of(kernels.weights, softmax, scales, offsets, middle);
      CHECK(got.codes == wanted.codes);
      CHECK(got.sum == wanted.sum);
      CHECK(got.step == wanted.step);
      CHECK(std::fabs(static_cast<double>(got.offset_sum) - offset_sum) <= 8e-6 * magnitude + 0x1p-97);
    });
  }
}

/// Scores of two pages that follow one another, and the header of their values; NaN where a row sees nothing.
struct PageRows {
  std::size_t rows = 0;
  std::size_t groups = 0;
  std::vector<half> halves;
  std::vector<std::size_t> first, valid;
  std::vector<float> scores;
};

/// Results of one page for one row, from the definition, in double.
struct PageRow {
  double maximum = -INFINITY;
  double sum = 0;
  double factor = 1;  ///< of what was gathered before
  std::vector<double> softmax;
};

PageRow expected_row(const PageRows& page, std::size_t row, std::size_t stride, const PageRow& before, double scale) {
  PageRow result{before.maximum, before.sum, 1, std::vector<double>(kv_page_positions)};
  const float* scores = page.scores.data() + row * stride;
  for (std::size_t p = page.first[row]; p < page.valid[row]; ++p) {
    result.maximum = std::fmax(result.maximum, static_cast<double>(scores[p]));
  }
  if (result.maximum != before.maximum) result.factor = std::exp(scale * (before.maximum - result.maximum));
  result.sum *= result.factor;
  for (std::size_t p = page.first[row]; p < page.valid[row]; ++p) {
    result.softmax[p] = std::exp(scale * (static_cast<double>(scores[p]) - result.maximum));
    result.sum += result.softmax[p];
  }
  return result;
}

/// Codes, steps and offset sums of one row and group.
void check_row_weights(const PageWeights& got, const PageRow& wanted, std::size_t row, std::size_t group) {
  const std::size_t result = group * got.rows + row;
  const std::uint8_t* codes = got.codes + result * kv_page_positions;
  const auto at = [&](std::size_t p) {
    half h;
    std::memcpy(&h, got.scales + group * got.group_bytes + p * sizeof h, sizeof h);
    return static_cast<double>(to_float(h));
  };
  double largest = 0, offset_sum = 0, magnitude = 0;
  for (std::size_t p = 0; p < kv_page_positions; ++p) largest = std::max(largest, wanted.softmax[p] * at(p));
  std::int32_t sum = 0;
  bool near = true;
  for (std::size_t p = 0; p < kv_page_positions; ++p) {
    const double code = largest == 0 ? 0 : wanted.softmax[p] * at(p) * 255 / largest;
    near = near && std::fabs(code - codes[p]) <= 0.501;
    sum += codes[p];
    const double offset = at(kv_page_positions + p);
    offset_sum += wanted.softmax[p] * (offset + static_cast<double>(got.middle) * at(p));
    magnitude += wanted.softmax[p] * (std::fabs(offset) + static_cast<double>(got.middle) * at(p));
  }
  offset_sum -= static_cast<double>(got.middle) * static_cast<double>(got.steps[result]) * sum;
  CHECK(near);
  CHECK(got.code_sums[result] == sum);
  CHECK(std::fabs(static_cast<double>(got.steps[result]) - largest / 255) <= 1e-5 * largest);
  CHECK(std::fabs(static_cast<double>(got.offset_sums[result]) - offset_sum) <= 1e-5 * magnitude);
}

void check_page_weights(PageWeightKernel kernel, const PageRows& page, std::size_t stride, std::size_t columns) {
  using support::Edge;
  const std::size_t rows = page.rows;
  const support::Guarded<float> maxima(rows, Edge::end), sums(rows, Edge::end), values(rows * columns, Edge::end);
  const support::Guarded<half> halves{std::span(page.halves), Edge::end};
  const support::Guarded<std::uint8_t> codes(page.groups * rows * kv_page_positions, Edge::end);
  const support::Guarded<std::int32_t> code_sums(page.groups * rows, Edge::end);
  const support::Guarded<float> steps(page.groups * rows, Edge::end), offset_sums(page.groups * rows, Edge::end);
  std::fill_n(maxima.data(), rows, -INFINITY);
  std::vector<PageRow> wanted(rows);
  for (std::size_t turn = 0; turn < 2; ++turn) {
    const support::Guarded<float> scores(rows * stride - 16, Edge::end);
    std::copy_n(page.scores.data() + turn * rows * stride, scores.size(), scores.data());
    std::fill_n(values.data(), values.size(), static_cast<float>(turn));
    const PageWeights weights{.scores = scores.data(),
                              .score_stride = stride,
                              .rows = rows,
                              .first = page.first.data() + turn * rows,
                              .valid = page.valid.data() + turn * rows,
                              .scale = 0.5f,
                              .maxima = maxima.data(),
                              .sums = sums.data(),
                              .values = values.data(),
                              .value_stride = columns,
                              .value_columns = columns,
                              .scales = reinterpret_cast<const std::byte*>(halves.data()),
                              .groups = page.groups,
                              .group_bytes = 4 * kv_page_positions,
                              .middle = 7.5f,
                              .codes = codes.data(),
                              .code_sums = code_sums.data(),
                              .steps = steps.data(),
                              .offset_sums = offset_sums.data()};
    kernel(weights);
    for (std::size_t r = 0; r < rows; ++r) {
      INFO("page " << turn << ", row " << r << " of " << rows << ", groups " << page.groups);
      wanted[r] = expected_row(page, turn * rows + r, stride, wanted[r], 0.5);
      CHECK(static_cast<double>(maxima.data()[r]) == wanted[r].maximum);
      CHECK(static_cast<double>(sums.data()[r]) == Catch::Approx(wanted[r].sum).epsilon(1e-5));
      for (std::size_t i = 0; i < columns; ++i) {
        const double value = static_cast<double>(turn) * wanted[r].factor;
        CHECK(static_cast<double>(values.data()[r * columns + i]) == Catch::Approx(value).epsilon(1e-5).margin(1e-20));
      }
      for (std::size_t g = 0; g < page.groups; ++g) check_row_weights(weights, wanted[r], r, g);
    }
  }
}

}  // namespace

TEST_CASE("scores of packed keys are exact on every instruction set") {
  std::mt19937 random(11);
  for (const int bits : bit_widths) {
    for (const std::size_t width : widths) {
      for (std::size_t rows = 1; rows <= kv_tile_rows; ++rows) {
        const Codes kind = rows == 5 ? Codes::lowest : rows % 8 == 7 ? Codes::highest : Codes::random;
        const std::size_t panels = 1 + (rows + width / 16) % 4;
        const auto edge = rows % 2 == 0 ? support::Edge::start : support::Edge::end;
        const KvScheme scheme{.bits = bits, .channel_keys = rows % 4 == 3 || rows == 8};
        Head head = make_head(scheme, width, kind, 16 * panels - rows % 3, random);
        const Queries queries = make_queries(head.layout, rows, kind, random);
        const std::vector<float> wanted = expected_scores(head, queries, panels);
        // Scales per channel are the driver's business: a kernel that reads them gives something else.
        if (scheme.channel_keys) std::fill_n(head.bytes.begin(), head.layout.key_header_bytes, std::byte{0x7e});
        INFO("width " << width << ", rows " << rows << ", panels " << panels);
        for_each_kernel(bits, [&](const KvKernels& kernels) {
          CHECK(scores_of(kernels.keys, head, queries, panels, edge) == wanted);
        });
      }
    }
  }
}

TEST_CASE("weighted sums of packed values are exact on every instruction set") {
  std::mt19937 random(12);
  for (const int bits : bit_widths) {
    for (const std::size_t width : widths) {
      for (std::size_t rows = 1; rows <= kv_tile_rows; ++rows) {
        const Codes kind = rows == 5 ? Codes::lowest : rows % 8 == 7 ? Codes::highest : Codes::random;
        const auto edge = rows % 2 == 0 ? support::Edge::start : support::Edge::end;
        const Head head = make_head({.bits = bits}, width, kind, kv_page_positions, random);
        const Weights weights = make_weights(rows, rows == 6 ? Codes::highest : kind, random);
        const std::size_t group = head.layout.groups - 1;
        const std::vector<float> wanted = expected_values(head, weights, group);
        INFO("width " << width << ", rows " << rows);
        for_each_kernel(bits, [&](const KvKernels& kernels) {
          CHECK(values_of(kernels.values, head, weights, group, edge) == wanted);
        });
      }
    }
  }
}

TEST_CASE("weights are rounded alike on every instruction set") {
  std::mt19937 random(13);
  std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
  const std::vector<float> ones(kv_page_positions, 1.0f);
  std::vector<float> softmax(kv_page_positions), scales(kv_page_positions), offsets(kv_page_positions);
  for (int round = 0; round < 50; ++round) {
    for (std::size_t p = 0; p < kv_page_positions; ++p) {
      softmax[p] = std::exp(-10.0f * uniform(random));
      scales[p] = to_float(to_half(uniform(random) * (round % 2 == 0 ? 1.0f : 0x1p-20f)));  // subnormal halves, too
      offsets[p] = to_float(to_half(uniform(random) * 8.0f - 4.0f));
    }
    if (round % 5 == 0) std::fill(softmax.begin() + 1 + round, softmax.end(), 0.0f);
    check_weights(softmax, scales, offsets);
  }
  SECTION("ties go to the even code") {
    for (std::size_t p = 0; p < kv_page_positions; ++p) softmax[p] = (static_cast<float>(p) + 0.5f) / 256.0f;
    softmax[0] = 255.0f / 256.0f;
    check_weights(softmax, ones, offsets);
  }
  SECTION("nothing is attended to") {
    check_weights(std::vector<float>(kv_page_positions, 0.0f), ones, offsets);
    check_weights(softmax, std::vector<float>(kv_page_positions, 0.0f), offsets);
  }
  SECTION("one position, wherever it lies") {
    for (std::size_t p = 0; p < kv_page_positions; ++p) {
      std::vector<float> one(kv_page_positions, 0.0f);
      one[p] = 0.3f;
      check_weights(one, std::vector<float>(kv_page_positions, 65504.0f), offsets);
    }
  }
  SECTION("weights whose inverse is no float count as nothing") {
    for (const float tiny : {0x1p-149f, 0x1p-127f, 0x1.fffffep-101f, 0x1p-100f, 0x1p-90f}) {
      for (float& s : softmax) s = tiny * (random() % 2 == 0 ? 1.0f : 0.5f);
      softmax[7] = tiny;
      check_weights(softmax, ones, offsets);
    }
  }
  SECTION("negative scales, which no encoder writes, give code 0") {
    std::vector<float> negative(kv_page_positions, -1.0f);
    negative[5] = 1.0f;
    negative[6] = -65504.0f;
    for_each_kernel(4, [&](const KvKernels& kernels) {
      const WeightResult got =
          weights_of(kernels.weights, std::vector<float>(kv_page_positions, 0.25f), negative, offsets, 0.0f);
      std::vector<int> wanted(kv_page_positions, 0);
      wanted[5] = 255;
      CHECK(std::equal(got.codes.begin(), got.codes.end(), wanted.begin(), wanted.end()));
      CHECK(got.sum == 255);
    });
  }
}

TEST_CASE("scores follow scales of every size") {
  std::mt19937 random(14);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  Head head = make_head({.bits = 4}, 256, Codes::random, kv_page_positions, random);
  Queries queries = make_queries(head.layout, 3, Codes::random, random);
  for (std::size_t g = 0; g < head.layout.groups; ++g) {
    for (std::size_t p = 0; p < kv_page_positions; ++p) {
      // From the largest half down to the smallest subnormal one.
      const float size = p == 0 ? 65504.0f : std::ldexp(1.0f, 14 - static_cast<int>(p) * 38 / 63);
      store_half(head.bytes, key_affine(head.layout, p, g).scale, size);
      store_half(head.bytes, key_affine(head.layout, p, g).offset, to_float(to_half(size * uniform(random))));
    }
  }
  for (float& scale : queries.scales) scale = 1.5f + uniform(random);
  for (std::size_t r = 0; r < 3; ++r) {
    for (std::size_t g = 0; g < head.layout.groups; ++g) queries.sums[r * head.layout.groups + g] = 0;
    for (std::size_t c = 0; c < 256; ++c) {
      const auto code = static_cast<float>(queries.codes[r * 256 + c]);
      queries.values(r, c) = static_cast<double>(queries.scales[r]) * static_cast<double>(code);
      queries.sums[r * head.layout.groups + c / head.layout.group] += queries.scales[r] * code;
    }
  }
  const std::vector<float> wanted = expected_scores(head, queries, 4);
  const oracle::Matrix keys = oracle::decoded_rows({head.page()}, 0, kv_page_positions).keys;
  for_each_kernel(4, [&](const KvKernels& kernels) {
    const std::vector<float> got = scores_of(kernels.keys, head, queries, 4, support::Edge::end);
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const std::size_t row = i / 80, position = i % 80;
      if (position >= kv_page_positions) continue;
      double magnitude = 0;
      for (std::size_t c = 0; c < 256; ++c) magnitude += std::fabs(queries.values(row, c) * keys(position, c));
      worst = std::max(worst, std::fabs(static_cast<double>(got[i]) - static_cast<double>(wanted[i])) / magnitude);
    }
    CHECK(worst < 2e-6);
  });
}

TEST_CASE("softmax and its weights of a whole page follow the definition") {
  constexpr std::size_t stride = kv_page_positions + 16, columns = 32;
  std::mt19937 random(15);
  std::normal_distribution<float> normal;
  for (const std::size_t rows : {1u, 5u, 16u}) {
    for (const std::size_t groups : {1u, 2u}) {
      PageRows page;
      page.rows = rows;
      page.groups = groups;
      for (std::size_t i = 0; i < groups * 2 * kv_page_positions; ++i) {
        const bool scale = i / kv_page_positions % 2 == 0;
        page.halves.push_back(to_half(scale ? 0.01f + std::fabs(normal(random)) : normal(random)));
      }
      for (std::size_t r = 0; r < 2 * rows; ++r) {
        constexpr std::size_t ends[] = {64, 37, 1, 0, 16, 63};
        page.valid.push_back(ends[(r + r / rows + groups) % 6]);
        page.first.push_back(r % 3 == 1 ? page.valid.back() / 2 : 0);
        for (std::size_t p = 0; p < stride; ++p) {
          const bool seen = p >= page.first.back() && p < page.valid.back();
          page.scores.push_back(seen ? 3.0f * normal(random) : NAN);
        }
      }
      for_each_kernel(4, [&](const KvKernels& kernels) {
        if (kernels.page_weights != nullptr) check_page_weights(kernels.page_weights, page, stride, columns);
      });
    }
  }
}
