// SPDX-License-Identifier: Apache-2.0
#include "head_ranges.hpp"

#include <algorithm>
#include <span>
#include <utility>

#include <cbq/kv/int8_rows.hpp>
#include <cbq/quant/rows.hpp>

#include "interrupt.hpp"
#include "progress.hpp"

namespace cbq_llama {

using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

using Rows = MatrixView<const float>;

void raise(std::vector<float>& largest, const Rows& rows) {
  const std::size_t width = rows.columns / largest.size();
  for (std::size_t t = 0; t < rows.rows; ++t) {
    for (std::size_t h = 0; h < largest.size(); ++h) {
      largest[h] = std::max(largest[h], cbq::max_abs({row(rows, t) + h * width, width}));
    }
  }
}

class RangeForm final : public LayerKv::Form {
 public:
  RangeForm(std::unique_ptr<LayerKv::Form> inner, HeadRanges& ranges) : inner_(std::move(inner)), ranges_(&ranges) {}
  std::size_t size() const override { return inner_->size(); }
  std::size_t capacity() const override { return inner_->capacity(); }
  void truncate(std::size_t size) override { inner_->truncate(size); }
  Status append(const Rows& keys, const Rows& values) override {
    raise(ranges_->keys, keys);
    raise(ranges_->values, values);
    return inner_->append(keys, values);
  }
  Status attend(const Rows& q, const cbq::AttentionScores& scores, const MatrixView<float>& out,
                LayerKv::Context& context) override {
    raise(ranges_->queries, q);
    return inner_->attend(q, scores, out, context);
  }

 private:
  std::unique_ptr<LayerKv::Form> inner_;
  HeadRanges* ranges_;
};

}  // namespace

std::unique_ptr<LayerKv::Form> observe_ranges(std::unique_ptr<LayerKv::Form> inner, HeadRanges& ranges) {
  return std::make_unique<RangeForm>(std::move(inner), ranges);
}

Result<std::vector<HeadRanges>> find_head_scales(const Model& model, const SmoothingText& text,
                                                 const Machine& machine) {
  if (text.tokens.empty() || text.length == 0) {
    return cbq::Error{cbq::Errc::bad_argument, "static scales need a text to calibrate with", "calibration tokens",
                      text.tokens.size(), "at least 1"};
  }
  const ModelConfig& config = model.config();
  const std::vector<float> heads(config.heads), kv_heads(config.kv_heads);
  std::vector<HeadRanges> layers(config.layers, HeadRanges{heads, kv_heads, kv_heads});
  const std::size_t length = std::min({text.length, text.tokens.size(), config.context});
  auto session = Session::create(model, length, machine, {.ranges = &layers});
  if (!session) return session.error();
  Progress progress("attention scales", "tokens", text.tokens.size() / length * length);
  for (std::size_t first = 0; text.tokens.size() - first >= length; first += length) {
    session->reset();
    if (const auto hidden = session->forward(text.tokens.subspan(first, length)); !hidden) return hidden.error();
    if (const Status ok = check_interrupt(); !ok) return ok.error();
    progress.update(first + length);
  }
  for (HeadRanges& layer : layers) {
    for (std::vector<float>* all : {&layer.queries, &layer.keys, &layer.values}) {
      for (float& scale : *all) scale = cbq::int8_scale(scale);
    }
  }
  return layers;
}

}  // namespace cbq_llama
