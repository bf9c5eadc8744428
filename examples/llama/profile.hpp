// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

namespace cbq_llama {

/// Kinds of operations that `bench --profile` tells apart.
enum class Operation : unsigned char { attention_projections, mlp_projections, head, cache_writes, attention, count };

/// Seconds per kind of operation, added up by one thread.
struct Profile {
  std::array<double, static_cast<std::size_t>(Operation::count)> seconds = {};
};

/// What `work()` returns; its time is noted in the profile, unless that is null.
template <class Work>
[[nodiscard]] auto timed(Profile* profile, Operation operation, const Work& work) {
  if (profile == nullptr) return work();
  const auto start = std::chrono::steady_clock::now();
  auto done = work();
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  profile->seconds[static_cast<std::size_t>(operation)] += spent.count();
  return done;
}

}  // namespace cbq_llama
