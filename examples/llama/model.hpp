// SPDX-License-Identifier: Apache-2.0
#pragma once

// A model in memory, and sessions that run it: a session is one sequence with its own cache, threads and working
// memory. Many sessions may share a model.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include <cbq/core/result.hpp>
#include <cbq/core/view.hpp>
#include <cbq/io/quantization_config.hpp>
#include <cbq/prune/token_pruning.hpp>
#include <cbq/quant/quantized_matrix.hpp>

#include "engine_linear.hpp"
#include "kv_cache.hpp"
#include "model_layout.hpp"
#include "model_source.hpp"
#include "packed_cache.hpp"
#include "threads.hpp"

namespace cbq_llama {

/// Weights that are quantized while the model is loaded, instead of what its files say.
struct QuantizationOnLoad {
  cbq::QuantizationRecord record;
  std::function<cbq::Result<cbq::QuantizedMatrix>(const MatrixModule&, const cbq::Grid&)> quantize;
};

/// In the "cbq" object of config.json: bits of queries, keys and values; 16 where it is missing.
inline constexpr const char* attention_bits_key = "attention_bits";

struct LoadOptions {
  Operators operators = Operators::packed;
  Profile* profile = nullptr;  ///< where sessions note their time; one session at a time then
  const QuantizationOnLoad* on_load = nullptr;
  PackedCacheOptions packed_cache = {};  ///< for packed operators of a model that is quantized in its files
  /// What sees the inputs of a module, before they are rotated; may return null. One session at a time then.
  std::function<cbq::ActivationRange*(const MatrixModule&)> observe = {};
};

class Model {
 public:
  /// Reads all weights. Errc::bad_file, bad_shape, unsupported, not_finite, naming the tensor; out_of_memory,
  /// interrupted.
  [[nodiscard]] static cbq::Result<Model> load(const ModelSource& source, const LoadOptions& options = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model();

  [[nodiscard]] const ModelConfig& config() const;
  /// Scheme of the linear layers; "mixed"; or the type of float weights ("f16", "q4_1").
  [[nodiscard]] const std::string& scheme() const;
  /// The most bits that quantized activations of the blocks' linear layers have; 0: none are quantized.
  [[nodiscard]] int activation_bits() const;
  /// How it was quantized; "none" for float models.
  [[nodiscard]] const std::string& method() const;
  /// Text that calibrated it, in tokens, where the files say so.
  [[nodiscard]] std::size_t calibration_tokens() const;
  /// Bytes of the matrices in memory.
  [[nodiscard]] std::size_t weight_bytes() const;

 private:
  friend class Session;
  struct State;
  explicit Model(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

class Session {
 public:
  /// Sees the embeddings (0) and the result of each block (1, 2, ...).
  using Observer = std::function<void(std::size_t, const cbq::MatrixView<const float>&)>;

  /// An empty sequence for up to `capacity` tokens; `model` must outlive it, and what `kv` points to.
  /// Errc::bad_argument (capacity beyond the model's context), Errc::out_of_memory, errors of make_kv_cache().
  [[nodiscard]] static cbq::Result<Session> create(const Model& model, std::size_t capacity, const Machine& machine,
                                                   const KvOptions& kv = {});

  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();

  /// Forgets all tokens.
  void reset();
  /// Forgets all tokens from `size` on.
  void truncate(std::size_t size);
  /// Tokens so far.
  [[nodiscard]] std::size_t size() const;

  /// Appends tokens and returns their hidden states after the final norm, [tokens x hidden], valid until the next call.
  /// Errc::bad_shape (no room), bad_argument (token), not_finite, out_of_memory.
  [[nodiscard]] cbq::Result<cbq::MatrixView<const float>> forward(std::span<const std::int32_t> tokens,
                                                                  const Observer& observer = nullptr);

  /// What is left of some tokens.
  struct Survivors {
    cbq::MatrixView<const float> hidden = {};     ///< after the final norm, valid until the next call
    std::span<const std::uint32_t> indices = {};  ///< of each among the tokens of the call; likewise
    double sparsity = 0;                          ///< mean share of the tokens that layers did without
  };

  /// Appends tokens, drops some on the way, and returns those that stay. Errors as forward(), those of the policy, and
  /// Errc::unsupported (the form of cache).
  [[nodiscard]] cbq::Result<Survivors> forward_pruned(std::span<const std::int32_t> tokens,
                                                      const cbq::ScheduledPruning& policy);

  /// logits [rows x vocabulary] of hidden states. Errors of the head.
  [[nodiscard]] cbq::Status logits(const cbq::MatrixView<const float>& hidden, const cbq::MatrixView<float>& logits);

  /// Appends tokens, pieces of kv_prompt_piece where the cache is quantized, and returns the logits after the last one,
  /// valid until the next call; with a policy (may be null), which keeps the last token, drops some on the way. Errors
  /// as above; the tokens are then not appended.
  [[nodiscard]] cbq::Result<std::span<const float>> next_logits(std::span<const std::int32_t> tokens,
                                                                const cbq::ScheduledPruning* policy = nullptr);

 private:
  struct State;
  [[nodiscard]] cbq::Status read_tokens(std::span<const std::int32_t> tokens);
  explicit Session(std::unique_ptr<State> state) noexcept;
  std::unique_ptr<State> state_;
};

}  // namespace cbq_llama
