#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures attention over quantized caches, cbq's and its peers', interleaved, in one run.

    compare_attention.py FOLDER [--page PAGE.md] [--out RESULTS.json] [--kv-heads 32,8] [--contexts 4096,16384] ...

FOLDER holds the peer-*-attention programs and peer-ceilings of a build with -DCBQ_BENCH_PEERS=ON. One layer of 32 query
heads of 128 elements. Rounds, medians and ratios as compare.py has them: every format of every library once per round,
in an order that is shuffled anew, all other programs stopped, memory read before and after. Every result is compared
with attention over the floats in double precision; one that is off by more than its format explains fails the run.
With --page the tables are written between the page's markers, a block for each number of positions.
"""

import argparse
import json
import statistics
import sys
import time

import compare
import report

# Relative error of attention over normal keys and values: less than twice what rounding them gives. Sums of half
# precision, as ggml forms them over f16, err more the more positions there are.
MOST_ERROR = {"kv4": 0.25, "kv8": 0.02, "f16": 0.1}


def warm(entries, point, found):
    ready = []
    for entry in entries:
        about = {"peer": entry.peer, "format": entry.format, **point}
        answer = entry.worker.ask("warm", entry.index, point["m"], point["threads"])
        if "failed" in answer:
            found["skipped"].append({**about, "why": answer["failed"]})
        elif answer["error"] > MOST_ERROR[entry.family]:
            found["wrong"].append({**about, "error": answer["error"]})
        else:
            entry.error = answer["error"]
            ready.append(entry)
    return ready


def results_of(rounds, entries, point):
    """Per format medians over the rounds of seconds, of its ratio to cbq's kv4 and of its share of reading memory."""
    own = next((entry for entry in entries if entry.worker.key == "cbq-attention" and entry.family == "kv4"), None)
    results = []
    for entry in entries:
        times = [seconds[entry] for _, seconds in rounds if entry in seconds]
        if not times:
            continue
        ratios = [seconds[entry] / seconds[own] for _, seconds in rounds if own in seconds and entry in seconds]
        shares = [entry.bytes * 1e-9 / seconds[entry] / ceilings["dram"]
                  for ceilings, seconds in rounds if entry in seconds]
        results.append({
            **point, "peer": entry.peer, "key": entry.worker.key.removesuffix("-attention"), "format": entry.format,
            "family": entry.family, "bytes": entry.bytes, "error": entry.error, "rounds": times,
            "seconds": statistics.median(times), "gbps": entry.bytes * 1e-9 / statistics.median(times),
            "share": statistics.median(shares), "to_cbq": statistics.median(ratios) if ratios else None,
        })
    return results


def measure(machine, entries, options, found):
    start = time.monotonic()
    for context in options.contexts:
        for kv_heads in options.kv_heads:
            ready = compare.prepare(entries, kv_heads, context, found["skipped"])
            visited = options.seconds == 0
            for threads in options.threads:
                for rows in options.rows:
                    point = {"kv_heads": kv_heads, "context": context, "m": rows, "threads": threads}
                    warmed = warm(ready, point, found)
                    if not visited:
                        compare.visit(warmed, point)
                        visited = True
                    rounds = compare.measure(machine, warmed, point, options)
                    dram = statistics.median(ceilings["dram"] for ceilings, _ in rounds)
                    found["ceilings"].append({**point, "dram": dram})
                    found["results"] += results_of(rounds, warmed, point)
                    print(f"{kv_heads} heads, {context} positions, {rows} rows, {threads} threads: "
                          f"{time.monotonic() - start:.0f} s", file=sys.stderr)
            for entry in entries:
                entry.worker.ask("drop")


def name_of(row):
    return f"**cbq {row['format']}**" if row["key"] == "cbq" else f"{row['peer']} {row['format']}"


