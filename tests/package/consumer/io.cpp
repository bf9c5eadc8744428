// SPDX-License-Identifier: Apache-2.0
// A file that is not there is an error that names it.
#include <cbq/io.hpp>
#include <cstdio>
#include <string>

int main() {
  const auto file = cbq::FileBytes::open("no/such/file.safetensors");
  if (file || file.error().code != cbq::Errc::io) return 1;
  const nlohmann::json json = nlohmann::json::parse(R"({"bits": 4})");
  return json["bits"] == 4 ? 0 : 2;
}
