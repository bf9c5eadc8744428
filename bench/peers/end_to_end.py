#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares `cbq-llama bench` with llama.cpp's llama-bench on one model, interleaved.

    end_to_end.py --cbq-llama PROGRAM --llama FOLDER --model MODEL.gguf [--scheme w4a8_g32] [--llama-type q4_0]
                  [--threads 1,2] [--rounds 5] [--out RESULTS.json]

FOLDER holds llama-quantize and llama-bench. Unless told otherwise both libraries get the same weights at 4 bits with groups
of 32 (w4a8_g32, Q4_0) and an 8-bit embedding and head (Q8_0), so that all weights count alike. Measured are reading a prompt and generating
after that prompt, in tokens per second; each round runs every program once, in an order that is shuffled anew. Figures
are medians over rounds, ratios are taken within a round.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"end_to_end.py: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def make_cbq_model(options, folder, scheme):
    """The model quantized by cbq, made where it is not there yet; `float` is the model as it is, schemes with `_trip` have
    static activations (--method agile, on options.calibration)."""
    if scheme == "float":
        return options.model
    path = os.path.join(folder, f"cbq-{scheme}")
    if not os.path.exists(path):
        agile = ["--method", "agile", "--weights", "rtn", "--samples", "16", "--calibration"]
        method = [*agile, options.calibration] if scheme.endswith("_trip") else []
        run([options.cbq_llama, "quantize", options.model, "-o", path, "--scheme", scheme, "--head-bits", "8", *method])
    return path


def make_llama_model(options, folder, llama_type):
    path = os.path.join(folder, f"llama-{llama_type}.gguf")
    if not os.path.exists(path):
        run([os.path.join(options.llama, "llama-quantize"), "--allow-requantize", "--token-embedding-type", "q8_0",
             "--output-tensor-type", "q8_0", options.model, path, llama_type])
    return path


def make_models(options, folder):
    """The two quantized models."""
    return make_cbq_model(options, folder, options.scheme), make_llama_model(options, folder, options.llama_type)


def cbq_speed(options, model, threads):
    report = json.loads(run([options.cbq_llama, "bench", model, "--threads", str(threads), "--runs", "1", "--json", "-",
                             "--prompt-tokens", str(options.prompt), "--new-tokens", str(options.new_tokens)]))
    return {"prompt": report["prompt_tokens_per_second"], "new": report["new_tokens_per_second"]}


def llama_speed(options, model, threads):
    common = [os.path.join(options.llama, "llama-bench"), "-m", model, "-t", str(threads), "-r", "1", "-o", "json"]
    prompt = json.loads(run([*common, "-p", str(options.prompt), "-n", "0"]))[0]
    new = json.loads(run([*common, "-p", "0", "-n", str(options.new_tokens), "-d", str(options.prompt)]))[0]
    return {"prompt": prompt["avg_ts"], "new": new["avg_ts"]}


def measure(options, models):
    """{(threads, library, phase): [one figure per round]}"""
    figures = {}
    programs = [("cbq", cbq_speed, models[0]), ("llama.cpp", llama_speed, models[1])]
    for _ in range(options.rounds):
        for threads in options.threads:
            random.shuffle(programs)
            for name, speed, model in programs:
                for phase, value in speed(options, model, threads).items():
                    figures.setdefault((threads, name, phase), []).append(value)
    return figures


def results_of(figures, threads):
    results = []
    for count in threads:
        for phase in ("prompt", "new"):
            own, other = figures[count, "cbq", phase], figures[count, "llama.cpp", phase]
            results.append({"threads": count, "phase": phase, "cbq": statistics.median(own),
                            "llama.cpp": statistics.median(other),
                            "speedup": statistics.median(a / b for a, b in zip(own, other))})
    return results


def bytes_of(path):
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path) if name.endswith(".safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cbq-llama", required=True, help="such as build/release/examples/cbq-llama")
    parser.add_argument("--llama", required=True, help="folder with llama-quantize and llama-bench")
    parser.add_argument("--model", required=True, help=".gguf of a LLaMA model that both can read")
    parser.add_argument("--scheme", default="w4a8_g32")
    parser.add_argument("--llama-type", default="q4_0")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--keep", help="folder for the quantized models; default: a temporary one")
    parser.add_argument("--out", help="JSON with the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or temporary
        os.makedirs(folder, exist_ok=True)
        models = make_models(options, folder)
        figures = measure(options, models)
        sizes = {"cbq": bytes_of(models[0]), "llama.cpp": bytes_of(models[1])}
    results = results_of(figures, options.threads)
    for row in results:
        print(f"{row['threads']} thread(s), {row['phase']:6} cbq {row['cbq']:8.1f} tokens/s, llama.cpp "
              f"{row['llama.cpp']:8.1f} tokens/s, cbq {row['speedup']:.2f}x")
    if options.out:
        report = {"model": os.path.basename(options.model), "scheme": options.scheme,
                  "llama_type": options.llama_type, "prompt_tokens": options.prompt,
                  "new_tokens": options.new_tokens, "rounds": options.rounds, "bytes": sizes, "results": results}
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
