// SPDX-License-Identifier: Apache-2.0
#pragma once

// RoundingChoice: a trainable rounding whose method is a value, for tools that learn it from a command line: the loop
// is compiled once for all methods. A branch per call, nothing per weight.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

#include <cbq/rounding/ada.hpp>
#include <cbq/rounding/learned_steps.hpp>
#include <cbq/rounding/lora.hpp>
#include <cbq/rounding/straight_through.hpp>
#include <cbq/rounding/weight_clipping.hpp>

namespace cbq {

enum class RoundingMethod : unsigned char {
  straight_through,           ///< dense offsets; the default
  straight_through_low_rank,  ///< offsets of low rank
  lora,                       ///< LoRA-Rounding, the paper's
  ada,                        ///< AdaRound
  nearest,                    ///< learned steps alone
  clipping,                   ///< nearest, with learned ends of the range of each group (OmniQuant, WKVQuant)
};

/// What is empty is the method's own default.
struct RoundingChoiceOptions {
  RoundingMethod method = RoundingMethod::straight_through;
  std::size_t rank = 0;  ///< of methods of low rank; 0: the default
  std::optional<double> offset_rate = {};
  std::optional<double> step_rate = {};
};

inline namespace CBQ_ABI {

/// Of the steps of a window those at whose beginning soft codes must become hard ones; see
/// ReconstructionOptions::hardened_share. 0 where training is hard anyway.
[[nodiscard]] constexpr double hardened_share(RoundingMethod method) noexcept {
  return method == RoundingMethod::lora || method == RoundingMethod::ada ? 0.1 : 0.0;
}

/// See TrainableRounding.
template <class T>
class RoundingChoice {
 public:
  using Scalar = T;
  using Options = RoundingChoiceOptions;

  template <Executor E = SerialExecutor>
  [[nodiscard]] static Result<RoundingChoice> create(const MatrixView<const T>& weights, const Grid& grid,
                                                     const Options& options, std::uint64_t seed,
                                                     const E& executor = {}) noexcept {
    return with_options(options, [&]<class R>(std::type_identity<R>, const auto& own) -> Result<RoundingChoice> {
      Result<R> made = R::create(weights, grid, own, seed, executor);
      if (!made) return made.error();
      return RoundingChoice(*std::move(made));
    });
  }

  [[nodiscard]] const Grid& grid() const noexcept {
    return std::visit([](const auto& r) -> const Grid& { return r.grid(); }, rounding_);
  }
  template <Executor E>
  [[nodiscard]] Status soft_weights(const MatrixView<T>& out, const E& executor) const noexcept {
    return std::visit([&](const auto& r) { return r.soft_weights(out, executor); }, rounding_);
  }
  template <Executor E>
  [[nodiscard]] Status hard_weights(const MatrixView<T>& out, const E& executor) const noexcept {
    return std::visit([&](const auto& r) { return r.hard_weights(out, executor); }, rounding_);
  }
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& upstream, const Penalty& penalty,
                                const E& executor) noexcept {
    return std::visit([&](auto& r) { return r.backward(upstream, penalty, executor); }, rounding_);
  }
  [[nodiscard]] ParameterList<T> parameters() noexcept {
    return std::visit([](auto& r) { return r.parameters(); }, rounding_);
  }
  void set_phase(RoundingPhase phase) noexcept {
    std::visit([&](auto& r) { r.set_phase(phase); }, rounding_);
  }
  void project() noexcept {
    std::visit([](auto& r) { r.project(); }, rounding_);
  }
  [[nodiscard]] Result<QuantizedMatrix> harden() const noexcept {
    return std::visit([](const auto& r) { return r.harden(); }, rounding_);
  }
  [[nodiscard]] std::size_t trained_parameters() const noexcept {
    return std::visit([](const auto& r) { return r.trained_parameters(); }, rounding_);
  }
  [[nodiscard]] std::size_t bytes() const noexcept {
    return std::visit([](const auto& r) { return r.bytes(); }, rounding_);
  }
  [[nodiscard]] static std::size_t bytes_for(std::size_t rows, std::size_t columns, const Grid& grid,
                                             const Options& options) noexcept {
    return with_options(options, [&]<class R>(std::type_identity<R>, const auto& own) {
      return R::bytes_for(rows, columns, grid, own);
    });
  }

 private:
  template <class R>
  explicit RoundingChoice(R rounding) noexcept : rounding_(std::move(rounding)) {}

  /// Calls f(type, its options) for the method.
  template <class F>
  static auto with_options(const Options& options, F&& f) noexcept {
    const auto call = [&]<class R>(std::type_identity<R> type) {
      typename R::Options own;
      if (options.offset_rate) own.offset_rate = *options.offset_rate;
      if (options.step_rate) own.step_rate = *options.step_rate;
      if (options.rank != 0 && own.rank != 0) own.rank = options.rank;
      return f(type, own);
    };
    switch (options.method) {
      case RoundingMethod::straight_through_low_rank:
        return call(std::type_identity<StraightThroughLowRank<T>>());
      case RoundingMethod::lora:
        return call(std::type_identity<LoraRounding<T>>());
      case RoundingMethod::ada:
        return call(std::type_identity<AdaRound<T>>());
      case RoundingMethod::nearest:
        return call(std::type_identity<LearnedSteps<T>>());
      case RoundingMethod::clipping:
        return call(std::type_identity<WeightClipping<T>>());
      case RoundingMethod::straight_through:
        break;
    }
    return call(std::type_identity<StraightThrough<T>>());
  }

  std::variant<StraightThrough<T>, StraightThroughLowRank<T>, LoraRounding<T>, AdaRound<T>, LearnedSteps<T>,
               WeightClipping<T>>
      rounding_;
};

static_assert(TrainableRounding<RoundingChoice<float>>);

}  // namespace CBQ_ABI
}  // namespace cbq
