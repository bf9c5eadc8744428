// SPDX-License-Identifier: Apache-2.0
#include "memory_estimate.hpp"

#include <catch2/catch_test_macros.hpp>

#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "examples/llama/engine_fixture.hpp"

using cbq_llama::parse_size;
using engine_fixture::pocket_llama;
using engine_fixture::run_tool;
using engine_fixture::ToolRun;
using engine_fixture::unwrap;
using support::ScratchFolder;

namespace {

std::vector<std::string> quantize(const std::string& output, const std::vector<std::string>& more) {
  std::vector<std::string> all = {"quantize",
                                  pocket_llama(),
                                  "-o",
                                  output,
                                  "--scheme",
                                  "w2a16_g64_asym",
                                  "--method",
                                  "cbq",
                                  "--threads",
                                  "1",
                                  "--json",
                                  "-",
                                  "--steps",
                                  "1",
                                  "--batch",
                                  "1",
                                  "--calibration",
                                  pocket_llama() + "-calibration.txt"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

const std::vector<std::string> few = {"--samples", "4", "--sequence", "32"};

std::vector<std::string> with(std::vector<std::string> first, const std::string& option, const std::string& value) {
  first.push_back(option);
  first.push_back(value);
  return first;
}

std::map<std::string, std::string> files(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    all[entry.path().filename()] = support::read_text(entry.path());
  }
  return all;
}

cbq::Json estimate(const ToolRun& run) {
  INFO(run.err);
  REQUIRE(run.code == 0);
  return unwrap(cbq::parse_json(run.out)).at("memory_estimate");
}

}  // namespace

TEST_CASE("Sizes of a command line") {
  const std::map<std::string, std::size_t> sizes = {
      {"1", 1}, {"1000", 1000}, {"2K", 2048}, {"500M", std::size_t{500} << 20}, {"4G", std::size_t{4} << 30}};
  for (const auto& [text, size] : sizes) CHECK(unwrap(parse_size(text)) == size);
  for (const char* text :
       {"", "G", "-1", "0", "0G", "4GB", "4g", "4 G", "1.5G", "99999999999999999999", "18446744073G", "x", "4G4"}) {
    CAPTURE(text);
    const auto size = parse_size(text);
    REQUIRE_FALSE(size);
    CHECK(size.error().code == cbq::Errc::bad_argument);
  }
  CHECK(cbq_llama::budget_text(1) == "1M");
  CHECK(unwrap(parse_size(cbq_llama::budget_text(123'456'789))) >= 123'456'789);
}

TEST_CASE("Activations in a file change no byte of a model") {
  const ScratchFolder scratch;
  const cbq::Json free = estimate(run_tool(quantize(scratch / "free", few)));
  const auto total = free.at("total").get<std::size_t>();
  CHECK(free.at("activations") == 2 * 4 * 32 * 256 * 4);
  CHECK(free.at("spilled") == 0);
  const std::string enough = std::to_string(total), little = std::to_string(total - 1);
  const cbq::Json held = estimate(run_tool(quantize(scratch / "held", with(few, "--memory-budget", enough))));
  CHECK(held == free);
  const cbq::Json spilled = estimate(run_tool(quantize(scratch / "spilled", with(few, "--memory-budget", little))));
  CHECK(spilled.at("activations") == 0);
  CHECK(spilled.at("spilled") == free.at("activations"));
  CHECK(spilled.at("total").get<std::size_t>() == total - free.at("activations").get<std::size_t>());
  CHECK(files(scratch / "spilled") == files(scratch / "free"));
  CHECK(scratch.entries() == 3);  // no temporary file
}

TEST_CASE("A budget that is too small ends before any work and says what would do") {
  const ScratchFolder scratch;
  const auto refused = [&](const std::vector<std::string>& more) {
    const ToolRun run = run_tool(quantize(scratch / "model", more));
    CHECK(run.code == 1);
    CHECK(scratch.entries() == 0);
    return run.err;
  };
  const std::string none = refused(with(few, "--memory-budget", "1M"));
  CAPTURE(none);
  CHECK(none.find("--memory-budget: the budget is too small") != std::string::npos);
  // What it says does.
  const std::size_t first = none.find("wanted ") + 7;
  const std::string wanted = none.substr(first, none.find('M', first) + 1 - first);
  CHECK(estimate(run_tool(quantize(scratch / "enough", with(few, "--memory-budget", wanted)))).at("total") > 0);
  std::filesystem::remove_all(scratch / "enough");

  const std::string other = refused(with(with(few, "--memory-budget", wanted), "--window", "4"));
  CAPTURE(other, wanted);
  CHECK(other.find(", or --window 1 --overlap 0") != std::string::npos);
}

TEST_CASE("What calibration allocates stays within the budget") {
  const ScratchFolder scratch;
  const std::vector<std::string> much = {"--samples", "48", "--sequence", "512"};
  // 50 MB of activations; memory of the process, which mapped files are not, limited to what it has and the budget.
  const auto code_under = [&](const std::string& output, const std::vector<std::string>& options) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      (void)::malloc_trim(0);  // what the allocator keeps would count twice
      unsigned long size = 0, unused = 0, data = 0;
      std::FILE* file = std::fopen("/proc/self/statm", "r");
      const int read = file == nullptr ? 0
                                       : std::fscanf(file, "%lu %lu %lu %lu %lu %lu", &size, &unused, &unused, &unused,
                                                     &unused, &data);
      if (read != 6) ::_exit(77);
      const auto page = static_cast<unsigned long>(::sysconf(_SC_PAGESIZE));
      const rlimit limit = {data * page + (85ul << 20), RLIM_INFINITY};
      if (::setrlimit(RLIMIT_DATA, &limit) != 0) ::_exit(77);
      ::_exit(run_tool(quantize(output, options)).code);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  const int within = code_under(scratch / "within", with(much, "--memory-budget", "85M"));
  if (within == 77) SKIP("this system does not limit the memory of a process");
  CHECK(within == 0);
  CHECK(code_under(scratch / "beyond", much) == 1);
}
