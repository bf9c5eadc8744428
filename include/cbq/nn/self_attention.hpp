// SPDX-License-Identifier: Apache-2.0
#pragma once

// SelfAttention: projections, rotary embedding where the model has one, cache and attention, as one layer over any
// linear operator. Q, K and V share their input: it is quantized once, and multiplied in one executor call, when their
// schemes agree.

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <cbq/nn/attention.hpp>
#include <cbq/nn/linear.hpp>
#include <cbq/nn/rotary.hpp>

namespace cbq {
inline namespace CBQ_ABI {

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
  /// `hidden`: width of the model. Errc::bad_shape, Errc::unsupported.
  [[nodiscard]] static Result<SelfAttention> create(const AttentionShape& shape, std::size_t hidden, float scale,
                                                    AttentionParts<Linear> parts) noexcept {
    if (const Status valid = check_attention(shape); !valid) return valid.error();
    const std::size_t q = shape.heads * shape.width;
    const std::size_t kv = shape.kv_heads * shape.width;
    if (const Status ok = linear::check_linear(parts.query, "query projection", q, hidden); !ok) return ok.error();
    if (const Status ok = linear::check_linear(parts.key, "key projection", kv, hidden); !ok) return ok.error();
    if (const Status ok = linear::check_linear(parts.value, "value projection", kv, hidden); !ok) return ok.error();
    if (const Status ok = linear::check_linear(parts.output, "output projection", hidden, q); !ok) return ok.error();
    return SelfAttention(shape, scale, std::move(parts));
  }

  [[nodiscard]] const AttentionShape& shape() const noexcept { return shape_; }
  [[nodiscard]] const AttentionParts<Linear>& parts() const noexcept { return parts_; }
  [[nodiscard]] AttentionParts<Linear>& parts() noexcept { return parts_; }

  /// out = residual + projection of attention(x), after appending the tokens' keys and values to the cache. `rotary`
  /// may be null. Any cache that has append() and attend() will do. Errors of the parts; the cache is then as before or
  /// longer.
  template <class Cache, Executor E>
  [[nodiscard]] Status forward(const MatrixView<const float>& x, const LinearOutput& out, const RotaryTable* rotary,
                               std::span<const std::uint32_t> positions, Cache& cache,
                               ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto q = context.workspace().take_matrix(x.rows, shape_.heads * shape_.width);
    const auto k = context.workspace().take_matrix(x.rows, shape_.kv_heads * shape_.width);
    const auto v = context.workspace().take_matrix(x.rows, shape_.kv_heads * shape_.width);
    const auto mixed = context.workspace().take_matrix(x.rows, shape_.heads * shape_.width);
    if (!q || !k || !v || !mixed) return Error{Errc::out_of_memory, "no memory for queries, keys and values"};
    LinearInput input(x);
    const LinearCall<Linear> projections[] = {{&parts_.query, {*q}}, {&parts_.key, {*k}}, {&parts_.value, {*v}}};
    if (const Status done = linear::forward_all<Linear>(projections, input, context); !done) return done;
    if (rotary != nullptr) {
      if (const Status done = rotary->rotate(*q, positions, context); !done) return done;
      if (const Status done = rotary->rotate(*k, positions, context); !done) return done;
    }
    if (const Status done = cache.append(as_const(*k), as_const(*v)); !done) return done;
    if (const Status done = attend(as_const(*q), cache, scale_, *mixed, context); !done) return done;
    LinearInput mixed_input(as_const(*mixed));
    return parts_.output.forward(mixed_input, out, context);
  }

 private:
  SelfAttention(const AttentionShape& shape, float scale, AttentionParts<Linear> parts) noexcept
      : shape_(shape), scale_(scale), parts_(std::move(parts)) {}

  AttentionShape shape_;
  float scale_;
  AttentionParts<Linear> parts_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
