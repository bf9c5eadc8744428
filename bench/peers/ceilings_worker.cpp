// SPDX-License-Identifier: Apache-2.0

// The ceilings of cbq-bench, one at a time and on request, so that compare.py can measure them in every round.
//
//   describe            names of the ceilings, such as dram/threads:1
//   rate NAME           10^9 operations or bytes per second

#include <iostream>
#include <map>
#include <set>

#include "../machine.hpp"
#include "../suite.hpp"

namespace {

/// Keeps what was measured instead of printing it.
class Keep final : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      for (const char* counter : {"GOPS", "GBps"}) {
        const auto found = run.counters.find(counter);
        if (found != run.counters.end()) rates[run.run_name.function_name] = found->second;
      }
    }
  }
  std::map<std::string, double> rates;
};

void run(Keep& keep, const std::string& filter) {
  keep.rates.clear();
  benchmark::RunSpecifiedBenchmarks(&keep, filter);
}

std::string without_family(const std::string& name) {
  const std::string_view family = "ceiling/";
  return name.starts_with(family) ? name.substr(family.size()) : name;
}

}  // namespace

int main(int, char** argv) {
  const cbq::Result<cbq::Isa> cap = bench::isa_cap();
  if (!cap) return 2;
  // Longer than one pass over the memory: the first pass, while threads find their processors, is not counted then.
  std::string time = "--benchmark_min_time=0.03";
  char* arguments[] = {argv[0], time.data(), nullptr};
  int count = 2;
  benchmark::Initialize(&count, arguments);
  bench::register_ceilings({.cap = *cap});
  Keep keep;
  for (std::string line; std::getline(std::cin, line);) {
    std::string reply;
    if (line == "describe") {
      run(keep, "^ceiling/");
      for (const auto& [name, rate] : keep.rates) reply += (reply.empty() ? "\"" : ",\"") + without_family(name) + "\"";
      reply = "{\"ceilings\":[" + reply + "],\"processor\":\"" + bench::processor_name() + "\",\"isa\":\"" +
              cbq::isa_name(*cap) + "\",\"compiler\":\"" + bench::compiler_name() +
              "\",\"rotation\":" + std::to_string(bench::rotation_bytes()) + "}";
    } else if (line.starts_with("rate ")) {
      run(keep, "^ceiling/" + line.substr(5) + "/");
      for (const auto& [name, rate] : keep.rates) reply = "{\"rate\":" + std::to_string(rate) + "}";
    }
    std::cout << "=" << (reply.empty() ? "{\"failed\":\"not a command or a ceiling\"}" : reply) << std::endl;
  }
}
