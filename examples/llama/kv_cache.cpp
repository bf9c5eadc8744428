// SPDX-License-Identifier: Apache-2.0
#include "kv_cache.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <cbq/core/element.hpp>
#include <cbq/kv/attention.hpp>
#include <cbq/kv/integer_attention.hpp>
#include <cbq/kv/kv_layout.hpp>
#include <cbq/kv/smoothing.hpp>

#include "head_ranges.hpp"
#include "quantized_kv_forms.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::MatrixView;
using cbq::Result;
using cbq::Status;

namespace {

using Rows = MatrixView<const float>;

// A cache whose attention may round softmax weights.
template <class Cache>
class OwnedForm : public LayerKv::Form {
 public:
  OwnedForm(Cache cache, cbq::SoftmaxWeights softmax) : cache_(std::move(cache)), softmax_(softmax) {}
  std::size_t size() const override { return cache_.size(); }
  std::size_t capacity() const override { return cache_.capacity(); }
  void truncate(std::size_t size) override { cache_.truncate(size); }
  Status append(const Rows& keys, const Rows& values) override { return cache_.append(keys, values); }
  Status attend(const Rows& q, const cbq::AttentionScores& scores, const MatrixView<float>& out,
                LayerKv::Context& context) override {
    cbq::AttentionScores own = scores;
    own.weights = softmax_;
    return cbq::attend(q, cache_, own, out, context);
  }

 protected:
  Cache cache_;

 private:
  cbq::SoftmaxWeights softmax_;
};

using FloatForm = OwnedForm<cbq::FloatKvCache>;

// Rows rounded to half as they come; they lie in memory as floats, which the float kernels read.
class HalfForm final : public FloatForm {
 public:
  using FloatForm::FloatForm;
  Status append(const Rows& keys, const Rows& values) override {
    return cache_.append(rounded(keys, keys_), rounded(values, values_));
  }

 private:
  static Rows rounded(const Rows& rows, std::vector<float>& memory) {
    memory.clear();
    for (std::size_t t = 0; t < rows.rows; ++t) {
      for (std::size_t c = 0; c < rows.columns; ++c) memory.push_back(to_float(cbq::to_half(row(rows, t)[c])));
    }
    return cbq::matrix_view<const float>(memory.data(), rows.rows, rows.columns);
  }

  std::vector<float> keys_;
  std::vector<float> values_;
};

// Notes the time of what a cache does.
class TimedForm final : public LayerKv::Form {
 public:
  TimedForm(std::unique_ptr<LayerKv::Form> inner, Profile& profile) : inner_(std::move(inner)), profile_(&profile) {}
  std::size_t size() const override { return inner_->size(); }
  std::size_t capacity() const override { return inner_->capacity(); }
  void truncate(std::size_t size) override { inner_->truncate(size); }
  Status append(const Rows& keys, const Rows& values) override {
    return timed(profile_, Operation::cache_writes, [&] { return inner_->append(keys, values); });
  }
  Status attend(const Rows& q, const cbq::AttentionScores& scores, const MatrixView<float>& out,
                LayerKv::Context& context) override {
    return timed(profile_, Operation::attention, [&] { return inner_->attend(q, scores, out, context); });
  }

 private:
  std::unique_ptr<LayerKv::Form> inner_;
  Profile* profile_;
};

// Adds what passes through a cache to statistics, queries and keys rotated back where a table is given.
class ObservedForm final : public LayerKv::Form {
 public:
  ObservedForm(std::unique_ptr<LayerKv::Form> inner, cbq::KvChannelStatistics& statistics, std::size_t layer,
               std::shared_ptr<const cbq::RotaryTable> rotary)
      : inner_(std::move(inner)), statistics_(&statistics), name_("layer "), rotary_(std::move(rotary)) {
    name_ << layer;
  }
  std::size_t size() const override { return inner_->size(); }
  std::size_t capacity() const override { return inner_->capacity(); }
  void truncate(std::size_t size) override { inner_->truncate(size); }
  Status append(const Rows& keys, const Rows& values) override {
    keys_ = keys;
    values_ = values;
    return inner_->append(keys, values);
  }
  Status attend(const Rows& q, const cbq::AttentionScores& scores, const MatrixView<float>& out,
                LayerKv::Context& context) override {
    const Result<Rows> queries = rotated_back(q, query_memory_, context);
    const Result<Rows> keys = rotated_back(keys_, key_memory_, context);
    if (!queries) return queries.error();
    if (!keys) return keys.error();
    if (const Status added = statistics_->add(*queries, *keys, values_, name_); !added) return added;
    return inner_->attend(q, scores, out, context);
  }

