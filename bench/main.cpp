// SPDX-License-Identifier: Apache-2.0

// cbq-bench: kernels against this machine's ceilings, in one run. docs/benchmarks.md says what the names and counters
// mean. Without a filter it runs the 4096 x 4096 matrix in a few minutes; a filter chooses among all shapes.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "machine.hpp"
#include "suite.hpp"

namespace {

bool given(const std::vector<char*>& arguments, std::string_view flag, const char* variable) {
  return std::getenv(variable) != nullptr || std::any_of(arguments.begin(), arguments.end(), [flag](const char* a) {
           return std::string_view(a).starts_with(flag);
         });
}

void add_context(cbq::Isa isa) {
  const auto mebibytes = [](std::size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; };
  benchmark::AddCustomContext("processor", bench::processor_name());
  benchmark::AddCustomContext("processors", std::to_string(bench::processor_count()));
  benchmark::AddCustomContext("isa", cbq::isa_name(isa));
  benchmark::AddCustomContext("last_level_cache", mebibytes(bench::last_level_cache_bytes()));
  benchmark::AddCustomContext("weights_rotated_over", mebibytes(bench::rotation_bytes()));
  benchmark::AddCustomContext("compiler", bench::compiler_name());
}

}  // namespace

int main(int argc, char** argv) {
  const cbq::Result<cbq::Isa> cap = bench::isa_cap();
  if (!cap) {
    std::string message;
    cbq::append_message(message, cap.error());
    std::fprintf(stderr, "cbq-bench: CBQ_ISA: %s\n", message.c_str());
    return 2;
  }
  std::vector<char*> arguments(argv, argv + argc);
  // Shorter than Google Benchmark's 0.5 s, for the sake of the whole list; repetitions make up for it.
  std::string min_time = "--benchmark_min_time=0.1";
  if (!given(arguments, "--benchmark_min_time", "BENCHMARK_MIN_TIME"))
    arguments.insert(arguments.begin() + 1, min_time.data());
  const bool everything = given(arguments, "--benchmark_filter", "BENCHMARK_FILTER") ||
                          given(arguments, "--benchmark_list_tests", "BENCHMARK_LIST_TESTS");
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;

  const bench::Selection selection{.cap = *cap, .everything = everything};
  add_context(*cap);
  bench::register_ceilings(selection);
  bench::register_integer_matmul(selection);
  bench::register_four_bit_matmul(selection);
  bench::register_weight_only_matmul(selection);
  bench::register_float_matmul(selection);
  bench::register_eigen(selection);
  bench::register_attention(selection);
  bench::register_integer_attention(selection);
  bench::register_packing(selection);
  bench::register_rotated_input(selection);
  bench::register_channel_factors(selection);
  bench::register_reconstruction(selection);
  const std::size_t ran = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return ran == 0 || bench::skipped_any() ? 1 : 0;
}
