// SPDX-License-Identifier: Apache-2.0

// Each call of the C library that cbq-llama makes fails once: quantizing, calibrating, loading, generating, on a model
// of two blocks.
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "../examples/llama/generated_model.hpp"
#include "fault_run.hpp"

using engine_fixture::pocket_llama;
using support::ScratchFolder;

namespace {

// All of them, or a sample that takes seconds. CBQ_FAULT_POINTS: for looking closer.
std::size_t points() {
  if (const auto wanted = engine_fixture::environment("CBQ_FAULT_POINTS")) return std::stoul(*wanted);
#if defined(CBQ_LONG_TESTS)
  return 0;
#else
  return 12;
#endif
}

// What ends up in a stream over memory that never has to grow.
class Printed {
 public:
  Printed() : file_(::fmemopen(text_.data(), text_.size(), "w")) {
    (void)std::setvbuf(file_, buffer_.data(), _IOFBF, buffer_.size());
  }
  Printed(const Printed&) = delete;
  Printed& operator=(const Printed&) = delete;
  ~Printed() { (void)std::fclose(file_); }
  void clear() {
    std::rewind(file_);
    text_ = {};
  }
  [[nodiscard]] std::FILE* file() const { return file_; }
  [[nodiscard]] std::string text() const {
    (void)std::fflush(file_);
    return text_.data();
  }

 private:
  std::array<char, 65536> text_ = {};
  std::array<char, 4096> buffer_ = {};
  std::FILE* file_;
};

// What may differ between runs: times, rates, peaks of memory.
std::string without_times(const std::string& text) {
  static const std::regex times("[0-9.]+ (s|ms|tokens/s|MB|MiB|KiB|KB)\\b");
  return std::regex_replace(text, times, "");
}

// A command line and what it prints, all in memory that was taken before.
class Invocation {
 public:
  explicit Invocation(std::vector<std::string> arguments) : arguments_(std::move(arguments)) {
    for (const std::string& argument : arguments_) pointers_.push_back(argument.c_str());
  }

  faults::Ending run() {
    out_.clear();
    err_.clear();
    const int code =
        cbq_llama::run_tool(static_cast<int>(pointers_.size()), pointers_.data(), {out_.file(), err_.file()});
    (void)faults::disarm();
    if (code == 0) return {true, without_times(out_.text())};
    std::string line = err_.text();
    const std::string notice = "cbq-llama: packing the model into ";
    if (line.starts_with(notice)) line.erase(0, line.find('\n') + 1);
    if (code != 1 || !line.ends_with('\n')) return {false, "exit code " + std::to_string(code) + "\n" + line};
    line.pop_back();
    return {false, line};
  }

 private:
  std::vector<std::string> arguments_;
  std::vector<const char*> pointers_;
  Printed out_, err_;
};

// A folder with a model and a text.
class Workshop {
 public:
  explicit Workshop(const engine_fixture::GeneratedModel& model) : Workshop() {
    engine_fixture::write_model(folder() + "/model", model);
  }
  explicit Workshop(const std::string& model) : Workshop() {
    std::filesystem::copy(model, folder() + "/model", std::filesystem::copy_options::recursive);
  }
  [[nodiscard]] std::string folder() const { return scratch_.path(); }

  /// A command on files of this folder; arguments that begin with '@' are such files.
  [[nodiscard]] std::function<faults::Ending()> command(std::vector<std::string> arguments) const {
    for (std::string& argument : arguments) {
      if (argument.starts_with('@')) argument = folder() + "/" + argument.substr(1);
    }
    arguments.insert(arguments.begin(), "cbq-llama");
    arguments.insert(arguments.end(), {"--threads", "1"});
    return [invocation = std::make_shared<Invocation>(std::move(arguments))] { return invocation->run(); };
  }

  /// The same, now and without faults.
  void prepare(const std::vector<std::string>& arguments) const {
    const faults::Ending ending = command(arguments)();
    INFO(ending.text);
    REQUIRE(ending.succeeded);
  }

 private:
  Workshop() {
    support::write_text(folder() + "/text", support::read_text(pocket_llama() + "-evaluation.txt").substr(0, 400));
  }

  ScratchFolder scratch_;
};

constexpr engine_fixture::GeneratedModel two_blocks = {
    .layers = 2, .hidden = 32, .intermediate = 48, .head_width = 8, .vocabulary = 257};

void check(const faults::Operation& operation, std::size_t points = ::points()) {
  if (!faults::available()) SKIP("calls of the C library cannot be intercepted in this build");
  const std::size_t violations = faults::try_all_faults(operation, points);
  CHECK(violations == 0);
}

}  // namespace

TEST_CASE("Faults while a model is described") {
  const Workshop shop(two_blocks);
  check({.name = "info", .folder = shop.folder(), .body = shop.command({"info", "@model"}), .from_start = true});
}

