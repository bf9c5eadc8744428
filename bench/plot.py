#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds every product of a cbq-bench run against the ceiling of the same run.

    plot.py RESULTS.json [--match REGEX] [--best] [--svg FILE]

Prints one line per benchmark: median GOPS and GBps, and the percentage of the ceiling that binds it, which is the one
that would take longer alone: reading the packed weights once at the rate of ceiling/dram, or the arithmetic at the rate
of the multiply instruction (ceiling/amx for integer kernels of AMX from 16 tokens on, ceiling/vnni for those of AVX-512,
ceiling/maddubs for other integer kernels, ceiling/bf16 for bfloat16 activations, ceiling/fma for float ones). Attention is
held against the same two, with keys and values in the place of weights. --svg draws the percentages of the products over
M; only that needs matplotlib.
"""

import argparse
import json
import re
import statistics
import sys

NAME = re.compile(
    r"(?P<kind>gemm|gemm_bf16|float|eigen)/(?P<what>\w+)/(?:(?P<isa>\w+)/)?"
    r"M:(?P<m>\d+)/N:(?P<n>\d+)/K:(?P<k>\d+)/threads:(?P<threads>\d+)"
)
ATTENTION = re.compile(
    r"(?P<kind>attention)/(?P<what>\w+)/(?P<isa>\w+)/"
    r"heads:\d+x\d+/width:\d+/context:\d+/rows:(?P<m>\d+)/threads:(?P<threads>\d+)"
)
CEILING = re.compile(r"ceiling/(?P<what>\w+)/threads:(?P<threads>\d+)")
PANELS = {"amx_int8": "amx_int8", "avx512_vnni": "avx512_vnni", "avx2": "avx2", "portable": "portable and scalar"}


def summarize(report, statistic):
    """{name: {counter: statistic over repetitions}}; medians also of runs that report aggregates only."""
    samples, aggregates = {}, {}
    for entry in report["benchmarks"]:
        if entry.get("error_occurred"):
            continue
        name = entry.get("run_name", entry["name"])
        counters = {key: entry[key] for key in ("GOPS", "GBps") if key in entry}
        if entry.get("run_type") == "aggregate":
            if entry["aggregate_name"] == "median" and statistic is statistics.median:
                aggregates[name] = counters
        else:
            for key, value in counters.items():
                samples.setdefault(name, {}).setdefault(key, []).append(value)
    result = {n: {key: statistic(v) for key, v in c.items()} for n, c in samples.items()}
    return {**aggregates, **result}


def compute_ceiling(row):
    if row["kind"] == "gemm_bf16":
        return "bf16"
    if row["kind"] == "attention":
        return "vnni" if row["isa"] == "avx512_vnni" else "maddubs"
    if row["kind"] != "gemm" or row["what"].partition("a")[2].startswith("16"):
        return "fma"
    if row["isa"] == "amx_int8" and row["m"] >= 16:
        return "amx"
    return "vnni" if row["isa"] in ("avx512_vnni", "amx_int8") else "maddubs"


def rows_against_ceilings(values):
    ceilings = {}
    for name, counters in values.items():
        match = CEILING.match(name)
        if match:
            ceilings[match["what"], int(match["threads"])] = counters.get("GBps", counters.get("GOPS"))
    rows = []
    for name, counters in values.items():
        match = NAME.match(name) or ATTENTION.match(name)
        if not match:
            continue
        row = {key: int(v) if v and v.isdigit() else v for key, v in match.groupdict().items()}
        row.update(counters, name=name.removesuffix("/real_time"))
        shares = []
        for ceiling, counter in ((compute_ceiling(row), "GOPS"), ("dram", "GBps")):
            limit = ceilings.get((ceiling, row["threads"]))
            if limit:
                shares.append((100 * row[counter] / limit, ceiling))
        row["percent"], row["ceiling"] = max(shares, default=(None, None))
        rows.append(row)
    return ceilings, rows


def print_table(ceilings, rows):
    for (what, threads), value in sorted(ceilings.items(), key=lambda item: item[0][::-1]):
        print(f"{f'ceiling/{what}/threads:{threads}':88} {value:8.1f} {'GB/s' if what == 'dram' else 'GOPS'}")
    for row in rows:
        share = "no ceiling in this run" if row["percent"] is None else f"{row['percent']:5.0f} % of {row['ceiling']}"
        print(f"{row['name']:88} {row['GOPS']:8.1f} GOPS {row['GBps']:7.2f} GB/s {share}")


def draw(rows, path, context):
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot.py: --svg needs matplotlib (pip install matplotlib)")
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["kind"] != "attention"]
    shapes = [(row["n"], row["k"]) for row in rows]
    n, k = max(dict.fromkeys(shapes), key=shapes.count, default=(0, 0))
    rows = [row for row in rows if (row["n"], row["k"]) == (n, k) and row["percent"] is not None]
    if not rows:
        sys.exit("plot.py: no products with a ceiling in the same run: nothing to draw")
    for row in rows:
        row["panel"] = PANELS.get(row["isa"], PANELS["portable"]) if row["kind"].startswith("gemm") else "floating-point weights"
        parts = [row["kind"], row["what"], None if row["panel"] == row["isa"] else row["isa"]]
        row["label"] = "/".join(part for part in parts if part and part != "gemm")
    threads = sorted({row["threads"] for row in rows})
    panels = list(dict.fromkeys(row["panel"] for row in sorted(rows, key=lambda row: -row["percent"])))
    ms = sorted({row["m"] for row in rows})
    figure, axes = plt.subplots(
        len(threads), len(panels), squeeze=False, sharey=True, figsize=(4.2 * len(panels) + 0.5, 3.2 * len(threads) + 3)
    )
    for i, count in enumerate(threads):
        for j, panel in enumerate(panels):
            axis = axes[i][j]
            labels = list(dict.fromkeys(row["label"] for row in rows if row["panel"] == panel))
            for number, label in enumerate(labels):
                points = [row for row in rows if (row["panel"], row["label"], row["threads"]) == (panel, label, count)]
                points.sort(key=lambda row: row["m"])
                axis.plot(
                    [ms.index(row["m"]) for row in points],
                    [row["percent"] for row in points],
                    marker="osD^"[number // 10 % 4],
                    markersize=4,
                    color=f"C{number % 10}",
                    label=label,
                )
            axis.axhline(100, color="black", linewidth=0.8)
            axis.set(xlim=(-0.3, len(ms) - 0.7), ylim=(0, 110), title=f"{panel}, {count} thread{'s' if count > 1 else ''}")
            axis.set_xticks(range(len(ms)), ms)
            axis.grid(alpha=0.3)
            if i == len(threads) - 1:
                axis.set_xlabel("M (tokens)")
                axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=7, ncols=2)
            if j == 0:
                axis.set_ylabel("% of the ceiling that binds")
    processor = context.get("processor", "")
    figure.suptitle(f"{processor}, N = {n}, K = {k}: DRAM read or peak arithmetic of the same run = 100 %")
    figure.tight_layout()
    figure.savefig(path, format="svg")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", help="what cbq-bench wrote with --benchmark_out=FILE")
    parser.add_argument("--match", default="", help="only benchmarks whose name contains this regular expression")
    parser.add_argument("--best", action="store_true", help="the best repetition instead of the median, on busy machines")
    parser.add_argument("--svg", metavar="FILE", help="draw percentages over M, one panel per instruction set and threads")
    arguments = parser.parse_args()
    try:
        with open(arguments.results, encoding="utf-8") as file:
            report = json.load(file)
    except (OSError, ValueError) as error:
        sys.exit(f"plot.py: {arguments.results}: {error}")
    ceilings, rows = rows_against_ceilings(summarize(report, max if arguments.best else statistics.median))
    rows = [row for row in rows if re.search(arguments.match, row["name"])]
    print_table(ceilings, rows)
    if arguments.svg:
        draw(rows, arguments.svg, report.get("context", {}))


if __name__ == "__main__":
    main()
