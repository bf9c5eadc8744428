#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Gives files to cbq and to the Python packages `safetensors` and `gguf`, and says where they differ:

    compare_readers.py CBQ_FUZZ FOLDER... [--mutations N] [--seed S]

CBQ_FUZZ is the program of the preset `fuzz`; folders hold safetensors and GGUF files under any name (the corpus, the
seeds, tests/data/malformed). Each file is compared as it is and N times mutated: accepted or refused, and, where both
accept it, names, types, shapes and values of all tensors. Exit status: 0 without a difference that is not listed in
MEANT, 1 otherwise, 4 when a package is missing.

MEANT are the differences by design, by a part of cbq's message or, where Python refuses, of its. For most of them cbq
is the stricter one, as its readers check what these packages leave to whoever uses a tensor.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy
    import safetensors
except ImportError as error:
    print("skipped: %s" % error)
    sys.exit(4)

CBQ_STRICTER = {
    # safetensors
    "the same key twice": "the Rust reader keeps the last of two entries of one name",
    "too many dimensions": "cbq holds up to 8 dimensions (safetensors) or 4 (GGUF)",
    "an unknown key in a tensor's entry": "the Rust reader passes over keys that it does not know",
    "a NUL byte in JSON text": "the Rust reader takes it for an escape's fault only inside texts",
    "JSON": "serde_json and nlohmann_json differ in numbers too large for a double and in what follows the object",
    # GGUF
    "does not follow the one before it": "gguf.GGUFReader takes tensors in any order, with gaps or on top of each other",
    "a boolean that is neither 0 nor 1": "gguf.GGUFReader takes any byte",
    "too long": "keys are at most 65535, names 63 and texts 16 MiB for cbq",
    "the same metadata key twice": "gguf.GGUFReader gives the second another name and warns",
    "an array of arrays": "gguf.GGUFReader reads them",
    "not an alignment": "gguf.GGUFReader takes any multiple, 0 ends in a ZeroDivisionError",
    "an empty metadata key": "gguf.GGUFReader takes it",
    "a big-endian GGUF file": "gguf.GGUFReader reads them",
    "no multiple of the block": "gguf.GGUFReader rounds down",
    "GGUF version": "gguf.GGUFReader reads the header of some others",
    "general.alignment": "gguf.GGUFReader refuses other types than u32 for other reasons",
    "64 bits": "numpy's product of sizes wraps",
    "more keys than": "gguf.GGUFReader reads until the file ends",
    "more tensors than": "gguf.GGUFReader reads until the file ends",
    "too many dimensions ": "gguf.GGUFReader takes any number",
    "an array is longer": "gguf.GGUFReader cuts what the file does not have",
    "ends too early": "numpy's slices end with the file without an error",
    "does not fit in the file": "gguf.GGUFReader's views may be shorter than their shape",
    "unknown type of a metadata value": "gguf.GGUFReader reads the values before it",
}
PYTHON_STRICTER = {
    "Duplicated tensor name": "cbq says so, too, with another order of checks",
    "utf-8": "cbq keeps names and texts as bytes; what is no UTF-8 is for the host to refuse",
    "UTF-8": "likewise",
    "invalid unicode": "likewise",
    "lone leading surrogate": "likewise",
    "control character": "likewise",
    "byte-swapped": "gguf.GGUFReader guesses the byte order from the version",
    "is not a valid GGMLQuantizationType": "cbq knows later types",
    "cannot reshape": "gguf.GGUFReader reshapes to whole blocks; sizes of 0 fail there",
    "GGUFReader": "gguf.GGUFReader's own message",
}


def by_safetensors(path):
    tensors = {}
    data = pathlib.Path(path).read_bytes()
    for name, tensor in safetensors.deserialize(data):
        tensors[name] = (tensor["dtype"], list(tensor["shape"]), bytes(tensor["data"]))
    return tensors


def by_gguf(path):
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(s) for s in reversed(tensor.shape)]
        tensors[tensor.name] = (tensor.tensor_type.name, shape, tensor)
    return tensors


def floats(kind, content):
    """Values as float32, or None where the type is no float that cbq decodes."""
    if not isinstance(content, bytes):
        if content.tensor_type.name in ("I8", "I16", "I32", "I64"):
            return None
        return gguf.quants.dequantize(content.data, content.tensor_type).astype(numpy.float32).ravel()
    forms = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    with numpy.errstate(all="ignore"):
        if kind in forms:
            return numpy.frombuffer(content, forms[kind]).astype(numpy.float32)
        if kind == "BF16":
            return (numpy.frombuffer(content, "<u2").astype(numpy.uint32) << 16).view(numpy.float32)
    return None


