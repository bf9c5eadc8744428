// SPDX-License-Identifier: Apache-2.0
#pragma once

// From the options `--kv` and `--calibration` to what sessions are told: reads the scheme, and finds smoothing factors
// where the scheme wants some.

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/kv/smoothing.hpp>

#include "kv_cache.hpp"
#include "report.hpp"
#include "threads.hpp"

namespace cbq_llama {

struct LoadedModel;

/// Options of commands that run a model with a cache of a chosen form.
struct KvArguments {
  std::string scheme = "f32";
  cbq::KvPolicy policy = {.sinks = 1};  ///< of quantized caches
  std::string rope = "post";            ///< keys are quantized after rotary embedding, or before it: "pre"
  std::string attention = "float";      ///< or "int8", "int8_static"
  std::string softmax = "float";        ///< or "log2", "log2_normalized"
  /// Texts to find smoothing factors or static scales with; empty: factors that the model has, or the text built in.
  std::vector<std::string> calibration;
};

/// The form of a cache, and factors that sessions point to.
class KvSetup {
 public:
  /// Errc::bad_argument (no scheme, text too short), Errc::unsupported; errors of reading texts and running the model.
  [[nodiscard]] static cbq::Result<KvSetup> create(const KvArguments& arguments, const LoadedModel& loaded,
                                                   const Machine& machine);

  /// For sessions, which it must outlive.
  [[nodiscard]] KvOptions options() const;
  /// Fills in the members that tell of the cache.
  void describe(Report& report) const;

 private:
  [[nodiscard]] cbq::Status choose_attention(const KvArguments& arguments, const LoadedModel& loaded,
                                             const Machine& machine);
  [[nodiscard]] cbq::Status choose_rope(const KvArguments& arguments, const ModelConfig& config);
  void use(std::vector<cbq::KvSmoothing> smoothing);

  cbq::KvScheme scheme_ = {.bits = 32};
  cbq::KvPolicy policy_ = {};
  std::shared_ptr<const cbq::RotaryTable> rotary_;  // null: keys are quantized after it
  std::vector<cbq::KvSmoothing> smoothing_;         // of each layer; transforms_ point into it
  std::vector<cbq::RowTransform> transforms_;
  std::string attention_ = "float";
  std::string softmax_ = "float";
  std::vector<HeadRanges> head_scales_;
  std::size_t bytes_per_token_ = 0;
};

/// "kv4_2d_past, 800 bytes per token" of a report that describes a cache.
[[nodiscard]] std::string kv_text(const Report& report);

}  // namespace cbq_llama
