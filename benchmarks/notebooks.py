"""What the notebooks take: wall and CPU seconds, memory, the slowest cells.

    python benchmarks/notebooks.py                 # runs every lesson, one after the other
    python benchmarks/notebooks.py --folder solutions    # the exercises with their solutions
    python benchmarks/notebooks.py 04 05 --fast    # some of them, with COURSE_FAST=1
    python benchmarks/notebooks.py --read DIR      # only reads the notebooks that nbmake executed

Each lesson runs in a process of its own with a directory of its own for runs, so that the models
that lessons share are trained again wherever a lesson needs them: what a student pays who opens
that lesson first. `--shared` keeps them between lessons: what a student pays who works through all.
Memory is the largest resident set of the kernel; "says" is the time that the lesson announces.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SLOWEST = 3  # cells named for each notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("numbers", nargs="*", metavar="NN", help="default: all lessons")
    folders = ("notebooks", "exercises", "solutions")
    parser.add_argument("--folder", choices=folders, default="notebooks", help="of notebooks")
    parser.add_argument("--fast", action="store_true", help="COURSE_FAST=1")
    parser.add_argument("--shared", action="store_true", help="lessons share trained models")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where executed notebooks go")
    parser.add_argument("--read", type=Path, metavar="DIR", help="executed notebooks to report on")
    given = parser.parse_args()
    if given.read:
        found = sorted(given.read.glob("*.ipynb")) + sorted(given.read.glob("*/*.ipynb"))
        report([{"path": path, **times(path)} for path in found])
        return
    found = sorted((ROOT / given.folder).glob("[0-9][0-9]_*.ipynb"))
    chosen = [p for p in found if not given.numbers or p.name[:2] in given.numbers]
    if not chosen:
        sys.exit(f"{given.folder} has no {' or '.join(given.numbers)}; there are {len(found)}")
    with tempfile.TemporaryDirectory() as work:
        rows = []
        for path in chosen:
            rows.append(run(path, Path(work), given.fast, given.shared))
            if given.keep and (Path(work) / path.name).exists():
                given.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(work) / path.name, given.keep)
    report(rows)


def run(path: Path, work: Path, fast: bool, shared: bool) -> dict[str, Any]:
    """Executes one notebook in a child process; its times, and what the kernel took."""
    runs = work / ("runs" if shared else f"runs-{path.stem}")
    environment = os.environ | {"COURSE_RUNS": str(runs), "HF_HUB_OFFLINE": "1"}
    if fast:
        environment["COURSE_FAST"] = "1"
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute"]
    command += ["--log-level=ERROR", "--output-dir", str(work), str(path)]
    # the child of a child: its largest memory is not mixed with another notebook's
    probe = [sys.executable, __file__, "--child", *command]
    before = time.perf_counter()
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - before
    if done.returncode:
        return {"path": path, "seconds": seconds, "failed": done.stderr.strip()[-2000:]}
    used = json.loads(done.stdout.splitlines()[-1])
    return {"path": path, **times(work / path.name), **used, "seconds": seconds}


def times(path: Path) -> dict[str, Any]:
    """Seconds of an executed notebook and of its slowest cells, from the times nbclient kept."""
    cells = []
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        kept = cell["metadata"].get("execution", {})
        start, end = kept.get("iopub.execute_input"), kept.get("shell.execute_reply")
        if start and end:
            took = _moment(end) - _moment(start)
            cells.append((took.total_seconds(), _first_line(cell)))
    cells.sort(reverse=True)
    budget = notebook["metadata"].get("course", {}).get("budget", {}).get("seconds")
    total = sum(took for took, _ in cells)
    return {"seconds": total, "slowest": cells[:SLOWEST], "budget": budget}


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _first_line(cell: dict[str, Any]) -> str:
    lines = [line.strip() for line in "".join(cell["source"]).splitlines()]
    return next((line for line in lines if line and not line.startswith(("import ", "from "))), "")


def report(rows: list[dict[str, Any]]) -> None:
    print(f"{'notebook':<36}{'says':>6}{'s':>7}{'CPU s':>8}{'MiB':>7}   slowest cells")
    for row in rows:
        used = "".join(
            f"{row[name]:>{width}.0f}" if name in row else " " * width
            for name, width in (("cpu_seconds", 8), ("memory_mib", 7))
        )
        slowest = "; ".join(f"{took:.0f} s {line[:44]}" for took, line in row.get("slowest", []))
        if "failed" in row:
            slowest = "FAILED: " + row["failed"]
        says = row.get("budget") or "–"
        folder = row["path"].parent.name
        name = f"{folder[:3]}/" * (folder in ("exercises", "solutions")) + row["path"].stem
        print(f"{name:<36}{says:>6}{row['seconds']:>7.0f}{used}   {slowest}")
    cpu = sum(row.get("cpu_seconds", 0) for row in rows)
    total = sum(row["seconds"] for row in rows)
    print(f"{'total':<42}{total:>7.0f}" + (f"{cpu:>8.0f}" if cpu else ""))
    if any("failed" in row for row in rows):
        sys.exit(1)


def child(command: list[str]) -> None:
    """Runs a command, then prints what it and its own children took; for `run` above."""
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {"cpu_seconds": used.ru_utime + used.ru_stime, "memory_mib": used.ru_maxrss / 1024}
    print(json.dumps(found))
    sys.exit(status)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
