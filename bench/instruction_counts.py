#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts what integer kernels execute per 64-byte line of packed weights, from their machine code.

    instruction_counts.py [--bits 4] [--activation-bits 8] [--compiler g++] [--include include] [--arm-compiler aarch64-linux-gnu-g++]
                          [--markdown] [--listing]

One kernel per row is instantiated in a file of its own and disassembled with the objdump of the compiler's target. The
innermost loop that multiplies is the block loop (32 inputs: `bits` lines per panel of 16 outputs), the outermost one the
group loop; what only the latter holds is the epilogue of a group. A loop between them widens sums of int16, once for as
many blocks as codes of activations of --activation-bits allow; it may begin with a block of its own. `nibble` is the 4-bit
multiplier. Instructions are counted by what they do:

    load      vectors, or broadcasts of activations, from memory; also as the operand of another instruction
    decode    shifts, masks and shuffles that turn packed codes into bytes
    multiply  products: what the multiplier's ports execute
    add       additions of products that the multiplying instruction does not do itself
    other     pointers, counters, jumps

An instruction with a memory operand counts as a load and as what it is. `pipe` is the share of the multiplier's slots that
do useful products when a group of 32 or 128 inputs ends with its epilogue: no kernel with this instruction mix exceeds it.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile

# Instruction set, template arguments after bits and zero point, rows, panels of 16 outputs; "nibble": of its namespace's
# 4-bit multiplier, rows, and the outputs of a loop that takes one input.
KERNELS = [
    ("avx512_vnni", "1, 1", 1, 1),
    ("avx512_vnni", "4, 2", 4, 2),
    ("avx512_vnni", "5, 2", 5, 2),
    ("avx_vnni", "1", 1, 1),
    ("avx_vnni", "4", 4, 1),
    ("avx2", "1, 2", 1, 1),
    ("avx2", "4, 2", 4, 1),
    ("nibble avx512_vnni", "8", 8, 64),
    ("nibble avx2", "4", 4, 32),
    ("neon_i8mm", "10", 20, 0.25),
    ("neon_dotprod", "1, 4", 1, 1),
    ("neon_dotprod", "10, 1", 10, 0.25),
    ("neon", "1, 4", 1, 1),
    ("neon", "4, 2", 4, 0.5),
    ("nibble neon", "4", 4, 32),
]

PRODUCT = r"vpdp|vpmaddubsw|vpmullw|[su]dot|usdot|[su]mmla|[su]ml[as]l|[su]mull|mul$"  # of weights and activations
WIDEN = r"vpmaddwd|sadalp"  # sums of int16
MULTIPLY = PRODUCT + r"|vpmaddwd|vfn?m(add|sub)|vmulps|vpmulld|fmla|fmul"
ADD = r"vpadd|vpsub|[su]adalp|[su]addlp|usra|addp?$|sub$"
DECODE = r"vpand|vpor|vpternlog|vps[lr][la]|vpshuf|vperm|vpunpck|vextract|vinsert|vpxor|valign|and$|orr$|eor$|[us]shr|shl|bic$|zip|uzp|tbl|ext$|sli$|sri$"
CONVERT = r"vcvt|vpmovzx|scvtf|fcvt|sxtl|uxtl"
VECTOR = r"%[xyz]mm|\b[hqsv]\d+"
X86_STORE = re.compile(r",[^,(]*\([^)]*\)$")


def source(isa, arguments, bits):
    if isa.startswith("nibble "):
        name = f"cbq::isa::{isa.removeprefix('nibble ')}::multiply_nibbles<{arguments}>"
        return f"#include <cbq/gemm/nibble_matmul.hpp>\n[[gnu::used]] auto* const kernel = &{name};\n"
    function = "multiply_chunk" if isa == "neon_i8mm" else "multiply_rows"
    name = f"cbq::isa::{isa}::{function}<{bits}, cbq::Zero::symmetric, {arguments}>"
    return f"#include <cbq/gemm/dispatch.hpp>\n[[gnu::used]] auto* const kernel = &{name};\n"


