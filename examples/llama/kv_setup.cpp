// SPDX-License-Identifier: Apache-2.0
#include "kv_setup.hpp"

#include "commands.hpp"

namespace cbq_llama {

using cbq::Errc;
using cbq::Error;
using cbq::Result;

Result<KvSetup> KvSetup::create(const KvArguments& arguments, const LoadedModel& loaded, const Machine&) {
  KvSetup setup;
  const Result<cbq::KvScheme> scheme = cbq::parse_kv_scheme(arguments.scheme);
  if (!scheme) return scheme.error();
  if (scheme->smoothed) return Error{Errc::unsupported, "there are no smoothing factors yet", "--kv", arguments.scheme};
  const Result<std::size_t> bytes = kv_bytes_per_token(loaded.model.config(), *scheme);
  if (!bytes) return cbq::in_context(bytes.error(), "--kv");
  setup.scheme_ = *scheme;
  setup.bytes_per_token_ = *bytes;
  return setup;
}

KvOptions KvSetup::options() const {
  return {.scheme = scheme_};
}

void KvSetup::describe(Report& report) const {
  report.kv_scheme = cbq::kv_scheme_name(scheme_).c_str();
  report.kv_bytes_per_token = bytes_per_token_;
}

std::string kv_text(const Report& report) {
  return report.kv_scheme + ", " + std::to_string(*report.kv_bytes_per_token) + " bytes per token";
}

}  // namespace cbq_llama
