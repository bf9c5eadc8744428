// SPDX-License-Identifier: Apache-2.0
#include <cbq/nn/packed_linear.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include <cbq/nn/activation_site.hpp>
#include <cbq/nn/any_linear.hpp>
#include <cbq/nn/dense_linear.hpp>

#include "oracle/nn.hpp"
#include "support/isas.hpp"
#include "support/kernels.hpp"
#include "support/nn.hpp"
#include "support/rounded.hpp"

using namespace cbq;

namespace {

constexpr Scheme w2a8_asym = make_scheme(2, 8, 64, Zero::affine);
constexpr Scheme w3a4_asym = make_scheme(3, 4, 32, Zero::affine);

using Variant =
    VariantLinear<FakeQuantizedLinear, DenseLinear<float>, PackedLinear<schemes::w4a8_g32>,
                  PackedLinear<schemes::w4a16_g128>, PackedLinear<schemes::w8a8>, PackedLinear<schemes::w4a4>,
                  PackedLinear<w2a8_asym>, PackedLinear<w3a4_asym>, PackedLinear<with_tensor_activations(w3a4_asym)>,
                  PackedLinear<with_tensor_activations(schemes::w8a8)>>;

std::vector<float> multiply(const Variant& op, LinearInput& x, const LinearInfo& info,
                            const std::vector<float>& residual, ExecutionContext<support::ThreadExecutor>& context) {
  std::vector<float> y(x.values().rows * info.outputs);
  LinearOutput out{support::view(y, info.outputs), {}};
  if (!residual.empty()) out.residual = support::input(residual, info.outputs);
  REQUIRE(op.forward(x, out, context));
  return y;
}

}  // namespace

TEST_CASE("A packed operator computes what its fake-quantized one does, for every kind of scheme") {
  const support::ThreadExecutor one{1}, many{4};
  for (const Scheme& scheme :
       {schemes::w4a8_g32, schemes::w4a16_g128, schemes::w8a8, schemes::w4a4, w2a8_asym, w3a4_asym}) {
    const std::size_t outputs = 37, inputs = 200;  // tails of panels, blocks and groups
    const auto weights = support::normal(outputs * inputs, 1);
    const auto bias = support::normal(outputs, 2);
    const QuantizedMatrix matrix = support::rounded(weights, inputs, scheme.weight);
    const auto packed = Variant::packed(matrix.view(), scheme, bias);
    const auto plain = Variant::packed(matrix.view(), scheme);
    auto fake = FakeQuantizedLinear::create(matrix.view(), scheme, bias);
    REQUIRE((packed && plain && fake));
    const LinearInfo info = packed->info();
    CHECK(info.scheme == scheme);
    CHECK((info.outputs == outputs && info.inputs == inputs));
    CHECK(info.bytes < outputs * inputs * 4 / 2);
    const Variant reference(*std::move(fake));
    std::vector<float> row(inputs), wanted_row(inputs);
    for (const std::size_t output : {0u, 15u, 16u, 36u}) {
      packed->weight_row(output, row.data());
      reference.weight_row(output, wanted_row.data());
      CHECK(row == wanted_row);
    }
    for (const Isa isa : support::machine_isas()) {
      ExecutionContext<support::ThreadExecutor> context(one, isa), threaded(many, isa);
      for (const std::size_t tokens : {1u, 3u, 4u, 5u, 45u}) {
        CAPTURE(scheme_name(scheme).c_str(), isa_name(isa), tokens);
        const Workspace::Frame frame(context.workspace()), other_frame(threaded.workspace());
        const auto x = support::normal(tokens * inputs, 3, 2.0f);
        const auto residual = support::normal(tokens * outputs, 4);
        LinearInput input(support::input(x, inputs)), same(support::input(x, inputs));
        const auto y = multiply(*packed, input, info, residual, context);
        const oracle::Matrix wanted(tokens, outputs, multiply(reference, input, info, residual, context));
        CHECK(oracle::distance(y, wanted) < 1e-6);
        CHECK(multiply(*packed, same, info, residual, threaded) == y);
        // Without a bias the sum differs by it alone.
        oracle::Matrix less = wanted;
        for (std::size_t i = 0; i < less.values.size(); ++i) less.values[i] -= static_cast<double>(bias[i % outputs]);
        CHECK(oracle::distance(multiply(*plain, input, info, residual, context), less) < 2e-6);
      }
    }
  }
}

