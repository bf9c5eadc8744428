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

constexpr NamedOptions settings[] = {
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

// Rows of `--settings agile`, which brings schemes of its own.
struct AgileRow {
  const char* name;
  const char* scheme;
  const char* options = "";
};
constexpr AgileRow agile_rows[] = {
    {"w8a8", "w8a8"},
    {"w8a8_static", "w8a8", "--activations static"},
    {"w8a8_trip", "w8a8_trip"},
    {"w4a8", "w4a8_channel"},
    {"w4a8_trip", "w4a8_trip"},
    {"w4a4_dynamic", "w4a4", "--activations dynamic"},
    {"w4a4", "w4a4"},
    {"w4a4_percentile", "w4a4", "--percentile 99.9"},
    {"w4a4_rotation", "w4a4", "--rotate full"},
    {"w4a4_cbq", "w4a4", "--weights cbq"},
    {"w4a4_trip", "w4a4_trip"},
    {"w4a4_trip_6", "w4a4_trip", "--trip-exponent 6"},
    {"w4a4_trip_rotation", "w4a4_trip", "--rotate full"},
    {"w4a4_trip_cbq", "w4a4_trip", "--weights cbq"},
    {"w4a4_trip_asym", "w4a4_trip_asym"},
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

  void add(const std::string& name, const std::string& scheme, const std::string& options) {
    const auto& only = selection_.only;
    if (!only.empty() && std::none_of(only.begin(), only.end(), [&](const auto& p) { return matches(p, name); }))
      return;
    const std::size_t seeds = has_seed(options) ? selection_.seeds : 1;
    for (std::size_t seed = 0; seed < seeds; ++seed) rows.push_back({name, scheme, split_options(options), seed});
  }

  void add_ablations(const std::string& scheme) {
    for (const NamedOptions& setting : settings) {
      if (!selection_.settings.empty() && !contains(selection_.settings, setting.name)) continue;
      for (const AblationChange& change : changes) {
        if (change.setting != nullptr && change.setting != std::string(setting.name)) continue;
        if (change.part != nullptr && scheme.find(change.part) == std::string::npos) continue;
        add(std::string(setting.name) + "/" + change.name, scheme, std::string(setting.options) + " " + change.options);
      }
    }
  }

  void add_agile() {
    for (const AgileRow& row : agile_rows) {
      add(std::string("agile/") + row.name, row.scheme, std::string("--method agile ") + row.options);
    }
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
  return settings;
}
std::span<const AblationChange> ablation_changes() {
  return changes;
}

std::vector<AblationRow> ablation_rows(const AblationSelection& selection) {
  Rows rows(selection);
  rows.rows.push_back({"float", "", {}, 0});  // what the others are compared with
  if (contains(selection.settings, "agile")) {
    rows.add_agile();
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
