// SPDX-License-Identifier: Apache-2.0
#pragma once

// Offline rotation of a decoder, the part of QuaRot (arXiv 2404.00456) that costs nothing at run time: with orthogonal
// Q the model computes the same function, and the activations that linear layers read lose their outliers.
//
//   norms        gain and bias move into the layers that read the norm; what is left commutes with Q (RMSNorm), or with
//                a Q that keeps means (LayerNorm). Where a head has no bias to take the final norm's (OPT), that norm
//                keeps it: W (g o n + b) = W diag(g) (n + b / g), and b / g is rotated like the stream
//   residual     embedding and what is added to the stream is multiplied with Q, what reads the stream with Q^T
//   value heads  rows of each value head with a second rotation, the columns of o_proj that read it with its transpose
//   down input   columns of down_proj with a block Hadamard matrix; the engine then transforms the input of down_proj
//                with hadamard_row() before it is quantized
//
// Norms come first, other transformations (channel scaling) before them: a norm without a gain has nothing to fold
// into. Cost: a few passes over the weights. Errors are found before anything is written, but for out_of_memory.

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <cbq/transform/layer_weights.hpp>
#include <cbq/transform/rotation.hpp>

namespace cbq {

/// What a decoder's norms are.
enum class NormKind : unsigned char { rms, layer };

/// What rotate_decoder() rotates. Offline: nothing changes at run time. The rest needs hadamard_row() on the inputs of
/// down_proj, in blocks of hadamard_size(width).
enum class RotationParts : unsigned char { residual, residual_and_values, residual_values_and_down };

struct DecoderRotationOptions {
  NormKind norms = NormKind::rms;
  RotationParts parts = RotationParts::residual_and_values;
  std::uint64_t seed = 0;
};

inline namespace CBQ_ABI {

/// Moves gain and bias of `norm` into `consumers`, which must be everything that reads it: W diag(gain), bias + W
/// norm.bias. The gain is then 1 and the bias 0. Errc::bad_shape, and Errc::unsupported where the norm has a bias and a
/// consumer has no memory for one.
template <std::floating_point T>
[[nodiscard]] Status fold_norm(const NormWeights<T>& norm,
                               std::type_identity_t<std::span<const LinearWeights<T>>> consumers) noexcept {
  const std::size_t width = norm.gain.size();
  if (const Status valid = layer_weights::check(norm, width); !valid) return valid;
  if (const Status valid = layer_weights::check_consumers<T>(consumers, width); !valid) return valid;
  const bool biased = std::any_of(norm.bias.begin(), norm.bias.end(), [](T value) { return value != 0; });
  for (std::size_t i = 0; biased && i < consumers.size(); ++i) {
    if (!consumers[i].bias.empty() || consumers[i].weights.rows == 0) continue;
    return Error{Errc::unsupported, "a layer without a bias cannot take that of its norm", ErrorText("consumer ") << i};
  }
  for (const LinearWeights<T>& consumer : consumers) {
    for (std::size_t r = 0; r < consumer.weights.rows; ++r) {
      T* weights = row(consumer.weights, r);
      double sum = 0;
      for (std::size_t c = 0; c < width; ++c) {
        if (biased) sum += static_cast<double>(weights[c]) * static_cast<double>(norm.bias[c]);
        weights[c] *= norm.gain[c];
      }
      if (biased) consumer.bias[r] = static_cast<T>(static_cast<double>(consumer.bias[r]) + sum);
    }
  }
  for (T& gain : norm.gain) gain = 1;
  for (T& bias : norm.bias) bias = 0;
  return {};
}

/// Rotates what `value` computes for each value head, and back in what `output` reads. q.width() == heads.width.
/// Errc::bad_shape, Errc::out_of_memory.
template <std::floating_point T, Executor E = SerialExecutor>
[[nodiscard]] Status rotate_value_heads(const LinearWeights<T>& value, const LinearWeights<T>& output,
                                        const ValueHeads& heads, const Rotation<T>& q,
                                        const E& executor = {}) noexcept {
  if (const Status valid = layer_weights::check(heads); !valid) return valid;
  const std::size_t width = heads.width;
  Status done = layer_weights::check(value, "value projection", heads.kv_heads * width, value.weights.columns);
  if (!done) return done;
  done = layer_weights::check(output, "output projection", output.weights.rows, heads.heads * width);
  if (!done) return done;
  for (std::size_t h = 0; done && h < heads.kv_heads; ++h) {
    done = rotate_columns(rows(value.weights, h * width, width), q, executor);
    if (!done || value.bias.empty()) continue;
    done = rotate_rows(matrix_view(value.bias.data() + h * width, 1, width), q);
  }
  for (std::size_t h = 0; done && h < heads.heads; ++h) {
    done = rotate_rows(columns(output.weights, h * width, width), q, executor);
  }
  return done;
}

/// Moves the gain of `norm` alone into `consumers`, which need no bias: W (g o n + b) = W diag(g) (n + b / g). The gain
/// is then 1 and the bias b / g. Errc::bad_shape, and Errc::unsupported where a gain of 0 has a bias.
template <std::floating_point T>
[[nodiscard]] Status fold_gain(const NormWeights<T>& norm,
                               std::type_identity_t<std::span<const LinearWeights<T>>> consumers) noexcept {
  const std::size_t width = norm.gain.size();
  if (const Status valid = layer_weights::check(norm, width); !valid) return valid;
  if (const Status valid = layer_weights::check_consumers<T>(consumers, width); !valid) return valid;
  for (std::size_t c = 0; c < norm.bias.size(); ++c) {
    if (norm.gain[c] != 0 || norm.bias[c] == 0) continue;
    return Error{Errc::unsupported, "the bias of a norm cannot be divided by a gain of 0", ErrorText("channel ") << c};
  }
  for (std::size_t c = 0; c < norm.bias.size(); ++c) {
    if (norm.bias[c] != 0) norm.bias[c] /= norm.gain[c];
  }
  return fold_norm(NormWeights<T>{norm.gain, {}}, consumers);
}

namespace decoder_rotation {

template <std::floating_point T>
[[nodiscard]] Status check_layer(const DecoderLayerWeights<T>& l, const ValueHeads& heads,
                                 std::size_t hidden) noexcept {
  const std::size_t q = heads.heads * heads.width, kv = heads.kv_heads * heads.width;
  const std::size_t inner = l.up.weights.rows;
  const std::size_t gate = l.gate.weights.rows == 0 ? 0 : inner;
  Status ok = layer_weights::check(l.attention_norm, hidden);
  if (ok) ok = layer_weights::check(l.query, "query projection", q, hidden);
  if (ok) ok = layer_weights::check(l.key, "key projection", kv, hidden);
  if (ok) ok = layer_weights::check(l.value, "value projection", kv, hidden);
  if (ok) ok = layer_weights::check(l.output, "output projection", hidden, q);
  if (ok) ok = layer_weights::check(l.mlp_norm, hidden);
  if (ok && gate != 0) ok = layer_weights::check(l.gate, "gate projection", gate, hidden);
  if (ok) ok = layer_weights::check(l.up, "up projection", inner, hidden);
  if (ok) ok = layer_weights::check(l.down, "down projection", hidden, inner);
  return ok;
}

/// Errc::unsupported where a norm with a bias meets a layer without one.
template <std::floating_point T>
[[nodiscard]] Status check_bias(const NormWeights<T>& norm, std::span<const LinearWeights<T>> consumers,
                                const char* name) noexcept {
  if (std::none_of(norm.bias.begin(), norm.bias.end(), [](T value) { return value != 0; })) return {};
  for (const LinearWeights<T>& consumer : consumers) {
    if (!consumer.bias.empty() || consumer.weights.rows == 0) continue;
    return Error{Errc::unsupported, "a layer without a bias cannot take that of its norm", name};
  }
  return {};
}

/// The final norm into the head, the norm's bias into the head's or, rotated, into the stream before it.
template <std::floating_point T>
[[nodiscard]] Status fold_final_norm(const DecoderWeights<T>& w, const Rotation<T>& q) noexcept {
  const std::span<const LinearWeights<T>> head(&w.head, 1);
  if (w.final_norm.bias.empty() || !w.head.bias.empty()) return fold_norm(w.final_norm, head);
  if (const Status done = fold_gain(w.final_norm, head); !done) return done;
  return rotate_rows(matrix_view(w.final_norm.bias.data(), 1, w.final_norm.bias.size()), q);
}

template <std::floating_point T>
[[nodiscard]] Status check(const DecoderWeights<T>& w) noexcept {
  const std::size_t hidden = w.final_norm.gain.size();
  Status ok = layer_weights::check(w.value_heads);
  if (ok) ok = layer_weights::check<T>({w.embedding, {}}, "embedding", w.embedding.rows, hidden);
  if (ok && w.positions.rows != 0) {
    ok = layer_weights::check<T>({w.positions, {}}, "positions", w.positions.rows, hidden);
  }
  if (ok) ok = layer_weights::check(w.final_norm, hidden);
  if (ok) ok = layer_weights::check(w.head, "head", w.embedding.rows, hidden);
  if (ok && w.head.weights.data == w.embedding.data) {
    return Error{Errc::bad_argument, "the head takes the final norm's gain: untie it from the embedding first", "head"};
  }
  for (std::size_t i = 0; ok && i < w.layers.size(); ++i) {
    const DecoderLayerWeights<T>& l = w.layers[i];
    const LinearWeights<T> readers[] = {l.query, l.key, l.value, l.gate, l.up};
    const std::span<const LinearWeights<T>> all(readers);
    ok = check_layer(l, w.value_heads, hidden);
    if (ok) ok = check_bias(l.attention_norm, all.first(3), "attention");
    if (ok) ok = check_bias(l.mlp_norm, all.last(2), "mlp");
    if (ok) continue;
    Error error = ok.error();
    ErrorText where;
    where << "layer " << i << ", " << error.where.c_str();
    error.where = where;
    return error;
  }
  return ok;
}

/// Q W and Q bias.
template <std::floating_point T, Executor E>
[[nodiscard]] Status rotate_outputs(const LinearWeights<T>& linear, const Rotation<T>& q, const E& executor) noexcept {
  const Status done = rotate_columns(linear.weights, q, executor);
  if (!done || linear.bias.empty()) return done;
  return rotate_rows(matrix_view(linear.bias.data(), 1, linear.bias.size()), q);
}

template <std::floating_point T, Executor E>
[[nodiscard]] Status rotate_layer(const DecoderLayerWeights<T>& l, const Rotation<T>& q, const E& executor) noexcept {
  const LinearWeights<T> readers[] = {l.query, l.key, l.value, l.gate, l.up};
  const std::span<const LinearWeights<T>> all(readers);
  Status done = fold_norm(l.attention_norm, all.first(3));
  if (done) done = fold_norm(l.mlp_norm, l.gate.weights.rows == 0 ? all.last(1) : all.last(2));
  for (const LinearWeights<T>& reader : readers) {
    if (done && reader.weights.rows != 0) done = rotate_rows(reader.weights, q, executor);
  }
  if (done) done = rotate_outputs(l.output, q, executor);
  if (done) done = rotate_outputs(l.down, q, executor);
  return done;
}

}  // namespace decoder_rotation

/// Rotates a whole decoder in place; see the top. The head takes the final norm's gain, so that it must not be tied to
/// the embedding. The same weights, options and seed give the same bits for any executor. Errc::bad_shape,
/// Errc::bad_argument (tied head), Errc::unsupported (a bias that nothing can take), out_of_memory.
template <std::floating_point T, Executor E = SerialExecutor>
[[nodiscard]] Status rotate_decoder(const DecoderWeights<T>& w, const DecoderRotationOptions& options,
                                    const E& executor = {}) noexcept {
  if (const Status valid = decoder_rotation::check(w); !valid) return valid;
  const RotationMean mean = options.norms == NormKind::layer ? RotationMean::kept : RotationMean::free;
  const Result<Rotation<T>> residual = Rotation<T>::create(w.final_norm.gain.size(), options.seed, mean);
  if (!residual) return residual.error();
  Status done = decoder_rotation::fold_final_norm(w, *residual);
  if (done) done = rotate_rows(w.embedding, *residual, executor);
  if (done && w.positions.rows != 0) done = rotate_rows(w.positions, *residual, executor);
  if (done) done = rotate_rows(w.head.weights, *residual, executor);
  for (std::size_t i = 0; done && i < w.layers.size(); ++i) {
    const DecoderLayerWeights<T>& l = w.layers[i];
    done = decoder_rotation::rotate_layer(l, *residual, executor);
    if (done && options.parts != RotationParts::residual) {
      // A rotation of its own for each layer; the golden ratio keeps their seeds apart from the residual's.
      const std::uint64_t seed = options.seed ^ (0x9e3779b97f4a7c15u * (i + 1));
      const Result<Rotation<T>> heads = Rotation<T>::create(w.value_heads.width, seed);
      if (!heads) return heads.error();
      done = rotate_value_heads(l.value, l.output, w.value_heads, *heads, executor);
    }
    if (done && options.parts == RotationParts::residual_values_and_down) {
      done = hadamard_rows(l.down.weights, hadamard_size(l.down.weights.columns), executor);
    }
  }
  return done;
}

}  // namespace CBQ_ABI
}  // namespace cbq
