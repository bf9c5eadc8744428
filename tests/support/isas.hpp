// SPDX-License-Identifier: Apache-2.0
#pragma once

// The instruction sets that tests run on this machine, under the cap of the environment variable CBQ_ISA.

#include <cbq/core/cpu.hpp>

#include <cstdlib>
#include <vector>

namespace support {

[[nodiscard]] inline std::vector<cbq::Isa> machine_isas() {
  const char* name = std::getenv("CBQ_ISA");
  const auto cap = name == nullptr ? cbq::Result<cbq::Isa>(cbq::Isa::amx_int8) : cbq::parse_isa(name);
  std::vector<cbq::Isa> isas;
  for (const cbq::Isa isa : cbq::all_isas) {
    if (cap && isa <= *cap && cbq::capped(isa) == isa) isas.push_back(isa);
  }
  return isas;
}

}  // namespace support
