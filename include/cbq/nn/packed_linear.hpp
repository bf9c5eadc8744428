// SPDX-License-Identifier: Apache-2.0
#pragma once

// PackedLinear<S>: the linear operator that engines ship. Weights stay packed; activations are quantized per token (and
// shared with other operators of the same input) or stay float. Only the choice of kernels depends on S at compile
// time.

#include <cstddef>
#include <span>
#include <utility>

#include <cbq/gemm/grouped_matmul.hpp>
#include <cbq/gemm/kernels_portable.hpp>
#include <cbq/gemm/matmul.hpp>
#include <cbq/gemm/packed_weights.hpp>
#include <cbq/gemm/weight_only_matmul.hpp>
#include <cbq/nn/linear.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace linear {

/// The kernels of one product on one instruction set; those of the other kind of activations are null.
struct ProductKernels {
  IntegerKernel integer = nullptr;
  WeightOnlyKernels few = {};
  DecodeKernel decode = nullptr;
};

/// Kernels for weights of `Bits` bits and zero points of kind `Z`, with quantized or floating-point activations.
template <int Bits, Zero Z>
[[nodiscard]] ProductKernels integer_kernels(Isa isa) noexcept {
  return {.integer = PortableKernels::integer_tile<Bits, Z>(isa)};
}
template <int Bits, Zero Z>
[[nodiscard]] ProductKernels float_kernels(Isa isa) noexcept {
  return {.few = PortableKernels::weight_only_tile<Bits, Z>(isa),
          .decode = PortableKernels::decode_panel<Bits, Z>(isa)};
}

/// Packed weights and bias with their memory; that of weights which lie elsewhere is empty.
struct PackedStorage {
  AlignedBuffer<std::byte> memory;
  AlignedBuffer<float> bias;
  PackedMatrix matrix = {};
  InputRules input = {};
};

/// Packs `matrix` on `grid`, one of a packed scheme; `bias` may be empty. Errors as pack(), and out_of_memory.
[[nodiscard]] inline Result<PackedStorage> pack_storage(const QuantizedMatrixView& matrix, const Grid& grid,
                                                        std::span<const float> bias) noexcept {
  const Result<PackedLayout> layout = packed_layout(grid, matrix.codes.rows, matrix.codes.columns);
  if (!layout) return layout.error();
  Result<AlignedBuffer<std::byte>> memory = AlignedBuffer<std::byte>::allocate(packed_bytes(*layout));
  if (!memory) return memory.error();
  const Result<PackedMatrix> packed = packing::pack_matrix(matrix, grid, {memory->data(), memory->size()});
  if (!packed) return packed.error();
  Result<AlignedBuffer<float>> copy = copy_bias(bias, matrix.codes.rows);
  if (!copy) return copy.error();
  PackedStorage storage;
  storage.memory = *std::move(memory);
  storage.bias = *std::move(copy);
  storage.matrix = *packed;
  return storage;
}

/// Weights that are packed already and lie in memory of the caller's. Errc::bad_shape when they are not packed on
/// `grid`, or the bias has another length.
[[nodiscard]] inline Result<PackedStorage> view_storage(const PackedMatrix& matrix, const Grid& grid,
                                                        std::span<const float> bias) noexcept {
  const Result<PackedLayout> layout = packed_layout(grid, matrix.layout.outputs, matrix.layout.inputs);
  if (!layout) return layout.error();
  if (layout->bits != matrix.layout.bits || layout->zero != matrix.layout.zero ||
      layout->groups != matrix.layout.groups || layout->panel_bytes != matrix.layout.panel_bytes) {
    return Error{Errc::bad_shape, "[cbq] packed linear: the weights are not packed under this scheme", "",
                 ErrorText(packed_bytes(matrix.layout)) << " bytes of " << matrix.layout.bits << "-bit codes",
                 ErrorText(packed_bytes(*layout)) << " bytes of " << layout->bits << "-bit codes"};
  }
  Result<AlignedBuffer<float>> copy = copy_bias(bias, layout->outputs);
  if (!copy) return copy.error();
  PackedStorage storage;
  storage.bias = *std::move(copy);
  storage.matrix = {matrix.data, *layout, matrix.multiplier};
  return storage;
}

[[nodiscard]] inline LinearInfo packed_info(const PackedStorage& storage, const Scheme& scheme) noexcept {
  const PackedLayout& layout = storage.matrix.layout;
  return {.outputs = layout.outputs,
          .inputs = layout.inputs,
          .scheme = scheme,
          .bytes = packed_bytes(layout),
          .rotation = storage.input.rotation};
}