def tables(found, context):
    """One per number of heads and rows: formats down, thread counts across."""
    text = []
    point = lambda row: (row["context"], row["kv_heads"], row["m"])
    for at in dict.fromkeys(point(row) for row in found["results"] if row["context"] == context):
        rows = [row for row in found["results"] if point(row) == at]
        threads = sorted({row["threads"] for row in rows})
        dram = {c["threads"]: c["dram"] for c in found["ceilings"] if point(c) == at}
        queries = "1 row" if at[2] == 1 else f"{at[2]} rows"
        text.append(f"**{at[0]} positions, 32 query and {at[1]} key/value heads, {queries}** (reading memory: "
                    + ", ".join(f"{dram[count]:.0f} GB/s with {count}T" for count in threads) + ")\n")
        text.append("| keys and values | MB | error | " + " | ".join(
            f"us, {count}T | GB/s (share), {count}T | time / cbq kv4, {count}T" for count in threads) + " |")
        text.append("| --- | --- | --- |" + " --- | --- | --- |" * len(threads))
        families = ["kv4", "kv8", "f16"]
        order = lambda row: (families.index(row["family"]), row["key"] != "cbq", row["peer"])
        for first in sorted((row for row in rows if row["threads"] == threads[0]), key=order):
            same = [row for row in rows if (row["key"], row["format"]) == (first["key"], first["format"])]
            error = max(row["error"] for row in same)
            cells = [name_of(first), f"{first['bytes'] * 1e-6:.1f}", f"{100 * error:.{1 if error > 0.001 else 2}f} %"]
            for count in threads:
                row = next((row for row in same if row["threads"] == count), None)
                ratio = f"{row['to_cbq']:.2f}" if row and row["to_cbq"] else "-"
                cells += [f"{row['seconds'] * 1e6:.0f}", f"{row['gbps']:.1f} ({100 * row['share']:.0f} %)",
                          ratio] if row else ["-"] * 3
            text.append("| " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text).rstrip("\n")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser.add_argument("folder", help="with the peer-*-attention programs, such as build/peers/bench/peers")
    parser.add_argument("--out", help="JSON with everything that was measured")
    parser.add_argument("--page", help="docs/performance.md")
    parser.add_argument("--kv-heads", type=numbers, default=numbers("32,8"))
    parser.add_argument("--contexts", type=numbers, default=numbers("4096,16384"))
    parser.add_argument("--rows", type=numbers, default=numbers("1"), help="query rows")
    parser.add_argument("--threads", type=numbers, default=numbers("1,2"))
    parser.add_argument("--rounds", type=int, default=3, help="three times as many with one row")
    parser.add_argument("--seconds", type=float, default=0.012, help="of one measurement at least")
    parser.add_argument("--match", default="", help="only formats whose family/peer/format contains this pattern")
    return parser.parse_args()


def main():
    options = parse_arguments()
    workers = [compare.Worker(path) for path in compare.programs_in(options.folder, "-attention")]
    machine = next((worker for worker in workers if worker.key == "ceilings"), None)
    if machine is None or "failed" in machine.about:
        sys.exit(f"compare_attention.py: no working peer-ceilings in {options.folder}")
    entries = compare.entries_of([worker for worker in workers if worker is not machine], options.match)
    found = {"machine": compare.machine_text(machine.about), "ceilings": [], "results": [], "skipped": [], "wrong": []}
    measure(machine, entries, options, found)
    for worker in workers:
        worker.end()
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
    text = {context: tables(found, context) for context in options.contexts}
    print("\n\n".join(text.values()))
    for kind in ("skipped", "wrong"):
        for item in found[kind]:
            print(f"{kind}: {json.dumps(item)}", file=sys.stderr)
    if found["wrong"]:
        sys.exit(1)
    if options.page:
        with open(options.page, encoding="utf-8") as file:
            page = file.read()
        for context in options.contexts:
            page = report.replace_block(page, f"attention over {context}", text[context])
        with open(options.page, "w", encoding="utf-8") as file:
            file.write(page)


if __name__ == "__main__":
    main()
