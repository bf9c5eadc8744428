// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reads tests/data/malformed/expected.json, which make_malformed.py writes, and holds a reader to it.

#include <catch2/catch_test_macros.hpp>

#include <functional>
#include <string>

#include <cbq/io/json.hpp>

#include "support/files.hpp"

namespace support {

inline std::string malformed_folder() {
  return CBQ_SOURCE_DIR "/tests/data/malformed";
}

inline const char* name_of(cbq::Errc code) {
  constexpr const char* names[] = {"bad_argument", "bad_shape",  "bad_file",      "io",
                                   "unsupported",  "not_finite", "out_of_memory", "interrupted"};
  return names[static_cast<std::size_t>(code)];
}

/// Calls read(path), which gives a Status, for the files of `reader`: each must be refused as expected, naming its
/// file.
inline void check_malformed(const std::string& reader, const std::function<cbq::Status(const std::string&)>& read) {
  const auto expected = cbq::read_json_file(malformed_folder() + "/expected.json");
  REQUIRE(expected);
  std::size_t files = 0;
  for (const auto& [name, entry] : expected->items()) {
    if (entry.at("reader") != reader) continue;
    ++files;
    const cbq::Status status = read(malformed_folder() + "/" + name);
    const std::string text = status ? "accepted" : message(status.error());
    const std::string fault = entry.at("class");
    CAPTURE(name, fault, text);
    const std::string code = entry.at("code");
    CHECK((status ? "accepted" : name_of(status.error().code)) == code);
    if (status) continue;
    CHECK(text.find(name) != std::string::npos);
    CHECK_FALSE(status.error().got.empty());
    CHECK_FALSE(status.error().wanted.empty());
    for (const cbq::Json& part : entry.at("parts")) {
      CAPTURE(part);
      CHECK(text.find(part.get<std::string>()) != std::string::npos);
    }
  }
  CHECK(files > 0);
}

}  // namespace support
