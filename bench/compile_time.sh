#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# CPU seconds, best of 5 rounds, to compile a file that only includes
#   - the standard and intrinsic headers that <cbq/gemm.hpp> and the cbq headers it includes name: the yardstick,
#   - <cbq/gemm.hpp>,
#   - <cbq/cbq.hpp>, where it exists;
# and one that calls the matmul of a scheme, kernels of all instruction sets included.
#
#   bench/compile_time.sh COMPILER INCLUDE_DIRECTORY [COMPILER_OPTION...]
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 COMPILER INCLUDE_DIRECTORY [COMPILER_OPTION...]" >&2
  exit 2
fi
compiler=$1
include=$2
shift 2
options=(-std=c++20 -O2 -I "$include" "$@")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo '#include <cbq/gemm.hpp>' >"$work/gemm.cpp"
"$compiler" "${options[@]}" -MM "$work/gemm.cpp" | tr ' \\' '\n\n' | grep -F "$include/cbq/" |
  xargs sed -n 's/^ *# *include *\(<[^>]*>\).*/#include \1/p' | grep -v '<cbq/' | sort -u >"$work/standard.cpp"
cat >"$work/call.cpp" <<'END'
#include <cbq/gemm.hpp>
using cbq::schemes::w4a8_g128;
cbq::Status call(const cbq::QuantizedActivationsView<w4a8_g128>& x, const cbq::PackedWeightsView<w4a8_g128>& w,
                 const cbq::MatrixView<float>& y) {
  return cbq::matmul(x, w, y);
}
END
names=(standard gemm call)
if [ -e "$include/cbq/cbq.hpp" ]; then
  echo '#include <cbq/cbq.hpp>' >"$work/cbq.cpp"
  names+=(cbq)
fi

# User plus system time of one compilation in milliseconds.
cpu_milliseconds() {
  local TIMEFORMAT='%U %S'
  local times
  times=$({ time "$compiler" "${options[@]}" -c "$1" -o "$work/out.o" 2>"$work/messages"; } 2>&1) ||
    { cat "$work/messages" >&2; exit 1; }
  awk '{ printf "%d", 1000 * ($1 + $2) + 0.5 }' <<<"$times"
}

declare -A best
for round in 1 2 3 4 5; do  # interleaved: a busy minute slows all alike
  for name in "${names[@]}"; do
    milliseconds=$(cpu_milliseconds "$work/$name.cpp")
    if [ -z "${best[$name]:-}" ] || [ "$milliseconds" -lt "${best[$name]}" ]; then best[$name]=$milliseconds; fi
  done
done

declare -A label=([standard]='standard and intrinsic headers only' [gemm]='<cbq/gemm.hpp>' [cbq]='<cbq/cbq.hpp>'
                  [call]='<cbq/gemm.hpp>, one matmul called')
for name in "${names[@]}"; do
  awk -v label="${label[$name]}" -v time="${best[$name]}" -v base="${best[standard]}" \
    'BEGIN { printf "%-36s %6.2f s  %5.2f x\n", label, time / 1000, time / base }'
done
