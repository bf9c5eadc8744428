#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Files of other programs read by cbq, and files of cbq loaded by other programs.

clients.py --tool CBQ_LLAMA --reader READER --work FOLDER --cell NAME    one test
clients.py --tool CBQ_LLAMA --reader READER --work FOLDER --table        all, as the table of docs/formats.md
clients.py --list                                                        names of all tests
"""

import argparse
import contextlib
import sys
import traceback
from pathlib import Path

import exports  # noqa: F401  (adds cells)
import harness
import reads  # noqa: F401


def run(entry, programs):
    """(state, text): "pass" with what was compared, "fail" with why, "not run" with what is missing."""
    missing = harness.missing_packages(entry)
    if missing:
        return "not run", f"no {', '.join(missing)}"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # clients talk
            return "pass", entry.check(programs)
    except harness.Wrong as wrong:
        return "fail", str(wrong)
    except Exception as error:  # the client's own errors are results, too
        traceback.print_exc()
        return "fail", f"{type(error).__name__}: {error}".splitlines()[0][:300]


def print_table(programs):
    print("| file | client | result | compared |\n|---|---|---|---|")
    counts = {"pass": 0, "fail": 0, "not run": 0}
    for entry in harness.CELLS.values():
        state, text = run(entry, programs)
        counts[state] += 1
        clients = entry.client
        if state != "not run":
            clients += " " + ", ".join(harness.version(name) for name in entry.packages[:1])
        print(f"| {entry.file} | {clients} | {state} | {text.replace('|', '/')} |", flush=True)
    print("\n" + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts["fail"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tool", "reader", "work", "cell"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    if options.list:
        print("\n".join(harness.CELLS))
        return 0
    if options.table:
        return print_table(harness.Programs(options.tool, options.reader, Path(options.work) / "table"))
    entry = harness.CELLS[options.cell]
    missing = harness.missing_packages(entry)
    if missing:
        harness.skip(f"{', '.join(missing)} not installed, see tests/clients/make_environment.sh")
    state, text = run(entry, harness.Programs(options.tool, options.reader, Path(options.work) / options.cell))
    print(f"{state}: {entry.file}, {entry.client}: {text}")
    return 0 if state == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
