// SPDX-License-Identifier: Apache-2.0
#pragma once

// KvSite: what a quantized cache makes of the keys or of the values of past tokens, with a backward pass: channels are
// smoothed, heads rotated where the scheme says so, groups of each token quantized, and all of it undone. Factors and
// offsets of the smoothing can be learned; gradients pass straight through the rounding (WKVQuant, Yue et al., 2024,
// two-dimensional quantization). Groups are quantized as the cache does it (simulated_group.hpp); where it refines them
// by least squares, with weights for keys that are not rotated, the gradient of their range is left out. About 20
// operations per element and pass.
//
//   u = (x - d) / s                 s = exp(sigma), d = d_0 + s_0 shift     sigma, shift per channel of each head
//   w = H u                         H orthonormal and symmetric, or the identity
//   w^ = step code + low            code = clamp(round((w - low) / step)), low = min w, step = (max w - low) / levels
//   x^ = s H w^ + d
//
//   With g = dL/dw^ = H (s o dL/dx^), a = sum over the group of g (code - (w - low) / step):
//   dw = g, and at the largest w + a / levels, at the smallest - a / levels;  du = H dw,  dx = du / s
//   dd = sum over tokens of dL/dx^ - du / s       ds = sum over tokens of dL/dx^ o u^ - du o u / s

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

#include <cbq/kv/kv_layout.hpp>
#include <cbq/nn/differentiable.hpp>
#include <cbq/nn/simulated_group.hpp>
#include <cbq/rounding/trainable.hpp>
#include <cbq/transform/hadamard.hpp>
#include <cbq/transform/input_rotation.hpp>