def same_values(ours, theirs):
    if len(ours) != len(theirs):
        return False
    # The packages sum in another order: a unit or two in the last place.
    with numpy.errstate(all="ignore"):
        close = numpy.abs(ours - theirs) <= 1e-5 * numpy.abs(theirs) + 1e-7
    return bool(numpy.all(close | (ours == theirs) | (numpy.isnan(ours) & numpy.isnan(theirs)) |
                          ~numpy.isfinite(ours) & ~numpy.isfinite(theirs)))


def compare_tensors(ours, theirs):
    """What differs between tensors that both readers have accepted, or None."""
    own = {t["name"]: t for t in ours["tensors"]}
    if set(own) != set(theirs):
        return "names %s and %s" % (sorted(own)[:3], sorted(theirs)[:3])
    for name, (kind, shape, content) in theirs.items():
        tensor = own[name]
        if tensor["type"] != kind or tensor["shape"] != shape:
            return "%s: %s %s and %s %s" % (name, tensor["type"], tensor["shape"], kind, shape)
        if tensor["values"] is None:
            continue
        values = floats(kind, content)
        if values is None:
            return "%s: cbq decodes %s" % (name, kind)
        if not same_values(numpy.array(tensor["values"], numpy.uint32).view(numpy.float32), values):
            return "%s: values of %s" % (name, kind)
    return None


def meant(table, message):
    return next((part for part in table if part in message), None)


def mutate(content, rng):
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(content)) if content else 0
        kind = rng.randrange(6)
        if kind == 0 and content:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and content:
            content[at] = rng.randrange(256)
        elif kind == 2:
            del content[at:at + rng.randint(1, 8)]
        elif kind == 3:
            content[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
        elif kind == 4 and len(content) >= at + 8:
            content[at:at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
        else:
            content = content[:at] if rng.random() < 0.3 else content
    return bytes(content)


def files_of(folders, mutations, rng):
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("*")):
            if not path.is_file() or path.suffix in (".py", ".json", ".bin"):
                continue
            content = path.read_bytes()
            yield path.name, content
            for i in range(mutations):
                yield "%s, mutation %d" % (path.name, i), mutate(content, rng)


def too_slow(_signal, _frame):
    raise TimeoutError("no end within 2 s")


def main():
    signal.signal(signal.SIGALRM, too_slow)
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--mutations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    counts, known, unknown = collections.Counter(), collections.Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        names, paths = [], []
        for name, content in files_of(arguments.folders, arguments.mutations, random.Random(arguments.seed)):
            ending = "gguf" if content.startswith(b"GGUF") else "safetensors"
            path = os.path.join(scratch, "%06d.%s" % (len(paths), ending))
            pathlib.Path(path).write_bytes(content)
            names.append(name)
            paths.append(path)
        lines = []
        for first in range(0, len(paths), 500):
            done = subprocess.run([arguments.program, "--describe", *paths[first:first + 500]], check=True,
                                  stdout=subprocess.PIPE)
            lines += done.stdout.decode().splitlines()
        for name, path, line in zip(names, paths, lines, strict=True):
            judge(name, path, json.loads(line), counts, known, unknown)
    print("%d files: %s" % (sum(counts.values()), ", ".join("%s %d" % c for c in sorted(counts.items()))))
    for reason, count in sorted(known.items()):
        print("  meant, %d times: %s" % (count, reason))
    for difference in unknown[:40]:
        print("  DIFFERS: " + difference)
    print("%d differences that are not meant" % len(unknown))
    return 1 if unknown else 0


def judge(name, path, ours, counts, known, unknown):
    signal.alarm(2)  # counts of 2^60 keep a Python loop busy
    try:
        theirs, reason = (by_gguf if path.endswith(".gguf") else by_safetensors)(path), None
    except Exception as error:  # whatever a package throws is a refusal
        theirs, reason = None, "%s: %s" % (type(error).__name__, error)
    signal.alarm(0)
    both = ("accepted" if ours["accepted"] else "refused", "accepted" if theirs is not None else "refused")
    counts["cbq %s, Python %s" % both] += 1
    if both == ("accepted", "accepted"):
        try:
            difference = compare_tensors(ours, theirs)
        except Exception as error:
            difference = "values that Python cannot give: %s" % error
        if difference is not None:
            unknown.append("%s: %s" % (name, difference))
    elif both == ("refused", "accepted"):
        part = meant(CBQ_STRICTER, ours["message"])
        if part is None:
            unknown.append("%s: only cbq refuses: %s" % (name, ours["message"]))
        else:
            known["cbq is stricter: %s (%s)" % (part.strip(), CBQ_STRICTER[part])] += 1
    elif both == ("accepted", "refused"):
        part = meant(PYTHON_STRICTER, reason)
        if part is None:
            unknown.append("%s: only Python refuses: %s" % (name, reason))
        else:
            known["Python is stricter: %s (%s)" % (part, PYTHON_STRICTER[part])] += 1


if __name__ == "__main__":
    sys.exit(main())