TEST_CASE("An operator that rotates its input computes what another does on a rotated one, bit for bit") {
  const support::ThreadExecutor one{1}, many{4};
  const std::size_t outputs = 37, inputs = 7 * 32;
  const auto weights = support::normal(outputs * inputs, 1);
  const auto bias = support::normal(outputs, 2);
  constexpr InputRotation hadamard = InputRotation::hadamard;
  for (const Scheme& scheme : {schemes::w4a8_g32, schemes::w4a16_g128, schemes::w4a4, w3a4_asym}) {
    const QuantizedMatrix matrix = support::rounded(weights, inputs, scheme.weight);
    const Variant pairs[][2] = {
        {*Variant::packed(matrix.view(), scheme, bias), *Variant::packed(matrix.view(), scheme, bias, hadamard)},
        {*FakeQuantizedLinear::create(matrix.view(), scheme, bias),
         *FakeQuantizedLinear::create(matrix.view(), scheme, bias, hadamard)},
        {*DenseLinear<float>::create(support::input(weights, inputs), bias),
         *DenseLinear<float>::create(support::input(weights, inputs), bias, hadamard)}};
    for (const auto& [plain, rotated] : pairs) {
      CHECK(plain.info().rotation == InputRotation::none);
      CHECK(rotated.info().rotation == hadamard);
      for (const Isa isa : support::machine_isas()) {
        ExecutionContext<support::ThreadExecutor> context(one, isa), threaded(many, isa);
        for (const std::size_t tokens : {1u, 5u, 45u}) {
          CAPTURE(scheme_name(scheme).c_str(), isa_name(isa), tokens);
          const Workspace::Frame frame(context.workspace()), other_frame(threaded.workspace());
          const auto x = support::normal(tokens * inputs, 3, 2.0f);
          std::vector<float> transformed = x;
          REQUIRE(hadamard_rows(support::view(transformed, inputs), 32));
          LinearInput input(support::input(x, inputs)), same(support::input(x, inputs));
          LinearInput other(support::input(transformed, inputs));
          const auto wanted = multiply(plain, other, plain.info(), {}, context);
          CHECK(multiply(rotated, input, plain.info(), {}, context) == wanted);
          CHECK(multiply(rotated, same, plain.info(), {}, threaded) == wanted);
          // The same input for an operator that does not rotate.
          LinearInput fresh(support::input(x, inputs));
          CHECK(multiply(plain, input, plain.info(), {}, context) == multiply(plain, fresh, plain.info(), {}, context));
          CHECK(multiply(rotated, input, plain.info(), {}, context) == wanted);
        }
      }
    }
  }
}