namespace cbq {

/// What the gradient of a group's range does: it reaches the group's largest and smallest element, or stays.
enum class RangeGradient : unsigned char { through, detached };

struct KvSiteOptions {
  int bits = 4;
  std::size_t width = 0;  ///< of a head, at most 256
  std::size_t group = 0;  ///< channels of a head that share scale and offset, at most; 0: as in a KvLayout
  InputRotation rotation = InputRotation::none;
  int refinements = 0;  ///< least-squares steps per group, of floats alone; the range is then detached
  RangeGradient range = RangeGradient::through;
  double scale_rate = 5e-4;   ///< learning rate of sigma; 0: factors stay
  double offset_rate = 5e-4;  ///< learning rate of shift; 0: offsets stay
};

inline namespace CBQ_ABI {

template <class T>
class KvSite {
 public:
  using Scalar = T;
  static constexpr std::size_t widest_head = 256;

  /// The identity: nothing is quantized.
  KvSite() noexcept = default;

  /// Begins with `scales` and `offsets`, one per channel of all heads; `offsets` empty: zeros. Errc::unsupported (bits,
  /// width), Errc::bad_shape, Errc::bad_argument for a scale that is not positive and finite, Errc::out_of_memory.
  [[nodiscard]] static Result<KvSite> create(const KvSiteOptions& options, std::span<const T> scales,
                                             std::span<const T> offsets = {}) noexcept {
    if (const Status valid = check(options, scales, offsets); !valid) return valid.error();
    KvSite site;
    site.options_ = options;
    if (options.group == 0 || options.group > options.width) site.options_.group = default_group(options.width);
    site.channels_ = scales.size();
    auto memory = AlignedBuffer<T>::allocate(parts * site.channels_);
    if (!memory) return memory.error();
    site.memory_ = *std::move(memory);
    for (std::size_t c = 0; c < site.channels_; ++c) {
      site.part(sigmas)[c] = std::log(scales[c]);
      site.part(shifts)[c] = 0;
      site.part(units)[c] = scales[c];
      site.part(starts)[c] = offsets.empty() ? T(0) : offsets[c];
      site.part(weights)[c] = 1;
    }
    site.clear_gradients();
    return site;
  }

  [[nodiscard]] bool is_identity() const noexcept { return channels_ == 0; }
  [[nodiscard]] bool is_trained() const noexcept {
    return !is_identity() && (options_.scale_rate != 0 || options_.offset_rate != 0);
  }
  [[nodiscard]] std::size_t channels() const noexcept { return channels_; }
  [[nodiscard]] std::size_t width() const noexcept { return options_.width; }  ///< of a head
  /// The smoothing now.
  [[nodiscard]] T scale(std::size_t channel) const noexcept { return std::exp(part(sigmas)[channel]); }
  [[nodiscard]] T offset(std::size_t channel) const noexcept {
    return part(starts)[channel] + part(units)[channel] * part(shifts)[channel];
  }
  /// What a squared error of the smoothed channel costs; grows with the square of its factor.
  [[nodiscard]] T weight(std::size_t channel) const noexcept {
    const T grown = scale(channel) / part(units)[channel];
    return part(weights)[channel] * grown * grown;
  }
  /// Weights at the start, which are 1 otherwise: those that key_refinement() has for a cache. Refined groups heed them
  /// once they are set, and where heads are not rotated. Errc::bad_shape, Errc::bad_argument for one that is negative
  /// or not finite.
  [[nodiscard]] Status set_weights(std::span<const T> values) noexcept {
    if (values.size() != channels_) {
      return Error{Errc::bad_shape, "there is one weight for each channel", "weights", values.size(), channels_};
    }
    for (std::size_t c = 0; c < channels_; ++c) {
      if (values[c] >= 0 && values[c] <= std::numeric_limits<T>::max()) continue;
      return Error{Errc::bad_argument, "weights are finite and not negative", ErrorText("weight of channel ") << c};
    }
    for (std::size_t c = 0; c < channels_; ++c) part(weights)[c] = values[c];
    weighing_ = Weighing::given;
    return {};
  }

  /// sigma and shift of all channels.
  [[nodiscard]] ParameterList<T> parameters() noexcept {
    ParameterList<T> list;
    list.add({part(sigmas), part(sigma_gradients), channels_, options_.scale_rate});
    list.add({part(shifts), part(shift_gradients), channels_, options_.offset_rate});
    return list;
  }
  void clear_gradients() noexcept {
    for (std::size_t c = 0; c < channels_; ++c) part(sigma_gradients)[c] = part(shift_gradients)[c] = 0;
  }
  /// After an optimizer's step: factors stay between 2^-20 and 2^20 times those of the start.
  void project() noexcept {
    constexpr T reach = static_cast<T>(13.862943611198906);
    for (std::size_t c = 0; c < channels_; ++c) {
      const T middle = std::log(part(units)[c]);
      T& sigma = part(sigmas)[c];
      sigma = sigma < middle - reach ? middle - reach : sigma > middle + reach ? middle + reach : sigma;
    }
  }

  /// x^ [tokens x channels] = site(x); out may be x. Errc::bad_shape; Errc::not_finite naming a token, also where scale
  /// or offset of a group are beyond half: of this token nothing is written from the head of the group on.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, const MatrixView<T>& out,
                               ExecutionContext<E>& context) const noexcept {
    if (const Status fits = check_shapes(x, as_const(out)); !fits) return fits;
    if (is_identity()) return keep(x, out);
    const Workspace::Frame frame(context.workspace());
    const auto smoothing = smoothing_now(context);
    if (!smoothing) return smoothing.error();
    const auto failed = context.workspace().template take<unsigned char>(x.rows);
    if (!failed) return failed.error();
    const Isa isa = context.isa();
    for_each_chunk(x.rows, context, [&](std::size_t, std::size_t r) {
      (*failed)[r] = 0;
      for (std::size_t first = 0; first < channels_; first += options_.width) {
        const Channels head = smoothing->at(first);
        T u[widest_head];
        Head coded;
        if (!encode(row(x, r) + first, head, u, coded, isa)) {
          (*failed)[r] = 1;
          return;
        }
        rotate(coded.values, isa);
        for (std::size_t i = 0; i < options_.width; ++i)
          row(out, r)[first + i] = coded.values[i] * head.s[i] + head.d[i];
      }
    });
    for (std::size_t r = 0; r < x.rows; ++r) {
      if ((*failed)[r] == 0) continue;
      return Error{Errc::not_finite, "a key or value is not finite, or its group too large for half",
                   ErrorText("token ") << r};
    }
    return {};
  }

  /// Replaces dL/dx^ by dL/dx, and adds dL/dsigma and dL/dshift to the gradients of parameters(). Heads that forward()
  /// refuses pass their gradient as it is. Errc::bad_shape, Errc::out_of_memory.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<T>& gradient, const MatrixView<const T>& x, const MatrixView<const T>&,
                                ExecutionContext<E>& context) noexcept {
    if (const Status fits = check_shapes(x, as_const(gradient)); !fits) return fits;
    if (is_identity()) return {};
    const Workspace::Frame frame(context.workspace());
    const auto smoothing = smoothing_now(context);
    if (!smoothing) return smoothing.error();
    const std::size_t chunks = divide_up(x.rows, rows_per_chunk);
    const auto sums = context.workspace().template take_matrix<double>(chunks, 2 * channels_);
    if (!sums) return sums.error();
    for (std::size_t i = 0; i < chunks * 2 * channels_; ++i) sums->data[i] = 0;
    const Isa isa = context.isa();
    for_each_chunk(x.rows, context, [&](std::size_t chunk, std::size_t r) {
      for (std::size_t first = 0; first < channels_; first += options_.width) {
        double* const sum = row(*sums, chunk) + first;
        backward_head(row(x, r) + first, smoothing->at(first), row(gradient, r) + first, {sum, sum + channels_}, isa);
      }
    });
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
      for (std::size_t c = 0; c < channels_; ++c) {
        const double ds = row(*sums, chunk)[c], dd = row(*sums, chunk)[channels_ + c];
        part(sigma_gradients)[c] += static_cast<T>(ds * static_cast<double>(smoothing->s[c]));
        part(shift_gradients)[c] += static_cast<T>(dd * static_cast<double>(part(units)[c]));
      }
    }
    return {};
  }

  [[nodiscard]] std::size_t bytes() const noexcept { return memory_.size() * sizeof(T); }

 private:
  enum class Weighing : unsigned char { equal, given };
  enum Part : std::size_t { sigmas, shifts, sigma_gradients, shift_gradients, units, starts, weights, parts };
  static constexpr std::size_t rows_per_chunk = 64;

  /// s, d and weights of channels; null weights: equal ones.
  struct Channels {
    const T* s = nullptr;
    const T* d = nullptr;
    const T* w = nullptr;
    [[nodiscard]] Channels at(std::size_t first) const noexcept { return {s + first, d + first, weights_at(first)}; }
    [[nodiscard]] const T* weights_at(std::size_t first) const noexcept { return w == nullptr ? nullptr : w + first; }
  };
  /// Sums over tokens of dL/ds and dL/dd.
  struct Sums {
    double* scales = nullptr;
    double* offsets = nullptr;
  };
  /// w^ of a head, and of each element code - (w - low) / step; of each group where its extremes are.
  struct Head {
    T values[widest_head];
    T residues[widest_head];
    GroupExtremes groups[widest_head];
  };

  [[nodiscard]] static Status check(const KvSiteOptions& options, std::span<const T> scales,
                                    std::span<const T> offsets) noexcept {
    if (options.bits != 2 && options.bits != 3 && options.bits != 4 && options.bits != 8) {
      return Error{Errc::unsupported, "keys and values have 2, 3, 4 or 8 bits", "KvSiteOptions.bits", options.bits};
    }
    if (options.width == 0 || options.width > widest_head) {
      return Error{Errc::unsupported, "heads are 1 to 256 wide", "KvSiteOptions.width", options.width};
    }
    if (scales.empty() || scales.size() % options.width != 0 || (!offsets.empty() && offsets.size() != scales.size())) {
      return Error{Errc::bad_shape, "there is one factor and one offset for each channel of whole heads", "scales",
                   ErrorText(scales.size()) << ", " << offsets.size(), options.width};
    }
    for (std::size_t c = 0; c < scales.size(); ++c) {
      const bool finite = offsets.empty() || offsets[c] - offsets[c] == T(0);
      if (scales[c] > 0 && scales[c] <= std::numeric_limits<T>::max() && finite) continue;
      return Error{Errc::bad_argument, "smoothing needs positive factors and finite offsets",
                   ErrorText("channel ") << c};
    }
    return {};
  }

  /// Rows of all channels; any of an identity.
  [[nodiscard]] Status check_shapes(const MatrixView<const T>& x, const MatrixView<const T>& other) const noexcept {
    if (x.rows == other.rows && x.columns == other.columns && (is_identity() || x.columns == channels_)) return {};
    return Error{Errc::bad_shape, "rows do not have the channels of the cache", "keys or values",
                 ErrorText(x.rows) << " x " << x.columns << ", " << other.rows << " x " << other.columns, channels_};
  }

  [[nodiscard]] static Status keep(const MatrixView<const T>& x, const MatrixView<T>& out) noexcept {
    if (out.data == x.data) return {};
    for (std::size_t r = 0; r < x.rows; ++r) {
      for (std::size_t i = 0; i < x.columns; ++i) row(out, r)[i] = row(x, r)[i];
    }
    return {};
  }

  /// Equal groups of at most 128 channels.
  [[nodiscard]] static std::size_t default_group(std::size_t width) noexcept {
    return width <= kv_longest_group ? width : kv_longest_group;
  }

  [[nodiscard]] T* part(Part which) noexcept { return memory_.data() + which * channels_; }
  [[nodiscard]] const T* part(Part which) const noexcept { return memory_.data() + which * channels_; }

  template <Executor E>
  [[nodiscard]] Result<Channels> smoothing_now(ExecutionContext<E>& context) const noexcept {
    const auto memory = context.workspace().template take<T>(3 * channels_);
    if (!memory) return memory.error();
    for (std::size_t c = 0; c < channels_; ++c) {
      (*memory)[c] = scale(c);
      (*memory)[channels_ + c] = offset(c);
      (*memory)[2 * channels_ + c] = weight(c);
    }
    // As key_refinement(): after a rotation every channel has the errors of all.
    const bool weighs = weighing_ == Weighing::given && options_.rotation == InputRotation::none;
    return Channels{memory->data(), memory->data() + channels_, weighs ? memory->data() + 2 * channels_ : nullptr};
  }

  /// Calls body(chunk, row) for all rows, those of a chunk in order.
  template <Executor E, class Body>
  static void for_each_chunk(std::size_t rows, ExecutionContext<E>& context, const Body& body) noexcept {
    context.executor().for_each_index(divide_up(rows, rows_per_chunk), [&](std::size_t chunk) {
      const std::size_t first = chunk * rows_per_chunk;
      for (std::size_t r = first; r < rows && r < first + rows_per_chunk; ++r) body(chunk, r);
    });
  }

  void rotate(T* head, Isa isa) const noexcept {
    if (options_.rotation == InputRotation::none) return;
    hadamard_row(std::span<T>(head, options_.width), hadamard_size(options_.width), isa);
  }

  [[nodiscard]] GroupRule rule() const noexcept { return {options_.bits, options_.refinements}; }

  /// u and w^ of a head; false where a group has no grid.
  [[nodiscard]] bool encode(const T* x, const Channels& head, T* u, Head& coded, Isa isa) const noexcept {
    T w[widest_head];
    for (std::size_t i = 0; i < options_.width; ++i) w[i] = u[i] = (x[i] - head.d[i]) / head.s[i];
    rotate(w, isa);
    bool good = true;
    for (std::size_t first = 0, group = 0; first < options_.width; first += options_.group, ++group) {
      const std::size_t rest = options_.width - first;
      const WeightedGroup<T> part{{w + first, rest < options_.group ? rest : options_.group}, head.weights_at(first)};
      coded.groups[group] = simulate_group(part, rule(), coded.values + first, coded.residues + first);
      good = good && coded.groups[group].good;
    }
    return good;
  }

  void backward_head(const T* x, const Channels& head, T* gradient, const Sums& sums, Isa isa) const noexcept {
    const std::size_t width = options_.width;
    T u[widest_head], slopes[widest_head];
    Head coded;
    if (!encode(x, head, u, coded, isa)) return;
    for (std::size_t i = 0; i < width; ++i) slopes[i] = gradient[i] * head.s[i];
    rotate(slopes, isa);
    for (std::size_t first = 0, group = 0; first < width; first += options_.group, ++group) {
      if (options_.range == RangeGradient::detached || options_.refinements != 0) break;
      T along = 0;
      for (std::size_t i = first; i < width && i < first + options_.group; ++i) along += slopes[i] * coded.residues[i];
      const auto levels = static_cast<T>(rule().levels());
      slopes[first + coded.groups[group].largest] += along / levels;
      slopes[first + coded.groups[group].smallest] -= along / levels;
    }
    rotate(slopes, isa);
    rotate(coded.values, isa);
    for (std::size_t i = 0; i < width; ++i) {
      const T dx = slopes[i] / head.s[i];
      sums.scales[i] += static_cast<double>(gradient[i] * coded.values[i] - dx * u[i]);
      sums.offsets[i] += static_cast<double>(gradient[i] - dx);
      gradient[i] = dx;
    }
  }

  AlignedBuffer<T> memory_;
  KvSiteOptions options_ = {};
  std::size_t channels_ = 0;
  Weighing weighing_ = Weighing::equal;
};

static_assert(DifferentiableActivation<KvSite<float>> && DifferentiableActivation<KvSite<double>>);

}  // namespace CBQ_ABI
}  // namespace cbq
