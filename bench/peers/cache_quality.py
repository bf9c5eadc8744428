#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What quantized caches cost, cbq's and llama.cpp's: mean KL of the next token's probabilities from those that the same
program computes with a cache of 16 or 32 bits, over windows of a text.

    cache_quality.py --cbq-llama PROGRAM --model MODEL.gguf --text TEXT [--context 512] [--windows 64]
                     [--caches kv4_past,kv4_2d_past] [--llama-types q4_0,q8_0]

Needs the Python packages llama-cpp-python and numpy. llama.cpp rotates heads before it quantizes them, unless
LLAMA_ATTN_ROT_DISABLE is set: both are measured. It attends to all positions as its cache keeps them, the newest
included, so a window read at once is what decoding computes; `cbq-llama perplexity --kv` computes what decoding does.
"""

import argparse
import json
import multiprocessing
import os
import subprocess


def cbq_figures(options, cache):
    run = subprocess.run(
        [options.cbq_llama, "perplexity", options.model, "--reference", options.model, "--text", options.text,
         "--context", str(options.context), "--windows", str(options.windows), "--kv", cache, "--json", "-"],
        check=True, capture_output=True, text=True)
    report = json.loads(run.stdout)
    return report["perplexity"], report["kl_mean"], report["kv_bytes_per_token"]


def log_probabilities(logits):
    import numpy as np
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def llama_figures(options, kind, rotated):
    """Runs in a process of its own: the variable is read once."""
    if not rotated:
        os.environ["LLAMA_ATTN_ROT_DISABLE"] = "1"
    import llama_cpp
    import numpy as np

    def open_model(name):
        number = getattr(llama_cpp, f"GGML_TYPE_{name.upper()}")
        return llama_cpp.Llama(options.model, n_ctx=options.context, n_batch=options.context, n_ubatch=options.context,
                               logits_all=True, type_k=number, type_v=number, flash_attn=True, verbose=False)

    def logits_of(model, window):
        model.reset()
        model.eval(window)
        return np.array(model.scores[:len(window) - 1])

    exact, quantized = open_model("f16"), open_model(kind)
    with open(options.text, encoding="utf-8") as file:  # \r\n becomes \n, as cbq-llama has it
        tokens = exact.tokenize(file.read().encode(), add_bos=False, special=False)
    windows = min(options.windows, len(tokens) // options.context)
    losses, divergences = [], []
    for index in range(windows):
        window = tokens[index * options.context:(index + 1) * options.context]
        wanted, got = (log_probabilities(logits_of(model, window)) for model in (exact, quantized))
        losses.append(-got[np.arange(len(window) - 1), window[1:]].mean())
        divergences.append((np.exp(wanted) * (wanted - got)).sum(axis=-1).mean())
    return float(np.exp(np.mean(losses))), float(np.mean(divergences)), None


def in_process(options, kind, rotated):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(llama_figures, (options, kind, rotated))


def names_of(text):
    return text.split(",")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cbq-llama", required=True, help="such as build/demo/examples/cbq-llama")
    parser.add_argument("--model", required=True, help=".gguf of a LLaMA model that both can read")
    parser.add_argument("--text", required=True)
    parser.add_argument("--context", type=int, default=512, help="tokens per window")
    parser.add_argument("--windows", type=int, default=64, help="at most")
    parser.add_argument("--caches", type=names_of, default=["kv4", "kv4_past", "kv4_2d_past", "kv4_2d_past_hadamard"])
    parser.add_argument("--llama-types", type=names_of, default=["q4_0", "q8_0"])
    options = parser.parse_args()
    print("| cache | perplexity | mean KL | bytes per token |\n|---|---|---|---|", flush=True)
    rows = [("cbq f32", lambda: cbq_figures(options, "f32"))]
    rows += [(f"cbq {cache}", lambda cache=cache: cbq_figures(options, cache)) for cache in options.caches]
    rows.append(("llama.cpp f16", lambda: in_process(options, "f16", True)))
    for kind in options.llama_types:
        rows.append((f"llama.cpp {kind}", lambda kind=kind: in_process(options, kind, False)))
        rows.append((f"llama.cpp {kind}, rotated", lambda kind=kind: in_process(options, kind, True)))
    for name, measure in rows:
        perplexity, divergence, size = measure()
        print(f"| {name} | {perplexity:.3f} | {divergence:.5f} | {size or '-'} |", flush=True)


if __name__ == "__main__":
    main()