 private:
  // Rows of the last positions.
  Result<Rows> rotated_back(const Rows& x, std::vector<float>& memory, LayerKv::Context& context) const {
    if (rotary_ == nullptr) return x;
    memory.resize(x.rows * x.columns);
    const MatrixView<float> to = cbq::matrix_view(memory.data(), x.rows, x.columns);
    for (std::size_t t = 0; t < x.rows; ++t) std::copy_n(row(x, t), x.columns, row(to, t));
    std::vector<std::uint32_t> positions(x.rows);
    std::iota(positions.begin(), positions.end(), static_cast<std::uint32_t>(size() - x.rows));
    const Status done = rotary_->rotate(to, positions, context, cbq::RotaryDirection::backward);
    if (!done) return done.error();
    return as_const(to);
  }

  std::unique_ptr<LayerKv::Form> inner_;
  cbq::KvChannelStatistics* statistics_;
  cbq::ErrorText name_;
  std::shared_ptr<const cbq::RotaryTable> rotary_;
  std::vector<float> query_memory_;
  std::vector<float> key_memory_;
  Rows keys_ = {};
  Rows values_ = {};
};

Result<std::unique_ptr<LayerKv::Form>> make_form(const ModelConfig& config, std::size_t capacity,
                                                 const KvOptions& options, std::size_t layer) {
  const cbq::KvScheme& scheme = options.scheme;
  if (!cbq::is_float(scheme)) {
    const cbq::QuantizedKvOptions cache{.scheme = scheme,
                                        .policy = options.policy,
                                        .heads = config.kv_heads,
                                        .width = config.head_width,
                                        .capacity = capacity,
                                        .largest_append = std::min(capacity, kv_prompt_piece)};
    return make_quantized_form(
        cache, scheme.smoothed ? options.transforms[layer] : cbq::KvSmoothing().transform(scheme), options);
  }
  using Pointer = std::unique_ptr<LayerKv::Form>;
  if (options.products == AttentionProducts::int8) {
    cbq::Int8KvScales scales;
    if (!options.head_scales.empty()) {
      const HeadRanges& own = options.head_scales[layer];
      scales = {own.queries, own.keys, own.values};
    }
    auto codes = cbq::Int8KvCache::create({config.kv_heads, config.head_width}, capacity, scales);
    if (!codes) return codes.error();
    return Pointer(std::make_unique<OwnedForm<cbq::Int8KvCache>>(*std::move(codes), options.softmax));
  }
  Result<cbq::FloatKvCache> floats = cbq::FloatKvCache::create(config.kv_heads, config.head_width, capacity);
  if (!floats) return floats.error();
  if (scheme.bits == 16) return Pointer(std::make_unique<HalfForm>(*std::move(floats), options.softmax));
  return Pointer(std::make_unique<FloatForm>(*std::move(floats), options.softmax));
}

}  // namespace

Result<cbq::ModelCache<LayerKv>> make_kv_cache(const ModelConfig& config, std::size_t capacity,
                                               const KvOptions& options) {
  if (options.transforms.size() != (options.scheme.smoothed ? config.layers : 0)) {
    return Error{Errc::bad_argument, "smoothing factors belong to schemes with _2d, for all layers", "transforms",
                 options.transforms.size(), options.scheme.smoothed ? config.layers : 0};
  }
  const bool rounds = options.products == AttentionProducts::int8 || options.softmax != cbq::SoftmaxWeights::exact;
  if (rounds && !cbq::is_float(options.scheme)) {
    return Error{Errc::unsupported, "a quantized cache has its own integer attention, with 8-bit softmax weights",
                 "--attention, --softmax"};
  }
  if (options.head_scales.size() != config.layers && !options.head_scales.empty()) {
    return Error{Errc::bad_argument, "static scales are for all layers", "scales", options.head_scales.size(),
                 config.layers};
  }
  std::vector<LayerKv> layers;
  layers.reserve(config.layers);
  for (std::size_t i = 0; i < config.layers; ++i) {
    Result<std::unique_ptr<LayerKv::Form>> form = make_form(config, capacity, options, i);
    if (!form) return form.error();
    if (options.statistics != nullptr) {
      *form = std::make_unique<ObservedForm>(*std::move(form), (*options.statistics)[i], i, options.rotary);
    }
    if (options.ranges != nullptr) *form = observe_ranges(*std::move(form), (*options.ranges)[i]);
    if (options.profile != nullptr) *form = std::make_unique<TimedForm>(*std::move(form), *options.profile);
    layers.emplace_back(*std::move(form));
  }
  return cbq::ModelCache<LayerKv>(std::move(layers));
}

Result<std::size_t> kv_bytes_per_token(const ModelConfig& config, const cbq::KvScheme& scheme) {
  if (cbq::is_float(scheme)) {
    return config.layers * 2 * config.kv_heads * config.head_width * static_cast<std::size_t>(scheme.bits / 8);
  }
  const Result<cbq::KvLayout> layout = cbq::kv_layout(scheme, config.kv_heads, config.head_width);
  if (!layout) return layout.error();
  return config.layers * cbq::kv_bytes_per_token(*layout);
}

}  // namespace cbq_llama