TEST_CASE("Operators shrink the ranges of activations by a clip multiplier") {
  const support::ThreadExecutor serial{1};
  ExecutionContext<support::ThreadExecutor> context(serial);
  const Workspace::Frame frame(context.workspace());
  const std::size_t inputs = 64, outputs = 5;
  // By hand: half of 10 is the end of the range, 10 goes to it, and 1 is 25.4 steps of 5 / 127.
  std::vector<float> x(inputs, 1.0f);
  x[3] = 10.0f;
  LinearInput by_hand(support::input(x, inputs));
  const auto codes = by_hand.quantized(schemes::w8a8, context, {.clip = 0.5f});
  REQUIRE(codes);
  CHECK(codes->codes[3] == 127);
  CHECK(codes->codes[0] == 25);
  CHECK(codes->scales[0] == 5.0f / 127.0f);
  const auto whole = by_hand.quantized(schemes::w8a8, context);  // another multiplier is another input
  REQUIRE(whole);
  CHECK(whole->codes[0] == 13);

  const auto weights = support::normal(outputs * inputs, 1);
  const auto values = support::normal(7 * inputs, 2);
  for (const Scheme& scheme : {schemes::w4a4, w3a4_asym, schemes::w4a8_g32}) {
    const QuantizedMatrix matrix = support::rounded(weights, inputs, scheme.weight);
    auto packed = *Variant::packed(matrix.view(), scheme);
    auto fake = Variant(*FakeQuantizedLinear::create(matrix.view(), scheme));
    LinearInput plain(support::input(values, inputs)), one(support::input(values, inputs)),
        two(support::input(values, inputs));
    const auto before = multiply(packed, plain, packed.info(), {}, context);
    for (Variant* op : {&packed, &fake}) {
      REQUIRE(op->clip_activations(0.7f));
      for (const float wrong : {0.0f, -1.0f, 1.5f, std::nanf("")}) {
        CHECK(op->clip_activations(wrong).error().code == Errc::bad_argument);
      }
    }
    const auto y = multiply(packed, one, packed.info(), {}, context);
    const auto wanted = multiply(fake, two, packed.info(), {}, context);
    CHECK(oracle::distance(y, oracle::Matrix(7, outputs, wanted)) < 1e-5);
    CHECK(oracle::distance(y, oracle::Matrix(7, outputs, before)) > 1e-3);
    // What a site learned: the same rounding, straight from its definition.
    auto site = *ActivationSite<float>::create(scheme.activation, ClipMultiplier::learned);
    site.clip() = 0.7f;
    std::vector<float> rounded(values.size());
    REQUIRE(site.forward(support::input(values, inputs), support::view(rounded, inputs), context));
    const auto seen = two.fake_quantized(scheme.activation, context, {.clip = 0.7f});
    REQUIRE(seen);
    CHECK(std::equal(rounded.begin(), rounded.end(), seen->data));
  }
  auto dense = Variant(*DenseLinear<float>::create(support::input(weights, inputs)));
  CHECK(dense.clip_activations(0.5f).error().code == Errc::unsupported);
}

TEST_CASE("Operators with static activations, or tokens of fewer bits, compute what their fake-quantized ones do") {
  const support::ThreadExecutor threads{3};
  const std::size_t outputs = 37, inputs = 96, tokens = 45;
  const auto weights = support::normal(outputs * inputs, 1);
  const auto values = support::normal(tokens * inputs, 2);
  std::vector<std::uint8_t> bits(tokens, 8);
  for (std::size_t t = 0; t < tokens; t += 2) bits[t] = 4;
  for (const Scheme& scheme : {with_tensor_activations(w3a4_asym), with_tensor_activations(schemes::w8a8)}) {
    for (const InputRotation rotation : {InputRotation::none, InputRotation::hadamard}) {
      const QuantizedMatrix matrix = support::rounded(weights, inputs, scheme.weight);
      auto packed = *Variant::packed(matrix.view(), scheme, {}, rotation);
      auto fake = Variant(*FakeQuantizedLinear::create(matrix.view(), scheme, {}, rotation));
      CHECK(packed.info().scheme == scheme);
      const auto check = [&](const TokenBits& mixed) {
        for (const Isa isa : support::machine_isas()) {
          CAPTURE(scheme_name(scheme).c_str(), isa_name(isa), mixed.bits.size());
          ExecutionContext<support::ThreadExecutor> context(threads, isa);
          const Workspace::Frame frame(context.workspace());
          LinearInput one(support::input(values, inputs), mixed), two(support::input(values, inputs), mixed);
          const auto y = multiply(packed, one, packed.info(), {}, context);
          const auto wanted = multiply(fake, two, packed.info(), {}, context);
          CHECK(oracle::distance(y, oracle::Matrix(tokens, outputs, wanted)) < 1e-6);
        }
      };
      check({});  // one range for all tokens of a call
      check({bits, Zero::affine});
      const StaticGrid grid = static_grid(scheme.activation, -2.0f, 1.5f);
      REQUIRE((packed.fix_activations(grid) && fake.fix_activations(grid)));
      check({});
      check({bits, Zero::affine});
      for (Variant* op : {&packed, &fake}) {
        CHECK(op->fix_activations({-1.0f, 0}).error().code == Errc::bad_argument);
        CHECK(op->fix_activations({1.0f, 16}).error().code == Errc::bad_argument);
      }
      // What integer kernels read.
      const SerialExecutor serial;
      ExecutionContext<> context(serial);
      const Workspace::Frame frame(context.workspace());
      LinearInput input(support::input(values, inputs));
      const auto rules = InputRules{.rotation = rotation, .fixed = grid};
      CHECK(input.quantized(scheme, context, rules)->scales[0] == grid.scale);
    }
  }
  const QuantizedMatrix matrix = support::rounded(weights, inputs, schemes::w8a8.weight);
  auto per_token = *Variant::packed(matrix.view(), schemes::w8a8);
  CHECK(per_token.fix_activations({1.0f, 0}).error().code == Errc::unsupported);
  auto dense = Variant(*DenseLinear<float>::create(support::input(weights, inputs)));
  CHECK(dense.fix_activations({1.0f, 0}).error().code == Errc::unsupported);
  CHECK(Variant::packed(matrix.view(), with_tensor_activations(schemes::w4a8_g32)).error().code == Errc::unsupported);
}

