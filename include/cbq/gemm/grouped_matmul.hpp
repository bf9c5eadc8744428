// SPDX-License-Identifier: Apache-2.0
#pragma once

// Several packed matmuls in one executor call, without a barrier between them: Q, K and V or gate and up, which share
// one quantized activation, and the experts of a mixture, each with tokens of its own. Worth it where a matmul takes
// microseconds, as handing work to threads and collecting them again then costs as much as the work; and where single
// matmuls have too few tokens to occupy all threads. Results are the same bits as those of separate calls, for any
// executor. Allocates nothing.
//
// Tokens of a mixture come sorted by expert: expert e has rows [offsets[e], offsets[e + 1]).

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <type_traits>

#include <cbq/gemm/matmul.hpp>

namespace cbq {

/// Activations of a mixture of experts, quantized per expert. Plain data.
template <Scheme S>
struct ExpertActivationsView {
  std::span<const std::size_t> offsets = {};                  ///< experts + 1, ascending
  std::span<const QuantizedActivationsView<S>> experts = {};  ///< the tokens of each
};

inline namespace CBQ_ABI {

/// One matmul of a group: y = x W^T followed by the epilogue.
template <Scheme S, Epilogue Post = NoEpilogue, OutputElement T = float>
struct GroupMember {
  PackedWeightsView<S> weights = {};
  MatrixView<T> y = {};
  Post epilogue = {};
};

namespace driver {

/// Products whose cuts are held on the stack; of more, each piece works out its own.
inline constexpr std::size_t most_held_products = 8;

/// Where the pieces of each product begin among those of all, without memory from anywhere: of many products, only
/// every `stride`th has its own entry.
struct PieceStarts {
  static constexpr std::size_t most = 64;
  std::size_t starts[most] = {};
  std::size_t entries = 0;
  std::size_t stride = 1;
  std::size_t pieces = 0;
};

/// A product and one of its pieces.
struct PiecePlace {
  std::size_t product = 0;
  std::size_t piece = 0;
};

/// `pieces_of(i)`: how many pieces product i has.
template <class PiecesOf>
[[nodiscard]] PieceStarts piece_starts(std::size_t products, const PiecesOf& pieces_of) {
  PieceStarts starts;
  starts.stride = products <= PieceStarts::most ? 1 : divide_up(products, PieceStarts::most);
  for (std::size_t i = 0; i < products; ++i) {
    if (i % starts.stride == 0) starts.starts[starts.entries++] = starts.pieces;
    starts.pieces += pieces_of(i);
  }
  return starts;
}

/// Where piece `index`, below starts.pieces, lies.
template <class PiecesOf>
[[nodiscard]] PiecePlace find_piece(const PieceStarts& starts, std::size_t index, const PiecesOf& pieces_of) {
  std::size_t entry = 0;
  while (entry + 1 < starts.entries && starts.starts[entry + 1] <= index) ++entry;
  PiecePlace place{.product = entry * starts.stride, .piece = index - starts.starts[entry]};
  if (starts.stride == 1) return place;
  for (std::size_t count = pieces_of(place.product); place.piece >= count; count = pieces_of(place.product)) {
    place.piece -= count;
    ++place.product;
  }
  return place;
}

/// All pieces of more products than are held on the stack.
template <class ProductAt, class E>
void multiply_many(std::size_t count, const ProductAt& product_at, const E& executor) {
  const auto pieces_of = [&](std::size_t i) {
    const Cut cut = cut_work(product_at(i));
    return cut.token_pieces * cut.output_pieces;
  };
  const PieceStarts starts = piece_starts(count, pieces_of);
  executor.for_each_index(starts.pieces, [&](std::size_t index) {
    const PiecePlace place = find_piece(starts, index, pieces_of);
    const auto& product = product_at(place.product);
    multiply_piece(product, cut_work(product), place.piece);
  });
}

/// All pieces of `count` checked products in one executor call; `product_at(i)` gives product i.
template <class ProductAt, class E>
void multiply_all(std::size_t count, const ProductAt& product_at, const E& executor) {
  if (count > most_held_products) return multiply_many(count, product_at, executor);
  std::decay_t<decltype(product_at(0))> products[most_held_products] = {};
  Cut cuts[most_held_products] = {};
  std::size_t ends[most_held_products] = {};
  std::size_t pieces = 0;
  for (std::size_t i = 0; i < count; ++i) {
    products[i] = product_at(i);
    cuts[i] = cut_work(products[i]);
    pieces += cuts[i].token_pieces * cuts[i].output_pieces;
    ends[i] = pieces;
  }
  executor.for_each_index(pieces, [&](std::size_t index) {
    std::size_t i = 0;
    while (ends[i] <= index) ++i;
    multiply_piece(products[i], cuts[i], index - (i == 0 ? 0 : ends[i - 1]));
  });
}

/// `error` with "<what> <index>: " in front of its place.
[[nodiscard]] inline Error in_part(const char* what, std::size_t index, Error error) noexcept {
  error.where = ErrorText(what) << " " << index << ": " << error.where.c_str();
  return error;
}

/// Checks `count` products; an error says which. Their ranges must hold all outputs.
template <class ProductAt>
[[nodiscard]] Status check_all(std::size_t count, const char* what, const ProductAt& product_at) {
  for (std::size_t i = 0; i < count; ++i) {
    auto product = product_at(i);
    if (const Status fit = check_product(product); !fit) return in_part(what, i, fit.error());
  }
  return {};
}

/// Whether `offsets` cut `tokens` rows.
[[nodiscard]] inline Status check_offsets(std::span<const std::size_t> offsets, std::size_t tokens) noexcept {
  bool ascending = !offsets.empty() && offsets.front() == 0 && offsets.back() == tokens;
  for (std::size_t e = 1; e < offsets.size(); ++e) ascending = ascending && offsets[e - 1] <= offsets[e];
  if (ascending) return {};
  return Error{Errc::bad_argument, "[cbq] experts: offsets ascend from 0 to the number of tokens", "offsets"};
}

/// Bytes of one expert's activations, filled up so that the next begin on a cache line.
[[nodiscard]] constexpr Result<std::size_t> expert_bytes(const Scheme& scheme, std::size_t tokens,
                                                         std::size_t inputs) noexcept {
  const Result<ActivationLayout> layout = activation_layout(scheme, tokens, inputs);
  if (!layout) return layout.error();
  const Result<std::size_t> padded = checked_sum(layout->bytes, line_bytes);
  if (!padded) return padded.error();
  return *padded / line_bytes * line_bytes;
}

}  // namespace driver

/// y = x W^T followed by its epilogue for every member, in one executor call. Members must not write each other's
/// memory, and no epilogue may read another member's result. Errors: those of matmul(), naming the member, before any
/// work.
template <Scheme S, Epilogue Post = NoEpilogue, OutputElement T = float, class Kernels = RegionKernels,
          Executor E = SerialExecutor>
[[nodiscard]] Status matmul_group(const QuantizedActivationsView<S>& x,
                                  std::span<const GroupMember<S, Post, T>> members, const E& executor = {},
                                  Isa cap = detect()) {
  const Isa isa = capped(cap);
  const IntegerKernel kernel = Kernels::template integer_tile<S.weight.bits, S.weight.zero>(isa);
  if (const Status readable = driver::check_activations<S>(x, isa); !readable) return readable;
  const auto product_at = [&](std::size_t i) {
    const GroupMember<S, Post, T>& member = members[i];
    return driver::IntegerProduct<Post, T>{.kernel = kernel,
                                           .x = x,
                                           .weights = member.weights,
                                           .range = {.first = 0, .count = member.weights.layout.outputs},
                                           .output = driver::output(member.y, member.epilogue, isa)};
  };
  if (const Status fit = driver::check_all(members.size(), "member", product_at); !fit) return fit;
  driver::multiply_all(members.size(), product_at, executor);
  return {};
}

/// Bytes that quantize_experts<S>() needs. Errors: bad_argument (offsets do not ascend from 0), bad_shape.
template <Scheme S>
[[nodiscard]] Result<std::size_t> expert_activations_size(std::span<const std::size_t> offsets,
                                                          std::size_t inputs) noexcept {
  static_assert(checked<S>().activation.bits <= 8,
                "[cbq] quantize_experts: the scheme's activations stay in floating point");
  if (const Status cut = driver::check_offsets(offsets, offsets.empty() ? 0 : offsets.back()); !cut) return cut.error();
  std::size_t total = (offsets.size() - 1) * sizeof(QuantizedActivationsView<S>) + line_bytes;
  for (std::size_t e = 0; e + 1 < offsets.size(); ++e) {
    const Result<std::size_t> bytes = driver::expert_bytes(S, offsets[e + 1] - offsets[e], inputs);
    if (!bytes) return bytes.error();
    const Result<std::size_t> sum = checked_sum(total, *bytes);
    if (!sum) return sum.error();
    total = *sum;
  }
  return total;
}

/// Quantizes x (all tokens x K, sorted by expert) into `memory` of expert_activations_size<S>() bytes on an 8-byte
/// boundary, in one executor call with a task per expert. `offsets` must live as long as the view. Errors: bad_argument
/// (offsets, alignment, null memory), bad_shape (memory), not_finite (names the first token of the first such expert).
template <Scheme S, Executor E = SerialExecutor>
[[nodiscard]] Result<ExpertActivationsView<S>> quantize_experts(const MatrixView<const float>& x,
                                                                std::span<const std::size_t> offsets,
                                                                std::span<std::byte> memory, const E& executor = {},
                                                                Isa cap = detect()) {
  using View = QuantizedActivationsView<S>;
  if (const Status cut = driver::check_offsets(offsets, x.rows); !cut) return cut.error();
  const Result<std::size_t> needed = expert_activations_size<S>(offsets, x.columns);
  if (!needed) return needed.error();
  if (memory.size() < *needed) {
    return Error{Errc::bad_shape, "[cbq] quantize_experts: the memory is too small", "memory", memory.size(), *needed};
  }
  if (reinterpret_cast<std::uintptr_t>(memory.data()) % alignof(View) != 0) {
    return Error{Errc::bad_argument, "[cbq] quantize_experts: the memory must be on an 8-byte boundary", "memory"};
  }
  if (x.data == nullptr && x.rows != 0 && x.columns != 0) {
    return Error{Errc::bad_argument, "[cbq] quantize_experts: memory is null", "x"};
  }
  const std::size_t experts = offsets.size() - 1;
  const Isa isa = capped(cap);
  std::byte* rest = memory.data() + experts * sizeof(View);
  View* views = reinterpret_cast<View*>(memory.data());
  for (std::size_t e = 0; e < experts; ++e) {
    // Until its expert is quantized, a view only says where its memory begins.
    View* view = ::new (static_cast<void*>(memory.data() + e * sizeof(View))) View{};
    view->codes = reinterpret_cast<const std::int8_t*>(rest);
    rest += *driver::expert_bytes(S, offsets[e + 1] - offsets[e], x.columns);
  }
  const auto quantize = [&](std::size_t e) -> Result<QuantizedTokens> {
    const std::size_t tokens = offsets[e + 1] - offsets[e];
    auto* codes = const_cast<std::byte*>(reinterpret_cast<const std::byte*>(views[e].codes));
    const std::span<std::byte> part(codes, *driver::expert_bytes(S, tokens, x.columns));
    return driver::quantize_tokens(rows(x, offsets[e], tokens), S, part, SerialExecutor{}, isa);
  };
  executor.for_each_index(experts, [&](std::size_t e) {
    if (const Result<QuantizedTokens> tokens = quantize(e); tokens) {
      views[e] = View{*tokens};
    } else {
      views[e].tokens = offsets.back() + 1;
    }
  });
  for (std::size_t e = 0; e < experts; ++e) {
    // Once more in order, for the message with the right token.
    if (views[e].tokens > offsets.back()) return driver::in_part("expert", e, quantize(e).error());
  }
  return ExpertActivationsView<S>{offsets, {views, experts}};
}

/// Rows [offsets[e], offsets[e + 1]) of y = those of x times the weights of expert e, all of one shape, followed by the
/// epilogue, which sees rows of the whole y; all experts in one executor call. Errors: those of matmul(), naming the
/// expert, and bad_shape (not one weight matrix per expert, rows of y), before any work.
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor,
          OutputElement T = float>
[[nodiscard]] Status matmul_experts(const ExpertActivationsView<S>& x, std::span<const PackedWeightsView<S>> experts,
                                    const MatrixView<T>& y, const Post& epilogue = {}, const E& executor = {},
                                    Isa cap = detect()) {
  if (x.experts.size() != experts.size() || x.offsets.size() != experts.size() + 1) {
    return Error{Errc::bad_shape, "[cbq] matmul_experts: one weight matrix per expert", "experts", experts.size(),
                 x.experts.size()};
  }
  if (const Status cut = driver::check_offsets(x.offsets, y.rows); !cut) return cut;
  const Isa isa = capped(cap);
  const IntegerKernel kernel = Kernels::template integer_tile<S.weight.bits, S.weight.zero>(isa);
  const auto product_at = [&](std::size_t e) {
    const std::size_t first = x.offsets[e];
    driver::IntegerProduct<Post, T> product{
        .kernel = kernel,
        .x = x.experts[e],
        .weights = experts[e],
        .range = {.first = 0, .count = experts[e].layout.outputs},
        .output = driver::output(rows(y, first, x.offsets[e + 1] - first), epilogue, isa)};
    product.output.epilogue_row = first;
    return product;
  };
  if (const Status fits = driver::check_result(y, y.rows, y.columns); !fits) return fits;
  if (const Status fits = check_epilogue(epilogue, y.rows, y.columns); !fits) return fits;
  for (const QuantizedTokens& tokens : x.experts) {
    if (const Status readable = driver::check_activations<S>(tokens, isa); !readable) return readable;
  }
  if (const Status fit = driver::check_all(experts.size(), "expert", product_at); !fit) return fit;
  driver::multiply_all(experts.size(), product_at, executor);
  return {};
}

}  // namespace CBQ_ABI
}  // namespace cbq
