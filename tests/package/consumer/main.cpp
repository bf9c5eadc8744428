// SPDX-License-Identifier: Apache-2.0
#if __has_include(<cbq/cbq.hpp>)
#include <cbq/cbq.hpp>
#else
#include <cbq/scheme.hpp>
#endif

#include <cstdio>
#include <cstring>

#define TEXT_OF(x) #x
#define STRING_OF(x) TEXT_OF(x)

int main() {
#ifdef EXPECTED_VERSION
  const char* version = STRING_OF(CBQ_VERSION_MAJOR) "." STRING_OF(CBQ_VERSION_MINOR) "." STRING_OF(CBQ_VERSION_PATCH);
  if (std::strcmp(version, EXPECTED_VERSION) != 0) {
    std::printf("the package says version %s, the header says %s\n", EXPECTED_VERSION, version);
    return 1;
  }
#endif
  const auto scheme = cbq::parse_scheme("w4a8_g128");
  return scheme && *scheme == cbq::schemes::w4a8_g128 ? 0 : 1;
}
