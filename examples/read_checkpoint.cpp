// SPDX-License-Identifier: Apache-2.0

// Opens a checkpoint (a folder with safetensors, one file, or a shard index), lists its matrices and packs each one to
// 4 bits.
//   read_checkpoint [PATH]

#include <cbq/cbq.hpp>
#include <cbq/io.hpp>
#include <cstdio>
#include <string>
#include <vector>

namespace {

constexpr cbq::Scheme scheme = cbq::schemes::w4a8_g32;

/// Bytes of one tensor packed under the scheme above.
cbq::Result<std::size_t> packed_bytes_of(const cbq::TensorView& tensor) {
  const std::size_t outputs = tensor.shape.sizes[0];
  const std::size_t inputs = tensor.shape.sizes[1];
  std::vector<float> weights(outputs * inputs);
  const auto view = cbq::matrix_view(weights.data(), outputs, inputs);
  if (const cbq::Status read = cbq::copy_to_float(tensor, view, cbq::Finite::required); !read) return read.error();
  const auto codes = cbq::round_nearest(cbq::as_const(view), scheme.weight);
  if (!codes) return codes.error();
  const auto packed = cbq::PackedWeights<scheme>::from_codes(codes->view());
  if (!packed) return packed.error();
  return packed->bytes();
}

int report(const cbq::Error& error) {
  std::string text;
  cbq::append_message(text, error);
  std::fprintf(stderr, "read_checkpoint: %s\n", text.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const auto checkpoint = cbq::Checkpoint::open(argc > 1 ? argv[1] : CBQ_EXAMPLE_MODEL);
  if (!checkpoint) return report(checkpoint.error());
  std::size_t before = 0;
  std::size_t after = 0;
  for (const cbq::TensorView& tensor : checkpoint->tensors()) {
    if (tensor.shape.rank != 2) continue;
    const auto packed = packed_bytes_of(tensor);
    if (!packed) return report(packed.error());
    before += tensor.bytes.size();
    after += *packed;
    std::printf("%-48.*s %6zu x %-6zu %-5s %9zu -> %8zu bytes\n", static_cast<int>(tensor.name.size()),
                tensor.name.data(), tensor.shape.sizes[0], tensor.shape.sizes[1], cbq::dtype_name(tensor.dtype),
                tensor.bytes.size(), *packed);
  }
  std::printf("%zu tensors; matrices take %zu bytes, packed as %s %zu\n", checkpoint->tensors().size(), before,
              cbq::scheme_name(scheme).c_str(), after);
  return 0;
}
