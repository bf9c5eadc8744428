// SPDX-License-Identifier: Apache-2.0
#include "interrupt.hpp"

#include <atomic>
#include <csignal>

#include <signal.h>

namespace cbq_llama {

namespace {

std::atomic<int> caught = 0;
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

void note_signal(int signal) {
  caught.store(signal, std::memory_order_relaxed);
}

}  // namespace

void catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = note_signal;
  (void)::sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  (void)::sigaction(SIGINT, &action, nullptr);
  (void)::sigaction(SIGTERM, &action, nullptr);
}

int interrupt_signal() {
  return caught.load(std::memory_order_relaxed);
}

cbq::Status check_interrupt() {
  if (interrupt_signal() == 0) return {};
  return cbq::Error{cbq::Errc::interrupted, "interrupted"};
}

}  // namespace cbq_llama
