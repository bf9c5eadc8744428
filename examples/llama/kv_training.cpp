// SPDX-License-Identifier: Apache-2.0
#include "kv_training.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include <cbq/kv/channel_statistics.hpp>
#include <cbq/kv/row_transform.hpp>
#include <cbq/kv/smoothing.hpp>

#include "block_walk.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

template <Architecture A>
Result<std::vector<cbq::KvSmoothing>> find(const ChangedWeights& weights, std::span<const ModuleReport> plan,
                                           const CalibrationTokens& tokens, const QuantizationOptions& options) {
  const ModelConfig& config = weights.config();
  const Result<BlockOpener<A>> opener = BlockOpener<A>::create(config, tokens.length);
  if (!opener) return opener.error();
  Result<FirstStates> states = FirstStates::create(weights, plan, tokens, options);
  if (!states) return states.error();
  const ToolExecutor executor = make_executor(options.threads);
  cbq::ExecutionContext<ToolExecutor> context(executor, cbq::detect());
  const auto linear = [&](const MatrixModule& module, std::vector<FloatMatrix>& memory) {
    return BlockOpener<A>::template dense<ObservedLinear>(weights, module, memory);
  };
  const auto site = [&](const MatrixModule& module) -> Result<Site> { return float_site_of(plan, module); };
  std::vector<cbq::KvSmoothing> all;
  Progress progress("looking at keys and values", "blocks", config.layers);
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    auto block = opener->template open<ObservedLinear>(weights, layer, linear, site);
    if (!block) return block.error();
    auto statistics = cbq::KvChannelStatistics::create({config.kv_heads, config.head_width});
    if (!statistics) return statistics.error();
    const std::string name = block_name(config, layer);
    Status added;
    const auto see = [&](const auto& tape) {
      if (!added) return;
      added = statistics->add(tape.attention.q.constant(), tape.attention.k.constant(), tape.attention.v.constant(),
                              cbq::ErrorText(name));
    };
    const Status done = pass(*block, states->target.view(), tokens.length, Advance::states, context, see);
    if (!done || !added) return done ? added.error() : done.error();
    auto found = cbq::find_kv_smoothing(*statistics, cbq::kv_smoothing_options(options.cache.scheme));
    if (!found) return cbq::in_context(found.error(), name);
    all.push_back(*std::move(found));
    progress.update(layer + 1);
  }
  return all;
}

}  // namespace

Result<std::vector<cbq::KvSmoothing>> first_smoothing(const ChangedWeights& weights, std::span<const ModuleReport> plan,
                                                      const CalibrationTokens& tokens,
                                                      const QuantizationOptions& options) {
  const std::size_t some = std::min(tokens.ids.size(), 32 * tokens.length);
  const CalibrationTokens few = {tokens.ids.first(some), tokens.length, tokens.scratch};
  return weights.config().architecture == Architecture::llama ? find<Architecture::llama>(weights, plan, few, options)
                                                              : find<Architecture::opt>(weights, plan, few, options);
}

Result<cbq::KvSites<float>> cache_sites(const ModelConfig& config, const CacheSettings& settings,
                                        const cbq::KvSmoothing* smoothing) {
  const cbq::KvScheme& scheme = settings.scheme;
  if (scheme.channel_keys) {
    return Error{Errc::unsupported, "caches with scales of keys per channel are not trained", "--kv",
                 cbq::kv_scheme_name(scheme).c_str()};
  }
  const std::vector<float> ones(config.kv_heads * config.head_width, 1.0f);
  cbq::RowTransform start = smoothing == nullptr ? cbq::KvSmoothing().transform(scheme) : smoothing->transform(scheme);
  const auto part = [&](const float* values) {
    return values == nullptr ? std::span<const float>() : std::span<const float>(values, ones.size());
  };
  const double rate = scheme.smoothed ? settings.rate : 0.0;
  cbq::KvSiteOptions options = {.bits = scheme.bits,
                                .width = config.head_width,
                                .rotation = scheme.hadamard ? cbq::InputRotation::hadamard : cbq::InputRotation::none,
                                .refinements = cbq::value_refinement(start).steps,
                                .scale_rate = rate,
                                .offset_rate = rate};
  if (start.key_scales == nullptr) start.key_scales = start.value_scales = ones.data();
  auto values = cbq::KvSite<float>::create(options, part(start.value_scales), part(start.value_offsets));
  if (!values) return values.error();
  options.refinements = cbq::key_refinement(start, 0, config.head_width).steps;
  auto keys = cbq::KvSite<float>::create(options, part(start.key_scales), part(start.key_offsets));
  if (!keys) return keys.error();
  // Rotated groups do not heed weights, but files keep them.
  if (smoothing != nullptr && scheme.smoothed) {
    if (const Status set = keys->set_weights(part(smoothing->key_weights.data())); !set) return set.error();
  }
  return cbq::KvSites<float>{*std::move(keys), *std::move(values), scheme.past_only};
}

Result<cbq::KvSmoothing> smoothing_of(const cbq::KvSites<float>& sites) {
  Result<cbq::KvSmoothing> learned = cbq::KvSmoothing::allocate(sites.keys.channels());
  if (!learned) return learned;
  for (std::size_t c = 0; c < sites.keys.channels(); ++c) {
    learned->key_scales[c] = sites.keys.scale(c);
    learned->key_offsets[c] = sites.keys.offset(c);
    learned->key_weights[c] = sites.keys.weight(c);
    learned->value_scales[c] = sites.values.scale(c);
    learned->value_offsets[c] = sites.values.offset(c);
  }
  return learned;
}

}  // namespace cbq_llama
