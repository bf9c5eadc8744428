#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures everything that docs/performance.md and the README's comparison show and writes it there: about 14 minutes on a quiet machine.
#
#   performance.sh PEERS [CBQ_LLAMA LLAMA_BIN MODEL.gguf]
#
# PEERS      folder with the peer-* programs, such as build/peers/bench/peers
# CBQ_LLAMA  the example engine; LLAMA_BIN the folder with llama-quantize and llama-bench; without them and a model the
#            end-to-end part stays as it is.
# RESULTS    (environment) folder for the JSON files; default: a new one in the temporary directory
set -euo pipefail
if [[ $# -ne 1 && $# -ne 4 ]]; then
  sed -n '3,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
results=${RESULTS:-$(mktemp -d)}
mkdir -p "$results"
page=$here/../../docs/performance.md

"$here/compare.py" "$1" --limit 560 --out "$results/matmul.json" | tee "$results/matmul.txt"
"$here/../instruction_counts.py" --markdown > "$results/counts.md"
arguments=(--matmul "$results/matmul.json" --counts "$results/counts.md")
if [[ $# -eq 4 ]]; then
  "$here/end_to_end.py" --cbq-llama "$2" --llama "$3" --model "$4" --out "$results/end_to_end.json"
  arguments+=(--end-to-end "$results/end_to_end.json" --readme "$here/../../README.md")
fi
"$here/report.py" "$page" "${arguments[@]}"
echo "figures in $results, page $page"
