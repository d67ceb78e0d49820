"""Following a run: an inspector that reads a RunLog, also while it is being written.

Nothing but the run's files connects the two: the trainer may be in this process, in another one, or
long finished. A file is read from where the last look ended, so a look costs what is new.
"""

import contextvars
import json
import threading
import time
from pathlib import Path
from typing import Any

from course_utils.errors import RunError
from course_utils.inspectors.base import Inspector
from course_utils.training.run import RunLog

LOG, ROLLOUTS = "log.jsonl", "rollouts.jsonl"


def directory_of(run: RunLog | Path | str) -> Path:
    """Where a run is, or will be. Raises RunError where there is something else."""
    directory = run.directory if isinstance(run, RunLog) else Path(run)
    if directory.exists() and not directory.is_dir():
        raise RunError(f"{directory} is not a run directory; give the directory of one run")
    found = [p.parent.name for p in directory.glob(f"*/{LOG}")]
    if found and not (directory / LOG).exists():
        raise RunError(
            f"{directory} holds several runs ({', '.join(sorted(found))}); give the directory of "
            f"one of them, such as {directory / sorted(found)[0]}"
        )
    return directory


class Tail:
    """Reads the whole lines that were added to a JSONL file since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._restart()

    def _restart(self) -> None:
        self._offset, self._line = 0, 0
        self._identity: tuple[int, int] | None = None
        self._last = b""  # the last line read: where it changes, the file was rewritten

    def new_rows(self) -> tuple[bool, list[dict[str, Any]]]:
        """(the file was rewritten, rows): with True, the rows are all of them, from the start.

        Raises RunError naming a line that is not a row.
        """
        try:
            with open(self.path, "rb") as file:
                rewritten = self._was_rewritten(file)
                if rewritten:
                    self._restart()
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            gone = self._offset > 0
            self._restart()
            return gone, []
        whole = data[: data.rfind(b"\n") + 1]  # the rest is still being written
        lines = whole.splitlines(keepends=True)
        rows = [self._row(self._line + i, line) for i, line in enumerate(lines, start=1)]
        self._offset += len(whole)
        self._line += len(lines)
        self._last = lines[-1] if lines else self._last
        return rewritten, rows

    def _was_rewritten(self, file: Any) -> bool:
        """A resumed run drops later rows; a new one in the same place starts over."""
        if not self._offset:
            return False
        file.seek(max(0, self._offset - len(self._last)))
        return file.read(len(self._last)) != self._last

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                return row
        except ValueError:
            pass
        raise RunError(
            f"{self.path} line {number} is not a row of a run ({line[:60]!r}): the file was "
            "changed or damaged; delete that line, or restore the file"
        )


class RunInspector(Inspector):
    """An Inspector of the files of one run: `refresh` reads what is new, `follow` keeps doing so.

    Subclasses write `took(log_rows, rollouts, fresh)`: turn rows into an `append`, or, when
    `fresh`, into a new `set_state`.
    """

    reads: tuple[str, ...] = (LOG, ROLLOUTS)

    def __init__(self, run: RunLog | Path | str, state: dict[str, Any], ui: Any = None) -> None:
        self.directory = directory_of(run)
        self.error: Exception | None = None  # what ended `follow`, if anything did
        self._tails = {name: Tail(self.directory / name) for name in self.reads}
        self._busy = threading.Lock()
        self._thread: threading.Thread | None = None
        self._enough = threading.Event()
        super().__init__(state, ui)
        self.refresh()

    def took(self, log: list[dict[str, Any]], rollouts: list[dict[str, Any]], fresh: bool) -> None:
        """Takes new rows in; with `fresh`, what was taken before is void."""
        raise NotImplementedError

    def refresh(self) -> int:
        """Reads what the run has written since the last time; returns the number of new rows.

        Raises RunError for a damaged file, also when `follow` was what met it.
        """
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self._look()

    def _look(self) -> int:
        with self._busy:
            found = {name: tail.new_rows() for name, tail in self._tails.items()}
            if any(rewritten for rewritten, _ in found.values()):
                self._tails = {name: Tail(self.directory / name) for name in self.reads}
                found = {name: tail.new_rows() for name, tail in self._tails.items()}
                self.took(found.get(LOG, (0, []))[1], found.get(ROLLOUTS, (0, []))[1], True)
            elif any(rows for _, rows in found.values()):
                self.took(found.get(LOG, (0, []))[1], found.get(ROLLOUTS, (0, []))[1], False)
            return sum(len(rows) for _, rows in found.values())

    def follow(self, every: float = 0.5, patience: float = 1800.0) -> "RunInspector":
        """Looks for new rows from a thread, every so many seconds, until `stop`.

        It ends by itself after `patience` seconds without a row. A look at unchanged files is two
        system calls; a found fault is shown, and raised by the next `refresh` or `stop`.
        """
        if self._thread is not None and self._thread.is_alive():
            return self
        self._enough = threading.Event()
        context = contextvars.copy_context()  # comm messages need the cell that they belong to
        self._thread = threading.Thread(
            target=context.run,
            args=(self._run, every, patience, self._enough),
            name=f"follow {self.directory}",
            daemon=True,
        )
        self.append(set={"live": True})
        self._thread.start()
        return self

    def _run(self, every: float, patience: float, enough: threading.Event) -> None:
        last = time.monotonic()
        try:
            while not enough.wait(every):
                if self._look():
                    last = time.monotonic()
                if time.monotonic() - last > patience:
                    break
            self.append(set={"live": False})
        except Exception as error:
            self.error = error
            self.append(set={"live": False, "notice": f"{type(error).__name__}: {error}"})

    def stop(self) -> "RunInspector":
        """Ends `follow` after a last look. Raises what it met, if it met anything."""
        self._enough.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None
        self.refresh()
        return self


def watch(
    run: RunLog | Path | str, kind: type[RunInspector] | None = None, every: float = 0.5
) -> RunInspector:
    """Shows a run live; put it in the cell before the training. Returns the inspector.

    `kind` is RewardKLDashboard if not given; `watch(run, RolloutInspector)` shows the answers. The
    run may be a directory that does not exist yet, or one that another process writes.
    """
    if kind is None:
        from course_utils.inspectors.dashboard import RewardKLDashboard

        kind = RewardKLDashboard
    make: Any = kind
    inspector: RunInspector = make(run)
    return inspector.follow(every)
