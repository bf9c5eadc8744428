// SPDX-License-Identifier: Apache-2.0

// Each call of the C library that readers and writers of files make fails once.
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <cbq/io.hpp>

#include "fault_run.hpp"
#include "support/files.hpp"
#include "support/gguf.hpp"

using support::ScratchFolder;

namespace {

// Every one: these operations make few calls.
constexpr std::size_t points = 0;

faults::Ending ending(const cbq::Status& status) {
  (void)faults::disarm();
  return status ? faults::Ending{true, "done"} : faults::Ending{false, support::message(status)};
}

void check(const faults::Operation& operation) {
  if (!faults::available()) SKIP("calls of the C library cannot be intercepted in this build");
  faults::Operation whole = operation;
  whole.from_start = true;
  whole.used_up_from = 0;
  const std::size_t violations = faults::try_all_faults(whole, points);
  CHECK(violations == 0);
}

cbq::TensorPlan plan(std::string name, std::size_t rows, std::size_t columns) {
  return {.name = std::move(name), .dtype = cbq::Dtype::f32, .shape = {.rank = 2, .sizes = {rows, columns}}};
}

const std::vector<cbq::TensorPlan>& plans() {
  static const std::vector<cbq::TensorPlan> all = {plan("a.tensor.with.a.long.name.weight", 3, 5), plan("b", 7, 1)};
  return all;
}

cbq::Status write_tensors(const std::string& path) {
  static const cbq::SafetensorsWriter::Metadata metadata = {{"key", "value"}};
  auto writer = cbq::SafetensorsWriter::create(path, plans(), metadata);
  if (!writer) return writer.error();
  const std::array<float, 15> values = {1.5f};
  if (const auto ok = writer->write(plans()[0].name, std::span<const float>(values)); !ok) return ok;
  if (const auto ok = writer->write("b", std::span<const float>(values).first(7)); !ok) return ok;
  return writer->commit();
}

// Paths are the host's: their memory may throw.
cbq::Status write_folder(const std::string& path) {
  auto folder = cbq::AtomicFolder::create(path, cbq::Existing::replace);
  if (!folder) return folder.error();
  try {
    if (const auto ok = write_tensors(folder->file("model.safetensors")); !ok) return ok;
    if (const auto ok = cbq::write_file(folder->file("config.json"), "{}"); !ok) return ok;
  } catch (const std::bad_alloc&) {
    return cbq::Error{cbq::Errc::out_of_memory, "cannot allocate memory", "a path"};
  }
  return folder->commit();
}

cbq::Status write_packed(const std::string& path) {
  auto writer = cbq::PackedFileWriter::create(path, "a stamp that is longer than a short string");
  if (!writer) return writer.error();
  const std::array<float, 60> values = {0.5f};
  for (const char* name : {"first", "a name that is longer than a short string"}) {
    const auto added = writer->add(name, cbq::MatrixView<const float>{values.data(), 6, 10, 10});
    if (!added) return added;
  }
  return writer->commit();
}

cbq::Status read_packed(const std::string& path) {
  const auto file = cbq::PackedFile::open(path);
  if (!file) return file.error();
  return file->verify(cbq::SerialExecutor{});
}

}  // namespace

TEST_CASE("Faults while a file is written over an older one") {
  const ScratchFolder folder;
  support::write_text(folder / "file", "old");
  check({.name = "write_file", .folder = folder.path(), .body = [path = folder / "file"] {
           return ending(cbq::write_file(path, "new content"));
         }});
}

TEST_CASE("Faults while a safetensors file is written and read") {
  const ScratchFolder folder;
  const std::string path = folder / "model.safetensors";
  support::write_text(path, "old");
  check({.name = "SafetensorsWriter", .folder = folder.path(), .body = [path] { return ending(write_tensors(path)); }});
  REQUIRE(write_tensors(path));
  for (const cbq::FileMode mode : {cbq::FileMode::map, cbq::FileMode::read}) {
    check({.name = mode == cbq::FileMode::map ? "Checkpoint, mapped" : "Checkpoint, read",
           .folder = folder.path(),
           .body = [path = folder.path(), mode] {
             const auto opened = cbq::Checkpoint::open(path, mode);
             return ending(opened ? cbq::Status{} : opened.error());
           }});
  }
}

TEST_CASE("Faults while a folder replaces an older one") {
  const ScratchFolder folder;
  REQUIRE(cbq::write_file(folder / "note", "beside"));
  std::filesystem::create_directory(folder / "out");
  support::write_text(folder / "out/config.json", "old");
  support::write_text(folder / "out/old.safetensors", "old");
  check({.name = "AtomicFolder", .folder = folder.path(), .body = [path = folder / "out"] {
           return ending(write_folder(path));
         }});
}

TEST_CASE("Faults while a packed file is written and read") {
  const ScratchFolder folder;
  const std::string path = folder / "packed";
  support::write_text(path, "old");
  check({.name = "PackedFileWriter", .folder = folder.path(), .body = [path] { return ending(write_packed(path)); }});
  REQUIRE(write_packed(path));
  check({.name = "PackedFile", .folder = folder.path(), .body = [path] { return ending(read_packed(path)); }});
}

TEST_CASE("Faults while a GGUF file is read") {
  const ScratchFolder folder;
  const std::vector<std::byte> bytes = support::small_gguf().bytes();
  REQUIRE(cbq::write_file(folder / "model.gguf", bytes));
  check({.name = "GgufFile", .folder = folder.path(), .body = [path = folder / "model.gguf"] {
           const auto file = cbq::GgufFile::open(path);
           if (!file) return ending(file.error());
           const auto texts = file->content.metadata().text_array("list.text");
           if (!texts) return ending(texts.error());
           const auto numbers = file->content.metadata().float_array("list.f32");
           return ending(numbers ? cbq::Status{} : numbers.error());
         }});
}

TEST_CASE("Faults while disk space is taken") {
  const ScratchFolder folder;
  support::write_text(folder / "file", "old");
  check({.name = "ScratchFile", .folder = folder.path(), .body = [path = folder / "file"] {
           const auto scratch = cbq::ScratchFile::create(path, 10000);
           return ending(scratch ? cbq::Status{} : scratch.error());
         }});
}
