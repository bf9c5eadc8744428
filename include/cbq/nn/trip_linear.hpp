// SPDX-License-Identifier: Apache-2.0
#pragma once

// TripLinear<S>: a packed linear operator whose input channels have power-of-two factors at run time (TRIP, form B of
// <cbq/quant/trip.hpp>). Channels of equal exponent are one class: its columns are packed apart, its activations
// gathered and quantized with the step s_1 2^alpha, and each class is one product of the packed kernels, added to the
// result in the order of the exponents. Nothing is multiplied per element; the shift of a class's sum is exact, as its
// step is s_1 times a power of two.
//
//   y_n = s_n s_1 sum over alpha of 2^alpha (sum over c of class alpha of (q_w[n][c] - z_n) (q_x[c] - z)) + bias
//
// For inputs whose producer cannot be divided (what GELU makes); elsewhere form A costs nothing at run time. Cost: up
// to K + 1 products instead of one, each of whole blocks of 32 inputs, a gather of the input, and the result read and
// written once per class. All classes are quantized before the first product: a bad input leaves the result as it was.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/nn/packed_linear.hpp>
#include <cbq/quant/quantized_matrix.hpp>
#include <cbq/quant/trip.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace trip {

/// Channels with one exponent, and their packed weights.
struct ChannelClass {
  std::span<const std::uint32_t> channels = {};
  StaticGrid grid = {};
  PackedMatrix weights = {};
};

/// Some channels of each token, gathered when it is quantized.
struct GatheredTokens : MatrixView<const float> {
  MatrixView<const float> from = {};
  std::span<const std::uint32_t> channels = {};
  MatrixView<float> scratch = {};
  ActivationRules rules = {};

  [[nodiscard]] const float* prepared(std::size_t panel, std::size_t token, Isa) const noexcept {
    const float* values = cbq::row(from, token);
    float* to = cbq::row(scratch, panel);
    for (std::size_t i = 0; i < channels.size(); ++i) to[i] = values[channels[i]];
    return to;
  }
};

/// The codes of one class of a matrix of checked shape, packed. `codes` has room for them.
[[nodiscard]] inline Result<PackedMatrix> pack_class(const QuantizedMatrixView& matrix, const Grid& grid,
                                                     std::span<const std::uint32_t> channels,
                                                     std::span<std::uint8_t> codes,
                                                     std::span<std::byte> memory) noexcept {
  QuantizedMatrixView part = matrix;
  part.codes = matrix_view<const std::uint8_t>(codes.data(), matrix.codes.rows, channels.size());
  for (std::size_t n = 0; n < matrix.codes.rows; ++n) {
    const std::uint8_t* from = row(matrix.codes, n);
    for (std::size_t i = 0; i < channels.size(); ++i) codes[n * channels.size() + i] = from[channels[i]];
  }
  return packing::pack_matrix(part, grid, memory);
}

}  // namespace trip

/// y = x^ W^T + bias with W packed under S, weights per channel and activations per tensor.
template <Scheme S>
class TripLinear {
  static_assert(S.weight.granularity == Granularity::per_channel,
                "[cbq] TripLinear: Scheme.weight must be per channel: groups of inputs would be torn apart");
  static_assert(S.activation.granularity == Granularity::per_tensor,
                "[cbq] TripLinear: Scheme.activation must be per tensor (with_tensor_activations())");

 public:
  static constexpr Scheme scheme = checked<S>();

  /// Packs `matrix`, column c of which is not yet multiplied by its factor; `bias` may be empty. Errors as pack<S>();
  /// Errc::bad_shape (another number of exponents than inputs), Errc::bad_argument (check_trip_sums(), a step beyond
  /// float), Errc::out_of_memory.
  [[nodiscard]] static Result<TripLinear> create(const QuantizedMatrixView& matrix, const ChannelFactors& factors,
                                                 std::span<const float> bias = {}) noexcept {
    if (const Status valid = check(matrix, factors); !valid) return valid.error();
    TripLinear result;
    Result<AlignedBuffer<float>> copy = linear::copy_bias(bias, matrix.codes.rows);
    if (!copy) return copy.error();
    result.bias_ = *std::move(copy);
    result.outputs_ = matrix.codes.rows;
    if (const Status sorted = result.sort_channels(factors); !sorted) return sorted.error();
    if (const Status packed = result.pack(matrix); !packed) return packed.error();
    return result;
  }

  [[nodiscard]] LinearInfo info() const noexcept {
    return {.outputs = outputs_, .inputs = channels_.size(), .scheme = S, .bytes = memory_.size()};
  }
  /// Products per call: exponents that some channel has.
  [[nodiscard]] std::size_t products() const noexcept { return classes_; }

  /// See LinearOperator.
  template <Executor E>
  [[nodiscard]] Status forward(LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) const noexcept {
    if (const Status valid = linear::check_operands(info(), x.values(), out); !valid) return valid;
    const Workspace::Frame frame(context.workspace());
    std::array<QuantizedTokens, trip::most_exponent + 1> tokens = {};
    for (std::size_t i = 0; i < classes_; ++i) {
      const Result<QuantizedTokens> quantized = quantize(class_[i], x, context);
      if (!quantized) return quantized.error();
      tokens[i] = *quantized;
    }
    for (std::size_t i = 0; i < classes_; ++i) {
      const auto multiply = [&](const auto& epilogue) { return add_product(i, tokens[i], out.y, epilogue, context); };
      const Status done =
          i == 0 ? linear::with_epilogue(bias_.data(), out.residual, multiply) : multiply(AddResidual{as_const(out.y)});
      if (!done) return done;
    }
    return {};
  }

