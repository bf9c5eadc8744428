// SPDX-License-Identifier: Apache-2.0
#if __has_include(<cbq/io.hpp>)
#include <cbq/io.hpp>
#else
#include <nlohmann/json.hpp>
#endif

int main() {
  const auto json = nlohmann::json::parse(R"({"bits": 4})");
  return json["bits"] == 4 ? 0 : 1;
}