def disassemble(compiler, include, text):
    """[(address, mnemonic, operands)] of the one kernel in the object, or None."""
    with tempfile.TemporaryDirectory() as folder:
        code, binary = os.path.join(folder, "kernel.cpp"), os.path.join(folder, "kernel.o")
        with open(code, "w", encoding="utf-8") as file:
            file.write(text)
        done = subprocess.run([compiler, "-std=c++20", "-O3", "-I", include, "-c", code, "-o", binary],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None
        target = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.strip()
        native = os.uname().machine in target
        listing = subprocess.run([("" if native else target + "-") + "objdump", "-d", "-C", "--no-show-raw-insn", binary],
                                 capture_output=True, text=True, check=True).stdout
    body, inside = [], False
    for line in listing.splitlines():
        if line.endswith(">:"):
            inside = re.search(r"multiply_(rows|chunk|nibbles)<", line) is not None and "cold" not in line
        elif inside and (match := re.match(r"\s*([0-9a-f]+):\s+(?:\{vex\} )?(\S+)\s*(.*)", line)):
            body.append((int(match[1], 16), match[2], match[3]))
    return body


def loops_of(body):
    """[first, last] addresses of every backward jump, the smallest first."""
    found = []
    for address, mnemonic, operands in body:
        if mnemonic.startswith(("j", "b.", "cb", "tb")) or mnemonic == "b":
            match = re.search(r"\b([0-9a-f]+) <", operands)
            if match and int(match[1], 16) <= address:
                found.append((int(match[1], 16), address))
    return sorted(found, key=lambda loop: loop[1] - loop[0])


def kinds_of(mnemonic, operands):
    """What one instruction counts as."""
    operands = operands.split("//")[0].split(" <")[0].strip()
    vector = re.search(VECTOR, operands) is not None
    memory = re.search(r"\(|\[(x|sp)", operands) is not None  # on Arm v1.4b[0] is a lane
    if not vector:
        return ["other"]
    if memory and (mnemonic.startswith("st") or (not mnemonic.startswith("ld") and X86_STORE.search(operands))):
        return ["store"]
    kinds = []
    if memory:
        kinds.append("load")
    for kind, pattern in (("multiply", MULTIPLY), ("convert", CONVERT), ("decode", DECODE), ("add", ADD)):
        if re.match(pattern, mnemonic):
            return kinds + [kind]
    return kinds or ["move"]


def count(body, inside, outside=()):
    counts = {"instructions": 0}
    for address, mnemonic, operands in body:
        if inside[0] <= address <= inside[1] and not any(first <= address <= last for first, last in outside):
            counts["instructions"] += 1
            for kind in kinds_of(mnemonic, operands):
                counts[kind] = counts.get(kind, 0) + 1
    return counts


def analyse(body, lines, run):
    """Counts per line in the block loop, and per group around it; `run` blocks between two widenings, 0 where none are."""
    matching = lambda loop, kind: sum(re.match(kind, m) is not None for a, m, _ in body if loop[0] <= a <= loop[1])
    inside = lambda loop, other: loop != other and other[0] <= loop[0] and loop[1] <= other[1]
    loops = [loop for loop in loops_of(body) if matching(loop, PRODUCT)]
    blocks = [loop for loop in loops if not any(inside(other, loop) for other in loops)]  # innermost
    if run:  # blocks are widened each in one loop, many at a time in the other
        blocks = [loop for loop in blocks if (matching(loop, WIDEN) != 0) == (run == 1)]
    if not blocks:
        return None
    block = blocks[0]
    around = [loop for loop in loops if inside(block, loop)]
    per_block = count(body, block)
    if run > 1:
        widening = count(body, around[0], [block])
        repeats = run - 1 if matching(around[0], PRODUCT) > matching(block, PRODUCT) else run
        per_block = {kind: (widening.get(kind, 0) + repeats * per_block.get(kind, 0)) / run
                     for kind in widening | per_block}
        around = around[1:]
    line = {kind: value / lines for kind, value in per_block.items()}
    epilogue = count(body, around[0], [loop for loop in loops if inside(loop, around[0])]) if around else {}
    return line, epilogue


def pipe_share(line, epilogue, lines, blocks):
    useful = line["multiply"] * lines * blocks
    return useful / (useful + epilogue.get("multiply", 0))


def table(options):
    rows = []
    for isa, arguments, height, panels in KERNELS:
        nibble = isa.startswith("nibble ")
        if nibble and options.bits != 4:
            continue
        compiler = options.arm_compiler if "neon" in isa else options.compiler
        try:
            body = disassemble(compiler, options.include, source(isa, arguments, options.bits))
        except FileNotFoundError:
            body = None
        if not body:
            print(f"instruction_counts.py: no kernel {isa} <{arguments}> with {compiler}", file=sys.stderr)
            continue
        if options.listing:
            print(isa, arguments, *(f"{a:x} {m} {o}" for a, m, o in body), sep="\n")
        lines = panels * 4 / 8 / 64 if nibble else options.bits * panels
        largest_code = 127 if options.activation_bits == 8 else 15
        run = 32767 // (16 * (2 ** options.bits - 1) * largest_code) if isa in ("avx2", "neon") else 0
        found = analyse(body, lines, run)
        if found is None:
            continue
        line, epilogue = found
        shares = [100 * pipe_share(line, epilogue, lines, blocks) for blocks in (1, 4)]
        cell = lambda counts, *kinds: f"{sum(counts.get(kind, 0) for kind in kinds):.4g}"
        rows.append([isa, f"{height} x {panels if nibble else 16 * panels:g}", cell(line, "instructions"), cell(line, "load"),
                     cell(line, "decode"), cell(line, "multiply"), cell(line, "add"),
                     cell(line, "other", "move", "store", "convert"), cell(epilogue, "instructions"),
                     cell(epilogue, "convert"), cell(epilogue, "multiply"),
                     "-" if nibble else f"{shares[0]:.0f} % / {shares[1]:.0f} %"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=4, choices=(2, 3, 4, 8))
    parser.add_argument("--activation-bits", type=int, default=8, choices=(4, 8))
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--arm-compiler", default="aarch64-linux-gnu-g++")
    parser.add_argument("--include", default=os.path.join(os.path.dirname(__file__), "..", "include"))
    parser.add_argument("--markdown", action="store_true", help="a table for a page instead of columns")
    parser.add_argument("--listing", action="store_true", help="the machine code, too")
    options = parser.parse_args()
    head = ["kernel", "rows x outputs", "per line", "load", "decode", "multiply", "add", "other", "per group", "convert",
            "multiply", "pipe 32 / 128"]
    rows = [head, *table(options)]
    if options.markdown:
        rows.insert(1, ["---"] * len(head))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        print("\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows))


if __name__ == "__main__":
    main()
