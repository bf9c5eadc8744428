// SPDX-License-Identifier: Apache-2.0

#include "tokenizer_bpe.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <random>
#include <vector>

using namespace cbq_llama;

namespace {

/// The definition: as long as any merge applies, apply the one of lowest rank, leftmost.
std::vector<Symbol> merged_by_definition(std::vector<Symbol> symbols, const MergeTable& table) {
  while (true) {
    std::size_t at = 0;
    const Merge* best = nullptr;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const Merge* merge = table.find({symbols[i], symbols[i + 1]});
      if (merge != nullptr && (best == nullptr || merge->rank < best->rank)) {
        best = merge;
        at = i;
      }
    }
    if (best == nullptr) return symbols;
    symbols[at] = best->result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

std::vector<Symbol> merged(std::vector<Symbol> symbols, const MergeTable& table) {
  table.apply(symbols);
  return symbols;
}

}  // namespace

TEST_CASE("merging follows the definition") {
  std::mt19937 random(7);
  const auto below = [&](unsigned bound) { return std::uniform_int_distribution<unsigned>(0, bound - 1)(random); };
  std::size_t shortened = 0;
  for (int round = 0; round < 400; ++round) {
    // Few letters and many merges, among them equal ranks and merges whose result takes part in others.
    const unsigned letters = 2 + below(4);
    unsigned symbols = letters;
    MergeTable table;
    for (unsigned i = 0; i < 3 + below(30); ++i) {
      const SymbolPair pair{below(symbols), below(symbols)};
      if (table.find(pair) == nullptr) table.insert(pair, {below(12), symbols++});
    }
    std::vector<Symbol> word(below(60));
    for (Symbol& symbol : word) symbol = below(letters);
    CAPTURE(round, word);
    const auto expected = merged_by_definition(word, table);
    CHECK(merged(word, table) == expected);
    shortened += word.size() - expected.size();
  }
  CHECK(shortened > 1000);
}

TEST_CASE("runs of one symbol pair up from the left") {
  MergeTable table;
  table.insert({0, 0}, {0, 1});
  table.insert({1, 1}, {1, 2});
  CHECK(merged({0, 0, 0}, table) == std::vector<Symbol>{1, 0});
  CHECK(merged({0, 0, 0, 0, 0}, table) == std::vector<Symbol>{2, 0});
  CHECK(merged(std::vector<Symbol>(1000, 0), table) == std::vector<Symbol>(250, 2));
  CHECK(merged({}, table).empty());
  CHECK(merged({0}, table) == std::vector<Symbol>{0});
  CHECK(merged({0, 0}, MergeTable()) == std::vector<Symbol>{0, 0});
}

TEST_CASE("a pair given twice keeps the later rank") {
  MergeTable table;
  table.insert({0, 1}, {0, 3});
  table.insert({1, 2}, {1, 4});
  CHECK(merged({0, 1, 2}, table) == std::vector<Symbol>{3, 2});
  table.insert({0, 1}, {2, 3});
  CHECK(merged({0, 1, 2}, table) == std::vector<Symbol>{0, 4});
}
