// SPDX-License-Identifier: Apache-2.0
#pragma once

// Keys and values of a sequence in the form that `--kv` names. A layer's cache lies behind a pointer, so that blocks
// are compiled for one type of cache.

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/kv/attention_scores.hpp>
#include <cbq/kv/channel_statistics.hpp>
#include <cbq/kv/kv_policy.hpp>
#include <cbq/kv/kv_scheme.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/nn/causal_model.hpp>

#include "engine_linear.hpp"
#include "model_config.hpp"

namespace cbq_llama {

/// Tokens that a quantized cache takes at once, at most: what came before them is attended to as it is stored.
inline constexpr std::size_t kv_prompt_piece = 512;

/// How a session uses its cache.
enum class KvUse : unsigned char {
  decoding,         ///< as a host does: a prompt in pieces, then token by token
  teacher_forcing,  ///< a text in one pass, each token attending as if it had come alone
};

/// What attention multiplies.
enum class AttentionProducts : unsigned char {
  as_kept,  ///< what the cache is made of: floats, or codes of quantized caches
  int8,     ///< queries, keys and values in INT8, one scale per head; the cache is float otherwise
};

/// One number per head of a layer: largest magnitudes, or what one code of INT8 is worth.
struct HeadRanges {
  std::vector<float> queries;
  std::vector<float> keys;
  std::vector<float> values;
};

/// How a session keeps keys and values.
struct KvOptions {
  cbq::KvScheme scheme = {.bits = 32};
  Operators operators = Operators::packed;  ///< fake_quantized: rounded rows, attention in float
  KvUse use = KvUse::decoding;
  cbq::KvPolicy policy = {};  ///< of quantized caches; fake_quantized decoding has none
  /// Quantized caches: keys are rounded as they were before this embedding, and statistics are of such queries and
  /// keys. Fake_quantized only; null: after it.
  std::shared_ptr<const cbq::RotaryTable> rotary = {};
  /// Per layer, for schemes with `_2d`; what they point to outlives the caches. Otherwise none.
  std::span<const cbq::RowTransform> transforms = {};
  AttentionProducts products = AttentionProducts::as_kept;
  cbq::SoftmaxWeights softmax = cbq::SoftmaxWeights::exact;  ///< of caches in float or INT8
  /// Per layer, of INT8 caches; none: scales are dynamic. They outlive the making of caches.
  std::span<const HeadRanges> head_scales = {};
  /// Per layer, raised to what passes through the caches. Null: nobody asks.
  std::vector<HeadRanges>* ranges = nullptr;
  /// Per layer; the caches add all queries, keys and values to them. Null: nobody asks.
  std::vector<cbq::KvChannelStatistics>* statistics = nullptr;
  Profile* profile = nullptr;  ///< where the caches note the time of writes and attention; null: nowhere
};

/// The cache of one layer.
class LayerKv {
 public:
  using Context = EngineLinear::Context;

  /// What a form of cache does; errors as cbq::FloatKvCache and cbq::attend().
  class Form {
   public:
    Form() = default;
    Form(const Form&) = delete;
    Form& operator=(const Form&) = delete;
    virtual ~Form() = default;
    [[nodiscard]] virtual std::size_t size() const = 0;
    [[nodiscard]] virtual std::size_t capacity() const = 0;
    virtual void truncate(std::size_t size) = 0;
    /// The rows stay where they are until attend().
    [[nodiscard]] virtual cbq::Status append(const cbq::MatrixView<const float>& keys,
                                             const cbq::MatrixView<const float>& values) = 0;
    [[nodiscard]] virtual cbq::Status attend(const cbq::MatrixView<const float>& q, const cbq::AttentionScores& scores,
                                             const cbq::MatrixView<float>& out, Context& context) = 0;
  };

  explicit LayerKv(std::unique_ptr<Form> form) noexcept : form_(std::move(form)) {}

  [[nodiscard]] std::size_t size() const { return form_->size(); }
  [[nodiscard]] std::size_t capacity() const { return form_->capacity(); }
  void truncate(std::size_t size) { form_->truncate(size); }
  [[nodiscard]] cbq::Status append(const cbq::MatrixView<const float>& keys,
                                   const cbq::MatrixView<const float>& values) {
    return form_->append(keys, values);
  }

  /// What blocks call.
  template <cbq::Executor E>
  [[nodiscard]] friend cbq::Status attend(const cbq::MatrixView<const float>& q, LayerKv& cache,
                                          const cbq::AttentionScores& scores, const cbq::MatrixView<float>& out,
                                          cbq::ExecutionContext<E>& context) {
    static_assert(std::is_same_v<E, ToolExecutor>, "the engine's caches run on the tool's executor");
    return cache.form_->attend(q, scores, out, context);
  }

 private:
  std::unique_ptr<Form> form_;
};

/// Caches of all layers for up to `capacity` positions. Errc::bad_argument (transforms),
/// Errc::unsupported, Errc::bad_shape,
/// Errc::out_of_memory.
[[nodiscard]] cbq::Result<cbq::ModelCache<LayerKv>> make_kv_cache(const ModelConfig& config, std::size_t capacity,
                                                                  const KvOptions& options);

/// Bytes of a token's keys and values in all layers, scales, offsets and padding counted.
[[nodiscard]] cbq::Result<std::size_t> kv_bytes_per_token(const ModelConfig& config, const cbq::KvScheme& scheme);

}  // namespace cbq_llama
