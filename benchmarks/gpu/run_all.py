"""Everything this project measures on a GPU, in one command of at most nine minutes, offline.

    python benchmarks/gpu/run_all.py                       -> benchmarks/results/<gpu>.json and .md
    python benchmarks/gpu/run_all.py --only sft-bf16 memory     these parts, -> <gpu>-partial.json
    python benchmarks/gpu/run_all.py --list                     the parts' names
    python benchmarks/gpu/run_all.py --dry-run                  the smallest of each, on the CPU

It has not met a GPU yet: none was to be had where it was written. What is known is that every part
that a CPU can do runs there in its smallest form (--dry-run); fp16 training, paging under pressure
and every number below "peak" wait for the first GPU.

Parts run in the order of their importance, each in a process of its own with a time limit. One that
fails, hangs, dies or runs out of memory is a row with the reason; when --seconds are used up, the
rest is skipped. Results so far are written after every part. Models are random weights of
SmolLM2-135M's, SmolLM2-360M's and TinyLlama-1.1B's shape, data are random tokens: no download.
"""

import argparse
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]  # for a copy that is not installed

import course_utils  # noqa: E402, F401  (sets the OpenMP variables before torch is imported)

# isort: split
import tables  # noqa: E402
from conduct import Part, Row, alone, conduct  # noqa: E402
from parts import PARTS  # noqa: E402

from course_utils.training.run import git_commit  # noqa: E402

RESULTS, DRY_RESULTS = Path("benchmarks/results"), Path("build/gpu-dry-run")
DEVICE = Part("device", "parts:device", limit=120)
HEAVY = ["course_utils.training.ppo", "trl.trainer.sft_trainer", "trl.trainer.reward_trainer"]
HEAVY += ["trl.trainer.dpo_trainer", "trl.trainer.rloo_trainer", "bitsandbytes"]


def offline(environ: Any) -> None:
    """One GPU, no network, whatever the caller's environment says."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        environ[name] = "1"
    environ["TOKENIZERS_PARALLELISM"] = "false"
    environ["CUDA_VISIBLE_DEVICES"] = environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # one process is what is measured
        environ.pop(name, None)


def processes(forked: bool) -> Any:
    """How parts are started: each in a fresh interpreter, or forked.

    The dry run forks them from a server that has imported the libraries once, to save minutes of
    CPU time. With CUDA that cannot be done: bitsandbytes asks for the device when it is imported,
    and CUDA does not survive a fork.
    """
    if forked and "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(HEAVY)
        return context
    return multiprocessing.get_context("spawn")


def chosen(names: list[str] | None) -> list[Part]:
    """The parts asked for, in the order of PARTS. Raises SystemExit for a name that none has."""
    known = [part.name for part in PARTS]
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise SystemExit(f"there is no part {unknown[0]!r}; the parts are {', '.join(known)}")
    return [part for part in PARTS if not names or part.name in names]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these parts")
    parser.add_argument("--seconds", type=float, default=540, help="of all (default %(default)s)")
    parser.add_argument("--out", type=Path, help=f"default {RESULTS}; dry: {DRY_RESULTS}")
    parser.add_argument("--dry-run", action="store_true", help="the smallest forms, on the CPU")
    parser.add_argument("--list", action="store_true", help="print the parts' names and end")
    return parser.parse_args()


def main() -> int:
    began, args = time.monotonic(), arguments()
    parts = chosen(args.only)
    if args.list:
        print("\n".join(part.name for part in parts))
        return 0
    offline(os.environ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a running part is ended too
    if args.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["OMP_NUM_THREADS"] = "1"
    context = processes(args.dry_run and len(parts) > 3)
    found = alone(DEVICE, {"dry": args.dry_run}, min(DEVICE.limit, args.seconds), context)[-1]
    if found["status"] != "ok":
        print(f"nothing was measured: {found['reason']}", file=sys.stderr)
        print("--dry-run tries every part on the CPU", file=sys.stderr)
        return 2
    place: dict[str, Any] = {"dry": args.dry_run, **found}
    name = tables.slug(place["name"]) + ("-partial" if args.only else "")
    folder = args.out or (DRY_RESULTS if args.dry_run else RESULTS)
    result: dict[str, Any] = {
        "format": 1,
        "dry_run": args.dry_run,
        "device": {key: place[key] for key in ("name", "described", "gib", "driver", "has")},
        "versions": place["versions"],
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "budget_seconds": args.seconds,
    }

    def write(rows: list[Row]) -> None:
        result["seconds"] = round(time.monotonic() - began, 1)
        result["rows"] = rows
        tables.save(result, folder, name)

    rows = conduct(parts, place, args.seconds, write, context, began)
    print(tables.markdown(result))
    print(f"written to {folder / name}.json and .md")
    return 0 if all(row["status"] in ("ok", "skipped") for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
