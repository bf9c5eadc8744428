// SPDX-License-Identifier: Apache-2.0
#include "fault_run.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <map>
#include <new>
#include <random>

#include <execinfo.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/files.hpp"

namespace faults {

namespace {

constexpr unsigned longest_run_seconds = 60;

// What a run tells the process that started it.
struct Message {
  bool ended = false;
  bool threw = false;
  bool succeeded = false;
  bool reached = false;
  bool json = false;  // the fault struck nlohmann::json, or that ended the process
  Held kept;
  char text[8192] = {};
};

struct Run {
  int status = 0;
  Message message;
};

Message* shared = nullptr;

// The library's destructors take memory and its constructors lose some when there is none; json.hpp says what cbq does
// about it. Such ends are counted apart.
[[noreturn]] void note_json() {
  (void)disarm();
  shared->json = struck_json() || in_json();
  std::abort();
}

void tell(Message& to, const std::function<Ending()>& body, const Fault* fault, const char* folder) {
  const Held before = held();
  {
    Ending ending;
    if (fault != nullptr) arm(*fault, folder);
    try {
      ending = body();
    } catch (const std::exception& error) {
      (void)disarm();
      to.threw = true;
      ending.text = error.what();
    }
    to.reached = disarm();
    to.json = struck_json();
    to.succeeded = ending.succeeded;
    ending.text.copy(to.text, sizeof to.text - 1);
  }
  const Held after = held();
  to.kept = {after.allocations - before.allocations, after.descriptors - before.descriptors,
             after.mappings - before.mappings};
  to.ended = true;
}

void note_signal(int signal) {
  (void)disarm();
  shared->json = shared->json || struck_json();
  void* frames[64];
  if (std::getenv("CBQ_FAULT_TRACE") != nullptr) ::backtrace_symbols_fd(frames, ::backtrace(frames, 64), 2);
  (void)std::signal(signal, SIG_DFL);
  (void)std::raise(signal);
}

Run run(const std::function<Ending()>& body, const Fault* fault, const char* folder) {
  if (shared == nullptr) {
    shared = static_cast<Message*>(
        ::mmap(nullptr, sizeof(Message), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  }
  *shared = Message{};
  (void)std::fflush(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    (void)::alarm(longest_run_seconds);
    for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) (void)std::signal(signal, note_signal);
    if (std::getenv("CBQ_FAULT_TRACE") == nullptr) {
      const int nowhere = ::open("/dev/null", O_WRONLY);
      (void)::dup2(nowhere, 2);
    }
    std::set_terminate(note_json);
    tell(*shared, body, fault, folder);
    ::_exit(0);
  }
  Run done;
  (void)::waitpid(child, &done.status, 0);
  done.message = *shared;
  return done;
}

std::string describe(const Held& kept) {
  std::string text;
  const auto add = [&](long count, const char* what) {
    if (count != 0) text += " " + std::to_string(count) + " " + what;
  };
  add(kept.allocations, "allocations");
  add(kept.descriptors, "descriptors");
  add(kept.mappings, "mappings");
  return text;
}

using Files = std::map<std::string, std::string>;

Files files_of(const std::string& folder) {
  Files all;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = std::filesystem::path(entry.path()).lexically_relative(folder);
    if (entry.is_regular_file())
      all[name] = support::read_text(entry.path());
    else if (std::filesystem::is_empty(entry.path()))
      all[name + "/"];
  }
  return all;
}

// Files that did not change keep their times, which are part of what packed files were made from.
void restore(const std::string& folder, const Files& wanted) {
  const Files found = files_of(folder);
  for (const auto& [name, content] : found) {
    if (wanted.contains(name)) continue;
    std::filesystem::path path = folder + "/" + name;
    if (name.ends_with('/')) path = path.parent_path();
    std::filesystem::remove(path);
    for (path = path.parent_path(); path != folder && std::filesystem::is_empty(path); path = path.parent_path()) {
      std::filesystem::remove(path);
    }
  }
  for (const auto& [name, content] : wanted) {
    const auto at = found.find(name);
    if (at != found.end() && at->second == content) continue;
    const std::filesystem::path path = folder + "/" + name;
    std::filesystem::create_directories(path.parent_path());
    if (!name.ends_with('/')) support::write_text(path, content);
  }
}

std::string difference(const Files& got, const Files& wanted) {
  std::string text;
  for (const auto& [name, content] : got) {
    const auto at = wanted.find(name);
    if (at == wanted.end())
      text += " +" + name;
    else if (at->second != content)
      text += " ~" + name;
  }
  for (const auto& [name, content] : wanted) {
    if (!got.contains(name)) text += " -" + name;
  }
  return text;
}

// The outcomes of all runs with one kind of fault.
struct Tally {
  std::size_t points = 0, errors = 0, successes = 0;
  std::size_t json = 0;  // ended or leaked in nlohmann::json
  std::size_t late = 0;  // errors with the new files complete in place
  std::vector<std::string> violations;
};

// The state around an operation: files before, files after, what it says.
struct Expected {
  Files before, after;
  std::string text;
};

Files without(Files files, const std::vector<std::string>& names) {
  for (const std::string& name : names) files.erase(name);
  return files;
}

// Ways to fail that callers must get over by themselves.
bool must_succeed(const Fault& fault) {
  return fault.effect == Effect::partial || (fault.reason == EINTR && fault.call != Call::open);
}

// What is wrong about a run that struck, or nothing; counts it.
std::string judge(const Operation& operation, const Expected& expected, const Fault& fault, const Run& run,
                  Tally& tally) {
  const Message& message = run.message;
  const bool leaked = message.ended && !describe(message.kept).empty();
  if (fault.call == Call::allocation && message.json && (leaked || (WIFSIGNALED(run.status) && !message.ended))) {
    ++tally.json;
    return {};
  }
  if (WIFSIGNALED(run.status)) return std::string("ended by signal ") + ::strsignal(WTERMSIG(run.status));
  if (!message.ended) return "ended the process";
  if (message.threw) return std::string("threw ") + message.text;
  if (const std::string kept = describe(message.kept); !kept.empty()) return "kept" + kept;
  const Files now = files_of(operation.folder);
  if (message.succeeded) {
    ++tally.successes;
    if (message.text != expected.text) return std::string("succeeded, but says ") + message.text;
    if (now != expected.after) return "succeeded, but files differ:" + difference(now, expected.after);
    return {};
  }
  if (must_succeed(fault)) return std::string("failed: ") + message.text;
  ++tally.errors;
  const std::string text = message.text;
  if (text.find(": ") == std::string::npos || text.find('\n') != std::string::npos) return "unclear message: " + text;
  if (fault.call != Call::allocation && text.find(std::strerror(fault.reason)) == std::string::npos) {
    return "the message does not say why: " + text;
  }
  if (without(now, operation.progress) == without(expected.before, operation.progress)) return {};
  ++tally.late;
  if (without(now, operation.progress) != without(expected.after, operation.progress)) {
    return "failed, and files differ:" + difference(now, expected.before) + " (" + text + ")";
  }
  return {};
}

std::string judge_afterwards(const Operation& operation, const Expected& expected) {
  const Run run = faults::run(operation.afterwards, nullptr, "");
  if (!run.message.ended || !run.message.succeeded) return std::string("the next run failed: ") + run.message.text;
  const Files now = files_of(operation.folder);
  if (now != expected.after) return "after the next run files differ:" + difference(now, expected.after);
  return {};
}

Expected expect(const Operation& operation) {
  Expected expected;
  expected.before = files_of(operation.folder);
  (void)operation.body();  // what libraries keep for the rest of the process is no leak
  (void)in_json();
  restore(operation.folder, expected.before);
  const Run run = faults::run(operation.body, nullptr, "");
  expected.after = files_of(operation.folder);
  expected.text = run.message.text;
  if (!run.message.ended || !run.message.succeeded) {
    (void)std::printf("%s fails undisturbed: %s\n", operation.name.c_str(), run.message.text);
    std::abort();
  }
  restore(operation.folder, expected.before);
  return expected;
}

const char* effect_name(const Fault& fault) {
  if (fault.effect == Effect::partial) return "half of it";
  return fault.effect == Effect::from_there ? "and all behind" : "once";
}

// How many calls an undisturbed run makes.
std::size_t count_calls(const Operation& operation, Fault fault, const Expected& expected) {
  if (const char* one = std::getenv("CBQ_FAULT_AT")) return std::strtoul(one, nullptr, 10) + 1;
  std::size_t low = 0, high = 1;
  const auto reaches = [&](std::size_t n) {
    fault.n = n;
    fault.effect = fault.effect == Effect::from_there ? Effect::once : fault.effect;
    const Run run = faults::run(operation.body, &fault, operation.from_start ? "" : operation.folder.c_str());
    restore(operation.folder, expected.before);
    return !run.message.ended || run.message.reached;
  };
  if (!reaches(0)) return 0;
  while (reaches(high)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const std::size_t middle = low + (high - low) / 2;
    (reaches(middle) ? low : high) = middle;
  }
  return high;
}

std::vector<std::size_t> chosen(std::size_t calls, std::size_t points) {
  if (const char* one = std::getenv("CBQ_FAULT_AT")) return {std::strtoul(one, nullptr, 10)};
  std::vector<std::size_t> all;
  if (points == 0 || points >= calls) {
    for (std::size_t n = 0; n < calls; ++n) all.push_back(n);
    return all;
  }
  std::mt19937 random(static_cast<unsigned>(calls));
  for (std::size_t i = 0; i < points; ++i) {  // one of each part, so that no part stays untried
    const std::size_t first = calls * i / points, end = calls * (i + 1) / points;
    all.push_back(std::uniform_int_distribution<std::size_t>(first, end - 1)(random));
  }
  return all;
}

Tally try_faults(const Operation& operation, const Expected& expected, Fault fault, std::size_t points) {
  Tally tally;
  const std::size_t calls = count_calls(operation, fault, expected);
  for (const std::size_t n : chosen(calls, points)) {
    fault.n = n;
    const Run run = faults::run(operation.body, &fault, operation.from_start ? "" : operation.folder.c_str());
    if (run.message.ended && !run.message.reached) continue;
    ++tally.points;
    std::string wrong = judge(operation, expected, fault, run, tally);
    // A process that json ended leaves its temporary files.
    const bool again = operation.afterwards && run.message.ended && (fault.call != Call::allocation || n % 16 == 0);
    if (wrong.empty() && again) wrong = judge_afterwards(operation, expected);
    if (!wrong.empty()) tally.violations.push_back(std::to_string(n) + ": " + wrong);
    restore(operation.folder, expected.before);
  }
  if (calls == 0) return tally;
  (void)std::printf(
      "%-28s %-10s %-14s %-36s %6zu calls %6zu tried %6zu errors %5zu late %6zu fine %4zu json %4zu wrong\n",
      operation.name.c_str(), call_names[static_cast<std::size_t>(fault.call)], effect_name(fault),
      std::strerror(fault.reason), calls, tally.points, tally.errors, tally.late, tally.successes, tally.json,
      tally.violations.size());
  for (std::size_t i = 0; i < tally.violations.size() && i < 30; ++i) {
    (void)std::printf("    %s\n", tally.violations[i].c_str());
  }
  (void)std::fflush(stdout);
  return tally;
}

}  // namespace

std::size_t try_all_faults(const Operation& operation, std::size_t points) {
  const Expected expected = expect(operation);
  std::size_t violations = 0;
  const std::vector<Fault> all = {{Call::allocation, Effect::once, ENOMEM},
                                  {Call::allocation, Effect::from_there, ENOMEM, 0, operation.used_up_from},
                                  {Call::open, Effect::once, EMFILE},
                                  {Call::open, Effect::from_there, EMFILE},
                                  {Call::status, Effect::once, EIO},
                                  {Call::read, Effect::once, EIO},
                                  {Call::read, Effect::once, EINTR},
                                  {Call::read, Effect::partial, 0},
                                  {Call::map, Effect::once, ENOMEM},
                                  {Call::write, Effect::once, EIO},
                                  {Call::write, Effect::once, EINTR},
                                  {Call::write, Effect::partial, 0},
                                  {Call::write, Effect::from_there, ENOSPC},
                                  {Call::sync, Effect::once, EIO},
                                  {Call::close, Effect::once, EIO},
                                  {Call::rename, Effect::once, EIO},
                                  {Call::rename, Effect::from_there, EIO},
                                  {Call::folder, Effect::once, EIO}};
  for (const Fault& fault : all) {
    violations += try_faults(operation, expected, fault, points).violations.size();
  }
  return violations;
}

}  // namespace faults
