// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rows of `cbq-llama ablate`: each is quantized into a folder, read back, run packed and measured; the folder goes
// when a row comes that is quantized in another way. Results are a line of JSON per row in a file that is written anew
// after each, so that a run may be stopped at any moment: rows that are there are not run again, and a reconstruction
// that was cut off goes on after its last window.
//
// A result belongs to what its row was run with: model, texts, options and how it was measured. The key is a hash of
// these names and of the files' sizes and times of the last change; what keeps both is not noticed.

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <cbq/core/result.hpp>
#include <cbq/io/json.hpp>

#include "ablation_rows.hpp"
#include "commands.hpp"
#include "multiple_choice.hpp"

namespace cbq_llama {

/// Finished rows by key.
class AblationResults {
 public:
  /// Reads the file `path`, if there is one; lines that are no results are dropped. Errc::io.
  [[nodiscard]] static cbq::Result<AblationResults> open(std::string path);

  [[nodiscard]] const cbq::Json* find(const std::string& key) const;
  /// Adds a result and writes the file. Errc::io.
  [[nodiscard]] cbq::Status add(const std::string& key, cbq::Json result);

 private:
  explicit AblationResults(std::string path) : path_(std::move(path)) {}
  std::string path_;
  std::vector<std::string> order_;
  std::map<std::string, cbq::Json> results_;
};

/// What quantizing a row gave; the folder lives as long as this.
class QuantizedRow {
 public:
  QuantizedRow(std::string key, std::string path) : key_(std::move(key)), path_(std::move(path)) {}
  QuantizedRow(const QuantizedRow&) = delete;
  QuantizedRow& operator=(const QuantizedRow&) = delete;
  ~QuantizedRow();

  [[nodiscard]] const std::string& key() const { return key_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  cbq::Json figures = cbq::Json::object();  ///< seconds, memory, bits

 private:
  std::string key_;
  std::string path_;
};

/// What the rows of a run have in common.
class Ablation {
 public:
  /// Opens the model, reads texts and items. Errors of these; Errc::bad_argument for texts that are too short.
  [[nodiscard]] static cbq::Result<Ablation> create(const AblateCommand& command);

  /// The arguments of `quantize` for a row but for the output, and the key of its result.
  [[nodiscard]] std::vector<std::string> arguments(const AblationRow& row) const;
  [[nodiscard]] std::string key(const AblationRow& row) const;

  /// Whether the options of a row are understood. Errc::bad_argument.
  [[nodiscard]] cbq::Status check(const AblationRow& row) const;

  /// Quantizes and measures one row; `work` is a folder for what goes afterwards. `last` is what the row before left
  /// (may be null): a row that is quantized as that one was takes it. Errors of quantize() and evaluate().
  [[nodiscard]] cbq::Result<cbq::Json> run(const AblationRow& row, const std::string& work,
                                           std::unique_ptr<QuantizedRow>& last) const;

  [[nodiscard]] const ModelSource& source() const { return source_; }
  [[nodiscard]] const Machine& machine() const { return machine_; }

 private:
  struct Text {
    std::string path;
    std::vector<std::int32_t> tokens;
  };

  Ablation(const AblateCommand& command, ModelSource source, const Machine& machine)
      : command_(command), source_(std::move(source)), machine_(machine) {}

  [[nodiscard]] cbq::Status read_stamps();
  [[nodiscard]] cbq::Status read_texts();
  [[nodiscard]] std::string key(const AblationRow& row, const std::vector<std::string>& run) const;
  [[nodiscard]] cbq::Status quantize_row(const AblationRow& row, QuantizedRow& quantized) const;
  [[nodiscard]] cbq::Status measure(const std::string& path, const AblationRow& row, cbq::Json& result) const;
  [[nodiscard]] cbq::Status measure_texts(const LoadedModel& loaded, const Model* reference, const AblationRow& row,
                                          cbq::Json& result) const;

  const AblateCommand& command_;
  ModelSource source_;
  Machine machine_;
  std::vector<std::string> stamps_;  ///< of the files that every row depends on
  std::vector<Text> texts_;
  std::vector<TokenizedItem> items_;
};

}  // namespace cbq_llama
