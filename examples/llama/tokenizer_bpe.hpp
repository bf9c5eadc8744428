// SPDX-License-Identifier: Apache-2.0
#pragma once

// Byte-pair merging over symbols: while some neighbours have a merge, the one of lowest rank, leftmost first, becomes
// one symbol. Cost O(n log n) for a word of n symbols, so that a whole text may be one word (SentencePiece).

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace cbq_llama {

/// A token id, or a number above all ids for a character that is no token but is part of one.
using Symbol = std::uint32_t;

struct SymbolPair {
  Symbol left = 0;
  Symbol right = 0;
  friend bool operator==(SymbolPair, SymbolPair) = default;
};

struct Merge {
  std::uint32_t rank = 0;
  Symbol result = 0;
};

class MergeTable {
 public:
  void reserve(std::size_t count) { merges_.reserve(count); }
  /// A pair given twice keeps the later rank.
  void insert(SymbolPair pair, Merge merge) { merges_.insert_or_assign(pair, merge); }
  [[nodiscard]] const Merge* find(SymbolPair pair) const {
    const auto found = merges_.find(pair);
    return found == merges_.end() ? nullptr : &found->second;
  }

  /// Notes that some merge joins two symbols of which the left one ends and the right one begins with these characters.
  void add_joint(SymbolPair characters) { joints_.insert(characters); }
  /// Whether a merge could ever reach across the border between two characters. Where none can, both sides merge as if
  /// the other were not there.
  [[nodiscard]] bool is_joint(SymbolPair characters) const { return joints_.contains(characters); }

  /// Merges `symbols` in place until no merge applies. At most 2^32 - 2 symbols.
  void apply(std::vector<Symbol>& symbols) const;

 private:
  struct Hash {
    std::size_t operator()(SymbolPair pair) const noexcept {
      std::uint64_t mixed = (std::uint64_t{pair.left} << 32U | pair.right) * 0x9E3779B97F4A7C15U;
      return static_cast<std::size_t>(mixed ^ (mixed >> 32U));
    }
  };
  std::unordered_map<SymbolPair, Merge, Hash> merges_;
  std::unordered_set<SymbolPair, Hash> joints_;
};

}  // namespace cbq_llama
