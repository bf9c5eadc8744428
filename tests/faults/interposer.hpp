// SPDX-License-Identifier: Apache-2.0
#pragma once

// Makes the n-th call of one kind fail, for whatever in this program makes it: cbq, the C++ library, other libraries.
// The program defines the functions of the C library itself and passes them on; memory and descriptors are counted on
// the way, so that a leak shows. glibc only (available()). What the C library calls inside, fopen for one, is not seen.

#include <array>
#include <cstddef>

namespace faults {

enum class Call : unsigned char { allocation, open, status, read, map, write, sync, close, rename, folder };
inline constexpr std::array call_names = {"allocation", "open", "status", "read",   "map",
                                          "write",      "sync", "close",  "rename", "folder"};

enum class Effect : unsigned char {
  once,        ///< one call fails
  from_there,  ///< this call and all behind it fail
  partial,     ///< one call transfers half of what it could
};

/// Call number `n` (from 0) fails with `reason`, an error number.
struct Fault {
  Call call = Call::allocation;
  Effect effect = Effect::once;
  int reason = 0;
  std::size_t n = 0;
  std::size_t least = 0;  ///< of allocations, only those of at least so many bytes count
};

/// What is open or allocated now.
struct Held {
  long allocations = 0;
  long descriptors = 0;
  long mappings = 0;
};

/// Whether calls are intercepted in this program.
[[nodiscard]] bool available();

/// Calls count from here on, or, where `folder` is not empty, from the first that opens or looks at something whose
/// path begins with it. `folder` must outlive the counting.
void arm(const Fault& fault, const char* folder);

/// Nothing fails from here on; whether the fault was reached.
[[nodiscard]] bool disarm();

[[nodiscard]] Held held();

/// Whether the call that failed was made by a function of nlohmann::json, or by what that called.
[[nodiscard]] bool struck_json();

/// Whether such a function is running now.
[[nodiscard]] bool in_json();

}  // namespace faults