TEST_CASE("Operators of one scheme quantize a shared input once") {
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const Workspace::Frame frame(context.workspace());
  const std::size_t inputs = 64;
  auto x = support::normal(3 * inputs, 1);
  LinearInput input(support::input(x, inputs));
  const auto first = input.quantized(schemes::w4a8_g32, context);
  const auto again = input.quantized(schemes::w4a8_g32, context);
  REQUIRE((first && again));
  CHECK(first->codes == again->codes);
  CHECK(again->tokens == 3);
  const auto other = input.quantized(schemes::w8a8, context);
  REQUIRE(other);
  CHECK(other->codes != first->codes);
  CHECK(other->zero_terms[0] != first->zero_terms[0]);
  const Grid grid = schemes::w4a8_g32.activation;
  const auto rounded = input.fake_quantized(grid, context), same = input.fake_quantized(grid, context);
  REQUIRE((rounded && same));
  CHECK(rounded->data == same->data);
  CHECK(input.fake_quantized(Grid{}, context)->data == x.data());
}

TEST_CASE("A variant refuses schemes outside its list, and matrices that break their grid") {
  const auto weights = support::normal(16 * 64, 1);
  const QuantizedMatrix matrix = support::rounded(weights, 64, schemes::w4a8_g32.weight);
  CHECK(Variant::packed(matrix.view(), schemes::w4a16_g32).error().code == Errc::unsupported);
  CHECK(Variant::packed(matrix.view(), make_scheme(5, 8, 32, Zero::symmetric)).error().code == Errc::unsupported);
  CHECK(Variant::packed(matrix.view(), schemes::w8a8).error().code == Errc::bad_shape);
  CHECK(Variant::packed(matrix.view(), schemes::w4a8_g32, std::vector<float>(15)).error().code == Errc::bad_shape);
  const auto op = Variant::packed(matrix.view(), schemes::w4a8_g32);
  REQUIRE(op);
  CHECK(op->get_if<PackedLinear<schemes::w4a8_g32>>() != nullptr);
  CHECK(op->get_if<FakeQuantizedLinear>() == nullptr);
  auto x = support::normal(5 * 64, 2);
  x[3 * 64 + 1] = std::numeric_limits<float>::infinity();
  const SerialExecutor serial;
  ExecutionContext<> context(serial);
  const Workspace::Frame frame(context.workspace());
  LinearInput input(support::input(x, 64));
  std::vector<float> y(5 * 16);
  const Status failed = op->forward(input, {support::view(y, 16)}, context);
  REQUIRE_FALSE(failed);
  CHECK(failed.error().code == Errc::not_finite);
}