/// out = x W^T + bias + residual with the kernels that `scheme` asks for.
template <Executor E>
[[nodiscard]] Status multiply_packed(const ProductKernels& kernels, const PackedStorage& storage, const Scheme& scheme,
                                     LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) noexcept {
  if (const Status valid = check_operands(packed_info(storage, scheme), x.values(), out); !valid) return valid;
  const PackedMatrix& weights = storage.matrix;
  if (scheme.activation.bits == 16) {
    const Result<MatrixView<const float>> values = x.rotated(storage.input.rotation, context);
    if (!values) return values.error();
    const DecodedPanels panels{.weights = weights,
                               .decode = kernels.decode,
                               .outputs = weights.layout.outputs,
                               .inputs = weights.layout.inputs};
    return with_epilogue(storage.bias.data(), out.residual, [&](const auto& epilogue) {
      return driver::multiply_decoded(kernels.few, *values, panels, OutputRange{}, out.y, epilogue, context.executor(),
                                      context.isa());
    });
  }
  const Result<QuantizedTokens> tokens = x.quantized(scheme, context, storage.input);
  if (!tokens) return tokens.error();
  return with_epilogue(storage.bias.data(), out.residual, [&](const auto& epilogue) -> Status {
    driver::IntegerProduct<std::decay_t<decltype(epilogue)>, float> product{
        .kernel = kernels.integer,
        .x = *tokens,
        .weights = weights,
        .range = {},
        .output = driver::output(out.y, epilogue, context.isa())};
    if (const Status fit = driver::check_product(product); !fit) return fit;
    driver::multiply(product, context.executor());
    return {};
  });
}

/// Most operators that share one executor call: Q, K and V, and one to spare.
inline constexpr std::size_t most_grouped = 4;

/// One packed operator of a group.
struct PackedCall {
  IntegerKernel kernel = nullptr;
  const PackedStorage* storage = nullptr;
  LinearOutput out = {};
};

/// Products with operands that were checked and one kind of epilogue for all.
template <class MakeEpilogue, Executor E>
[[nodiscard]] Status multiply_group(std::span<const PackedCall> calls, const QuantizedTokens& x,
                                    const MakeEpilogue& epilogue_of, ExecutionContext<E>& context) noexcept {
  using Post = decltype(epilogue_of(calls.front()));
  driver::IntegerProduct<Post, float> products[most_grouped] = {};
  for (std::size_t i = 0; i < calls.size(); ++i) {
    products[i] = {.kernel = calls[i].kernel,
                   .x = x,
                   .weights = calls[i].storage->matrix,
                   .range = {},
                   .output = driver::output(calls[i].out.y, epilogue_of(calls[i]), context.isa())};
    if (const Status fit = driver::check_product(products[i]); !fit) return fit;
  }
  const auto product_at = [&](std::size_t i) -> const driver::IntegerProduct<Post, float>& { return products[i]; };
  driver::multiply_all(calls.size(), product_at, context.executor());
  return {};
}

/// Whether `calls`, under one scheme, can share an executor call: quantized activations, no residual, one set of rules
/// for the input, a bias for all or for none.
[[nodiscard]] inline bool can_group(std::span<const PackedCall> calls, const Scheme& scheme) noexcept {
  if (calls.size() < 2 || calls.size() > most_grouped || scheme.activation.bits == 16) return false;
  const bool biased = calls.front().storage->bias.size() != 0;
  for (const PackedCall& call : calls) {
    if (!(call.storage->input == calls.front().storage->input)) return false;
    if (call.out.residual.data != nullptr || (call.storage->bias.size() != 0) != biased) return false;
  }
  return true;
}

/// All calls of a group that can_group(), in one executor call.
template <Executor E>
[[nodiscard]] Status multiply_packed_group(std::span<const PackedCall> calls, const Scheme& scheme, LinearInput& x,
                                           ExecutionContext<E>& context) noexcept {
  for (const PackedCall& call : calls) {
    const Status valid = check_operands(packed_info(*call.storage, scheme), x.values(), call.out);
    if (!valid) return valid;
  }
  const PackedStorage& first = *calls.front().storage;
  const Result<QuantizedTokens> tokens = x.quantized(scheme, context, first.input);
  if (!tokens) return tokens.error();
  if (calls.front().storage->bias.size() == 0) {
    return multiply_group(
        calls, *tokens, [](const PackedCall&) { return NoEpilogue{}; }, context);
  }
  return multiply_group(
      calls, *tokens, [](const PackedCall& c) { return AddBias{c.storage->bias.data()}; }, context);
}

