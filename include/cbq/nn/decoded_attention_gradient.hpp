// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention of whole sequences as decoding on a quantized cache computes it, forward and backward, in one pass: teacher
// forcing. Token t sees of the tokens before it what the cache keeps of them, and its own key and value exactly
// (WKVQuant, past-only quantization) or as the cache keeps them too. So the error of the cache reaches the outputs, and
// its gradient the smoothing; in a prefill nothing of it would be seen. Costs what attend_sequences() costs, and a pass
// over keys and values.
//
//   S = c Q K^T with c q_t . k_t in its diagonal        P = softmax(S)        O_t = sum_{j<t} P_tj v^_j + P_tt v_t

#include <cstddef>

#include <cbq/nn/attention_gradient.hpp>
#include <cbq/nn/kv_site.hpp>

namespace cbq {
inline namespace CBQ_ABI {

/// What is left of keys and values for the tokens behind them.
template <class T>
struct KvSitesTape {
  TapeMatrix<T> keys, values;
  [[nodiscard]] std::size_t bytes() const noexcept { return keys.bytes() + values.bytes(); }
};

/// An upstream gradient dout = dL/dout and the result it belongs to.
template <class T>
struct AttentionResult {
  MatrixView<const T> out = {};
  MatrixView<const T> dout = {};
};

namespace decoded_attention {

/// What the site makes of x: x itself, or what `tape` holds.
template <class T>
[[nodiscard]] MatrixView<const T> kept(const KvSite<T>& site, const MatrixView<const T>& x, const TapeMatrix<T>& tape) {
  return site.is_identity() ? x : tape.constant();
}

template <class T, Executor E>
[[nodiscard]] Status fill(const KvSite<T>& site, const MatrixView<const T>& x, TapeMatrix<T>& tape,
                          ExecutionContext<E>& context) noexcept {
  if (site.is_identity()) return {};
  if (const Status taken = tape.reshape(x.rows, x.columns); !taken) return taken;
  return site.forward(x, tape.view(), context);
}

/// `gradient` = dL/dx for what the site makes of x, and of x itself where `own` is not null.
template <class T, Executor E>
[[nodiscard]] Status gather(KvSite<T>& site, const MatrixView<T>& gradient, const MatrixView<const T>& own,
                            const MatrixView<const T>& x, ExecutionContext<E>& context) noexcept {
  if (!site.is_identity()) {
    if (const Status done = site.backward(gradient, x, x, context); !done) return done;
  }
  if (own.data == nullptr) return {};
  for_each_row(
      x.rows,
      [&](std::size_t r) {
        for (std::size_t i = 0; i < x.columns; ++i) row(gradient, r)[i] += row(own, r)[i];
      },
      context);
  return {};
}

}  // namespace decoded_attention

/// The cache of a layer, simulated. The default keeps everything as it is: attend_sequences(), bit for bit.
template <class T>
struct KvSites {
  KvSite<T> keys = {};
  KvSite<T> values = {};
  bool past_only = true;  ///< as in KvScheme: what is current stays exact

  using Operands = AttentionOperands<const T>;

  [[nodiscard]] bool is_identity() const noexcept { return keys.is_identity() && values.is_identity(); }

  /// Errc::bad_shape where a site is not one of these key/value heads.
  [[nodiscard]] Status check(const AttentionShape& heads) const noexcept {
    for (const KvSite<T>* site : {&keys, &values}) {
      if (site->is_identity() || (site->width() == heads.width && site->channels() == heads.kv_heads * heads.width)) {
        continue;
      }
      return Error{Errc::bad_shape, "the simulated cache has other heads than attention",
                   site == &keys ? "keys of the cache" : "values of the cache",
                   ErrorText(site->channels()) << " channels, heads of " << site->width(),
                   ErrorText(heads.kv_heads) << " heads of " << heads.width};
    }
    return {};
  }

  /// out [tokens x heads * width]; `exact` has queries, keys and values of all tokens (no own_k, own_v), `tape` keeps
  /// what the backward pass needs. Errors of check(), attend_sequences() and KvSite::forward().
  template <Executor E>
  [[nodiscard]] Status attend(const Operands& exact, const SequenceAttention& shape, KvSitesTape<T>& tape,
                              const MatrixView<T>& out, ExecutionContext<E>& context) const noexcept {
    if (is_identity()) return attend_sequences(exact, shape, out, context);
    if (const Status fits = check(shape.heads); !fits) return fits;
    namespace part = decoded_attention;
    if (const Status done = part::fill(keys, exact.k, tape.keys, context); !done) return done;
    if (const Status done = part::fill(values, exact.v, tape.values, context); !done) return done;
    return attend_sequences(operands(exact, tape), shape, out, context);
  }

  /// Gradients of attend() with the tape it left; writes gradients.q, k and v, and adds to those of the sites'
  /// parameters. Errors as above.
  template <Executor E>
  [[nodiscard]] Status backward(const Operands& exact, const SequenceAttention& shape, const KvSitesTape<T>& tape,
                                const AttentionResult<T>& result, const AttentionOperands<T>& gradients,
                                ExecutionContext<E>& context) noexcept {
    if (is_identity()) return attend_sequences_backward(exact, shape, result.out, result.dout, gradients, context);
    if (const Status fits = check(shape.heads); !fits) return fits;
    namespace part = decoded_attention;
    const Workspace::Frame frame(context.workspace());
    AttentionOperands<T> all = gradients;
    if (past_only) {
      const auto own_k = context.workspace().template take_matrix<T>(exact.k.rows, exact.k.columns);
      const auto own_v = context.workspace().template take_matrix<T>(exact.v.rows, exact.v.columns);
      if (!own_k || !own_v) return Error{Errc::out_of_memory, "no memory for the gradients of keys and values"};
      all.own_k = *own_k;
      all.own_v = *own_v;
    }
    const Status done = attend_sequences_backward(operands(exact, tape), shape, result.out, result.dout, all, context);
    if (!done) return done;
    const Status gathered = part::gather(keys, gradients.k, as_const(all.own_k), exact.k, context);
    return gathered ? part::gather(values, gradients.v, as_const(all.own_v), exact.v, context) : gathered;
  }

 private:
  [[nodiscard]] Operands operands(const Operands& exact, const KvSitesTape<T>& tape) const noexcept {
    Operands all = exact;
    all.k = decoded_attention::kept(keys, exact.k, tape.keys);
    all.v = decoded_attention::kept(values, exact.v, tape.values);
    if (past_only) {
      all.own_k = exact.k;
      all.own_v = exact.v;
    }
    return all;
  }
};

}  // namespace CBQ_ABI
}  // namespace cbq
