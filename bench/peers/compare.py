#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures cbq and its peers against each other and against the machine, interleaved, in one run.

    compare.py FOLDER [--out RESULTS.json] [--shapes 4096x4096,...] [--rows 1,2,...] [--threads 1,2] [--rounds 5]

FOLDER holds the peer-* programs of a build with -DCBQ_BENCH_PEERS=ON. For every shape, row and thread count, each round
times every format of every peer once, and the machine's ceilings once, in an order that is shuffled anew; all other
programs are stopped meanwhile. Figures are medians over rounds; ratios are taken within a round, then their median. The
best share is that of the best round of a format against the best of the ceiling: neighbours on the machine only slow down.
Every product is checked once against one in double precision; a wrong one fails the run.
"""

import argparse
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time

# Standard deviations of the error that rounding activations gives: what is above the first is named, what is above the
# second is not timed and fails the run.
INEXACT, WRONG = 6.0, 100.0
PATIENCE = 120  # seconds for one answer


class Worker:
    """One peer-* program, stopped except while it answers."""

    def __init__(self, path):
        self.path = path
        self.key = os.path.basename(path).removeprefix("peer-")
        self.process = subprocess.Popen(
            [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.dead = None
        self.about = self.ask("describe")

    def ask(self, *words):
        if self.dead:
            return {"failed": self.dead}
        self.process.send_signal(signal.SIGCONT)
        alarm = threading.Timer(PATIENCE, self.process.kill)
        alarm.start()
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            while line := self.process.stdout.readline():
                if line.startswith("="):
                    return json.loads(line[1:])
        except BrokenPipeError:
            pass
        finally:
            alarm.cancel()
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGSTOP)
        self.dead = f"ended at '{' '.join(map(str, words))}' with {self.process.wait()}"
        return {"failed": self.dead}

    def end(self):
        self.process.kill()
        self.process.wait()


class Entry:
    """One format of one peer, and what is known about it for the shape at hand."""

    def __init__(self, worker, index, about):
        self.worker, self.index = worker, index
        self.peer, self.format, self.family = worker.about["name"], about["name"], about["family"]
        self.bytes = 0


def entries_of(workers, pattern):
    found = []
    for worker in workers:
        if "failed" in worker.about:
            print(f"compare.py: {worker.path} {worker.about['failed']}", file=sys.stderr)
            continue
        for index, about in enumerate(worker.about["formats"]):
            if re.search(pattern, f"{about['family']}/{worker.key}/{about['name']}"):
                found.append(Entry(worker, index, about))
    return found


def prepare(entries, n, k, skipped):
    ready = []
    for entry in entries:
        answer = entry.worker.ask("prepare", entry.index, n, k)
        if "failed" in answer:
            skipped.append({"peer": entry.peer, "format": entry.format, "n": n, "k": k, "why": answer["failed"]})
        else:
            entry.bytes = answer["bytes"]
            ready.append(entry)
    return ready


def warm(entries, point, report):
    ready = []
    for entry in entries:
        answer = entry.worker.ask("warm", entry.index, point["m"], point["threads"])
        if "failed" in answer:
            report["skipped"].append({"peer": entry.peer, "format": entry.format, **point, "why": answer["failed"]})
        elif answer["error"] > WRONG:
            report["wrong"].append({"peer": entry.peer, "format": entry.format, **point, "error": answer["error"]})
        else:
            entry.error = answer["error"]
            if entry.error > INEXACT:
                report["inexact"].append({"peer": entry.peer, "format": entry.format, **point, "error": entry.error})
            ready.append(entry)
    return ready


def rates_of(machine, threads, wanted):
    """One measurement of each ceiling with this many threads whose name `wanted` accepts."""
    names = [name for name in machine.about["ceilings"] if name.endswith(f"/threads:{threads}")]
    return {name.split("/")[0]: machine.ask("rate", name)["rate"] for name in names if wanted(name.split("/")[0])}


def bound_seconds(ceilings, family, operations, weight_bytes):
    """The time that the binding ceiling alone would take, and its name."""
    arithmetic = "fma" if family in ("float", "w4a16") else "vnni" if "vnni" in ceilings else "maddubs"
    times = {name: amount / (1e9 * ceilings[name])
             for name, amount in ((arithmetic, operations), ("dram", weight_bytes)) if name in ceilings}
    name = max(times, key=times.get, default=None)
    return times.get(name), name


def visit(entries, point):
    """Reads all copies of all formats: hosts of virtual machines take long over memory that lay idle."""
    for entry in entries:
        entry.worker.ask("time", entry.index, point["m"], point["threads"], 0.05)


def measure(machine, entries, point, options):
    """Rounds at one point: per entry its seconds in each round, and the ceilings of each round."""
    # Arithmetic is steady; memory is not: the better of two readings, before and after the products of a round.
    steady = rates_of(machine, point["threads"], lambda name: name != "dram")
    read = lambda: rates_of(machine, point["threads"], lambda name: name == "dram")["dram"]
    rounds, before = [], read()
    # One row is bound by memory alone, whose rate varies most.
    for _ in range(options.rounds * (3 if point["m"] == 1 and options.rounds > 1 else 1)):
        order = entries[:]
        random.shuffle(order)
        seconds = {}
        for entry in order:
            answer = entry.worker.ask("time", entry.index, point["m"], point["threads"], options.seconds)
            if "failed" not in answer:
                seconds[entry] = answer["seconds"]
        after = read()
        rounds.append(({**steady, "dram": max(before, after)}, seconds))
        before = after
    return rounds


def results_of(rounds, entries, point):
    operations = 2.0 * point["m"] * point["n"] * point["k"]
    own = {entry.family: entry for entry in entries if entry.worker.key == "cbq"}
    results = []
    for entry in entries:
        times = [seconds[entry] for _, seconds in rounds if entry in seconds]
        if not times:
            continue
        median = statistics.median(times)
        bounds = [(seconds[entry], bound_seconds(ceilings, entry.family, operations, entry.bytes))
                  for ceilings, seconds in rounds if entry in seconds]
        shares = [bound / taken for taken, (bound, _) in bounds if bound]
        result = {
            **point, "peer": entry.peer, "key": entry.worker.key, "format": entry.format, "family": entry.family,
            "bytes": entry.bytes, "seconds": median, "rounds": times, "error": round(entry.error, 2),
            "gops": operations / median * 1e-9, "gbps": entry.bytes / median * 1e-9,
            "bound": bounds[len(bounds) // 2][1][1], "share_of_bound": statistics.median(shares) if shares else None,
        }
        most = {name: max(ceilings[name] for ceilings, _ in rounds) for name in rounds[0][0]}
        bound, _ = bound_seconds(most, entry.family, operations, entry.bytes)
        result["best_share"] = bound / min(times) if bound else None
        mine = own.get(entry.family)
        ratios = [seconds[entry] / seconds[mine] for _, seconds in rounds if mine in seconds and entry in seconds]
        result["cbq_speedup"] = statistics.median(ratios) if ratios else None
        results.append(result)
    return results


def print_point(point, ceilings, results):
    print(f"\n{point['n']} x {point['k']}, M = {point['m']}, {point['threads']} thread(s): "
          + ", ".join(f"{name} {rate:.1f}" for name, rate in ceilings.items()))
    for row in sorted(results, key=lambda row: (row["family"], row["seconds"])):
        share = ""
        if row["share_of_bound"]:
            share = f"{100 * row['share_of_bound']:4.0f} % of {row['bound']} (best {100 * row['best_share']:.0f})"
        ratio = f"cbq {row['cbq_speedup']:5.2f}x" if row["cbq_speedup"] else ""
        print(f"  {row['family']:10} {row['peer'][:22]:22} {row['format']:20} {row['seconds'] * 1e6:11.1f} us "
              f"{row['gops']:7.1f} GOPS {row['gbps']:6.2f} GB/s {share:26} {ratio}", flush=True)


def machine_text(about):
    return {"processor": about.get("processor", "unknown"), "isa": about.get("isa"), "compiler": about.get("compiler"),
            "weights_rotated_over": about.get("rotation"), "processors": os.cpu_count(), "system": platform.platform()}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(number) for number in text.split(",")]
    shapes = lambda text: [tuple(map(int, shape.split("x"))) for shape in text.split(",")]
    parser.add_argument("folder", help="with the peer-* programs, such as build/release/bench/peers")
    parser.add_argument("--out", help="JSON with everything that was measured")
    parser.add_argument("--shapes", type=shapes, default=shapes("4096x4096,11008x4096,576x576,1536x576"), help="NxK,...")
    parser.add_argument("--rows", type=numbers, default=numbers("1,2,4,8,16,64,512"), help="M,...")
    parser.add_argument("--threads", type=numbers, default=numbers("1,2"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.012, help="of one measurement at least")
    parser.add_argument("--match", default="", help="only formats whose family/peer/format contains this pattern")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which no further point is begun")
    return parser.parse_args()


def programs_in(folder, ending=""):
    """The programs that measure products, or with "-attention" those that measure that; and the ceilings."""
    wanted = lambda name: name == "peer-ceilings" or name.endswith("-attention") == (ending == "-attention")
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder))
            if name.startswith("peer-") and wanted(name) and os.access(os.path.join(folder, name), os.X_OK)]


def main():
    options = parse_arguments()
    start = time.monotonic()
    workers = [Worker(path) for path in programs_in(options.folder)]
    machine = next((worker for worker in workers if worker.key == "ceilings"), None)
    if machine is None or "failed" in machine.about:
        sys.exit(f"compare.py: no working peer-ceilings in {options.folder}")
    entries = entries_of([worker for worker in workers if worker is not machine], options.match)
    report = {"machine": machine_text(machine.about), "peers": sorted({entry.peer for entry in entries}),
              "ceilings": [], "results": [], "skipped": [], "inexact": [], "wrong": []}
    for n, k in options.shapes:
        ready = prepare(entries, n, k, report["skipped"])
        visited = options.seconds == 0
        for threads in options.threads:
            for m in options.rows:
                point = {"n": n, "k": k, "m": m, "threads": threads}
                if time.monotonic() - start > options.limit:
                    report["skipped"].append({**point, "why": "no time left"})
                    continue
                warmed = warm(ready, point, report)
                if not visited:
                    visit(warmed, point)
                    visited = True
                rounds = measure(machine, warmed, point, options)
                ceilings = {name: statistics.median(c[name] for c, _ in rounds) for name in rounds[0][0]}
                results = results_of(rounds, warmed, point)
                report["ceilings"].append({**point, **ceilings})
                report["results"] += results
                print_point(point, ceilings, results)
        for worker in workers:
            if worker is not machine:
                worker.ask("drop")
    for worker in workers:
        worker.end()
    report["minutes"] = round((time.monotonic() - start) / 60, 1)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    for kind in ("skipped", "inexact", "wrong"):
        for item in report[kind]:
            print(f"{kind}: {json.dumps(item)}", file=sys.stderr)
    sys.exit(1 if report["wrong"] else 0)


if __name__ == "__main__":
    main()
