# SPDX-License-Identifier: Apache-2.0
"""What the tests of clients share: cells of the table, cbq's programs, and comparisons."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

SKIPPED = 4  # CTest's SKIP_RETURN_CODE
MODEL = Path(__file__).resolve().parents[2] / "examples/llama/models/pocket-llama"
TEXT = Path(__file__).resolve().parents[2] / "examples/llama/models/pocket-llama-evaluation.txt"


@dataclass
class Cell:
    """One client that reads or writes one kind of file."""

    name: str
    file: str
    client: str
    packages: tuple
    check: Callable


CELLS: dict[str, Cell] = {}


def cell(name, file, client, packages):
    """Makes a cell of a function of the programs, which returns what was compared, or raises."""

    def add(check):
        CELLS[name] = Cell(name, file, client, packages, check)
        return check

    return add


def missing_packages(entry):
    needed = (*entry.packages, "numpy", "safetensors")  # the latter for what the reader writes
    return [name for name in dict.fromkeys(needed) if importlib.util.find_spec(name) is None]


def version(package):
    names = {"llama_cpp": "llama-cpp-python"}
    try:
        return importlib.metadata.version(names.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        return getattr(__import__(package), "__version__", "unknown")


class Wrong(Exception):
    """What a comparison found."""


class Programs:
    """cbq-llama, the reader beside this file, and a folder for what they write."""

    def __init__(self, tool, reader, work):
        self.tool, self.reader = tool, reader
        self.work = Path(work)
        self.work.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def run(*command):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise Wrong(f"{' '.join(str(word) for word in command[:2])}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def fresh(self, name):
        """A path in the work folder where nothing is."""
        path = self.work / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        return path

    def values(self, model):
        """Every tensor of a model as cbq decodes it, float32."""
        from safetensors.numpy import load_file

        out = self.fresh(f"values-{Path(model).name}.safetensors")
        self.run(self.reader, "values", model, out)
        return load_file(out)

    def logits(self, model, tokens):
        """cbq's logits of the tokens with weights as the file has them and float activations."""
        from safetensors.numpy import load_file

        ids = self.work / "tokens.txt"
        ids.write_text(" ".join(str(token) for token in tokens))
        out = self.fresh("logits.safetensors")
        self.run(self.reader, "logits", model, ids, out)
        return load_file(out)["logits"]

    def tokens(self, model, text):
        file = self.work / "text.txt"
        file.write_bytes(text.encode())
        return [int(word) for word in self.run(self.reader, "tokens", model, file).split()]

    def quantized(self, scheme, model=MODEL, options=()):
        """A folder of cbq's own; made once for all cells of a work folder."""
        folder = self.work / f"cbq-{Path(model).stem}-{scheme}{''.join(options)}"
        if not folder.exists():
            self.run(self.tool, "quantize", model, "--scheme", scheme, *options, "-o", folder)
        return folder

    def exported(self, folder, format, name):
        out = self.fresh(name)
        self.run(self.tool, "export", folder, "--format", format, "-o", out)
        return out

    def imported(self, model):
        out = self.fresh(f"imported-{Path(model).name}")
        self.run(self.tool, "import", model, "-o", out)
        return out

    def perplexity(self, model, text=TEXT, windows=4):
        out = self.run(self.tool, "perplexity", model, "--text", text, "--windows", windows, "--operators",
                       "fake_quantized", "--json", "-")
        return json.loads(out)


def sample_text(characters=2000):  # the text has bytes that are no UTF-8
    return TEXT.read_bytes().decode(errors="ignore")[:characters]


def expect_equal(ours, theirs, what):
    """Bit for bit, as float32."""
    import numpy

    theirs = numpy.ascontiguousarray(theirs, dtype=numpy.float32)
    if ours.shape != theirs.shape:
        raise Wrong(f"{what}: shape {ours.shape}, the client has {theirs.shape}")
    different = ours.reshape(-1) != theirs.reshape(-1)
    if different.any():
        at = int(different.argmax())
        raise Wrong(f"{what}: {int(different.sum())} of {different.size} values differ, the first at {at}: "
                    f"{ours.reshape(-1)[at]!r}, the client has {theirs.reshape(-1)[at]!r}")
    return different.size


def expect_close(ours, theirs, most, what):
    """Root of the mean square of the difference, relative to that of the client's."""
    import numpy

    a, b = numpy.asarray(ours, numpy.float64), numpy.asarray(theirs, numpy.float64)
    if a.shape != b.shape:
        raise Wrong(f"{what}: shape {a.shape}, the client has {b.shape}")
    apart = float(numpy.sqrt(numpy.square(a - b).mean() / numpy.square(b).mean()))
    if not apart <= most:
        raise Wrong(f"{what}: {apart:.2e} apart, at most {most:.0e} is expected")
    return apart


def skip(message):
    print(f"skipped: {message}")
    sys.exit(SKIPPED)


os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
