#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the figures of docs/performance.md: tables between its markers, and drawings beside it.

    report.py PAGE.md [--matmul RESULTS.json ...] [--end-to-end RESULTS.json] [--counts TABLE.md] [--readme README.md]

RESULTS.json are what compare.py (several runs are joined) and end_to_end.py wrote with --out, TABLE.md what
instruction_counts.py prints with --markdown. A part that is not given stays as it is. With --readme and both results also
writes the README's comparison.
"""

import argparse
import html
import json
import os
import sys

FAMILIES = {
    "w4_g32": "4 bits, groups of 32", "w4_g128": "4 bits, groups of 128 or super-blocks", "w4_channel": "4 bits, channels",
    "w2": "2 bits", "w8": "8 bits", "w4a16": "4 bits, float activations", "float": "float",
}
COLOURS = ["#1b5e9e", "#d1495b", "#3a7d44", "#e09f3e", "#7b4b94", "#5f6368", "#17a2a2", "#9c6644"]
GIVEN = "int8 given"  # formats whose activations were not quantized in the time


def short(peer):
    return peer.split(" (")[0]


def title(row):
    return "cbq " + row["format"] if row["key"] == "cbq" else f"{short(row['peer'])} {row['format']}"


class Results:
    """What compare.py measured, by point."""

    def __init__(self, report):
        self.report = report
        self.rows = report["results"]
        self.shapes = list(dict.fromkeys((row["n"], row["k"]) for row in self.rows))
        self.threads = sorted({row["threads"] for row in self.rows})
        self.heights = sorted({row["m"] for row in self.rows})

    def at(self, **wanted):
        return [row for row in self.rows if all(row[key] == value for key, value in wanted.items())]

    def best_peer(self, **wanted):
        others = [row for row in self.at(**wanted) if row["key"] != "cbq" and GIVEN not in row["format"]]
        return min(others, key=lambda row: row["seconds"], default=None)

    def ceiling(self, name, **wanted):
        found = [row[name] for row in self.report["ceilings"]
                 if name in row and all(row[key] == value for key, value in wanted.items())]
        return sorted(found)[len(found) // 2] if found else None


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine_text(results):
    machine = results.report["machine"]
    peers = ", ".join(short(peer) for peer in results.report["peers"] if not peer.startswith("cbq"))
    rates = [[threads, *(f"{rate:.0f}" if (rate := results.ceiling(name, threads=threads)) else "-"
                         for name in ("dram", "vnni", "maddubs", "fma"))] for threads in results.threads]
    return (f"{machine['processor']}, {machine['processors']} processors, {machine['isa']}; {machine['compiler']}; weights "
            f"rotated over {machine['weights_rotated_over'] >> 20} MiB. Peers: {peers}.\n\n"
            + table(["threads", "DRAM read, GB/s", "`vpdpbusd`, GOPS", "`vpmaddubsw`, GOPS", "`vfmadd`, GFLOPS"], rates))


def speedups_text(results):
    """Per family: cbq against the best other library at every point."""
    parts = []
    for family, name in FAMILIES.items():
        rows = []
        for n, k in results.shapes:
            for threads in results.threads:
                cells = []
                for m in results.heights:
                    best = results.best_peer(family=family, n=n, k=k, threads=threads, m=m)
                    cells.append(f"{best['cbq_speedup']:.2f}x {short(best['peer']).split()[0]}"
                                 if best and best["cbq_speedup"] else "-")
                if set(cells) != {"-"}:
                    rows.append([f"{n} x {k}, {threads} thread{'s' if threads > 1 else ''}", *cells])
        if rows:
            parts.append(f"**{name[0].upper() + name[1:]}**\n\n"
                         + table(["shape", *(f"M = {m}" for m in results.heights)], rows))
    return "\n\n".join(parts)


def point_text(results, m, unit, name):
    """Every format at one M, on the shapes with most inputs: rate and share of the ceiling that binds."""
    columns = [(n, k, threads) for n, k in results.shapes if k >= 1024 for threads in results.threads]
    formats = {}
    for row in results.at(m=m):
        formats.setdefault((list(FAMILIES).index(row["family"]), row["key"] != "cbq", title(row)), {})[
            row["n"], row["k"], row["threads"]] = row
    rows = []
    for (family, _, text), found in sorted(formats.items()):
        cells = []
        for column in columns:
            row = found.get(column)
            share = ""
            if row and row["share_of_bound"]:
                share = f" ({100 * row['share_of_bound']:.0f} %, {100 * row['best_share']:.0f} %)"
            cells.append(f"{row[unit]:.1f}{share}" if row else "-")
        rows.append([list(FAMILIES.values())[family], f"**{text}**" if text.startswith("cbq") else text, *cells])
    return table(["weights", f"M = {m}: {name}", *(f"{n} x {k}, {threads}T" for n, k, threads in columns)], rows)


def scaling_text(results):
    """What the most threads give over one, for groups of 32 on the first shape, beside what they give the ceilings."""
    n, k = results.shapes[0]
    one, most = results.threads[0], results.threads[-1]
    heights = [m for m in (1, 8, 64, max(results.heights)) if m in results.heights]
    formats = dict.fromkeys(title(row) for row in results.at(n=n, k=k, family="w4_g32"))
    rows = []
    for name in sorted(formats, key=lambda name: (not name.startswith("cbq"), name)):
        cells = []
        for m in heights:
            found = {row["threads"]: row["gops"] for row in results.at(n=n, k=k, m=m, family="w4_g32") if title(row) == name}
            cells.append(f"{found[most] / found[one]:.2f}x" if len(found) == len(results.threads) else "-")
        rows.append([f"**{name}**" if name.startswith("cbq") else name, *cells])
    ceilings = []
    for name, words in (("dram", "DRAM read"), ("vnni", "`vpdpbusd`")):
        rates = [results.ceiling(name, n=n, k=k, threads=threads) for threads in (one, most)]
        if all(rates):
            ceilings.append(f"{words} {rates[1] / rates[0]:.2f}x")
    return (f"{n} x {k}, {most} threads against {one}; the ceilings: {', '.join(ceilings)}.\n\n"
            + table(["groups of 32", *(f"M = {m}" for m in heights)], rows))


def skipped_text(results):
    why = {}
    for item in results.report["skipped"]:
        if "peer" in item:
            why.setdefault((short(item["peer"]), item["format"], item["why"]), set()).add((item["n"], item["k"]))
    lines = [f"- {peer}, {form}: {', '.join(f'{n} x {k}' for n, k in sorted(shapes))}: {reason}."
             for (peer, form, reason), shapes in sorted(why.items())]
    inexact = sorted({(short(item["peer"]), item["format"]) for item in results.report["inexact"]})
    lines += [f"- {peer}, {form}: its result is off by more than rounding activations explains "
              f"({max(i['error'] for i in results.report['inexact'] if i['format'] == form):.0f} standard deviations)."
              for peer, form in inexact]
    if any(item["why"] == "no time left" for item in results.report["skipped"]):
        lines.append("- The run ended at its time limit before the last shapes.")
    return "\n".join(lines) or "Nothing was left out."


# ---- drawings ----


class Drawing:
    """A few marks of SVG."""

    def __init__(self, width, height):
        self.parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
                      f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>']

    def text(self, x, y, words, anchor="start", colour="#222", size=12):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">'
                          f"{html.escape(words)}</text>")

    def line(self, points, colour, width=1.5, dash=""):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>')

    def dot(self, x, y, colour):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>')

    def bar(self, x, y, width, height, colour, opacity=1.0):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
                          f'fill-opacity="{opacity}"/>')

    def write(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join([*self.parts, "</svg>\n"]))


def best_lines(results, n, k, threads, families):
    """{title: {m: GOPS}}: for each library and family its fastest format at each M."""
    lines = {}
    for row in results.at(n=n, k=k, threads=threads):
        if row["family"] in families and GIVEN not in row["format"]:
            name = title(row) if row["key"] == "cbq" else short(row["peer"])
            line = lines.setdefault(name, {})
            line[row["m"]] = max(line.get(row["m"], 0), row["gops"])
    return lines


def draw_rates(results, path, family):
    """GOPS over M for one family, a panel per thread count, with the ceiling that binds as a line."""
    n, k = results.shapes[0]
    width, height, left, top = 420, 300, 60, 40
    panels = results.threads
    names = sorted({name for t in panels for name in best_lines(results, n, k, t, {family})},
                   key=lambda name: (not name.startswith("cbq"), name))
    drawing = Drawing(width * len(panels) + 20, height + 60 + 18 * ((len(names) + 3) // 3))
    for index, threads in enumerate(panels):
        x0, y0 = index * width + left, top + height - 60
        lines = best_lines(results, n, k, threads, {family})
        peak, dram = (results.ceiling(name, n=n, k=k, threads=threads) for name in ("vnni", "dram"))
        peak = peak or results.ceiling("maddubs", threads=threads)
        weight_bytes = next(row["bytes"] for row in results.at(n=n, k=k, family=family, key="cbq"))
        limit = [(m, min(peak, dram * 2 * m * n * k / weight_bytes)) for m in results.heights]
        scale = (y0 - top) / (1.1 * peak)
        place = lambda m, value: (x0 + results.heights.index(m) * (width - left - 30) / max(1, len(results.heights) - 1),
                                  y0 - value * scale)
        drawing.text(x0, 20, f"{n} x {k}, {FAMILIES[family]}, {threads} thread{'s' if threads > 1 else ''}: GOPS over M")
        for m in results.heights:
            drawing.text(place(m, 0)[0], y0 + 18, str(m), "middle")
        for tick in range(0, int(1.1 * peak), 100 if peak < 600 else 200):
            drawing.line([(x0, y0 - tick * scale), (x0 + width - left - 30, y0 - tick * scale)], "#e4e4e4", 1)
            drawing.text(x0 - 6, y0 - tick * scale + 4, str(tick), "end")
        drawing.line([place(m, value) for m, value in limit], "black", 1.5, "5 3")
        for name in names:
            colour = COLOURS[names.index(name) % len(COLOURS)]
            points = [place(m, lines[name][m]) for m in results.heights if m in lines.get(name, {})]
            drawing.line(points, colour, 3 if name.startswith("cbq") else 1.5)
            for x, y in points:
                drawing.dot(x, y, colour)
    for index, name in enumerate([*names, "ceiling: DRAM read or vpdpbusd"]):
        x, y = left + index % 3 * 250, top + height + 18 * (index // 3)
        colour = COLOURS[index % len(COLOURS)] if index < len(names) else "black"
        drawing.line([(x, y - 4), (x + 22, y - 4)], colour, 3, "" if index < len(names) else "5 3")
        drawing.text(x + 28, y, name)
    drawing.write(path)


def draw_bandwidth(results, path):
    """GB/s of packed weights at M = 1, one bar per format and thread count, the DRAM ceiling as a line."""
    n, k = results.shapes[0]
    rows = [row for row in results.at(n=n, k=k, m=1) if row["family"] in ("w4_g32", "w4_g128", "w2")]
    names = list(dict.fromkeys((row["family"], title(row)) for row in
                               sorted(rows, key=lambda row: (list(FAMILIES).index(row["family"]), -row["gbps"]))))
    left, step, width = 290, 15 * len(results.threads) + 6, 420
    bottom = 40 + step * len(names)
    rates = {threads: results.ceiling("dram", n=n, k=k, threads=threads) for threads in results.threads}
    scale = width / (1.15 * max(*rates.values(), *(row["gbps"] for row in rows)))
    drawing = Drawing(left + width + 70, bottom + 30)
    drawing.text(10, 20, f"M = 1, {n} x {k}: GB/s of packed weights; dashed: DRAM read ("
                 + ", ".join(f"{t} thread{'s' if t > 1 else ''}" for t in results.threads) + ")")
    for index, (family, name) in enumerate(names):
        drawing.text(left - 8, 40 + index * step + step / 2, name, "end")
        for place, threads in enumerate(results.threads):
            for row in rows:
                if title(row) == name and row["family"] == family and row["threads"] == threads:
                    y = 36 + index * step + 15 * place
                    colour = COLOURS[0 if row["key"] == "cbq" else 5]
                    drawing.bar(left, y, row["gbps"] * scale, 12, colour, 1.0 if place == 0 else 0.6)
                    drawing.text(left + row["gbps"] * scale + 4, y + 10, f"{row['gbps']:.1f}", size=10)
    for rate in rates.values():
        drawing.line([(left + rate * scale, 30), (left + rate * scale, bottom)], "black", 1, "5 3")
    drawing.write(path)


# ---- the page ----


def replace_block(page, name, text):
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"report.py: the page has no block '{name}'")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def end_to_end_text(report):
    rows = [[row["threads"], "prompt" if row["phase"] == "prompt" else "new tokens", f"{row['cbq']:.0f}",
             f"{row['llama.cpp']:.0f}", f"**{row['speedup']:.2f}x**"] for row in report["results"]]
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in report["bytes"].items())
    return (table(["threads", "phase", "cbq, tokens/s", "llama.cpp, tokens/s", "cbq"], rows)
            + f"\n\n{report['model']}: {report['scheme']} against {report.get('llama_type', 'q4_0').upper()}, an 8-bit embedding and head in both ({sizes}); prompt "
            f"of {report['prompt_tokens']} tokens, {report['new_tokens']} new tokens after it, medians of "
            f"{report['rounds']} interleaved rounds.")


def readme_text(results, report):
    """The comparison in a few lines: groups of 32 on the first shape, and the example engine."""
    n, k = results.shapes[0]
    rows = []
    for m in (m for m in (1, 2, 4, 8, 64, 512) if m in results.heights):
        best = [results.best_peer(family="w4_g32", n=n, k=k, threads=threads, m=m) for threads in results.threads]
        if all(row and row["cbq_speedup"] for row in best):
            cells = [f"{row['cbq_speedup']:.2f}x {short(row['peer']).split()[0]}" for row in best]
            rows.append([f"W4A8, groups of 32, {n} x {k}, M = {m}", "fastest other library", *cells])
    for phase, words in (("new", "new tokens"), ("prompt", f"prompt of {report['prompt_tokens']} tokens")):
        found = {row["threads"]: row for row in report["results"] if row["phase"] == phase}
        cells = [f"{found[threads]['speedup']:.2f}x" if threads in found else "-" for threads in results.threads]
        rows.append([f"SmolLM2-135M, {words}", "llama.cpp, Q4_0", *cells])
    return table(["cbq against", "", *(f"{threads} thread{'s' if threads > 1 else ''}" for threads in results.threads)],
                 rows)


def join(reports):
    """One report of several runs on one machine."""
    first = reports[0]
    for report in reports[1:]:
        for key in ("ceilings", "results", "skipped", "inexact"):
            first[key] += report[key]
        first["peers"] = sorted({*first["peers"], *report["peers"]})
    return first


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page")
    parser.add_argument("--matmul", nargs="+")
    parser.add_argument("--end-to-end")
    parser.add_argument("--counts")
    parser.add_argument("--readme")
    options = parser.parse_args()
    folder = os.path.dirname(options.page) or "."
    with open(options.page, encoding="utf-8") as file:
        page = file.read()
    if options.matmul:
        results = Results(join([load(path) for path in options.matmul]))
        page = replace_block(page, "machine", machine_text(results))
        page = replace_block(page, "speedups", speedups_text(results))
        page = replace_block(page, "one row", point_text(results, 1, "gbps", "GB/s (share, best)"))
        page = replace_block(page, "many rows", point_text(results, max(results.heights), "gops", "GOPS (share, best)"))
        page = replace_block(page, "threads", scaling_text(results))
        page = replace_block(page, "left out", skipped_text(results))
        draw_rates(results, os.path.join(folder, "performance_groups_of_32.svg"), "w4_g32")
        draw_rates(results, os.path.join(folder, "performance_groups_of_128.svg"), "w4_g128")
        draw_bandwidth(results, os.path.join(folder, "performance_bandwidth.svg"))
    if options.end_to_end:
        page = replace_block(page, "end to end", end_to_end_text(load(options.end_to_end)))
    if options.readme and options.matmul and options.end_to_end:
        with open(options.readme, encoding="utf-8") as file:
            readme = replace_block(file.read(), "speed", readme_text(results, load(options.end_to_end)))
        with open(options.readme, "w", encoding="utf-8") as file:
            file.write(readme)
    if options.counts:
        with open(options.counts, encoding="utf-8") as file:
            page = replace_block(page, "instructions", file.read().strip())
    with open(options.page, "w", encoding="utf-8") as file:
        file.write(page)


if __name__ == "__main__":
    main()