TEST_CASE("Faults while a model is rounded and written over an older one") {
  const Workshop shop(two_blocks);
  shop.prepare({"quantize", "@model", "-o", "@out", "--scheme", "w8a8"});
  check({.name = "quantize rtn",
         .folder = shop.folder(),
         .body = shop.command({"quantize", "@model", "-o", "@out", "--scheme", "w4a8_g32"})});
}

TEST_CASE("Faults while a model is calibrated") {
  const std::vector<std::string> settings = {"--calibration", "@text", "--samples", "4", "--sequence", "16",
                                             "--batch",       "2",     "--steps",   "3", "--window",   "1",
                                             "--overlap",     "0"};
  const auto with = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), settings.begin(), settings.end());
    return arguments;
  };
  const Workshop shop(two_blocks);
  shop.prepare({"quantize", "@model", "-o", "@out", "--scheme", "w8a8"});
  SECTION("by reconstruction, continued whatever happened") {
    const auto body = shop.command(
        with({"quantize", "@model", "-o", "@out", "--scheme", "w4a4_asym", "--method", "cbq", "--resume"}));
    check({.name = "quantize cbq",
           .folder = shop.folder(),
           .body = body,
           .progress = {"out.checkpoint"},
           .afterwards = body});
  }
  SECTION("for its cache") {
    const auto body =
        shop.command({"quantize", "@model", "-o", "@out", "--scheme", "w4a16_g32", "--method", "wkvquant",
                      "--calibration", "@text", "--samples", "2", "--sequence", "16", "--steps", "2", "--resume"});
    check({.name = "quantize wkvquant",
           .folder = shop.folder(),
           .body = body,
           .progress = {"out.checkpoint"},
           .afterwards = body});
  }
  SECTION("by GPTQ after preprocessing") {
    check({.name = "quantize gptq",
           .folder = shop.folder(),
           .body = shop.command({"quantize", "@model", "-o", "@out", "--scheme", "w4a16_g32", "--method", "gptq",
                                 "--calibration", "@text", "--samples", "4", "--sequence", "16"})});
  }
}

TEST_CASE("Faults while a model is exported and imported") {
  const Workshop shop(two_blocks);
  shop.prepare({"quantize", "@model", "-o", "@out", "--scheme", "w4a16"});
  const std::vector<std::string> command = {"export",       "@out", "-o", "@exported", "--format", "compressed-tensors",
                                            "--shard-size", "20K"};
  SECTION("to shards") {
    check({.name = "export", .folder = shop.folder(), .body = shop.command(command)});
  }
  SECTION("over an older import") {
    shop.prepare(command);
    shop.prepare({"quantize", "@model", "-o", "@imported", "--scheme", "w8a8"});
    check(
        {.name = "import", .folder = shop.folder(), .body = shop.command({"import", "@exported", "-o", "@imported"})});
  }
}

TEST_CASE("Faults while a model is loaded and run") {
  const Workshop shop(two_blocks);
  shop.prepare({"quantize", "@model", "-o", "@out", "--scheme", "w4a8_g32"});
  const std::vector<std::string> perplexity = {"perplexity", "@out", "--text",         "@text",
                                               "--context",  "16",   "--packed-cache", "@cache"};
  SECTION("packed anew") {
    check({.name = "perplexity",
           .folder = shop.folder(),
           .body = shop.command(perplexity),
           .progress = {"cache"}});  // complete before the model runs
  }
  SECTION("from a packed file") {
    shop.prepare(perplexity);
    check({.name = "perplexity, packed file", .folder = shop.folder(), .body = shop.command(perplexity)});
  }
  SECTION("over a quantized cache") {
    check({.name = "generate",
           .folder = shop.folder(),
           .body = shop.command(
               {"generate", "@out", "--prompt", "The", "-n", "4", "--temperature", "0", "--kv", "kv4_past"})});
  }
}

TEST_CASE("Faults on the embedded model") {
  constexpr std::size_t each = 12;  // of each kind: some 200 of all kinds
  const Workshop shop(pocket_llama());
  shop.prepare({"quantize", "@model", "-o", "@out", "--scheme", "w8a8"});
  SECTION("rounded") {
    check({.name = "pocket-llama rtn",
           .folder = shop.folder(),
           .body = shop.command({"quantize", "@model", "-o", "@out", "--scheme", "w4a16_g128"})},
          each);
  }
  SECTION("calibrated") {
    check({.name = "pocket-llama gptq",
           .folder = shop.folder(),
           .body = shop.command({"quantize", "@model", "-o", "@out", "--scheme", "w4a16_g128", "--method", "gptq",
                                 "--calibration", "@text", "--samples", "1", "--sequence", "32"})},
          each);
  }
  SECTION("exported") {
    check({.name = "pocket-llama export",
           .folder = shop.folder(),
           .body = shop.command({"export", "@out", "-o", "@exported.gguf", "--format", "gguf"})},
          each);
  }
}
