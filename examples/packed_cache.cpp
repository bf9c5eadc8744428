// SPDX-License-Identifier: Apache-2.0

// Packs the matrices of a GGUF or safetensors model once into a packed file, maps that file, and multiplies with the
// first matrix of it. Blocks of GGUF that have an exact packed form keep their codes; all others are quantized.
//   packed_cache [MODEL [FILE]]

#include <cbq/cbq.hpp>
#include <cbq/gemm/pack_float.hpp>
#include <cbq/io.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr cbq::Scheme scheme = cbq::schemes::w4a8_g32;

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Adds a matrix of floats, quantized on the grid that covers each group.
cbq::Status add_floats(cbq::PackedFileWriter& writer, std::string_view name, const cbq::MatrixView<const float>& w) {
  const auto size = cbq::packed_size<scheme>(w.rows, w.columns);
  if (!size) return size.error();
  std::vector<std::byte> memory(*size);
  const auto packed = cbq::pack_float<scheme>(w, memory, cbq::MinMaxRange{});
  if (!packed) return packed.error();
  return writer.add(name, scheme, *packed);
}

cbq::Status add(cbq::PackedFileWriter& writer, const cbq::GgufTensor& tensor) {
  if (tensor.shape.rank != 2) return {};
  const std::size_t outputs = tensor.shape.sizes[0];
  const std::size_t inputs = tensor.shape.sizes[1];
  const auto grid = cbq::gguf_grid(tensor.type);
  if (grid) {
    const auto layout = cbq::packed_layout(*grid, outputs, inputs);
    if (!layout) return layout.error();
    std::vector<std::byte> memory(cbq::packed_bytes(*layout));
    const auto packed = cbq::pack_gguf(tensor, memory);
    if (packed) {
      return writer.add(tensor.name, {.weight = *grid, .activation = scheme.activation}, *packed);
    }
    if (packed.error().code != cbq::Errc::unsupported) return packed.error();
  }
  std::vector<float> values(outputs * inputs);
  const auto view = cbq::matrix_view(values.data(), outputs, inputs);
  if (const cbq::Status read = cbq::decode_gguf(tensor.type, tensor.bytes, values); !read) return read;
  return add_floats(writer, tensor.name, cbq::as_const(view));
}

cbq::Status add(cbq::PackedFileWriter& writer, const cbq::TensorView& tensor) {
  if (tensor.shape.rank != 2) return {};
  std::vector<float> values(tensor.shape.sizes[0] * tensor.shape.sizes[1]);
  const auto view = cbq::matrix_view(values.data(), tensor.shape.sizes[0], tensor.shape.sizes[1]);
  if (const cbq::Status read = cbq::copy_to_float(tensor, view); !read) return read;
  return add_floats(writer, tensor.name, cbq::as_const(view));
}

template <class Tensors>
cbq::Status write(const std::string& path, const Tensors& tensors) {
  auto writer = cbq::PackedFileWriter::create(path);
  if (!writer) return writer.error();
  for (const auto& tensor : tensors) {
    if (const cbq::Status added = add(*writer, tensor); !added) return added;
  }
  return writer->commit();
}

cbq::Status write(const std::string& path, const std::string& model) {
  if (!model.ends_with(".gguf")) {
    const auto checkpoint = cbq::Checkpoint::open(model);
    return checkpoint ? write(path, checkpoint->tensors()) : cbq::Status(checkpoint.error());
  }
  const auto bytes = cbq::FileBytes::open(model);
  if (!bytes) return bytes.error();
  const auto gguf = cbq::Gguf::parse(bytes->bytes());
  return gguf ? write(path, gguf->tensors()) : cbq::Status(gguf.error());
}

/// Multiplies one token of ones with the first matrix on the scheme's grid.
cbq::Status multiply(const cbq::PackedFile& file) {
  for (const cbq::PackedEntry& entry : file.entries()) {
    const auto weights = file.matrix<scheme>(entry.name);
    if (!weights) continue;
    const std::vector<float> x(entry.columns, 1.0f);
    std::vector<float> y(entry.rows);
    cbq::QuantizedActivations<scheme> activations;
    if (const auto quantized = activations.quantize(cbq::matrix_view(x.data(), 1, x.size())); !quantized) {
      return quantized;
    }
    const auto out = cbq::matrix_view(y.data(), 1, y.size());
    if (const auto done = cbq::matmul<scheme>(activations.view(), *weights, out); !done) return done;
    std::printf("%.*s, %zu x %zu: the sum of its first row is %g\n", static_cast<int>(entry.name.size()),
                entry.name.data(), entry.rows, entry.columns, static_cast<double>(y[0]));
    return {};
  }
  return {};
}

cbq::Status run(const std::string& model, const std::string& path) {
  auto start = Clock::now();
  if (const cbq::Status written = write(path, model); !written) return written;
  std::printf("packed in %.1f ms\n", milliseconds_since(start));
  for (const cbq::FileMode mode : {cbq::FileMode::map, cbq::FileMode::read}) {
    start = Clock::now();
    const auto file = cbq::PackedFile::open(path, mode);
    if (!file) return file.error();
    const double opened = milliseconds_since(start);
    if (const cbq::Status intact = file->verify(); !intact) return intact;
    std::printf("%s in %.2f ms, %zu entries; with every byte verified %.1f ms\n",
                mode == cbq::FileMode::map ? "mapped" : "read", opened, file->entries().size(),
                milliseconds_since(start));
    if (const cbq::Status done = multiply(*file); !done) return done;
  }
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const char* folder = std::getenv("TMPDIR");
  const std::string path = argc > 2 ? argv[2] : std::string(folder != nullptr ? folder : "/tmp") + "/packed_cache.cbq";
  const cbq::Status status = run(argc > 1 ? argv[1] : CBQ_EXAMPLE_MODEL, path);
  if (argc <= 2) std::remove(path.c_str());
  if (status) return 0;
  std::string text;
  cbq::append_message(text, status.error());
  std::fprintf(stderr, "packed_cache: %s\n", text.c_str());
  return 1;
}
