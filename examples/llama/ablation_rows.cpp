// SPDX-License-Identifier: Apache-2.0
#include "ablation_rows.hpp"

#include <algorithm>
#include <sstream>

#include "quantization.hpp"

namespace cbq_llama {

namespace {

constexpr NamedOptions baselines[] = {
    {"rtn_minmax", "--method rtn --range minmax"},
    {"rtn_mse", "--method rtn --range mse"},
    {"gptq", "--method gptq"},
    {"gptq_act_order", "--method gptq --act-order"},
    {"smoothquant", "--method smoothquant"},
    {"adaround", "--method adaround"},
    {"cbq", "--method cbq"},
    {"cbq_paper", "--method cbq --preset paper"},
};

constexpr NamedOptions setting_options[] = {
    {"default", "--method cbq"},
    {"paper", "--method cbq --preset paper"},
};

// What equals a setting as it is stands under the other one only.
constexpr AblationChange changes[] = {
    {"no_cfp", "--preprocess none", "paper"},
    {"cfp", "--preprocess cfp", "default"},
    {"smoothquant", "--preprocess smoothquant"},
    {"cfp_scaling", "--preprocess cfp_scaling"},
    {"cfp_truncation", "--preprocess cfp_truncation"},
    {"rounding_ada", "--rounding ada"},
    {"rounding_nearest", "--rounding nearest"},
    {"rounding_lora", "--rounding lora", "default"},
    {"rounding_straight_through", "--rounding straight_through", "paper"},
    {"window_1_0", "--window 1 --overlap 0"},
    {"window_2_0", "--window 2 --overlap 0"},
    {"window_3_1", "--window 3 --overlap 1"},
    {"window_3_2", "--window 3 --overlap 2"},
    {"homologous", "--same-input-weight 1"},
    {"loss_l2", "--loss l2", "paper"},
    {"loss_l2_kl", "--loss l2+kl", "default"},
    {"loss_kl", "--loss kl"},
    {"no_logits", "--logits-weight 0", "default"},
    {"logits", "--logits-weight 1", "paper"},
    {"rank_5", "--rounding straight_through_low_rank --rank 5", "default"},
    {"rank_16", "--rounding straight_through_low_rank --rank 16", "default"},
    {"rank_32", "--rounding straight_through_low_rank --rank 32", "default"},
    {"rank_64", "--rounding straight_through_low_rank --rank 64", "default"},
    {"rank_16", "--rank 16", "paper"},
    {"rank_32", "--rank 32", "paper"},
    {"rank_64", "--rank 64", "paper"},
    {"no_rotation", "--rotate none", "default", "a4"},
    {"rotation_offline", "--rotate offline", nullptr, "a4"},
    {"rotation", "--rotate full", "paper", "a4"},
    {"no_clips", "--clip-rate 0", nullptr, "a4"},
    {"attention_bits_4", "--attention-bits 4", nullptr, "a4"},
};

// Rows of `--settings agile` and `--settings kv`, which bring schemes of their own. Those that differ only in how they
// are run stand together: they share one quantized model.
struct OwnRow {
  const char* name;
  const char* scheme;
  const char* options = "";
  const char* run = "";
};
constexpr OwnRow agile_rows[] = {
    {"w8a8", "w8a8"},
    {"w8a8_log2", "w8a8", "", "--softmax log2_normalized"},
    {"w8a8_mixed", "w8a8", "", "--low-bit-tokens 0.25"},
    {"w8a8_static", "w8a8", "--activations static"},
    {"w8a8_rotation", "w8a8", "--rotate full"},
    {"w8a8_rotation_mixed", "w8a8", "--rotate full", "--low-bit-tokens 0.25"},
    {"w8a8_cbq", "w8a8", "--weights cbq"},
    {"w8a8_trip", "w8a8_trip"},
    {"w8a8_trip_rotation", "w8a8_trip", "--rotate full"},
    {"w8a8_trip_cbq", "w8a8_trip", "--weights cbq"},
    {"w4a8", "w4a8_channel"},
    {"w4a8_log2", "w4a8_channel", "", "--softmax log2_normalized"},
    {"w4a8_mixed", "w4a8_channel", "", "--low-bit-tokens 0.25"},
    {"w4a8_rotation", "w4a8_channel", "--rotate full"},
    {"w4a8_rotation_mixed", "w4a8_channel", "--rotate full", "--low-bit-tokens 0.25"},
    {"w4a8_cbq", "w4a8_channel", "--weights cbq"},
    {"w4a8_trip", "w4a8_trip"},
    {"w4a8_trip_rotation", "w4a8_trip", "--rotate full"},
    {"w4a8_trip_cbq", "w4a8_trip", "--weights cbq"},
    {"w4a4_dynamic", "w4a4", "--activations dynamic"},
    {"w4a4_dynamic_rotation", "w4a4", "--activations dynamic --rotate full"},
    {"w4a4", "w4a4"},
    {"w4a4_log2", "w4a4", "", "--softmax log2_normalized"},
    {"w4a4_extremes", "w4a4", "--percentile 100"},
    {"w4a4_rotation", "w4a4", "--rotate full"},
    {"w4a4_cbq", "w4a4", "--weights cbq"},
    {"w4a4_trip", "w4a4_trip"},
    {"w4a4_trip_log2", "w4a4_trip", "", "--softmax log2_normalized"},
    {"w4a4_trip_extremes", "w4a4_trip", "--percentile 100"},
    {"w4a4_trip_6_extremes", "w4a4_trip", "--trip-exponent 6 --percentile 100"},
    {"w4a4_trip_rotation", "w4a4_trip", "--rotate full"},
    {"w4a4_trip_cbq", "w4a4_trip", "--weights cbq"},
    {"w4a4_trip_asym", "w4a4_trip_asym"},
};
// Beside the forms of caches by themselves. Weights in 4 bits are trained without and with the cache that runs.
constexpr OwnRow kv_rows[] = {
    {"kv4_2d_past_no_sink", "", "", "--kv kv4_2d_past --kv-sinks 0"},
    {"kv4_2d_past_hadamard_no_sink", "", "", "--kv kv4_2d_past_hadamard --kv-sinks 0"},
    {"kv4_2d_past_recent", "", "", "--kv kv4_2d_past --kv-recent 16"},
    {"kv4_2d_past_hadamard_recent", "", "", "--kv kv4_2d_past_hadamard --kv-recent 16"},
    {"kv2_2d_past_hadamard_recent", "", "", "--kv kv2_2d_past_hadamard --kv-recent 16"},
    {"kv4_2d_past_float", "", "", "--kv kv4_2d_past --operators fake_quantized"},
    {"kv4_2d_past_trained", "w16a16", "--method wkvquant --kv kv4_2d_past", "--kv kv4_2d_past"},
    {"weights", "w4a16_g128_asym", "--method cbq"},
    {"weights_kv4_2d_past", "w4a16_g128_asym", "--method cbq", "--kv kv4_2d_past"},
    {"weights_kv4_2d_past_trained", "w4a16_g128_asym", "--method cbq --kv kv4_2d_past", "--kv kv4_2d_past"},
    {"weights_kv4_2d_past_wkvquant", "w4a16_g128_asym", "--method wkvquant --kv kv4_2d_past", "--kv kv4_2d_past"},
};

constexpr const char* baseline_schemes[] = {"w4a16_g128",     "w4a16",     "w3a16_g128_asym",
                                            "w2a16_g64_asym", "w4a8_g128", "w4a4_asym"};
constexpr const char* ablation_schemes[] = {"w2a16_g64_asym", "w4a4_asym"};

template <class Names>
bool contains(const Names& names, const std::string& name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// Rounding to nearest of weights as they are draws nothing.
bool has_seed(const std::string& options) {
  return options.find("--method rtn") == std::string::npos;
}

class Rows {
 public:
  explicit Rows(const AblationSelection& selection) : selection_(selection) {}

  void add(const std::string& name, const std::string& scheme, const std::string& options,
           const std::string& run = "") {
    const auto& only = selection_.only;
    if (!only.empty() && std::none_of(only.begin(), only.end(), [&](const auto& p) { return matches(p, name); }))
      return;
    const std::size_t seeds = !scheme.empty() && has_seed(options) ? selection_.seeds : 1;
    for (std::size_t seed = 0; seed < seeds; ++seed) {
      rows.push_back({name, scheme, split_options(options), seed, split_options(run)});
    }
  }

  void add_ablations(const std::string& scheme) {
    for (const NamedOptions& setting : setting_options) {
      if (!selection_.settings.empty() && !contains(selection_.settings, setting.name)) continue;
      for (const AblationChange& change : changes) {
        if (change.setting != nullptr && change.setting != std::string(setting.name)) continue;
        if (change.part != nullptr && scheme.find(change.part) == std::string::npos) continue;
        add(std::string(setting.name) + "/" + change.name, scheme, std::string(setting.options) + " " + change.options);
      }
    }
  }

  void add_agile() {
    for (const OwnRow& row : agile_rows) {
      add(std::string("agile/") + row.name, row.scheme, std::string("--method agile ") + row.options, row.run);
    }
  }

  void add_kv() {
    for (const char* bits : {"kv8", "kv4", "kv3", "kv2"}) {
      for (const char* form : {"", "_2d", "_kivi", "_past", "_2d_past", "_kivi_past"}) {
        for (const char* rotation : {"", "_hadamard"}) {
          const std::string cache = std::string(bits) + form + rotation;
          add("kv/" + cache, "", "", "--kv " + cache);
        }
      }
    }
    for (const OwnRow& row : kv_rows) add(std::string("kv/") + row.name, row.scheme, row.options, row.run);
  }

  std::vector<AblationRow> rows;

 private:
  const AblationSelection& selection_;
};

}  // namespace

std::span<const NamedOptions> ablation_baselines() {
  return baselines;
}
std::span<const NamedOptions> ablation_settings() {
  return setting_options;
}
std::span<const AblationChange> ablation_changes() {
  return changes;
}

std::vector<AblationRow> ablation_rows(const AblationSelection& selection) {
  Rows rows(selection);
  rows.rows.push_back({float_row_name, "", {}});
  if (contains(selection.settings, "agile")) {
    rows.add_agile();
    return std::move(rows.rows);
  }
  if (contains(selection.settings, "kv")) {
    rows.add_kv();
    return std::move(rows.rows);
  }
  std::vector<std::string> schemes = selection.schemes;
  if (schemes.empty()) schemes.assign(std::begin(baseline_schemes), std::end(baseline_schemes));
  for (const std::string& scheme : schemes) {
    for (const NamedOptions& baseline : baselines) rows.add(baseline.name, scheme, baseline.options);
    if (!selection.schemes.empty() || contains(ablation_schemes, scheme)) rows.add_ablations(scheme);
  }
  return std::move(rows.rows);
}

std::vector<std::string> split_options(const std::string& options) {
  std::istringstream stream(options);
  std::vector<std::string> parts;
  for (std::string part; stream >> part;) parts.push_back(part);
  return parts;
}

}  // namespace cbq_llama
