// SPDX-License-Identifier: Apache-2.0

#include "tokenizer_bpe.hpp"

#include <limits>
#include <queue>

namespace cbq_llama {

namespace {

constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();

struct Node {
  Symbol symbol = 0;
  std::uint32_t previous = none;
  std::uint32_t next = none;
  bool alive = true;
};

struct Candidate {
  std::uint32_t rank = 0;
  std::uint32_t position = 0;  // of the left symbol
  SymbolPair pair;             // what stood there: stale when something else does by now
  Symbol result = 0;

  // std::priority_queue keeps the greatest on top.
  friend bool operator<(const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  }
};

}  // namespace

void MergeTable::apply(std::vector<Symbol>& symbols) const {
  if (symbols.size() < 2 || merges_.empty()) return;
  const auto count = static_cast<std::uint32_t>(symbols.size());
  std::vector<Node> nodes(count);
  std::priority_queue<Candidate> candidates;
  const auto propose = [&](std::uint32_t left) {
    const std::uint32_t right = left == none ? none : nodes[left].next;
    if (right == none) return;
    const SymbolPair pair{nodes[left].symbol, nodes[right].symbol};
    if (const Merge* merge = find(pair)) candidates.push({merge->rank, left, pair, merge->result});
  };

  for (std::uint32_t i = 0; i < count; ++i) {
    nodes[i] = {symbols[i], i == 0 ? none : i - 1, i + 1 == count ? none : i + 1, true};
  }
  for (std::uint32_t i = 0; i + 1 < count; ++i) propose(i);

  while (!candidates.empty()) {
    const Candidate best = candidates.top();
    candidates.pop();
    Node& left = nodes[best.position];
    if (!left.alive || left.next == none || left.symbol != best.pair.left) continue;
    const std::uint32_t gone = left.next;
    if (nodes[gone].symbol != best.pair.right) continue;
    left.symbol = best.result;
    left.next = nodes[gone].next;
    if (left.next != none) nodes[left.next].previous = best.position;
    nodes[gone].alive = false;
    propose(left.previous);
    propose(best.position);
  }

  symbols.clear();
  for (std::uint32_t i = 0; i != none; i = nodes[i].next) symbols.push_back(nodes[i].symbol);
}

}  // namespace cbq_llama
