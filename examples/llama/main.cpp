// SPDX-License-Identifier: Apache-2.0
#include "command_line.hpp"
#include "interrupt.hpp"

int main(int count, char** arguments) {
  cbq_llama::catch_interrupts();
#if !defined(CBQ_LLAMA_OPENMP)
  (void)std::fputs("cbq-llama: note: built without OpenMP, running on one thread\n", stderr);
#endif
  return cbq_llama::run_tool(count, arguments, {});
}
