// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T with quantized activations and packed weights: the driver around the kernels. It allocates nothing. Work is
// cut by shape alone, in an order in which contiguous pieces read contiguous weights, so a statically scheduled
// executor gives every thread one sequential stream. Results are the same bits for any executor. A strip of 32 packed
// outputs stays in cache while all tokens of a piece pass: weights are read from memory once per 240 tokens.
//
// There is no blocking over inputs: a strip of 32 outputs x 28672 4-bit inputs and the activations of 20 tokens are 1
// MB, and 512 tokens still run at the speed of 4096 inputs (431 against 430 GOPS on one Zen 4 core with 1 MB of L2),
// because both are read in sequence and the prefetchers keep up from L3.

#include <cstddef>
#include <span>

#include <cbq/core/executor.hpp>
#include <cbq/gemm/activations.hpp>
#include <cbq/gemm/dispatch.hpp>
#include <cbq/gemm/output.hpp>
#include <cbq/gemm/packed_weights.hpp>

namespace cbq {
inline namespace CBQ_ABI {
namespace driver {

/// Outputs of one strip: the two panels of the register tile.
inline constexpr std::size_t strip_outputs = 2 * panel_outputs;
/// Most tokens of one piece: their codes stay in the L2 cache. 12 panels of activations, 8 for AMX.
inline constexpr std::size_t most_piece_tokens = 256;

/// One matmul: what, with which kernel, and where to.
template <class Post, OutputElement T>
struct IntegerProduct {
  IntegerKernel kernel = nullptr;
  QuantizedTokens x = {};
  PackedMatrix weights = {};
  OutputRange range = {};  ///< resolved
  Output<Post, T> output = {};
};

/// How the work of one product is cut: into pieces of token rows x outputs, chunk after chunk of outputs, and within a
/// chunk one row of pieces after another.
struct Cut {
  std::size_t token_pieces = 0;
  std::size_t piece_tokens = 0;
  std::size_t output_pieces = 0;
  std::size_t piece_outputs = 0;
  std::size_t chunk = 1;  ///< output pieces per chunk
};

/// Activations of `tokens` x `inputs`, in panels of `panel_rows`, times `outputs` outputs.
struct ProductShape {
  std::size_t tokens = 0;
  std::size_t inputs = 0;
  std::size_t outputs = 0;
  std::size_t panel_rows = activation_panel_rows;
};

[[nodiscard]] constexpr Cut cut_work(const ProductShape& shape) noexcept {
  // Enough that 16 threads end within a tenth of each other, and few enough that handing them out costs nothing.
  constexpr std::size_t enough_pieces = 128;
  constexpr std::size_t most_output_pieces = 512;
  constexpr std::size_t cached_activations = std::size_t{1} << 19;  // half of an L2 cache
  Cut cut;
  if (shape.tokens == 0 || shape.outputs == 0) return cut;
  const std::size_t strips = divide_up(shape.outputs, strip_outputs);
  cut.piece_outputs = strip_outputs * divide_up(strips, most_output_pieces);
  cut.output_pieces = divide_up(shape.outputs, cut.piece_outputs);
  const std::size_t panels = divide_up(shape.tokens, shape.panel_rows);
  const std::size_t wanted = divide_up(enough_pieces, cut.output_pieces);
  const std::size_t for_cache = divide_up(panels, most_piece_tokens / shape.panel_rows);
  const std::size_t pieces = for_cache > wanted ? for_cache : wanted;
  const std::size_t piece_panels = divide_up(panels, pieces < panels ? pieces : panels);
  cut.piece_tokens = piece_panels * shape.panel_rows;
  cut.token_pieces = divide_up(panels, piece_panels);
  // The last row of pieces is shorter. Where the activations of all rows stay in cache every row of pieces is visited
  // for each strip; otherwise for 8 strips, whose products take long enough to hide that activations come from L3.
  cut.chunk = shape.tokens * shape.inputs <= cached_activations ? 1 : 8;
  return cut;
}

template <class Post, OutputElement T>
[[nodiscard]] Cut cut_work(const IntegerProduct<Post, T>& product) noexcept {
  return cut_work({product.x.tokens, product.weights.layout.inputs, product.range.count, product.x.shape.rows});
}

/// Computes a patch of at most `Rows` rows beside the result, whole panels, for which y has no room at its end.
template <std::size_t Rows, class Post, OutputElement T>
[[gnu::noinline]] void multiply_aside(const IntegerProduct<Post, T>& product, IntegerTile& tile, const Patch& patch) {
  float sums[Rows * strip_outputs];
  tile.out = sums;
  tile.out_stride = strip_outputs;
  product.kernel(tile);
  store_patch(sums, strip_outputs, product.output, patch);
}

/// Weights of the strip behind the one of output `output` of the range; null at the end of the range, and where two
/// strips would take more than half of an L2 cache.
template <class Post, OutputElement T>
[[nodiscard]] const std::byte* next_strip(const IntegerProduct<Post, T>& product, std::size_t output) noexcept {
  constexpr std::size_t most_bytes = std::size_t{1} << 18;
  const PackedLayout& layout = product.weights.layout;
  if (product.range.count - output <= strip_outputs || 2 * layout.panel_bytes > most_bytes) return nullptr;
  return product.weights.data + (product.range.first + output + strip_outputs) / panel_outputs * layout.panel_bytes;
}

/// One patch of the result: at most 32 outputs from the start of a panel of weights, and one panel of activations. AMX
/// takes all panels of a piece at once, because it decodes weights into memory. `next`: see IntegerTile.
template <class Post, OutputElement T>
void multiply_patch(const IntegerProduct<Post, T>& product, const Patch& patch, const std::byte* next) {
  const PackedLayout& layout = product.weights.layout;
  const QuantizedTokens& x = product.x;
  IntegerTile tile;
  tile.panel = product.weights.data + patch.column / panel_outputs * layout.panel_bytes;
  tile.panel_bytes = layout.panel_bytes;
  tile.header_bytes = layout.header_bytes;
  tile.group_bytes = layout.group_bytes;
  tile.panels = divide_up(patch.columns, panel_outputs);
  tile.next = next;
  tile.groups = layout.groups;
  tile.blocks_per_group = layout.blocks_per_group;
  tile.blocks = layout.blocks;
  tile.weight_multiplier = product.weights.multiplier;
  tile.shape = x.shape;
  tile.codes = x.codes + patch.row * row_codes(layout, x.shape);
  tile.largest_code = x.largest_code;
  tile.zero_terms = x.zero_terms + patch.row * layout.groups;
  if (x.group_scales != nullptr) tile.group_scales = x.group_scales + patch.row * layout.groups;
  tile.row_scales = x.scales + patch.row;
  tile.panel_rows = patch.rows;
  tile.rows = patch.rows;
  if constexpr (stores_directly<Post, T>(panel_outputs)) {
    if (patch.columns % panel_outputs == 0) {
      tile.out = row(product.output.y, patch.row) + patch.column;
      tile.out_stride = product.output.y.stride;
      product.kernel(tile);
      return;
    }
  }
  if (patch.rows > 1) prefetch_patch(product.output, patch);
  if (x.shape.rows == activation_panel_rows) {
    multiply_aside<activation_panel_rows>(product, tile, patch);
  } else {
    multiply_aside<most_piece_tokens>(product, tile, patch);
  }
}

/// Piece `index` of a product.
template <class Post, OutputElement T>
void multiply_piece(const IntegerProduct<Post, T>& product, const Cut& cut, std::size_t index) {
  std::size_t first_token = 0;
  std::size_t output_piece = index;
  if (cut.token_pieces > 1) {
    const std::size_t chunk = index / (cut.chunk * cut.token_pieces);
    const std::size_t inside = index - chunk * cut.chunk * cut.token_pieces;
    const std::size_t left = cut.output_pieces - chunk * cut.chunk;
    const std::size_t width = left < cut.chunk ? left : cut.chunk;
    first_token = inside / width * cut.piece_tokens;
    output_piece = chunk * cut.chunk + inside % width;
  }
  const std::size_t first_output = output_piece * cut.piece_outputs;
  const std::size_t tokens = product.x.tokens;
  const std::size_t outputs = product.range.count;
  const std::size_t end_token = tokens - first_token < cut.piece_tokens ? tokens : first_token + cut.piece_tokens;
  const std::size_t end_output =
      outputs - first_output < cut.piece_outputs ? outputs : first_output + cut.piece_outputs;
  const std::size_t patch_rows = product.x.shape.rows == amx_panel_rows ? most_piece_tokens : product.x.shape.rows;
  for (std::size_t output = first_output; output < end_output; output += strip_outputs) {
    for (std::size_t token = first_token; token < end_token; token += patch_rows) {
      Patch patch{.row = token, .column = product.range.first + output};
      patch.rows = end_token - token < patch_rows ? end_token - token : patch_rows;
      patch.columns = end_output - output < strip_outputs ? end_output - output : strip_outputs;
      // The last rows that a strip meets: what they ask for is read next.
      const bool last = cut.token_pieces == 1 && end_token - token <= patch_rows;
      multiply_patch(product, patch, last ? next_strip(product, output) : nullptr);
    }
  }
}

/// All pieces of a product, whose operands were checked. Nothing here depends on the scheme any more.
template <class Post, OutputElement T, class E>
void multiply(const IntegerProduct<Post, T>& product, const E& executor) {
  const Cut cut = cut_work(product);
  executor.for_each_index(cut.token_pieces * cut.output_pieces,
                          [&](std::size_t piece) { multiply_piece(product, cut, piece); });
}

/// Whether operands fit each other and can be read; activations of the layout that the weights have.
[[nodiscard]] inline Status check_operands(const QuantizedTokens& x, const PackedMatrix& weights) noexcept {
  const PackedLayout& layout = weights.layout;
  if (x.layout.inputs != layout.inputs || x.layout.groups != layout.groups || x.layout.blocks != layout.blocks) {
    return Error{Errc::bad_shape, "[cbq] matmul: activations and weights have different inputs", "inputs",
                 ErrorText(x.layout.inputs) << " in " << x.layout.groups << " groups",
                 ErrorText(layout.inputs) << " in " << layout.groups << " groups"};
  }
  if (x.tokens != 0 && (x.codes == nullptr || x.zero_terms == nullptr || x.scales == nullptr)) {
    return Error{Errc::bad_argument, "[cbq] matmul: the activations' memory is null", "x"};
  }
  if (weights.data == nullptr && packed_bytes(layout) != 0) {
    return Error{Errc::bad_argument, "[cbq] matmul: the weights' memory is null", "weights"};
  }
  return {};
}

/// Whether kernels of `isa` read panels of this shape: those for AMX are read by no other kernel.
[[nodiscard]] inline Status check_panels(const PanelShape& shape, Isa isa) noexcept {
  if (shape.rows == activation_panel_rows || isa == Isa::amx_int8) return {};
  return Error{Errc::bad_argument,
               "[cbq] matmul: the activations were quantized for AMX; quantize them with the same cap", "cap",
               isa_name(isa), isa_name(Isa::amx_int8)};
}

/// Whether kernels of `isa` can multiply activations of scheme S.
template <Scheme S>
[[nodiscard]] Status check_activations(const QuantizedTokens& x, Isa isa) noexcept {
  constexpr bool grouped = S.activation.granularity == Granularity::per_group;
  if (x.tokens * x.layout.groups != 0 && grouped != (x.group_scales != nullptr)) {
    return Error{Errc::bad_argument, "[cbq] matmul: group scales belong to activations per group, and only there", "x"};
  }
  return check_panels(x.shape, isa);
}

/// What check_operands(), check_result() and the epilogue have against a product; resolves its range.
template <class Post, OutputElement T>
[[nodiscard]] Status check_product(IntegerProduct<Post, T>& product) noexcept {
  const MatrixView<T>& y = product.output.y;
  if (const Status fit = check_operands(product.x, product.weights); !fit) return fit;
  if (const Status fits = check_result(y, product.x.tokens, product.weights.layout.outputs); !fits) return fits;
  const Result<OutputRange> range = resolve(product.range, product.weights.layout.outputs);
  if (!range) return range.error();
  product.range = *range;
  return check_epilogue(product.output.epilogue, y.rows, product.range.first + product.range.count);
}

}  // namespace driver

/// Outputs `range` of y = x W^T followed by the epilogue; the other columns of y are left alone. See matmul().
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor,
          OutputElement T = float>
[[nodiscard]] Status matmul_outputs(const QuantizedActivationsView<S>& x, const PackedWeightsView<S>& weights,
                                    OutputRange range, const MatrixView<T>& y, const Post& epilogue = {},
                                    const E& executor = {}, Isa cap = detect()) {
  const Isa isa = capped(cap);
  if (const Status readable = driver::check_activations<S>(x, isa); !readable) return readable;
  driver::IntegerProduct<Post, T> product{.kernel = Kernels::template integer_tile<S.weight.bits, S.weight.zero>(isa),
                                          .x = x,
                                          .weights = weights,
                                          .range = range,
                                          .output = driver::output(y, epilogue, isa)};
  if (const Status fit = driver::check_product(product); !fit) return fit;
  driver::multiply(product, executor);
  return {};
}

/// y = x W^T followed by the epilogue, rounded once to the type of y. x: M tokens; y: M x N float, half, bfloat16 or
/// int8, fully written. Errors: bad_shape, bad_argument (null memory, or x quantized for AMX and `cap` below it),
/// before any work. `cap` lowers the instruction set; what the machine lacks is never used.
template <Scheme S, Epilogue Post = NoEpilogue, class Kernels = RegionKernels, Executor E = SerialExecutor,
          OutputElement T = float>
[[nodiscard]] Status matmul(const QuantizedActivationsView<S>& x, const PackedWeightsView<S>& weights,
                            const MatrixView<T>& y, const Post& epilogue = {}, const E& executor = {},
                            Isa cap = detect()) {
  return matmul_outputs<S, Post, Kernels, E, T>(x, weights, OutputRange{}, y, epilogue, executor, cap);
}

}  // namespace CBQ_ABI
}  // namespace cbq
