// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a run of the tool measured, as JSON with the same keys whatever the command: a key whose figure was not measured
// is null. Scripts rely on the names.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include <cbq/core/result.hpp>
#include <cbq/io/json.hpp>

namespace cbq_llama {

struct Report {
  std::string model;   ///< path, as given
  std::string scheme;  ///< of the linear layers; "mixed" when they differ, the storage type when they are float
  std::string method;  ///< how it was quantized; "none" for float models
  std::string isa;
  std::optional<std::size_t> threads;
  std::optional<double> perplexity;
  std::optional<double> nll;         ///< nats per token
  std::optional<double> nll_stderr;  ///< standard error of nll over the means of the windows
  std::optional<std::size_t> windows;
  std::optional<std::size_t> tokens;  ///< predicted
  std::optional<std::size_t> context;
  std::optional<double> kl_mean;  ///< nats per token, from the reference to the model
  std::optional<double> kl_p99;
  std::optional<double> top1_agreement;         ///< share of tokens for which both models have the same favourite
  std::optional<double> probability_error_rms;  ///< of the probability of the token that follows
  std::optional<double> bits_per_weight;
  std::optional<std::size_t> file_bytes;
  std::optional<std::size_t> peak_memory_bytes;
  std::optional<double> prompt_tokens_per_second;
  std::optional<double> new_tokens_per_second;
  std::optional<std::uint64_t> seed;
  std::optional<std::size_t> calibration_tokens;
  std::string kv_scheme;                          ///< how keys and values were kept
  std::optional<std::size_t> kv_bytes_per_token;  ///< of all layers
  std::optional<std::string> kv_rope;             ///< keys are quantized "post" rotary embedding, or "pre"
  std::optional<std::size_t> kv_sinks;            ///< first positions that stay exact
  std::optional<std::size_t> kv_recent;           ///< last positions that stay exact, at least
  std::string attention;                          ///< what its products multiply: float, int8, int8_static
  std::string softmax;                            ///< what its weights are rounded to: float, log2, log2_normalized
  std::optional<double> seconds;
};

[[nodiscard]] cbq::Json to_json(const Report& report);

/// The largest resident memory of this process so far; nothing where the system does not say.
[[nodiscard]] std::optional<std::size_t> peak_memory_bytes();

/// Starts the measurement of peak_memory_bytes() anew from what is resident now, where the system allows it; before,
/// the heap's unused memory is given back. False where it does not.
[[nodiscard]] bool restart_peak_memory();

/// "97.3 MB" and the like, in powers of 1000.
[[nodiscard]] std::string size_text(std::size_t bytes);

}  // namespace cbq_llama
