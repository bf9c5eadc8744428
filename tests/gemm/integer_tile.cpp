// SPDX-License-Identifier: Apache-2.0
#include <cbq/gemm/integer_tile.hpp>

#include <algorithm>
#include <cstring>

#include <catch2/catch_test_macros.hpp>
#include <cbq/gemm/kernels_portable.hpp>

#include "support/isas.hpp"
#include "support/kernels.hpp"

using namespace cbq;

namespace {

/// One panel of `blocks` blocks in one group: every code of output n is n modulo the number of codes.
std::vector<std::byte> panel_of_constant_outputs(std::size_t bits, std::size_t blocks) {
  std::vector<std::byte> panel(group_scales_bytes + blocks * block_bytes(bits));
  for (std::size_t output = 0; output < panel_outputs; ++output) {
    const half one = from_float<half>(1.0f);
    std::memcpy(panel.data() + output * sizeof one, &one, sizeof one);
    for (std::size_t input = 0; input < blocks * block_inputs; ++input) {
      set_block_code(panel.data() + group_scales_bytes + input / block_inputs * block_bytes(bits), bits, output,
                     input % block_inputs, static_cast<unsigned>(output % (std::size_t{1} << bits)));
    }
  }
  return panel;
}

/// All weight codes of `Bits` bits times all activation codes from -largest to largest, `blocks` blocks of each.
template <int Bits>
void check_all_pairs(Isa isa, std::size_t largest, std::size_t blocks) {
  const std::vector<std::byte> panel = panel_of_constant_outputs(Bits, blocks);
  const auto most = static_cast<int>(largest);
  for (int first = -most; first <= most; first += static_cast<int>(activation_panel_rows)) {
    IntegerTile tile;
    tile.panel_rows = std::min(activation_panel_rows, static_cast<std::size_t>(most - first + 1));
    tile.rows = tile.panel_rows;
    std::vector<std::int8_t> codes(tile.rows * blocks * block_inputs);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      codes[i] = static_cast<std::int8_t>(first + static_cast<int>(i / block_inputs % tile.rows));
    }
    const std::vector<std::int32_t> zero_terms(tile.rows, 0);
    const std::vector<float> scales(tile.rows, 1.0f);
    std::vector<float> out(tile.rows * panel_outputs, -1.0f);
    tile.panel = panel.data();
    tile.panel_bytes = tile.group_bytes = panel.size();
    tile.header_bytes = group_scales_bytes;
    tile.panels = tile.groups = 1;
    tile.blocks = tile.blocks_per_group = blocks;
    tile.codes = codes.data();
    tile.largest_code = largest;
    tile.zero_terms = zero_terms.data();
    tile.row_scales = scales.data();
    tile.out = out.data();
    tile.out_stride = panel_outputs;
    PortableKernels::integer_tile<Bits, Zero::symmetric>(isa)(tile);
    int wrong = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const int code = first + static_cast<int>(i / panel_outputs);
      const int weight = static_cast<int>(i % panel_outputs) % (1 << Bits);
      // Below 2^24: floats hold it.
      wrong += out[i] != static_cast<float>(weight * code * static_cast<int>(blocks * block_inputs));
    }
    CAPTURE(isa_name(isa), Bits, largest, blocks, first);
    CHECK(wrong == 0);
  }
}

template <int Bits>
void check_depths(std::size_t largest) {
  const std::size_t depth = short_blocks(Bits, largest);
  for (const Isa isa : support::machine_isas()) {
    // Every number of blocks up to the bound and past it, and the ends of the second and the third run.
    for (std::size_t blocks = 1; blocks <= depth + 1; ++blocks) check_all_pairs<Bits>(isa, largest, blocks);
    for (const std::size_t blocks : {2 * depth - 1, 2 * depth, 2 * depth + 1, 3 * depth}) {
      if (blocks != 0) check_all_pairs<Bits>(isa, largest, blocks);
    }
  }
}

}  // namespace

TEST_CASE("All pairs of codes, summed in int16 to every depth that their sizes allow") {
  check_depths<4>(15);
  check_depths<4>(127);
  check_depths<3>(127);
  check_depths<2>(15);
  check_depths<2>(127);
}

TEST_CASE("The depth of int16 sums is the largest that cannot overflow") {
  for (const int bits : {2, 3, 4}) {
    for (const std::size_t largest : {std::size_t{15}, std::size_t{127}}) {
      const std::size_t block = 16 * ((std::size_t{1} << bits) - 1) * largest;
      CHECK(short_blocks(bits, largest) * block <= 32767);
      CHECK((short_blocks(bits, largest) + 1) * block > 32767);
    }
  }
}
