// SPDX-License-Identifier: Apache-2.0
#pragma once

// SelfAttentionGradient: projections, rotary embedding where the model has one, and causal attention over whole
// sequences, with a backward pass. The counterpart of SelfAttention for calibration. With cache sites it is
// teacher-forced decoding on a quantized cache: what a token sees of those before it is what the cache keeps, in one
// pass for all tokens.

#include <cmath>
#include <cstddef>
#include <span>
#include <utility>

#include <cbq/nn/decoded_attention_gradient.hpp>
#include <cbq/nn/rotary.hpp>

namespace cbq {
inline namespace CBQ_ABI {

template <DifferentiableLinear L, DifferentiableActivation A>
struct SelfAttentionGradientParts {
  L query;
  L key;
  L value;
  L output;
  A input_site = {};
  A output_site = {};
  A head_site = {};  ///< of queries and keys after rotation and of values, per token and head; its clip is not learned
  KvSites<typename L::Scalar> cache = {};  ///< behind `head_site`
};

/// What a forward pass leaves for the backward pass.
template <class T>
struct SelfAttentionTape {
  TapeMatrix<T> input;  // quantized; unused where the site is the identity
  TapeMatrix<T> q, k, v;
  KvSitesTape<T> past;  // unused without a cache
  TapeMatrix<T> attended;
  TapeMatrix<T> output;  // quantized; as `input`
  [[nodiscard]] std::size_t bytes() const noexcept {
    return input.bytes() + q.bytes() + k.bytes() + v.bytes() + past.bytes() + attended.bytes() + output.bytes();
  }
};

/// The site's result: x itself, or `memory` written.
template <DifferentiableActivation A, class T, Executor E>
[[nodiscard]] Result<MatrixView<const T>> quantized_input(const A& site, const MatrixView<const T>& x,
                                                          TapeMatrix<T>& memory,
                                                          ExecutionContext<E>& context) noexcept {
  if (site.is_identity()) return x;
  if (const Status taken = memory.reshape(x.rows, x.columns); !taken) return taken.error();
  if (const Status done = site.forward(x, memory.view(), context); !done) return done.error();
  return memory.constant();
}

/// How attention knows positions. What this points to must outlive the layer.
struct AttentionPositions {
  // NOLINTNEXTLINE(google-explicit-constructor): what models with a rotary embedding, or without any, have to say.
  constexpr AttentionPositions(const RotaryTable* table) noexcept : rotary(table) {}

  const RotaryTable* rotary;           ///< null: none
  std::span<const float> slopes = {};  ///< of ALiBi, one per query head; empty: none
};

template <DifferentiableLinear L, DifferentiableActivation A>
class SelfAttentionGradient {
 public:
  using T = typename L::Scalar;
  using Parts = SelfAttentionGradientParts<L, A>;
  using Tape = SelfAttentionTape<T>;

  /// Errc::bad_shape, Errc::unsupported.
  [[nodiscard]] static Result<SelfAttentionGradient> create(const AttentionShape& heads,
                                                            const AttentionPositions& positions, Parts parts) noexcept {
    if (const Status valid = check_attention(heads); !valid) return valid.error();
    const std::size_t q = heads.heads * heads.width;
    const std::size_t kv = heads.kv_heads * heads.width;
    if (parts.query.outputs() != q || parts.key.outputs() != kv || parts.value.outputs() != kv ||
        parts.output.inputs() != q) {
      return Error{Errc::bad_shape, "projections do not have the width of the heads", "query, key, value, output",
                   ErrorText(parts.query.outputs())
                       << ", " << parts.key.outputs() << ", " << parts.value.outputs() << ", " << parts.output.inputs(),
                   ErrorText(q) << ", " << kv};
    }
    if (const Status fits = parts.cache.check(heads); !fits) return fits.error();
    return SelfAttentionGradient(heads, positions, std::move(parts));
  }

  [[nodiscard]] Parts& parts() noexcept { return parts_; }

  /// y = attention(x); rows of x are whole sequences of `length`.
  template <Executor E>
  [[nodiscard]] Status forward(const MatrixView<const T>& x, std::size_t length, const MatrixView<T>& y, Tape& tape,
                               ExecutionContext<E>& context) const noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto input = quantized_input(parts_.input_site, x, tape.input, context);
    if (!input) return input.error();
    const auto project = [&](const L& linear, TapeMatrix<T>& out) -> Status {
      if (const Status taken = out.reshape(x.rows, linear.outputs()); !taken) return taken;
      return linear.forward(*input, out.view(), context);
    };
    if (const Status done = project(parts_.query, tape.q); !done) return done;
    if (const Status done = project(parts_.key, tape.k); !done) return done;
    if (const Status done = project(parts_.value, tape.v); !done) return done;
    if (const Status done = rotate(tape.q.view(), length, 1, context); !done) return done;
    if (const Status done = rotate(tape.k.view(), length, 1, context); !done) return done;
    for (const MatrixView<T>& heads : {tape.q.view(), tape.k.view(), tape.v.view()}) {
      if (parts_.head_site.is_identity()) break;
      const auto rows = matrix_view(heads.data, heads.rows * heads.columns / heads_.width, heads_.width);
      if (const Status done = parts_.head_site.forward(as_const(rows), rows, context); !done) return done;
    }
    if (const Status taken = tape.attended.reshape(x.rows, tape.q.view().columns); !taken) return taken;
    const AttentionOperands<const T> operands{tape.q.constant(), tape.k.constant(), tape.v.constant()};
    const Status attention = parts_.cache.attend(operands, shape(length), tape.past, tape.attended.view(), context);
    if (!attention) return attention;
    const auto output = quantized_input(parts_.output_site, tape.attended.constant(), tape.output, context);
    if (!output) return output.error();
    return parts_.output.forward(*output, y, context);
  }

  /// dx = dL/dx for dy = dL/dy and the x of the forward pass.
  template <Executor E>
  [[nodiscard]] Status backward(const MatrixView<const T>& dy, const MatrixView<const T>& x, std::size_t length,
                                Tape& tape, const MatrixView<T>& dx, ExecutionContext<E>& context) noexcept {
    const Workspace::Frame frame(context.workspace());
    const auto dout = context.workspace().template take_matrix<T>(x.rows, heads_.heads * heads_.width);
    const auto dq = context.workspace().template take_matrix<T>(x.rows, heads_.heads * heads_.width);
    const auto dk = context.workspace().template take_matrix<T>(x.rows, heads_.kv_heads * heads_.width);
    const auto dv = context.workspace().template take_matrix<T>(x.rows, heads_.kv_heads * heads_.width);
    if (!dout || !dq || !dk || !dv) return Error{Errc::out_of_memory, "no memory for the gradients of attention"};
    const auto attended = tape.attended.constant();
    const auto output = parts_.output_site.is_identity() ? attended : tape.output.constant();
    const auto input = parts_.input_site.is_identity() ? x : tape.input.constant();
    if (const Status done = parts_.output.backward(dy, output, *dout, Accumulate::overwrite, context); !done) {
      return done;
    }
    if (const Status done = site_backward(parts_.output_site, *dout, attended, output, context); !done) return done;
    const AttentionOperands<const T> operands{tape.q.constant(), tape.k.constant(), tape.v.constant()};
    const Status attention = parts_.cache.backward(operands, shape(length), tape.past, {attended, as_const(*dout)},
                                                   AttentionOperands<T>{*dq, *dk, *dv}, context);
    if (!attention) return attention;
    if (const Status done = rotate(*dq, length, -1, context); !done) return done;
    if (const Status done = rotate(*dk, length, -1, context); !done) return done;
    if (const Status done = parts_.query.backward(as_const(*dq), input, dx, Accumulate::overwrite, context); !done)
      return done;
    if (const Status done = parts_.key.backward(as_const(*dk), input, dx, Accumulate::add, context); !done) return done;
    if (const Status done = parts_.value.backward(as_const(*dv), input, dx, Accumulate::add, context); !done)
      return done;
    return site_backward(parts_.input_site, dx, x, input, context);
  }

  /// Calls f(name, linear) for all linear layers.
  template <class F>
  void for_each_linear(F&& f) {
    f("query", parts_.query);
    f("key", parts_.key);
    f("value", parts_.value);
    f("output", parts_.output);
  }
  /// Calls f(name, site) for the sites of linear inputs.
  template <class F>
  void for_each_activation(F&& f) {
    f("attention input", parts_.input_site);
    f("output input", parts_.output_site);
  }
  /// Calls f(name, site) for the keys and the values of the cache.
  template <class F>
  void for_each_cache(F&& f) {
    f("keys", parts_.cache.keys);
    f("values", parts_.cache.values);
  }

 private:
  SelfAttentionGradient(const AttentionShape& heads, const AttentionPositions& positions, Parts parts) noexcept
      : heads_(heads), rotary_(positions.rotary), slopes_(positions.slopes), parts_(std::move(parts)) {}

  [[nodiscard]] SequenceAttention shape(std::size_t length) const noexcept {
    return {heads_, length, 1.0 / std::sqrt(static_cast<double>(heads_.width)), slopes_};
  }

  template <Executor E>
  [[nodiscard]] static Status site_backward(A& site, const MatrixView<T>& gradient, const MatrixView<const T>& x,
                                            const MatrixView<const T>& quantized,
                                            ExecutionContext<E>& context) noexcept {
    return site.is_identity() ? Status{} : site.backward(gradient, x, quantized, context);
  }

  // direction 1 rotates by the angle of the position, -1 back.
  template <Executor E>
  [[nodiscard]] Status rotate(const MatrixView<T>& x, std::size_t length, int direction,
                              ExecutionContext<E>& context) const noexcept {
    if (rotary_ == nullptr) return {};
    if (length > rotary_->positions()) {
      return Error{Errc::bad_argument, "a sequence is longer than the model's context", "length", length,
                   rotary_->positions()};
    }
    const std::size_t pairs = heads_.width / 2;
    for_each_row_block(context.executor(), x.rows, [&](const RowBlock& block) {
      for (std::size_t r = block.first; r < block.first + block.count; ++r) {
        const float* cosines = rotary_->angles(r % length);
        const float* sines = cosines + pairs;
        for (std::size_t first = 0; first < x.columns; first += heads_.width) {
          T* low = row(x, r) + first;
          T* high = low + pairs;
          for (std::size_t i = 0; i < pairs; ++i) {
            const T cosine = static_cast<T>(cosines[i]), sine = static_cast<T>(sines[i]) * static_cast<T>(direction);
            const T a = low[i], b = high[i];
            low[i] = a * cosine - b * sine;
            high[i] = b * cosine + a * sine;
          }
        }
      }
    });
    return {};
  }

  AttentionShape heads_;
  const RotaryTable* rotary_;
  std::span<const float> slopes_;
  Parts parts_;
};

}  // namespace CBQ_ABI
}  // namespace cbq
