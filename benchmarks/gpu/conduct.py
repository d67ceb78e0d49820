"""Runs parts of a benchmark one after the other, each in a process of its own with a time limit.

Whatever a part does (raise, hang, run out of memory, die), the rest goes on: the part leaves a row
that says why. A part is a generator of rows (plain dicts), named "module:function" so that only its
own process imports what it needs; rows that it gave before its end count.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LEAST = 10.0  # seconds: with less left a part is not started, it would only be cut off
REASON = 300  # characters of a reason at most


class Skip(Exception):
    """Raised by a part that cannot run here; its text is the reason."""


@dataclass(frozen=True)
class Part:
    """One measurement, or several of a kind."""

    name: str
    target: str  # "module:function"; the function gets (place, **options) and yields rows
    options: dict[str, Any] = field(default_factory=dict)
    limit: float = 60.0  # seconds at most
    needs: tuple[str, ...] = ()  # keys of place["has"]


# ---- in the part's own process -------------------------------------------------------------------


def work(part: Part, place: dict[str, Any], folder: Path) -> None:
    """Writes the part's rows to folder/rows.jsonl as they come, what it prints to folder/log."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that what it starts can be ended with it
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)  # goes when the part has ended
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with open(folder / "rows.jsonl", "a", encoding="utf-8") as file:

        def write(row: Row) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        try:
            module, function = part.target.split(":")
            make = getattr(importlib.import_module(module), function)
            for row in make(place, **part.options):
                write(row)
        except Exception as error:
            traceback.print_exc()
            write({"status": kind(error), "reason": reason(error)})


def kind(error: BaseException) -> str:
    """What a row calls an error: "skipped", "out of memory" or "failed"."""
    if isinstance(error, Skip):
        return "skipped"
    return "out of memory" if out_of_memory(error) else "failed"


def out_of_memory(error: BaseException) -> bool:
    """Also of libraries that raise something else than torch.OutOfMemoryError."""
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower())


def reason(error: BaseException) -> str:
    """The error's first line, with its type unless it is a Skip."""
    lines = str(error).strip().splitlines() or [""]
    said = lines[0] if isinstance(error, Skip) else f"{type(error).__name__}: {lines[0]}"
    return said[:REASON]


# ---- around it -----------------------------------------------------------------------------------


def alone(part: Part, place: dict[str, Any], seconds: float, context: Any) -> list[Row]:
    """The part's rows, each with "part" and "status"; the last has the part's "wall_seconds".

    Args: seconds: when it is ended. context: of multiprocessing ("spawn": a fresh interpreter).
    """
    with tempfile.TemporaryDirectory(prefix="course-gpu-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        process = context.Process(target=work, args=(part, place, folder))
        began = time.monotonic()
        try:
            process.start()
            process.join(seconds)
            late = process.is_alive()
        finally:
            end(process)
        spent = time.monotonic() - began
        rows = list(read(folder / "rows.jsonl"))
        last = last_line(folder / "log")
    if late:
        rows.append({"status": "timeout", "reason": too_late(part, seconds)})
    elif process.exitcode:
        rows.append({"status": "died", "reason": death(process.exitcode, last)})
    elif not rows:
        rows.append({"status": "failed", "reason": "it gave no row"})
    rows = [{"part": part.name, "status": "ok", **row} for row in rows]
    rows[-1]["wall_seconds"] = round(spent, 1)
    return rows


def end(process: Any) -> None:
    """Ends the process and everything that it has started."""
    if process.pid is None:  # it never started
        return
    with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join(10)


def too_late(part: Part, seconds: float) -> str:
    if seconds < part.limit:
        return f"no time left: stopped after {seconds:.0f} s"
    return f"not done after {seconds:.0f} s, its limit"


def death(code: int, last: str) -> str:
    """Why a process ended that could not say so itself."""
    how = f"exit code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"killed by {signal.Signals(-code).name}"
    return f"{how}; last line: {last}"[:REASON] if last else how


def read(file: Path) -> Iterator[Row]:
    """The whole lines of a file; one that was being written when the process ended is not."""
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


def last_line(file: Path) -> str:
    with contextlib.suppress(OSError):
        lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""
    return ""


def conduct(
    parts: list[Part],
    place: dict[str, Any],
    seconds: float,
    write: Callable[[list[Row]], None],
    context: Any,
    began: float | None = None,
    least: float = LEAST,
) -> list[Row]:
    """Runs the parts in their order; `write` gets all rows after each, with the parts to come.

    Args:
        place: what a part is told of where it runs; place["has"] says what there is.
        seconds: of all parts together, counted from `began` (a time.monotonic()): now if None.
        least: a part is skipped when fewer seconds are left.
    """
    began = time.monotonic() if began is None else began
    rows: list[Row] = []
    for number, part in enumerate(parts):
        left = seconds - (time.monotonic() - began)
        missing = [need for need in part.needs if not place["has"].get(need)]
        if missing:
            found = [skipped(part, f"needs {' and '.join(missing)}, which is not here")]
        elif left < least:
            found = [skipped(part, f"no time left ({max(left, 0):.0f} of {seconds:.0f} s)")]
        else:
            found = alone(part, place, min(part.limit, left), context)
        rows += found
        write(rows + [pending(other) for other in parts[number + 1 :]])
        report(found)
    return rows


def skipped(part: Part, why: str) -> Row:
    return {"part": part.name, "status": "skipped", "reason": why, "wall_seconds": 0.0}


def pending(part: Part) -> Row:
    return {"part": part.name, "status": "not reached", "reason": "not yet when this was written"}


def report(rows: list[Row]) -> None:
    """A line on the screen for a part that has ended."""
    last = rows[-1]
    said = f" ({last['reason']})" if "reason" in last else ""
    line = f"{last['part']:26s} {last['wall_seconds']:6.1f} s  {last['status']}{said}"
    print(line, file=sys.stderr, flush=True)
