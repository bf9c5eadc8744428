// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the figures depend on besides the code: processor, caches, compiler, instruction set, threads.

#include <cstddef>
#include <string>
#include <vector>

#include <cbq/core/cpu.hpp>

namespace bench {

/// Model name of the processor, "unknown" where the operating system does not tell.
[[nodiscard]] std::string processor_name();

/// Name and version of the compiler that built this program.
[[nodiscard]] std::string compiler_name();

/// Bytes of all last-level caches together; 32 MiB where the operating system does not tell.
[[nodiscard]] std::size_t last_level_cache_bytes();

/// Bytes of weights that calls rotate over: twice the last-level caches, at least 128 MiB (hosts of virtual machines
/// hide how much cache they share) and at most 512 MiB.
[[nodiscard]] std::size_t rotation_bytes();

/// Processors that this process may run on.
[[nodiscard]] std::size_t processor_count();

/// 1, 2, 4, ... and processor_count(); only 1 in a build without OpenMP.
[[nodiscard]] std::vector<std::size_t> thread_counts();

/// The best instruction set of this machine that the environment variable CBQ_ISA allows; Errc::bad_argument when it
/// holds something else than an instruction set's name.
[[nodiscard]] cbq::Result<cbq::Isa> isa_cap();

/// The instruction sets with kernels, from scalar up to `cap`.
[[nodiscard]] std::vector<cbq::Isa> instruction_sets(cbq::Isa cap);

}  // namespace bench
