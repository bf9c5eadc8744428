// SPDX-License-Identifier: Apache-2.0
#pragma once

// SelfAttention: projections, rotary embedding where the model has one, cache and attention, as one layer over any
// linear operator. Q, K and V share their input: it is quantized once, and multiplied in one executor call, when their
// schemes agree. Queries, keys (after rotation) and values can be rounded to a grid per token and head; the products of
// attention itself stay in float.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/kv/attention.hpp>
#include <cbq/nn/activation_site.hpp>
#include <cbq/nn/linear.hpp>
#include <cbq/nn/rotary.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// The grid of queries, keys and values per token and head: 4 bits affine, 8 symmetric, 16 none. Errc::unsupported for
/// others.
[[nodiscard]] constexpr Result<Grid> attention_grid(int bits) noexcept {
  if (bits == 16) return Grid{};
  if (bits == 8) return Grid{.bits = 8, .granularity = Granularity::per_token};
  if (bits == 4) return Grid{.bits = 4, .granularity = Granularity::per_token, .zero = Zero::affine};
  return Error{Errc::unsupported, "queries, keys and values have 4, 8 or 16 bits", "attention bits", bits};
}

/// Tokens that attention runs on, and what the caller wants to see of their weights; see AttentionScores.
struct AttentionTokens {
  // NOLINTNEXTLINE(google-explicit-constructor): positions are all that most callers have to say.
  constexpr AttentionTokens(std::span<const std::uint32_t> where) noexcept : positions(where) {}

  std::span<const std::uint32_t> positions;
  std::span<const float> slopes = {};  ///< of ALiBi, which counts distances in the cache; blocks set them
  MatrixView<float> first_weights = {};
  MatrixView<float> column_sums = {};
  TokenBits bits = {};  ///< of what the projections read
};

/// Four projections, for example half of what a block is made of.
template <LinearOperator Linear>
struct AttentionParts {
  Linear query;
  Linear key;
  Linear value;
  Linear output;
};

template <LinearOperator Linear>
class SelfAttention {
 public:
  /// `hidden`: width of the model; `heads`: as attention_grid() gives. Errc::bad_shape, Errc::unsupported.
  [[nodiscard]] static Result<SelfAttention> create(const AttentionShape& shape, std::size_t hidden, float scale,
                                                    AttentionParts<Linear> parts, const Grid& heads = {}) noexcept {
    if (const Status valid = check_attention(shape); !valid) return valid.error();
    const Result<ActivationSite<float>> site = ActivationSite<float>::create(heads);
    if (!site) return site.error();
    const std::size_t q = shape.heads * shape.width;
    const std::size_t kv = shape.kv_heads * shape.width;
    if (const Status ok = linear::check_linear(parts.query, "query projection", q, hidden); !ok) return ok.error();
    if (const Status ok = linear::check_linear(parts.key, "key projection", kv, hidden); !ok) return ok.error();
    if (const Status ok = linear::check_linear(parts.value, "value projection", kv, hidden); !ok) return ok.error();
    if (const Status ok = linear::check_linear(parts.output, "output projection", hidden, q); !ok) return ok.error();
    return SelfAttention(shape, scale, std::move(parts), *site);
  }

  [[nodiscard]] const AttentionShape& shape() const noexcept { return shape_; }
  [[nodiscard]] const AttentionParts<Linear>& parts() const noexcept { return parts_; }
  [[nodiscard]] AttentionParts<Linear>& parts() noexcept { return parts_; }

  /// out = residual + projection of attention(x), after appending the tokens' keys and values to the cache. `rotary`
  /// may be null. Any cache that has append() and attend() will do. Errors of the parts; the cache is then as before or
  /// longer.
  template <class Cache, Executor E>
  [[nodiscard]] Status forward(const MatrixView<const float>& x, const LinearOutput& out, const RotaryTable* rotary,
                               const AttentionTokens& tokens, Cache& cache,
                               ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto q = context.workspace().take_matrix(x.rows, shape_.heads * shape_.width);
    const auto k = context.workspace().take_matrix(x.rows, shape_.kv_heads * shape_.width);
    const auto v = context.workspace().take_matrix(x.rows, shape_.kv_heads * shape_.width);
    const auto mixed = context.workspace().take_matrix(x.rows, shape_.heads * shape_.width);
    if (!q || !k || !v || !mixed) return Error{Errc::out_of_memory, "no memory for queries, keys and values"};
    LinearInput input(x, tokens.bits);
    const LinearCall<Linear> projections[] = {{&parts_.query, {*q}}, {&parts_.key, {*k}}, {&parts_.value, {*v}}};
    if (const Status done = linear::forward_all<Linear>(projections, input, context); !done) return done;
    if (rotary != nullptr) {
      if (const Status done = rotary->rotate(*q, tokens.positions, context); !done) return done;
      if (const Status done = rotary->rotate(*k, tokens.positions, context); !done) return done;
    }
    for (const MatrixView<float>& heads : {*q, *k, *v}) {
      if (head_site_.is_identity()) break;
      const auto rows = matrix_view(heads.data, heads.rows * heads.columns / shape_.width, shape_.width);
      if (const Status done = head_site_.forward(as_const(rows), rows, context); !done) return done;
    }
    if (const Status done = cache.append(as_const(*k), as_const(*v)); !done) return done;
    AttentionScores scores(scale_);
    scores.slopes = tokens.slopes;
    scores.first_weights = tokens.first_weights;
    scores.column_sums = tokens.column_sums;
    if (const Status done = attend(as_const(*q), cache, scores, *mixed, context); !done) return done;
    LinearInput mixed_input(as_const(*mixed), tokens.bits);
    return parts_.output.forward(mixed_input, out, context);
  }

 private:
  SelfAttention(const AttentionShape& shape, float scale, AttentionParts<Linear> parts,
                const ActivationSite<float>& heads) noexcept
      : shape_(shape), scale_(scale), parts_(std::move(parts)), head_site_(heads) {}

  AttentionShape shape_;
  float scale_;
  AttentionParts<Linear> parts_;
  ActivationSite<float> head_site_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
