// SPDX-License-Identifier: Apache-2.0
#pragma once

// Adam (Kingma and Ba, 2015) over the parameters of roundings and activation clips, with the decay of its learning
// rates and a state that checkpoints as bytes.
//
//   m <- b1 m + (1 - b1) g    v <- b2 v + (1 - b2) g^2    x <- x - rate * m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
//
// The rate of a view is its own learning_rate times the factor of the schedule; views of rate 0 are left alone, state
// included. Memory: two scalars per parameter. Element by element: the same bits for any executor.

#include <xsimd/xsimd.hpp>

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <cbq/core/aligned.hpp>
#include <cbq/core/checked.hpp>
#include <cbq/core/executor.hpp>
#include <cbq/rounding/trainable.hpp>

namespace cbq {

struct AdamOptions {
  double mean_decay = 0.9;      ///< b1
  double square_decay = 0.999;  ///< b2
  double epsilon = 1e-8;
};

/// How learning rates fall over the steps of a window.
enum class Decay : unsigned char { constant, linear, cosine };

inline namespace CBQ_ABI {

/// Factor of the learning rates at `step` of `steps`, counted from 0: 1 at the first, 0 after the last.
[[nodiscard]] inline double decay_factor(Decay decay, std::size_t step, std::size_t steps) noexcept {
  if (decay == Decay::constant || steps == 0) return 1;
  const double progress = step < steps ? static_cast<double>(step) / static_cast<double>(steps) : 1.0;
  if (decay == Decay::linear) return 1 - progress;
  return 0.5 * (1 + std::cos(3.141592653589793 * progress));
}

template <class T>
class Adam {
 public:
  using Views = std::span<const ParameterView<T>>;

  /// State for parameters of these sizes, in this order. Errc::out_of_memory, Errc::bad_shape.
  [[nodiscard]] static Result<Adam> create(Views views, const AdamOptions& options = {}) noexcept {
    Adam adam;
    adam.options_ = options;
    for (const ParameterView<T>& view : views) {
      const Result<std::size_t> size = checked_sum(adam.size_, view.size);
      if (!size) return size.error();
      adam.size_ = *size;
    }
    for (AlignedBuffer<T>* buffer : {&adam.means_, &adam.squares_}) {
      auto memory = AlignedBuffer<T>::allocate(adam.size_);
      if (!memory) return memory.error();
      *buffer = std::move(*memory);
      for (T& value : *buffer) value = T{0};
    }
    return adam;
  }

  /// One step with the views' gradients; `factor` as from decay_factor(). The views must have the sizes that the state
  /// was made for. Errc::bad_shape; nothing is changed then.
  template <Executor E = SerialExecutor>
  [[nodiscard]] Status step(Views views, double factor, const E& executor = {}) noexcept {
    std::size_t total = 0;
    for (const ParameterView<T>& view : views) total += view.size;
    if (total != size_) {
      return Error{Errc::bad_shape, "not the parameters that the state belongs to", "Adam", total, size_};
    }
    ++steps_;
    const auto t = static_cast<double>(steps_);
    const double means = 1 - std::pow(options_.mean_decay, t), squares = 1 - std::pow(options_.square_decay, t);
    std::size_t first = 0;
    for (const ParameterView<T>& view : views) {
      const double rate = view.learning_rate * factor;
      const Step step = {static_cast<T>(rate / means), static_cast<T>(1 / squares)};
      if (view.learning_rate != 0) {
        executor.for_each_index(divide_up(view.size, chunk), [&](std::size_t c) {
          const std::size_t from = c * chunk, rest = view.size - from;
          update(view, first, from, rest < chunk ? rest : chunk, step);
        });
      }
      first += view.size;
    }
    return {};
  }

  /// Steps done.
  [[nodiscard]] std::uint64_t steps() const noexcept { return steps_; }

  /// Bytes of the state.
  [[nodiscard]] std::size_t state_size() const noexcept { return header + 2 * size_ * sizeof(T); }

  /// Writes the state; `out` holds state_size() bytes. Errc::bad_shape.
  [[nodiscard]] Status save(std::span<std::byte> out) const noexcept {
    if (const Status fits = check_size(out.size()); !fits) return fits;
    const std::uint64_t size = size_;
    std::memcpy(out.data(), &steps_, sizeof steps_);
    std::memcpy(out.data() + sizeof steps_, &size, sizeof size);
    if (size_ == 0) return {};
    std::memcpy(out.data() + header, means_.data(), size_ * sizeof(T));
    std::memcpy(out.data() + header + size_ * sizeof(T), squares_.data(), size_ * sizeof(T));
    return {};
  }

  /// Reads what save() wrote for the same parameters. Errc::bad_shape, Errc::bad_file; nothing is changed then.
  [[nodiscard]] Status load(std::span<const std::byte> in) noexcept {
    if (const Status fits = check_size(in.size()); !fits) return fits;
    std::uint64_t steps = 0, size = 0;
    std::memcpy(&steps, in.data(), sizeof steps);
    std::memcpy(&size, in.data() + sizeof steps, sizeof size);
    if (size != size_) return Error{Errc::bad_file, "the state of other parameters", "Adam", size, size_};
    steps_ = steps;
    if (size_ == 0) return {};
    std::memcpy(means_.data(), in.data() + header, size_ * sizeof(T));
    std::memcpy(squares_.data(), in.data() + header + size_ * sizeof(T), size_ * sizeof(T));
    return {};
  }

 private:
  static constexpr std::size_t header = 2 * sizeof(std::uint64_t);
  static constexpr std::size_t chunk = 16384;

  /// rate / (1 - b1^t) and 1 / (1 - b2^t).
  struct Step {
    T rate = 0;
    T squares = 0;
  };

  [[nodiscard]] Status check_size(std::size_t bytes) const noexcept {
    if (bytes == state_size()) return {};
    return Error{Errc::bad_shape, "not the size of the state", "Adam", bytes, state_size()};
  }

  /// Elements [from, from + count) of a view whose state begins at `first`.
  void update(const ParameterView<T>& view, std::size_t first, std::size_t from, std::size_t count,
              const Step& step) noexcept {
    using Lanes = xsimd::batch<T>;
    T* const x = view.values + from;
    const T* const g = view.gradients + from;
    T *const m = means_.data() + first + from, *const v = squares_.data() + first + from;
    std::size_t i = 0;
    for (; count - i >= Lanes::size; i += Lanes::size) {
      Lanes mean = Lanes::load_unaligned(m + i), square = Lanes::load_unaligned(v + i);
      const Lanes moved = move(Lanes::load_unaligned(x + i), Lanes::load_unaligned(g + i), mean, square, step);
      moved.store_unaligned(x + i);
      mean.store_unaligned(m + i);
      square.store_unaligned(v + i);
    }
    for (; i < count; ++i) x[i] = move(x[i], g[i], m[i], v[i], step);
  }

  /// One register, or one element.
  template <class V>
  [[nodiscard]] V move(const V& x, const V& g, V& mean, V& square, const Step& step) const noexcept {
    const auto mean_decay = static_cast<T>(options_.mean_decay), square_decay = static_cast<T>(options_.square_decay);
    mean = V(mean_decay) * mean + V(1 - mean_decay) * g;
    square = V(square_decay) * square + V(1 - square_decay) * (g * g);
    const auto epsilon = static_cast<T>(options_.epsilon);
    return x - V(step.rate) * mean / (xsimd::sqrt(square * V(step.squares)) + V(epsilon));
  }

  AlignedBuffer<T> means_, squares_;
  AdamOptions options_;
  std::size_t size_ = 0;
  std::uint64_t steps_ = 0;
};

}  // namespace CBQ_ABI
}  // namespace cbq
