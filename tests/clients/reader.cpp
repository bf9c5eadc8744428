// SPDX-License-Identifier: Apache-2.0

// What cbq reads in a file of another program, for the Python tests to compare.
//   reader values MODEL OUT             every tensor as F32 into a safetensors file; codes are decoded
//   reader logits MODEL TOKENS OUT      `logits` [tokens x vocabulary] of the token ids in the text file TOKENS
//   reader tokens MODEL TEXT            the token ids of the text file TEXT, on one line

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include <cbq/io.hpp>

#include "model.hpp"
#include "model_source.hpp"

namespace {

void expect(const cbq::Status& status) {
  if (status) return;
  std::string message;
  cbq::append_message(message, status.error());
  throw std::runtime_error(message);
}

template <class T>
T expect(cbq::Result<T> result) {
  if (!result) expect(cbq::Status(result.error()));
  return *std::move(result);
}

std::ifstream open_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  return file;
}

/// A tensor to be written, and how to read it once its turn comes.
struct Floats {
  std::string name;
  cbq::TensorShape shape;
  std::function<void(std::vector<float>&)> read;
};

void write(const std::string& path, const std::vector<Floats>& tensors) {
  std::vector<cbq::TensorPlan> plan;
  for (const Floats& tensor : tensors) plan.push_back({tensor.name, cbq::Dtype::f32, tensor.shape});
  auto writer = expect(cbq::SafetensorsWriter::create(path, plan));
  for (const Floats& tensor : tensors) {
    std::vector<float> values(expect(cbq::element_count(tensor.shape)));
    tensor.read(values);
    expect(writer.write(tensor.name, std::span<const float>(values)));
  }
  expect(writer.commit());
}

/// One row of as many elements as the tensor has.
cbq::TensorShape flat(const cbq::TensorShape& shape) {
  return {.rank = 1, .sizes = {expect(cbq::element_count(shape))}};
}

std::vector<Floats> floats_of(const cbq::Gguf& gguf) {
  std::vector<Floats> tensors;
  for (const cbq::GgufTensor& tensor : gguf.tensors()) {
    tensors.push_back({std::string(tensor.name), tensor.shape,
                       [&tensor](std::vector<float>& to) { expect(cbq::decode_gguf(tensor.type, tensor.bytes, to)); }});
  }
  return tensors;
}

void decode(const cbq::QuantizedMatrixView& matrix, const cbq::Grid& grid, std::vector<float>& to) {
  const std::size_t inputs = matrix.codes.columns;
  const std::size_t group = cbq::group_length(grid, inputs);
  for (std::size_t i = 0; i < to.size(); ++i) {
    const std::size_t n = i / inputs;
    const std::size_t g = i % inputs / group;
    const int zero = grid.zero == cbq::Zero::affine ? int{cbq::row(matrix.zeros, n)[g]} : cbq::symmetric_zero(grid);
    to[i] = cbq::row(matrix.scales, n)[g] * static_cast<float>(cbq::row(matrix.codes, n)[i % inputs] - zero);
  }
}

bool is_part_of_codes(std::string_view name) {
  constexpr std::string_view parts[] = {".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point"};
  return std::any_of(std::begin(parts), std::end(parts), [&](std::string_view part) { return name.ends_with(part); });
}

std::vector<Floats> floats_of(const cbq::Checkpoint& checkpoint, const cbq::Json& config) {
  std::vector<Floats> tensors;
  const auto record = expect(cbq::parse_quantization(config, cbq::packed_modules(checkpoint)));
  for (const cbq::ModuleScheme& module : record.modules) {
    const cbq::Grid grid = module.scheme.weight;
    const auto stored = expect(cbq::find_stored(checkpoint, module.module, grid));
    tensors.push_back({module.module + ".weight",
                       {.rank = 2, .sizes = {stored.outputs, stored.inputs}},
                       [&checkpoint, name = module.module, grid](std::vector<float>& to) {
                         decode(expect(cbq::StoredMatrix::read(checkpoint, name, grid)).view(), grid, to);
                       }});
  }
  for (const cbq::TensorView& tensor : checkpoint.tensors()) {
    if (is_part_of_codes(tensor.name)) continue;
    tensors.push_back(
        {std::string(tensor.name), tensor.shape, [&tensor](std::vector<float>& to) {
           cbq::TensorView row = tensor;
           row.shape = flat(tensor.shape);
           expect(cbq::copy_to_float(row, cbq::matrix_view(to.data(), 1, to.size()), cbq::Finite::unchecked));
         }});
  }
  return tensors;
}

void write_values(const std::string& model, const std::string& out) {
  if (model.ends_with(".gguf")) {
    const auto file = expect(cbq::GgufFile::open(model));
    return write(out, floats_of(file.content));
  }
  const auto checkpoint = expect(cbq::Checkpoint::open(model));
  write(out, floats_of(checkpoint, expect(cbq::read_json_file(model + "/config.json"))));
}

void write_logits(const std::string& path, const std::string& token_file, const std::string& out) {
  const auto source = expect(cbq_llama::ModelSource::open(path));
  const auto model = expect(cbq_llama::Model::load(source, {.operators = cbq_llama::Operators::fake_quantized}));
  std::ifstream file = open_file(token_file);
  const std::vector<std::int32_t> tokens(std::istream_iterator<std::int32_t>(file), {});
  auto session = expect(cbq_llama::Session::create(model, tokens.size(), {}));
  const auto hidden = expect(session.forward(tokens));
  const std::size_t vocabulary = source.config().vocabulary;
  const Floats logits{"logits", {.rank = 2, .sizes = {tokens.size(), vocabulary}}, [&](std::vector<float>& to) {
                        expect(session.logits(hidden, cbq::matrix_view(to.data(), tokens.size(), vocabulary)));
                      }};
  write(out, {logits});
}

void print_tokens(const std::string& path, const std::string& text_file) {
  const auto source = expect(cbq_llama::ModelSource::open(path));
  const auto tokenizer = expect(source.tokenizer());
  std::ifstream file = open_file(text_file);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  for (const std::int32_t token : expect(tokenizer.encode(text))) std::printf("%d ", token);
  std::printf("\n");
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + 1, arguments + count);
  try {
    if (words.size() == 3 && words[0] == "values") {
      write_values(words[1], words[2]);
    } else if (words.size() == 4 && words[0] == "logits") {
      write_logits(words[1], words[2], words[3]);
    } else if (words.size() == 3 && words[0] == "tokens") {
      print_tokens(words[1], words[2]);
    } else {
      throw std::runtime_error("values MODEL OUT, logits MODEL TOKENS OUT, or tokens MODEL TEXT");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "reader: %s\n", error.what());
    return 1;
  }
  return 0;
}
