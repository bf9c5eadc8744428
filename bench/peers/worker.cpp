// SPDX-License-Identifier: Apache-2.0

// The main of every peer: answers one line of JSON to each line of standard input. compare.py is the other end.
//
//   describe                              name and formats
//   prepare FORMAT N K                    builds cold copies; the bytes that one call reads, or why not. Attention:
//   key/
//                                         value heads and positions
//   warm FORMAT M THREADS                 one untimed run, checked against one in double precision
//   time FORMAT M THREADS SECONDS         seconds of one call, over at least SECONDS of them
//   drop                                  frees what was prepared

#include <algorithm>
#include <chrono>
#include <iostream>
#include <sstream>
#include <tuple>

#include "../machine.hpp"
#include "peer.hpp"
#include "session.hpp"

namespace peers {

std::size_t copy_count(std::size_t bytes) {
  constexpr std::size_t most = 2000;  // libraries take milliseconds to set up each
  return std::min(most, bench::rotation_bytes() / bytes + 1);
}

namespace {

std::string describe(const Session& session) {
  std::string text = "{\"name\":\"" + session.name() + "\",\"formats\":[";
  for (const FormatName& format : session.formats()) {
    if (text.back() != '[') text += ',';
    text += "{\"name\":\"" + format.name + "\",\"family\":\"" + format.family + "\"}";
  }
  return text + "]}";
}

std::string time(Session& session, std::size_t format, std::size_t rows, std::size_t threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto measure = [&](double least) {
    std::size_t calls = 0;
    double elapsed = 0;
    const auto start = Clock::now();
    do {
      calls += session.run(format, rows, threads);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < least);
    return std::pair(elapsed, calls);
  };
  // This process was stopped: threads that it wakes may share a processor until the scheduler notices.
  constexpr double long_enough = 0.2;
  auto [elapsed, calls] = measure(threads == 1 ? 0.0 : seconds);
  if (elapsed < long_enough) std::tie(elapsed, calls) = measure(seconds);
  std::ostringstream text;
  text << "{\"seconds\":" << elapsed / static_cast<double>(calls) << ",\"products\":" << calls << "}";
  return text.str();
}

std::string answer(Session& session, const std::string& line) {
  std::istringstream words(line);
  std::string command;
  std::size_t format = 0, a = 0, b = 0;
  double seconds = 0;
  words >> command;
  if (command == "describe") return describe(session);
  if (command == "drop") {
    session.drop();
    return "{}";
  }
  words >> format >> a >> b;
  if (command == "prepare" && words) return "{\"bytes\":" + std::to_string(session.prepare(format, a, b)) + "}";
  if (command == "warm" && words) return "{\"error\":" + std::to_string(session.warm(format, a, b)) + "}";
  words >> seconds;
  if (command == "time" && words) return time(session, format, a, b, seconds);
  throw std::runtime_error("not a command: " + line);
}

std::string quoted(std::string text) {
  for (char& character : text) {
    if (character == '"' || character == '\\' || static_cast<unsigned char>(character) < ' ') character = ' ';
  }
  return "\"" + text + "\"";
}

}  // namespace
}  // namespace peers

int main() {
  // Libraries print to standard output what they like: answers are lines that start with '='.
  const std::unique_ptr<peers::Session> session = peers::make_session();
  for (std::string line; std::getline(std::cin, line);) {
    std::string reply;
    try {
      reply = peers::answer(*session, line);
    } catch (const std::exception& error) {
      reply = "{\"failed\":" + peers::quoted(error.what()) + "}";
    }
    std::cout << "=" << reply << std::endl;
  }
}
