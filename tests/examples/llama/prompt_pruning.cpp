// SPDX-License-Identifier: Apache-2.0
#include "prompt_pruning.hpp"

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "examples/llama/engine_fixture.hpp"
#include "model.hpp"

using namespace cbq_llama;
using cbq::Errc;
using cbq::Json;
using cbq::PrunedPositions;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::unwrap;

namespace {

Json perplexity(std::vector<std::string> options) {
  std::vector<std::string> arguments = {"perplexity", pocket_llama(), "--context", "200",    "--windows",
                                        "2",          "--threads",    "1",         "--json", "-"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  const auto run = run_tool(arguments);
  CAPTURE(run.err);
  REQUIRE(run.code == 0);
  return unwrap(cbq::parse_json(run.out));
}

double nll(const Json& json, const char* name) {
  return json.at("pruning").at(name).at("nll").get<double>();
}

}  // namespace

TEST_CASE("options become a policy that the model's positions allow") {
  ModelConfig config;
  config.layers = 8;
  CHECK_FALSE(unwrap(pruning_of({}, config, 8)));
  const auto policy = unwrap(pruning_of({.sparsity = 0.2}, config, 8));
  REQUIRE(policy);
  CHECK(policy->options().positions == PrunedPositions::original);
  CHECK(std::fabs(token_sparsity(policy->options().schedule) - 0.2) < 1e-6);
  CHECK(unwrap(pruning_of({.sparsity = 0.2, .positions = PrunedPositions::compacted}, config, 8)));
  for (const double wrong : {-0.1, 0.75, 1.0, double{NAN}}) {
    CHECK(pruning_of({.sparsity = wrong}, config, 8).error().code == Errc::bad_argument);
  }
  const auto lowered = unwrap(pruning_of({.low_bit_tokens = 0.5}, config, 8));
  REQUIRE(lowered);
  CHECK(lowered->options().low_bit_share == 0.5);
  CHECK(token_sparsity(lowered->options().schedule) == 0);
  for (const double wrong : {-0.1, 1.0, double{NAN}}) {
    CHECK(pruning_of({.low_bit_tokens = wrong}, config, 8).error().code == Errc::bad_argument);
  }
  for (const int bits : {0, 4}) {  // float or w4a16, w4a4: nothing to lower
    CHECK(pruning_of({.low_bit_tokens = 0.5}, config, bits).error().code == Errc::unsupported);
    CHECK(unwrap(pruning_of({.sparsity = 0.2}, config, bits)));
  }
  config.architecture = Architecture::opt;
  CHECK(pruning_of({.sparsity = 0.2, .positions = PrunedPositions::compacted}, config, 8).error().code ==
        Errc::unsupported);
  config.architecture = Architecture::bloom;
  CHECK(unwrap(pruning_of({.sparsity = 0.2}, config, 8))->positions() == PrunedPositions::compacted);
  CHECK(pruning_of({.sparsity = 0.2, .positions = PrunedPositions::original}, config, 8).error().code ==
        Errc::unsupported);
}

TEST_CASE("perplexity measures pruning three ways") {
  const Json pruned = perplexity({"--prune", "0.25"});
  const double sparsity = pruned.at("pruning").at("sparsity").get<double>();
  CHECK(sparsity > 0.24);
  CHECK(sparsity <= 0.25);
  CHECK(pruned.at("perplexity").is_null());
  // What the survivors lose, and what the suffix does, are not what they would lose with everything kept.
  CHECK(nll(pruned, "survivors") != nll(pruned, "survivors_dense"));
  CHECK(nll(pruned, "suffix") != nll(pruned, "suffix_dense"));
  CHECK(std::fabs(nll(pruned, "suffix") - nll(pruned, "suffix_dense") -
                  pruned.at("pruning").at("suffix_nll_difference").get<double>()) < 1e-9);
  // Dense losses do not depend on how much is dropped, but where other tokens are left.
  const Json less = perplexity({"--prune", "0.01", "--prune-by", "column_sums", "--prune-positions", "compacted"});
  CHECK(nll(less, "suffix_dense") == nll(pruned, "suffix_dense"));
  CHECK(nll(less, "survivors_dense") != nll(pruned, "survivors_dense"));

  // All tokens but the last of a window: what is left where nothing can be dropped.
  const Json none = perplexity({"--prune", "0.003"});  // less than one token of 200
  CHECK(none.at("pruning").at("left") == 1);
  const Json dense = perplexity({"--prune", "0"});
  CHECK_FALSE(dense.contains("pruning"));
  CHECK(std::fabs(nll(none, "survivors") - dense.at("nll").get<double>()) < 1e-6);
  CHECK(std::fabs(nll(none, "suffix_dense") - nll(none, "suffix")) < 1e-4);  // in two passes
}

TEST_CASE("a pruned prompt is continued, and what cannot be pruned is refused") {
  const Model model = unwrap(Model::load(unwrap(ModelSource::open(pocket_llama()))));
  const auto policy = unwrap(pruning_of({.sparsity = 0.25}, model.config(), model.activation_bits()));
  std::vector<std::int32_t> prompt(120);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>((i * 37 + 5) % 900);
  Session session = unwrap(Session::create(model, 140, {.threads = 1}));
  const auto next = unwrap(session.next_logits(prompt, &*policy));
  const std::vector<float> with_policy(next.begin(), next.end());
  CHECK(session.size() == 120);
  session.reset();
  const auto left = unwrap(session.forward_pruned(prompt, *policy));
  CHECK(left.indices.size() < 90);
  CHECK(left.indices.back() == 119);
  std::vector<float> logits(with_policy.size());
  REQUIRE(session.logits(cbq::rows(left.hidden, left.indices.size() - 1, 1),
                         cbq::matrix_view(logits.data(), 1, logits.size())));
  CHECK(logits == with_policy);
  session.reset();
  const auto whole = unwrap(session.next_logits(prompt));
  CHECK_FALSE(std::equal(whole.begin(), whole.end(), logits.begin()));

  const auto bench = run_tool({"bench", pocket_llama(), "--prompt", "80", "--new-tokens", "2", "--runs", "1", "--prune",
                               "0.2", "--threads", "1", "--json", "-"});
  REQUIRE(bench.code == 0);
  CHECK(unwrap(cbq::parse_json(bench.out)).at("prune") == 0.2);
  const std::string sentence = "In the beginning God created the heaven and the earth. ";
  std::string text;
  for (int i = 0; i < 12; ++i) text += sentence;
  const auto continued = [](const std::string& some, const char* sparsity) {
    const auto run = run_tool({"generate", pocket_llama(), "--prompt", some, "-n", "12", "--temperature", "0",
                               "--threads", "1", "--prune", sparsity, "--json", "-"});
    REQUIRE(run.code == 0);
    return unwrap(cbq::parse_json(run.out)).at("new_token_ids");
  };
  CHECK(continued(text, "0.5") != continued(text, "0"));
  CHECK(continued(sentence, "0.5") == continued(sentence, "0"));  // below 64 tokens all stay
  const auto lowered = run_tool({"generate", pocket_llama(), "--prompt", text, "-n", "2", "--low-bit-tokens", "0.5"});
  CHECK(lowered.code == 1);
  CHECK(lowered.err.find("8-bit activations") != std::string::npos);
  CHECK(run_tool({"generate", pocket_llama(), "--prompt", "In", "-n", "2", "--prune", "1"}).code == 1);
  CHECK(run_tool({"perplexity", pocket_llama(), "--prune", "0.1", "--reference", pocket_llama()}).code == 1);
}
