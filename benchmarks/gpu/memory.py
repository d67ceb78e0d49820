"""The memory calculator against torch.cuda.max_memory_allocated, on a CUDA GPU.

    python benchmarks/gpu/memory.py [--model smollm2-135m] [--only TEXT] [--json FILE]
    python benchmarks/gpu/memory.py --dry-run          # two small recipes on the CPU, no GPU needed

Every recipe is run on a random model of the named shape in a process of its own (a peak leaves the
allocator in another state than it found it). Paged optimizer states are in neither number.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from course_utils.memory import Recipe, estimate, find_shape, recipe
from course_utils.memory.cases import QUICK, Case
from course_utils.memory.practice import Practice, measure

MB = 1e6
BOUND = 5.0  # percent
LENGTHS = (512, 4, 256)  # tokens a row, rows, tokens with logits


def recipes() -> list[Recipe]:
    """What is measured: every named recipe, and the same with other kernels and optimizers."""
    names = ("full", "full-bf16", "full-8bit", "lora", "qlora", "reward", "reward-qlora", "dpo")
    named = [recipe(name) for name in (*names, "dpo-lora", "dpo-qlora", "ppo", "ppo-lora")]
    return [
        *named,
        recipe("ppo-qlora", rollouts=16),
        recipe("full", checkpointing=True),
        recipe("full", attention="eager"),
        recipe("full", optimizer="adafactor"),
        recipe("full", optimizer="sgd-momentum", accumulate=True),
        recipe("lora", checkpointing=False, rank=64),
        recipe("qlora", checkpointing=False),
        recipe("inference"),
        recipe("inference-4bit"),
    ]


def on_gpu(case: Case) -> dict[str, Any]:
    """One case in this process: peak bytes of the third step."""
    import torch

    where = (case.seq, case.batch, case.completion)
    practice = Practice(case.shape, case.recipe, *where, device="cuda")
    for _ in range(2):  # cuBLAS's workspace and the optimizer's states come with the first
        practice.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    practice.step()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    found = estimate(case.shape, case.recipe, *where)
    return {
        "recipe": case.label,
        "measured": torch.cuda.max_memory_allocated(),
        "calculated": found.peak,
        "moment": found.moment,
        "reserved": torch.cuda.max_memory_reserved(),
        "context": total - free - torch.cuda.memory_reserved(),
    }


def on_cpu(case: Case) -> dict[str, Any]:
    """The dry run: the same, by the CPU allocator's account."""
    where = (case.seq, case.batch, case.completion)
    found = estimate(case.shape, case.recipe, *where, device="cpu")
    measured = measure(case.shape, case.recipe, *where)
    row = {"recipe": case.label, "measured": measured, "calculated": found.peak}
    return {**row, "moment": found.moment, "reserved": measured, "context": 0}


def cases(model: str) -> list[Case]:
    """The recipes on one model's shape."""
    seq, batch, completion = LENGTHS
    shape = find_shape(model)
    return [Case(shape, one, seq, batch, completion) for one in recipes()]


def percent(row: dict[str, Any]) -> float:
    """Signed error of the calculator."""
    return 100 * (row["calculated"] / row["measured"] - 1)


def show(row: dict[str, Any] | None) -> None:
    """A line of the table; nothing for a case that failed, which has said so itself."""
    if row is not None:
        sizes = [f"{row[name] / MB:.1f}" for name in ("measured", "calculated")]
        more = [f"{row[name] / MB:.0f}" for name in ("reserved", "context")]
        cells = [row["recipe"], *sizes, f"{percent(row):+.1f}", *more, row["moment"]]
        print(f"| {' | '.join(cells)} |", flush=True)


def alone(model: str, number: int) -> dict[str, Any] | None:
    """One case in a fresh process; None, with the reason on the screen, if it fails there."""
    command = [sys.executable, __file__, "--model", model, "--one", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"| {cases(model)[number].label} | failed: {last} | | | | | |", flush=True)
        return None
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="whose shape (default %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="recipes with this in the name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--dry-run", action="store_true", help="two small recipes on the CPU")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    import torch

    if args.one is not None:
        print(json.dumps(on_gpu(cases(args.model)[args.one])))
        return 0
    if not args.dry_run and not torch.cuda.is_available():
        print(
            "no CUDA GPU here, nothing was measured; benchmarks/memory.py measures on the CPU, and "
            "--dry-run tries this script without a GPU",
            file=sys.stderr,
        )
        return 2
    place = "CPU, dry run" if args.dry_run else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {place}; MB")
    print("| recipe | measured | calculated | error % | reserved | context | worst moment |")
    print("|---|---|---|---|---|---|---|")
    found: list[dict[str, Any] | None] = []
    if args.dry_run:
        torch.set_num_threads(1)
        found = [on_cpu(case) for case in QUICK[:2]]
        for row in found:
            show(row)
    else:
        for number, case in enumerate(cases(args.model)):
            if args.only in case.label:
                found.append(alone(args.model, number))
                show(found[-1])
    rows = [row for row in found if row is not None]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    worst = max((abs(percent(row)) for row in rows), default=0.0)
    print(f"\n{len(rows)} of {len(found)} recipes measured, worst error {worst:.1f}%")
    return 0 if len(rows) == len(found) and worst <= BOUND else 1


if __name__ == "__main__":
    raise SystemExit(main())