  /// The weights of one output, `inputs` floats; output < info().outputs.
  void weight_row(std::size_t output, float* weights) const noexcept {
    for (std::size_t c = 0; c < classes_; ++c) {
      const trip::ChannelClass& one = class_[c];
      for (std::size_t i = 0; i < one.channels.size(); ++i) {
        const UnpackedWeight weight = unpack(one.weights, output, i);
        weights[one.channels[i]] = weight.scale * static_cast<float>(static_cast<int>(weight.code) - weight.zero);
      }
    }
  }

 private:
  [[nodiscard]] static Status check(const QuantizedMatrixView& matrix, const ChannelFactors& factors) noexcept {
    if (const Status valid = check_shape(matrix, S.weight); !valid) return valid;
    if (factors.exponents.size() != matrix.codes.columns) {
      return Error{Errc::bad_shape, "there is one exponent for each channel", "exponents", factors.exponents.size(),
                   matrix.codes.columns};
    }
    return check_trip_sums(S, factors.exponents);
  }

  /// Classes of channels with their grids. Without inputs there is one that is empty.
  [[nodiscard]] Status sort_channels(const ChannelFactors& factors) noexcept {
    auto channels = AlignedBuffer<std::uint32_t>::allocate(factors.exponents.size());
    if (!channels) return channels.error();
    channels_ = *std::move(channels);
    std::size_t sorted = 0;
    for (std::uint32_t exponent = 0; exponent <= trip::most_exponent; ++exponent) {
      const std::size_t first = sorted;
      for (std::size_t c = 0; c < factors.exponents.size(); ++c) {
        if (factors.exponents[c] == exponent) channels_[sorted++] = static_cast<std::uint32_t>(c);
      }
      if (sorted == first && !(exponent == 0 && factors.exponents.empty())) continue;
      trip::ChannelClass& one = class_[classes_++];
      one.channels = {channels_.data() + first, sorted - first};
      one.grid = {.scale = factors.grid.scale * static_cast<float>(1u << exponent), .zero = factors.grid.zero};
      if (const Status valid = check_static_grid(one.grid, S.activation); !valid) return valid;
    }
    return {};
  }

  [[nodiscard]] Status pack(const QuantizedMatrixView& matrix) noexcept {
    std::size_t bytes = 0, widest = 0;
    for (std::size_t c = 0; c < classes_; ++c) {
      const Result<PackedLayout> layout = packed_layout(S.weight, outputs_, class_[c].channels.size());
      if (!layout) return layout.error();
      const Result<std::size_t> sum = checked_sum(bytes, packed_bytes(*layout));
      if (!sum) return sum.error();
      bytes = *sum;
      widest = class_[c].channels.size() > widest ? class_[c].channels.size() : widest;
    }
    auto memory = AlignedBuffer<std::byte>::allocate(bytes);
    if (!memory) return memory.error();
    auto codes = AlignedBuffer<std::uint8_t>::allocate(outputs_ * widest);  // no more than the matrix has
    if (!codes) return codes.error();
    memory_ = *std::move(memory);
    std::span<std::byte> rest(memory_.data(), memory_.size());
    for (std::size_t c = 0; c < classes_; ++c) {
      const Result<PackedMatrix> packed =
          trip::pack_class(matrix, S.weight, class_[c].channels, {codes->data(), codes->size()}, rest);
      if (!packed) return packed.error();
      class_[c].weights = *packed;
      rest = rest.subspan(packed_bytes(packed->layout));
    }
    return {};
  }

  /// The codes stay in the caller's frame of the workspace.
  template <Executor E>
  [[nodiscard]] static Result<QuantizedTokens> quantize(const trip::ChannelClass& one, const LinearInput& x,
                                                        ExecutionContext<E>& context) noexcept {
    const MatrixView<const float>& values = x.values();
    const Result<ActivationLayout> layout = activation_layout(S, values.rows, one.channels.size());
    if (!layout) return layout.error();
    const auto memory = context.workspace().template take<std::byte>(layout->bytes);
    if (!memory) return memory.error();
    const Workspace::Frame frame(context.workspace());
    const std::size_t panel_rows = panel_shape(layout->groups, values.rows, context.isa()).rows;
    const auto scratch = context.workspace().take_matrix(divide_up(values.rows, panel_rows), one.channels.size());
    if (!scratch) return scratch.error();
    trip::GatheredTokens tokens = {{values.data, values.rows, one.channels.size(), one.channels.size()}};
    tokens.from = values;
    tokens.channels = one.channels;
    tokens.scratch = *scratch;
    tokens.rules = {.fixed = one.grid, .tokens = x.tokens()};
    return driver::quantize_tokens(tokens, S, *memory, context.executor(), context.isa());
  }

  template <class Post, Executor E>
  [[nodiscard]] Status add_product(std::size_t index, const QuantizedTokens& tokens, const MatrixView<float>& y,
                                   const Post& epilogue, ExecutionContext<E>& context) const noexcept {
    driver::IntegerProduct<Post, float> product{
        .kernel = linear::integer_kernels<S.weight.bits, S.weight.zero>(context.isa()).integer,
        .x = tokens,
        .weights = class_[index].weights,
        .range = {},
        .output = driver::output(y, epilogue, context.isa())};
    if (const Status fit = driver::check_product(product); !fit) return fit;
    driver::multiply(product, context.executor());
    return {};
  }

  AlignedBuffer<std::byte> memory_;
  AlignedBuffer<std::uint32_t> channels_;  ///< sorted by exponent
  AlignedBuffer<float> bias_;
  std::array<trip::ChannelClass, trip::most_exponent + 1> class_ = {};
  std::size_t classes_ = 0;
  std::size_t outputs_ = 0;
};

static_assert(LinearOperator<TripLinear<with_tensor_activations(schemes::w4a4)>>);

}  // namespace CBQ_ABI
}  // namespace cbq
