// SPDX-License-Identifier: Apache-2.0
#pragma once

// What tests of the example engine share: the embedded model, models of the machine at hand, and the tool run in this
// process with its output caught.

#include <catch2/catch_test_macros.hpp>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <cbq/io/json.hpp>

#include "command_line.hpp"
#include "support/files.hpp"

namespace engine_fixture {

inline std::string models() {
  return CBQ_SOURCE_DIR "/examples/llama/models";
}
inline std::string pocket_llama() {
  return models() + "/pocket-llama";
}
inline std::string evaluation_text() {
  return pocket_llama() + "-evaluation.txt";
}

/// The value of an environment variable, or nothing.
inline std::optional<std::string> environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? std::nullopt : std::optional<std::string>(value);
}

/// The value of a result; the test fails with its message otherwise.
template <class T>
T unwrap(cbq::Result<T> result) {
  if (!result) FAIL(support::message(result.error()));
  return *std::move(result);
}

/// A text stream in memory.
class Catcher {
 public:
  Catcher() : file_(::open_memstream(&text_, &size_)) { REQUIRE(file_ != nullptr); }
  Catcher(const Catcher&) = delete;
  Catcher& operator=(const Catcher&) = delete;
  ~Catcher() {
    std::fclose(file_);
    std::free(text_);
  }
  [[nodiscard]] std::FILE* file() const { return file_; }
  [[nodiscard]] std::string text() const {
    std::fflush(file_);
    return {text_, size_};
  }

 private:
  char* text_ = nullptr;
  std::size_t size_ = 0;
  std::FILE* file_;
};

struct ToolRun {
  int code = 0;
  std::string out;
  std::string err;
};

/// Runs `cbq-llama arguments...` in this process.
inline ToolRun run_tool(std::vector<std::string> arguments) {
  std::vector<const char*> pointers = {"cbq-llama"};
  for (const std::string& argument : arguments) pointers.push_back(argument.c_str());
  const Catcher out;
  const Catcher err;
  ToolRun run;
  run.code = cbq_llama::run_tool(static_cast<int>(pointers.size()), pointers.data(), {out.file(), err.file()});
  run.out = out.text();
  run.err = err.text();
  return run;
}

}  // namespace engine_fixture
