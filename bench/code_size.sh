#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Bytes of machine code of the kernels, per weight grid and instruction set, as a table:
#
#   bench/code_size.sh [compiler]        default: c++; flags from CXXFLAGS, default -O2
#
# A row is one width of codes and kind of zero point; all groups and bits of activations share it. Columns: kernels for
# quantized activations, and for float activations (few tokens and the decoding of panels), of one instruction set each.

set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo '#include <cbq/gemm/instantiate_kernels.hpp>' >"$work/kernels.cpp"
# shellcheck disable=SC2086
"${1:-c++}" -std=c++20 ${CXXFLAGS:--O2} -I"$root/include" -c "$work/kernels.cpp" -o "$work/kernels.o"

nm --defined-only --print-size --size-sort --radix=d --demangle "$work/kernels.o" | awk '
  match($0, /isa::[a-z0-9_]+::/) {
    isa = substr($0, RSTART + 5, RLENGTH - 7)
    size = $2 + 0
    isas[isa] = 1
    # The first template arguments of a kernel are bits and zero point: 4 and (cbq::Zero)1.
    if (match($0, /<[2348], \(cbq::Zero\)[01]/)) {
      grid = substr($0, RSTART + 1, 1) (substr($0, RSTART + RLENGTH - 1, 1) == "1" ? " affine" : " symmetric")
      kind = $0 ~ /decode_panel|weight_only|fixed_point/ ? "float" : "integer"
      bytes[grid, isa, kind] += size
      grids[grid] = 1
    } else {
      other[isa] += size  # dense panels, and what does not depend on the zero point
    }
  }
  END {
    n = asorti_plain(isas, names)
    printf "| weights |"; for (i = 1; i <= n; ++i) printf " %s integer | float |", names[i]; print ""
    printf "|---|"; for (i = 1; i <= n; ++i) printf "---:|---:|"; print ""
    m = asorti_plain(grids, rows)
    for (r = 1; r <= m; ++r) {
      printf "| %s |", rows[r]
      for (i = 1; i <= n; ++i) printf " %d | %d |", bytes[rows[r], names[i], "integer"], bytes[rows[r], names[i], "float"]
      print ""
    }
    printf "| shared by all |"; for (i = 1; i <= n; ++i) printf " %d | |", other[names[i]]; print ""
  }
  # Keys of `set` in order, in the awk of every system.
  function asorti_plain(set, sorted,   key, count, i, j, held) {
    count = 0
    for (key in set) sorted[++count] = key
    for (i = 2; i <= count; ++i) {
      held = sorted[i]
      for (j = i - 1; j >= 1 && sorted[j] > held; --j) sorted[j + 1] = sorted[j]
      sorted[j + 1] = held
    }
    return count
  }'
size "$work/kernels.o" | awk 'NR == 2 { print "\nall kernels, without data: " $1 " bytes" }'
