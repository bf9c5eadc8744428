// SPDX-License-Identifier: Apache-2.0
#include "kv_smoothing.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "interrupt.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;

namespace {

using Statistics = std::vector<cbq::KvChannelStatistics>;

Result<Statistics> empty_statistics(const ModelConfig& config) {
  Statistics all;
  for (std::size_t i = 0; i < config.layers; ++i) {
    auto layer = cbq::KvChannelStatistics::create({.heads = config.kv_heads, .width = config.head_width});
    if (!layer) return layer.error();
    all.push_back(*std::move(layer));
  }
  return all;
}

}  // namespace

Result<std::vector<cbq::KvSmoothing>> find_smoothing(const Model& model, const SmoothingText& text,
                                                     const cbq::KvScheme& scheme, const Machine& machine,
                                                     std::shared_ptr<const cbq::RotaryTable> rotary) {
  if (text.tokens.empty() || text.length == 0) {
    return Error{Errc::bad_argument, "smoothing needs a text to calibrate with", "calibration tokens",
                 text.tokens.size(), "at least 1"};
  }
  Result<Statistics> statistics = empty_statistics(model.config());
  if (!statistics) return statistics.error();
  const std::size_t length = std::min({text.length, text.tokens.size(), model.config().context});
  auto session = Session::create(model, length, machine, {.rotary = std::move(rotary), .statistics = &*statistics});
  if (!session) return session.error();
  Progress progress("smoothing", "tokens", text.tokens.size() / length * length);
  for (std::size_t first = 0; text.tokens.size() - first >= length; first += length) {
    session->reset();
    if (const auto hidden = session->forward(text.tokens.subspan(first, length)); !hidden) return hidden.error();
    if (const cbq::Status ok = check_interrupt(); !ok) return ok.error();
    progress.update(first + length);
  }
  std::vector<cbq::KvSmoothing> layers;
  for (std::size_t i = 0; i < statistics->size(); ++i) {
    auto layer = cbq::find_kv_smoothing((*statistics)[i], cbq::kv_smoothing_options(scheme));
    if (!layer) return cbq::in_context(layer.error(), "layer " + std::to_string(i));
    layers.push_back(*std::move(layer));
  }
  return layers;
}

}  // namespace cbq_llama
