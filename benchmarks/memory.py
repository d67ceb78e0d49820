"""The memory calculator against memory that is really used, on the CPU.

    python benchmarks/memory.py [--only TEXT] [--json FILE]

Runs a training step (or one batch of answers) of each recipe of course_utils/memory/cases.py on a
random model of 12 to 19 million parameters, takes the peak from the allocator's own account, and
prints it beside the calculated one. One thread; some five minutes.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler's own remarks

import torch

from course_utils.memory import estimate
from course_utils.memory.cases import CASES
from course_utils.memory.practice import measure

MB = 1e6
BOUND = 5.0  # percent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="recipes with this in the name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, CPU; peaks in MB")
    print("| recipe | T, B, C | measured | calculated | error % | worst moment |")
    print("|---|---|---|---|---|---|")
    rows = []
    for case in CASES:
        if args.only not in case.label:
            continue
        where = (case.seq, case.batch, case.completion)
        measured = measure(case.shape, case.recipe, *where)
        found = estimate(case.shape, case.recipe, *where, device="cpu")
        error = 100 * (found.peak / measured - 1)
        rows.append(
            {"recipe": case.label, "measured": measured, "calculated": found.peak, "error": error}
        )
        print(
            f"| {case.label} | {where} | {measured / MB:.1f} | {found.peak / MB:.1f} | "
            f"{error:+.1f} | {found.moment} |",
            flush=True,
        )
    worst = max((abs(row["error"]) for row in rows), default=0.0)
    print(f"\n{len(rows)} recipes, worst error {worst:.1f}%")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
