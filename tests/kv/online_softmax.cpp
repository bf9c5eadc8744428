// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/online_softmax.hpp>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "support/isas.hpp"
#include "support/nn.hpp"

using namespace cbq;
using attention::Positions;

namespace {

constexpr std::size_t size = 700, width = 16, row_count = 3;

/// Scores and values as they are; a stand-in for keys and queries.
struct Table {
  static constexpr std::size_t unit = 16;
  std::vector<float> table = support::normal(row_count * size, 1, 5.0f);
  std::vector<float> values = support::normal(size * width, 2);

  void scores(const Positions& block, float* to) const {
    for (std::size_t r = 0; r < row_count; ++r) {
      for (std::size_t p = block.first; p < block.end; ++p) to[r * 256 + p - block.first] = table[r * size + p];
    }
  }
  void add_values(const Positions& block, const float* weights, const attention::RowSums& sums) const {
    for (std::size_t r = 0; r < row_count; ++r) {
      for (std::size_t p = block.first; p < block.end; ++p) {
        for (std::size_t i = 0; i < width; ++i) {
          sums.values[r * sums.stride + i] += weights[r * 256 + p - block.first] * values[p * width + i];
        }
      }
    }
  }
};

struct Gathered {
  explicit Gathered(float scale) : sums(attention::row_sums(memory, row_count, width, scale)) {
    attention::clear(sums);
  }
  attention::RowSumsMemory memory;
  attention::RowSums sums;
};

}  // namespace

TEST_CASE("Positions of a source in any parts, merged in order, give the softmax of all of them") {
  const Table table;
  const attention::RowPositions seen = {{0, 700}, {5, 300}, {299, 301}};
  const float scale = 0.5f;
  for (const Isa isa : support::machine_isas()) {
    for (const std::size_t step : {700u, 512u, 100u, 33u}) {
      CAPTURE(isa_name(isa), step);
      Gathered all(scale);
      for (std::size_t first = 0; first < size; first += step) {
        Gathered part(scale);
        attention::RowPositions own;
        for (std::size_t r = 0; r < row_count; ++r) own[r] = attention::both(seen[r], {first, first + step});
        attention::visit(table, own, part.sums, isa);
        attention::merge(all.sums, part.sums);
      }
      for (std::size_t r = 0; r < row_count; ++r) {
        std::vector<double> wanted(width);
        double total = 0;
        for (std::size_t p = seen[r].first; p < seen[r].end; ++p) {
          const double weight = std::exp(0.5 * static_cast<double>(table.table[r * size + p]));
          total += weight;
          for (std::size_t i = 0; i < width; ++i)
            wanted[i] += weight * static_cast<double>(table.values[p * width + i]);
        }
        float out[width];
        attention::normalize(all.sums, r, out, width);
        for (std::size_t i = 0; i < width; ++i) {
          CHECK(static_cast<double>(out[i]) == Catch::Approx(wanted[i] / total).margin(2e-6));
        }
      }
    }
  }
}

TEST_CASE("Merging nothing, or into nothing, changes no bit") {
  const Table table;
  Gathered one(1.0f), whole(1.0f), nothing(1.0f);
  attention::visit(table, {{0, 700}, {3, 4}, {9, 9}}, one.sums, detect());
  attention::merge(whole.sums, one.sums);
  attention::merge(whole.sums, nothing.sums);
  for (std::size_t r = 0; r < row_count; ++r) {
    CHECK(whole.sums.maxima[r] == one.sums.maxima[r]);
    CHECK(whole.sums.sums[r] == one.sums.sums[r]);
    for (std::size_t i = 0; i < width; ++i)
      CHECK(whole.memory.values[r * width + i] == one.memory.values[r * width + i]);
  }
  CHECK(whole.sums.sums[2] == 0.0f);  // saw nothing
}
