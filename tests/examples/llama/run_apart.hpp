// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tool run in a process of its own, for signals, limits and crashes.

#include <catch2/catch_test_macros.hpp>

#include <string>
#include <vector>

#include <sys/wait.h>
#include <unistd.h>

#include "engine_fixture.hpp"

namespace engine_fixture {

/// Exit code of a run in a process of its own, which `prepare` changes first.
template <class Prepare>
int run_apart(const std::vector<std::string>& arguments, const Prepare& prepare) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::alarm(120);
    prepare();
    ::_exit(run_tool(arguments).code);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace engine_fixture
