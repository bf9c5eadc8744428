// SPDX-License-Identifier: Apache-2.0
#include <cbq/io/atomic_folder.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <filesystem>
#include <string>
#include <utility>

#include "support/files.hpp"

using cbq::AtomicFolder;
using cbq::Existing;
using support::message;

namespace {

cbq::Status write_folder(const std::string& target, std::string_view name, Existing existing = Existing::refuse) {
  auto folder = AtomicFolder::create(target, existing);
  if (!folder) return folder.error();
  if (const auto written = cbq::write_file(folder->file(name), "content"); !written) return written;
  return folder->commit();
}

}  // namespace

TEST_CASE("a folder appears with commit and only then") {
  const support::ScratchFolder scratch;
  auto folder = AtomicFolder::create(scratch / "model/");
  REQUIRE(folder);
  support::write_text(folder->file("config.json"), "{}");
  CHECK_FALSE(std::filesystem::exists(scratch / "model"));
  AtomicFolder moved = std::move(*folder);
  REQUIRE(moved.commit());
  CHECK(support::read_text(scratch / "model/config.json") == "{}");
  CHECK(scratch.entries() == 1);
  CHECK_FALSE(moved.commit());
}

TEST_CASE("without commit nothing is left behind") {
  const support::ScratchFolder scratch;
  {
    auto folder = AtomicFolder::create(scratch / "model");
    support::write_text(folder->file("a.json"), "{}");
    support::write_text(folder->file("b.safetensors"), "");
  }
  CHECK(scratch.entries() == 0);
}

TEST_CASE("an empty folder is taken, a full one refused") {
  const support::ScratchFolder scratch;
  std::filesystem::create_directory(scratch / "model");
  REQUIRE(write_folder(scratch / "model", "a.json"));
  CHECK_FALSE(write_folder(scratch / "model", "b.json"));
  CHECK(std::filesystem::exists(scratch / "model/a.json"));
  CHECK_FALSE(std::filesystem::exists(scratch / "model/b.json"));
  CHECK(scratch.entries() == 1);
}

TEST_CASE("a model folder is replaced on request, as a whole") {
  const support::ScratchFolder scratch;
  REQUIRE(write_folder(scratch / "model", "old.safetensors"));
  REQUIRE(write_folder(scratch / "model", "new.safetensors", Existing::replace));
  CHECK(std::filesystem::exists(scratch / "model/new.safetensors"));
  CHECK_FALSE(std::filesystem::exists(scratch / "model/old.safetensors"));
  CHECK(scratch.entries() == 1);
}

TEST_CASE("what is no model is never replaced") {
  const support::ScratchFolder scratch;
  REQUIRE(write_folder(scratch / "model", "a.json"));
  support::write_text(scratch / "model/thesis.odt", "years of work");
  CHECK_THAT(message(write_folder(scratch / "model", "b.json", Existing::replace)),
             Catch::Matchers::ContainsSubstring("thesis.odt"));
  std::filesystem::remove(scratch / "model/thesis.odt");
  std::filesystem::create_directories(scratch / "model/sub.json");
  CHECK_FALSE(write_folder(scratch / "model", "b.json", Existing::replace));
  std::filesystem::remove(scratch / "model/sub.json");
  std::filesystem::create_symlink("/etc/hosts", scratch / "model/link.json");
  CHECK_FALSE(write_folder(scratch / "model", "b.json", Existing::replace));
  CHECK(std::filesystem::exists(scratch / "model/a.json"));
  CHECK(scratch.entries() == 1);
}

TEST_CASE("a target that fills up meanwhile is not overwritten") {
  const support::ScratchFolder scratch;
  auto folder = AtomicFolder::create(scratch / "model");
  std::filesystem::create_directory(scratch / "model");
  support::write_text(scratch / "model/other.json", "{}");
  CHECK_FALSE(folder->commit());
  CHECK(std::filesystem::exists(scratch / "model/other.json"));
}

TEST_CASE("impossible targets are errors") {
  const support::ScratchFolder scratch;
  support::write_text(scratch / "plain", "");
  for (const std::string& target :
       {std::string(), std::string("/"), std::string("."), std::string(".."), scratch / "..", scratch / "absent/model",
        scratch / "plain", scratch / "plain/model"}) {
    CAPTURE(target);
    CHECK_FALSE(AtomicFolder::create(target, Existing::replace));
  }
  CHECK(scratch.entries() == 1);
}
