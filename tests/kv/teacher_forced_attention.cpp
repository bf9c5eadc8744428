// SPDX-License-Identifier: Apache-2.0
#include <cbq/kv/teacher_forced_attention.hpp>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/kv_sequence.hpp"
#include "support/nn.hpp"

using namespace cbq;
using support::KvSequence;

namespace {

struct Case {
  KvScheme scheme;
  KvPolicy policy;
  std::size_t size;
  std::size_t tokens;
};

constexpr std::size_t kv_heads = 2, width = 64, heads = 6, elements = heads * width;
constexpr float scale = 0.125f;

struct Problem {
  explicit Problem(const Case& c)
      : one(c),
        packed(c.scheme.channel_keys ? c.size / 64 * 64 : c.size),
        q(support::normal(c.tokens * elements, 1)),
        sequence({c.scheme, kv_heads, width, c.size, packed}, support::normal(c.size * kv_heads * width, 2, 2.0f),
                 support::normal(c.size * kv_heads * width, 3)),
        exact(sequence.all_exact()) {}

  [[nodiscard]] TeacherForcing forcing() const { return {one.scheme, one.policy, exact.view(), scale}; }

  /// Which positions the query at `own` finds quantized, written as the policy is described.
  [[nodiscard]] bool quantized(std::size_t own, std::size_t p) const {
    if (p < one.policy.sinks) return false;
    const std::size_t eligible = one.scheme.past_only ? own : own + 1;
    if (!one.scheme.channel_keys && one.policy.recent == 0) return p < eligible;
    return p / 64 * 64 + 64 + one.policy.recent <= eligible;
  }
  [[nodiscard]] oracle::Matrix wanted() const {
    return sequence.attention(
        q, one.tokens, static_cast<double>(scale), [&](std::size_t own, std::size_t p) { return quantized(own, p); },
        [&](std::size_t own, std::size_t p) {
          return p <= own && (p < one.policy.sinks || one.policy.window == 0 || p + one.policy.window > own);
        });
  }

  Case one;
  std::size_t packed;
  std::vector<float> q;
  KvSequence sequence;
  FloatKvCache exact;
};

constexpr KvScheme full{.bits = 8}, past{.bits = 8, .past_only = true},
    smooth{.bits = 4, .smoothed = true, .past_only = true, .hadamard = true},
    kivi{.bits = 4, .channel_keys = true, .past_only = true};

}  // namespace

TEST_CASE("One pass sees what decoding would have seen at every position") {
  const Case cases[] = {{full, {}, 150, 150},
                        {past, {}, 150, 150},
                        {past, {}, 600, 40},
                        {smooth, {}, 140, 70},
                        {kivi, {}, 200, 200},
                        {past, {.recent = 30}, 200, 200},
                        {past, {.sinks = 4}, 140, 140},
                        {past, {.recent = 10, .sinks = 3, .window = 70}, 200, 200}};
  for (const Case& c : cases) {
    const Problem problem(c);
    const oracle::Matrix wanted = problem.wanted();
    for (const Isa isa : support::machine_isas()) {
      if (isa == Isa::scalar) continue;
      CAPTURE(kv_scheme_name(c.scheme).c_str(), c.policy.recent, c.policy.sinks, c.policy.window, c.size, c.tokens,
              isa_name(isa));
      const SerialExecutor serial;
      ExecutionContext<> context(serial, isa);
      std::vector<float> out(problem.q.size());
      REQUIRE(attend_teacher_forced(support::input(problem.q, elements), problem.sequence.cache(), problem.forcing(),
                                    support::view(out, elements), context));
      CHECK(oracle::distance(out, wanted) < 0.02);
    }
  }
}

TEST_CASE("Over decoded floats the same, but for the rounding of floats") {
  for (const Case& c : {Case{past, {.sinks = 2}, 700, 40}, Case{full, {}, 90, 90}}) {
    const Problem problem(c);
    auto decoded = FloatKvCache::create(kv_heads, width, c.size);
    std::vector<float> keys(c.size * kv_heads * width), values(keys.size());
    for (std::size_t head = 0; head < kv_heads; ++head) {
      const oracle::KvRows rows = problem.sequence.rows(head, [](std::size_t) { return true; });
      for (std::size_t p = 0; p < c.size; ++p) {
        for (std::size_t i = 0; i < width; ++i) {
          keys[(p * kv_heads + head) * width + i] = static_cast<float>(rows.keys(p, i));
          values[(p * kv_heads + head) * width + i] = static_cast<float>(rows.values(p, i));
        }
      }
    }
    REQUIRE(decoded->append(support::input(keys, kv_heads * width), support::input(values, kv_heads * width)));
    const SerialExecutor serial;
    ExecutionContext<> context(serial);
    std::vector<float> out(problem.q.size());
    REQUIRE(attend_teacher_forced(support::input(problem.q, elements), decoded->view(), problem.forcing(),
                                  support::view(out, elements), context));
    CHECK(oracle::distance(out, problem.wanted()) < 1e-5);
  }
}

TEST_CASE("A pass refuses caches that lack what its queries see") {
  const Problem problem({past, {.recent = 10}, 150, 20});
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  std::vector<float> out(problem.q.size());
  const auto code = [&](const QuantizedKvView& cache, const TeacherForcing& forcing) {
    const Status done = attend_teacher_forced(support::input(problem.q, elements), cache, forcing,
                                              support::view(out, elements), context);
    return done ? Errc::interrupted : done.error().code;
  };
  CHECK(code(problem.sequence.cache(), problem.forcing()) == Errc::interrupted);
  TeacherForcing inexact = problem.forcing();
  inexact.exact = {};
  CHECK(code(problem.sequence.cache(), inexact) == Errc::bad_shape);
  QuantizedKvView shorter = problem.sequence.cache();
  shorter.packed = 127;
  CHECK(code(shorter, problem.forcing()) == Errc::bad_shape);
  shorter.packed = 128;
  CHECK(code(shorter, problem.forcing()) == Errc::interrupted);
}