/// forward_group() of packed operators, through their packed_call(); one after another where they cannot be grouped.
template <class Op, Executor E>
[[nodiscard]] Status forward_packed_group(std::span<const LinearCall<Op>> calls, LinearInput& x,
                                          ExecutionContext<E>& context) noexcept {
  PackedCall packed[most_grouped] = {};
  bool grouped = calls.size() <= most_grouped;
  for (std::size_t i = 0; grouped && i < calls.size(); ++i) {
    packed[i] = calls[i].op->packed_call(calls[i].out, context.isa());
    grouped = calls[i].op->info().scheme == calls.front().op->info().scheme;
  }
  if (grouped) {
    const Scheme scheme = calls.empty() ? Scheme{} : calls.front().op->info().scheme;
    const std::span<const PackedCall> group(packed, calls.size());
    if (can_group(group, scheme)) return multiply_packed_group(group, scheme, x, context);
  }
  for (const LinearCall<Op>& call : calls) {
    if (const Status done = call.op->forward(x, call.out, context); !done) return done;
  }
  return {};
}

/// The `inputs` weights of one output as floats, read back from packed bytes: scale * (code - zero), rounded once.
inline void unpack_row(const PackedMatrix& weights, std::size_t output, float* out) noexcept {
  for (std::size_t input = 0; input < weights.layout.inputs; ++input) {
    const UnpackedWeight weight = unpack(weights, output, input);
    out[input] = weight.scale * static_cast<float>(static_cast<int>(weight.code) - weight.zero);
  }
}

}  // namespace linear

/// y = x W^T + bias with W packed under S.
template <Scheme S>
class PackedLinear {
 public:
  static constexpr Scheme scheme = checked<S>();

  /// Packs `matrix`, whose inputs are rotated at run time; `bias` may be empty. Errors as pack<S>(), and out_of_memory.
  [[nodiscard]] static Result<PackedLinear> create(const QuantizedMatrixView& matrix, std::span<const float> bias = {},
                                                   InputRotation rotation = InputRotation::none) noexcept {
    Result<linear::PackedStorage> storage = linear::pack_storage(matrix, S.weight, bias);
    if (!storage) return storage.error();
    PackedLinear result;
    result.storage_ = *std::move(storage);
    result.storage_.input.rotation = rotation;
    return result;
  }

  [[nodiscard]] PackedWeightsView<S> weights() const noexcept { return {storage_.matrix}; }
  [[nodiscard]] LinearInfo info() const noexcept { return linear::packed_info(storage_, S); }

  /// See LinearOperator.
  template <Executor E>
  [[nodiscard]] Status forward(LinearInput& x, const LinearOutput& out, ExecutionContext<E>& context) const noexcept {
    linear::ProductKernels kernels;
    if constexpr (S.activation.bits == 16) {
      kernels = linear::float_kernels<S.weight.bits, S.weight.zero>(context.isa());
    } else {
      kernels = linear::integer_kernels<S.weight.bits, S.weight.zero>(context.isa());
    }
    return linear::multiply_packed(kernels, storage_, S, x, out, context);
  }

  /// See linear::forward_all().
  template <Executor E>
  [[nodiscard]] static Status forward_group(std::span<const LinearCall<PackedLinear>> calls, LinearInput& x,
                                            ExecutionContext<E>& context) noexcept {
    return linear::forward_packed_group(calls, x, context);
  }
  [[nodiscard]] linear::PackedCall packed_call(const LinearOutput& out, Isa isa) const noexcept {
    linear::PackedCall call{.kernel = nullptr, .storage = &storage_, .out = out};
    if constexpr (S.activation.bits < 16) {
      call.kernel = linear::integer_kernels<S.weight.bits, S.weight.zero>(isa).integer;
    }
    return call;
  }

  /// Shrinks the ranges of activations, as ActivationSite learned it. Errc::bad_argument unless in (0, 1].
  [[nodiscard]] Status clip_activations(float multiplier) noexcept {
    if (const Status valid = check_clip(multiplier); !valid) return valid;
    storage_.input.clip = multiplier;
    return {};
  }

  /// Makes activations static: one grid for all tokens, such as static_grid() of a calibrated range. Errc::unsupported
  /// unless the scheme's activations are per tensor, Errc::bad_argument as check_static_grid().
  [[nodiscard]] Status fix_activations(const StaticGrid& grid) noexcept {
    return linear::fix_activations(storage_.input, S, grid);
  }

  /// The weights of one output, `inputs` floats; output < info().outputs.
  void weight_row(std::size_t output, float* weights) const noexcept {
    linear::unpack_row(storage_.matrix, output, weights);
  }

 private:
  linear::PackedStorage storage_;
};

static_assert(LinearOperator<PackedLinear<schemes::w4a8_g128>> && LinearOperator<PackedLinear<schemes::w4a16_g128>>);

}  // namespace CBQ_ABI
}  // namespace cbq