namespace {

/// Runs on the calling thread and counts calls that have work for several threads.
struct CountingExecutor {
  std::size_t* calls;
  [[nodiscard]] static std::size_t concurrency() { return 1; }
  template <class Task>
  void for_each_index(std::size_t count, Task&& task) const {
    *calls += count > 1 ? 1u : 0u;
    for (std::size_t i = 0; i < count; ++i) task(i);
  }
};

using TwoSchemes = VariantLinear<PackedLinear<schemes::w4a8_g32>, PackedLinear<schemes::w8a8>>;

TwoSchemes packed_part(std::size_t outputs, const Scheme& scheme, std::span<const float> bias,
                       InputRotation rotation = InputRotation::none) {
  const auto weights = support::normal(outputs * 64, static_cast<unsigned>(outputs));
  auto packed = TwoSchemes::packed(support::rounded(weights, 64, scheme.weight).view(), scheme, bias, rotation);
  REQUIRE(packed);
  return *std::move(packed);
}

/// Calls that forward_all() of the parts makes; checks results against forward() one by one.
std::size_t grouped_calls(std::span<const TwoSchemes> parts) {
  std::size_t calls = 0;
  const CountingExecutor executor{&calls};
  ExecutionContext<CountingExecutor> context(executor);
  const Workspace::Frame frame(context.workspace());
  const auto x = support::normal(2 * 64, 9);
  LinearInput input(support::input(x, 64));
  std::vector<std::vector<float>> wanted, got;
  std::vector<LinearCall<TwoSchemes>> group;
  for (const TwoSchemes& part : parts) {
    const std::size_t outputs = part.info().outputs;
    wanted.emplace_back(2 * outputs);
    REQUIRE(part.forward(input, {support::view(wanted.back(), outputs), {}}, context));
    got.emplace_back(2 * outputs);
  }
  for (std::size_t i = 0; i < parts.size(); ++i)
    group.push_back({&parts[i], {support::view(got[i], parts[i].info().outputs), {}}});
  calls = 0;
  REQUIRE(linear::forward_all<TwoSchemes>(group, input, context));
  CHECK(got == wanted);
  return calls;
}

}  // namespace

TEST_CASE("Operators with a common input share one executor call when their schemes agree") {
  const auto bias = support::normal(96, 7);
  const auto plain = [](std::size_t outputs) { return packed_part(outputs, schemes::w4a8_g32, {}); };
  const auto biased = [&](std::size_t n) { return packed_part(n, schemes::w4a8_g32, std::span(bias).first(n)); };
  std::vector<TwoSchemes> parts;
  CHECK(grouped_calls(parts) == 0);
  parts.push_back(plain(96));
  CHECK(grouped_calls(parts) == 1);
  parts.push_back(plain(33));
  parts.push_back(plain(48));
  CHECK(grouped_calls(parts) == 1);
  parts.push_back(biased(40));  // another epilogue
  CHECK(grouped_calls(parts) == 4);
  parts.clear();
  parts.push_back(biased(96));
  parts.push_back(biased(40));
  CHECK(grouped_calls(parts) == 1);
  parts.push_back(packed_part(40, schemes::w8a8, std::span(bias).first(40)));
  CHECK(grouped_calls(parts) == 3);
  parts.clear();
  parts.push_back(plain(96));
  parts.push_back(packed_part(40, schemes::w4a8_g32, {}, InputRotation::hadamard));
  CHECK(grouped_calls(parts) == 2);  // one rotates
  parts.clear();
  for (int i = 0; i < 5; ++i) parts.push_back(plain(40));  // more than a group holds
  CHECK(grouped_calls(parts) == 5);
}

TEST_CASE("A group refuses operands that do not fit, before any work") {
  std::size_t calls = 0;
  const CountingExecutor executor{&calls};
  ExecutionContext<CountingExecutor> context(executor);
  const Workspace::Frame frame(context.workspace());
  const auto x = support::normal(2 * 64, 9);
  LinearInput input(support::input(x, 64));
  const TwoSchemes first = packed_part(40, schemes::w4a8_g32, {});
  std::vector<float> y(2 * 40, -1.0f), wrong(2 * 39, -1.0f);
  const LinearCall<TwoSchemes> group[] = {{&first, {support::view(y, 40), {}}},
                                          {&first, {support::view(wrong, 39), {}}}};
  CHECK(linear::forward_all<TwoSchemes>(group, input, context).error().code == Errc::bad_shape);
  CHECK(y == std::vector<float>(y.size(), -1.0f));
}
