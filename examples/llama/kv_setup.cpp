// SPDX-License-Identifier: Apache-2.0
#include "kv_setup.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "calibration.hpp"
#include "calibration_text.hpp"
#include "commands.hpp"
#include "head_ranges.hpp"
#include "kv_smoothing.hpp"
#include "kv_smoothing_files.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;

namespace {

constexpr std::size_t calibration_windows = 16;
constexpr std::size_t calibration_length = 512;

// Tokens of the texts, or of the one built in.
Result<std::vector<std::int32_t>> smoothing_tokens(const KvArguments& arguments, const ModelSource& source,
                                                   std::size_t length) {
  if (!arguments.calibration.empty()) {
    CalibrationSettings settings;
    settings.texts = arguments.calibration;
    settings.samples = calibration_windows;
    settings.sequence = length;
    return calibration_tokens(source, settings);
  }
  const Result<Tokenizer> tokenizer = source.tokenizer();
  if (!tokenizer) return tokenizer.error();
  Result<std::vector<std::int32_t>> tokens = tokenizer->encode(embedded_calibration_text());
  if (tokens) tokens->resize(std::min(tokens->size(), calibration_windows * length));
  return tokens;
}

}  // namespace

Result<KvSetup> KvSetup::create(const KvArguments& arguments, const LoadedModel& loaded, const Machine& machine) {
  KvSetup setup;
  const Result<cbq::KvScheme> scheme = cbq::parse_kv_scheme(arguments.scheme);
  if (!scheme) return scheme.error();
  if (!scheme->smoothed && !arguments.calibration.empty() && arguments.attention != "int8_static") {
    return Error{Errc::bad_argument, "only caches with _2d and static INT8 attention are calibrated", "--kv",
                 arguments.scheme};
  }
  const Result<std::size_t> bytes = kv_bytes_per_token(loaded.model.config(), *scheme);
  if (!bytes) return cbq::in_context(bytes.error(), "--kv");
  setup.scheme_ = *scheme;
  if (!cbq::is_float(*scheme)) setup.policy_ = arguments.policy;
  setup.bytes_per_token_ = *bytes;
  if (const cbq::Status chosen = setup.choose_attention(arguments, loaded, machine); !chosen) return chosen.error();
  if (const cbq::Status chosen = setup.choose_rope(arguments, loaded.model.config()); !chosen) return chosen.error();
  if (!scheme->smoothed) return setup;
  if (arguments.calibration.empty() && setup.rotary_ == nullptr) {
    auto stored = read_smoothing(loaded.source);
    if (!stored) return stored.error();
    if (*stored) {
      if (const auto suits = check_smoothing_scheme(loaded.source, *scheme); !suits) return suits.error();
      setup.use(**std::move(stored));
      return setup;
    }
  }
  const std::size_t length = std::min(calibration_length, loaded.model.config().context);
  const auto tokens = smoothing_tokens(arguments, loaded.source, length);
  if (!tokens) return tokens.error();
  auto found = find_smoothing(loaded.model, {.tokens = *tokens, .length = length}, *scheme, machine, setup.rotary_);
  if (!found) return cbq::in_context(found.error(), "calibration");
  setup.use(*std::move(found));
  return setup;
}

cbq::Status KvSetup::choose_rope(const KvArguments& arguments, const ModelConfig& config) {
  if (arguments.rope == "post") return {};
  if (cbq::is_float(scheme_) || config.architecture != Architecture::llama) {
    return Error{Errc::bad_argument, "only quantized keys that rotary embedding turns can be quantized before it",
                 "--kv-rope", arguments.rope};
  }
  auto table = cbq::RotaryTable::create(config.rotary, config.head_width, config.context);
  if (!table) return table.error();
  rotary_ = std::make_shared<const cbq::RotaryTable>(*std::move(table));
  return {};
}

cbq::Status KvSetup::choose_attention(const KvArguments& arguments, const LoadedModel& loaded, const Machine& machine) {
  attention_ = arguments.attention;
  softmax_ = arguments.softmax;
  if (attention_ == "float") {
    if (softmax_ == "float" || cbq::is_float(scheme_)) return {};
    return Error{Errc::unsupported, "a quantized cache rounds softmax weights in its own way", "--softmax", softmax_};
  }
  if (scheme_.bits != 32) {
    return Error{Errc::unsupported, "INT8 attention keeps keys and values in its own form", "--kv", arguments.scheme,
                 "f32"};
  }
  const ModelConfig& config = loaded.model.config();
  bytes_per_token_ = config.layers * 2 * config.kv_heads * config.head_width;
  if (attention_ != "int8_static") return {};
  const std::size_t length = std::min(calibration_length, config.context);
  const auto tokens = smoothing_tokens(arguments, loaded.source, length);
  if (!tokens) return tokens.error();
  auto scales = find_head_scales(loaded.model, {.tokens = *tokens, .length = length}, machine);
  if (!scales) return cbq::in_context(scales.error(), "calibration");
  head_scales_ = *std::move(scales);
  return {};
}

void KvSetup::use(std::vector<cbq::KvSmoothing> smoothing) {
  smoothing_ = std::move(smoothing);
  for (const cbq::KvSmoothing& layer : smoothing_) transforms_.push_back(layer.transform(scheme_));
}

KvOptions KvSetup::options() const {
  return {.scheme = scheme_,
          .policy = policy_,
          .rotary = rotary_,
          .transforms = transforms_,
          .products = attention_ == "float" ? AttentionProducts::as_kept : AttentionProducts::int8,
          .softmax = softmax_ == "log2"              ? cbq::SoftmaxWeights::log2
                     : softmax_ == "log2_normalized" ? cbq::SoftmaxWeights::log2_normalized
                                                     : cbq::SoftmaxWeights::exact,
          .head_scales = head_scales_};
}

void KvSetup::describe(Report& report) const {
  report.kv_scheme = attention_ == "float" ? cbq::kv_scheme_name(scheme_).c_str() : attention_;
  if (!cbq::is_float(scheme_)) report.kv_rope = rotary_ == nullptr ? "post" : "pre";
  report.attention = attention_;
  report.softmax = softmax_;
  report.kv_bytes_per_token = bytes_per_token_;
  report.kv_sinks = policy_.sinks;
  report.kv_recent = policy_.recent;
}

std::string kv_text(const Report& report) {
  const std::string softmax = report.softmax == "float" ? "" : ", softmax " + report.softmax;
  return report.kv_scheme + ", " + std::to_string(*report.kv_bytes_per_token) + " bytes per token" + softmax;
}

}  // namespace cbq_llama
