#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens per second in a long context, by what keys and values are kept as: `cbq-llama bench --kv` and llama.cpp's
llama-bench with flash attention, interleaved.

    caches.py --cbq-llama PROGRAM --llama FOLDER --model MODEL.gguf [--context 4096] [--threads 1,2] [--rounds 3]
              [--kv f32,kv8_past,...] [--llama-kv f16,q8_0,q4_0] [--keep FOLDER]

Weights are those of end_to_end.py: 4 bits in groups of 32, an 8-bit embedding and head. Each round runs everything once, in
an order that is shuffled anew; figures are medians over rounds, ratios are taken within a round.
"""

import argparse
import json
import os
import random
import statistics
import tempfile

from end_to_end import make_models, run


def cbq_speed(options, model, threads, cache):
    report = json.loads(run([options.cbq_llama, "bench", model, "--threads", str(threads), "--runs", "1", "--json", "-",
                             "--prompt-tokens", str(options.context), "--new-tokens", str(options.new_tokens),
                             "--kv", cache]))
    return report["new_tokens_per_second"]


def llama_speed(options, model, threads, cache):
    report = json.loads(run([os.path.join(options.llama, "llama-bench"), "-m", model, "-t", str(threads), "-r", "1", "-o",
                             "json", "-p", "0", "-n", str(options.new_tokens), "-d", str(options.context), "-fa", "1",
                             "-ctk", cache, "-ctv", cache]))
    return report[0]["avg_ts"]


def measure(options, models):
    """{(threads, library, cache): [one figure per round]}"""
    figures = {}
    runs = [("cbq", cbq_speed, models[0], cache) for cache in options.kv]
    runs += [("llama.cpp", llama_speed, models[1], cache) for cache in options.llama_kv]
    for _ in range(options.rounds):
        for threads in options.threads:
            random.shuffle(runs)
            for library, speed, model, cache in runs:
                figures.setdefault((threads, library, cache), []).append(speed(options, model, threads, cache))
    return figures


def names(text):
    return text.split(",")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cbq-llama", required=True, help="such as build/release/examples/cbq-llama")
    parser.add_argument("--llama", required=True, help="folder with llama-quantize and llama-bench")
    parser.add_argument("--model", required=True, help=".gguf of a LLaMA model that both can read")
    parser.add_argument("--scheme", default="w4a8_g32")
    parser.add_argument("--llama-type", default="q4_0")
    parser.add_argument("--kv", type=names, default=["f32", "kv8_past", "kv4_past", "kv4_2d_past", "kv4_2d_past_hadamard"])
    parser.add_argument("--llama-kv", type=names, default=["f16", "q8_0", "q4_0"])
    parser.add_argument("--context", type=int, default=4096, help="tokens before the new ones")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", help="folder for the quantized models; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or temporary
        os.makedirs(folder, exist_ok=True)
        figures = measure(options, make_models(options, folder))
    print(f"new tokens per second after {options.context}, medians of {options.rounds} rounds; over {options.kv[0]}")
    for (threads, library, cache), own in figures.items():
        base = figures[threads, "cbq", options.kv[0]]
        ratio = statistics.median(a / b for a, b in zip(own, base))
        print(f"{threads} thread(s)  {library:9} {cache:24} {statistics.median(own):8.1f}   {ratio:.2f}x")


if __name__ == "__main__":
    main()
