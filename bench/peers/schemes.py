#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens per second by scheme: `cbq-llama bench` on several schemes of cbq, the float engine among them, and llama.cpp's
llama-bench on several types, interleaved.

    schemes.py --cbq-llama PROGRAM --llama FOLDER --model MODEL.gguf [--schemes float,w8a8,...] [--llama-types q8_0,q4_0]
               [--calibration TEXT] [--threads 1,2] [--rounds 3] [--keep FOLDER]

Weights are rounded to nearest, embeddings and heads have 8 bits everywhere but in `float`. Each round runs everything once,
in an order that is shuffled anew; figures are medians over rounds, ratios are taken within a round.
"""

import argparse
import os
import random
import statistics
import tempfile

from end_to_end import cbq_speed, llama_speed, make_cbq_model, make_llama_model


def measure(options, folder):
    """{(threads, name): {phase: [one figure per round]}}"""
    runs = [(f"cbq {scheme}", cbq_speed, make_cbq_model(options, folder, scheme)) for scheme in options.schemes]
    runs += [(f"llama.cpp {kind}", llama_speed, make_llama_model(options, folder, kind)) for kind in options.llama_types]
    figures = {}
    for _ in range(options.rounds):
        for threads in options.threads:
            random.shuffle(runs)
            for name, speed, model in runs:
                phases = figures.setdefault((threads, name), {})
                for phase, value in speed(options, model, threads).items():
                    phases.setdefault(phase, []).append(value)
    return figures


def ratio(own, base):
    return statistics.median(a / b for a, b in zip(own, base))


def print_table(options, figures):
    names = [f"cbq {scheme}" for scheme in options.schemes] + [f"llama.cpp {kind}" for kind in options.llama_types]
    bases = [names[0], *names[len(options.schemes):]]
    print("| threads | scheme | phase | tokens/s | " + " | ".join(f"over {base}" for base in bases) + " |")
    print("|---" * (4 + len(bases)) + "|")
    for threads in options.threads:
        for phase in ("prompt", "new"):
            for name in names:
                own = figures[threads, name][phase]
                ratios = [f"{ratio(own, figures[threads, base][phase]):.2f}x" for base in bases]
                print(f"| {threads} | {name} | {phase} | {statistics.median(own):.0f} | " + " | ".join(ratios) + " |")


def names_of(text):
    return text.split(",")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cbq-llama", required=True, help="such as build/release/examples/cbq-llama")
    parser.add_argument("--llama", required=True, help="folder with llama-quantize and llama-bench")
    parser.add_argument("--model", required=True, help=".gguf of a LLaMA model that both can read")
    parser.add_argument("--schemes", type=names_of, default=["float", "w8a8", "w4a8_channel", "w4a8_g32", "w4a4"],
                        help="the first is what the others are compared with; those with _trip need --calibration")
    parser.add_argument("--calibration", default="", help="text for static activations")
    parser.add_argument("--llama-types", type=names_of, default=["q8_0", "q4_0"])
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--keep", help="folder for the quantized models; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or temporary
        os.makedirs(folder, exist_ok=True)
        figures = measure(options, folder)
    print_table(options, figures)


if __name__ == "__main__":
    main()
