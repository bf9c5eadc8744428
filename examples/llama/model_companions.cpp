// SPDX-License-Identifier: Apache-2.0
#include "model_companions.hpp"

#include <array>
#include <cerrno>

#include <unistd.h>

#include <cbq/io/atomic_file.hpp>
#include <cbq/io/mapped_file.hpp>

namespace cbq_llama {

using cbq::Result;
using cbq::Status;

Status copy_companions(const cbq::AtomicFolder& folder, const ModelSource& source) {
  if (source.is_gguf()) {
    const Result<cbq::Json> vocabulary = source.vocabulary_json();
    if (!vocabulary) return vocabulary.error();
    return cbq::write_file(folder.file(vocabulary_file), cbq::json_text(*vocabulary));
  }
  constexpr std::array names = {"tokenizer.json",
                                "tokenizer_config.json",
                                "special_tokens_map.json",
                                "generation_config.json",
                                "tokenizer.model",
                                "vocab.json",
                                "merges.txt",
                                "chat_template.jinja",
                                vocabulary_file};
  for (const char* name : names) {
    const std::string path = source.path() + "/" + name;
    if (::access(path.c_str(), F_OK) != 0) {
      if (errno == ENOENT) continue;
      return cbq::system_error("cannot look at the file", path, errno);
    }
    const Result<cbq::FileBytes> file = cbq::FileBytes::open(path, cbq::FileMode::read, std::size_t{1} << 28);
    if (!file) return file.error();
    if (const Status ok = cbq::write_file(folder.file(name), file->bytes()); !ok) return ok;
  }
  return {};
}

}  // namespace cbq_llama
