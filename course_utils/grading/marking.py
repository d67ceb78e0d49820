"""One submission: the notebook's bytes in, what each task got out. Plain data both ways.

`mark` runs in a process of the grader (or of a cluster), with a sandbox that it keeps for the next
submission. Whatever the notebook holds, it returns a Report; only faults of ours raise.
"""

import ast
import hashlib
import hmac
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from course_utils.grading.checks import Rounds, Task, run_task, tasks
from course_utils.grading.notebook import (
    MAX_NOTES,
    Notebook,
    NotebookError,
    Piece,
    looked_up,
    parse,
)
from course_utils.grading.sandbox import Limits, Sandbox, SandboxBroken

HIDDEN_SIZES = ((0, 4), (4, 8), (8, 13))  # a hidden round's size is drawn from each range
ATTEMPTS = 3  # with a sandbox that the machine breaks
MAX_WRITTEN = 20_000  # characters kept of one answer in words

GRADED, REFUSED, NOT_GRADED = "graded", "refused", "not graded"


@dataclass(frozen=True)
class Order:
    """What a process needs to know to mark a submission."""

    set: str
    student: str
    key: bytes  # of this grading: hidden inputs are drawn from it, students never see it
    only: tuple[str, ...] = ()  # task names; all where empty
    seconds: float = 90.0  # wall time of the whole submission
    limits: Limits = field(default_factory=Limits)
    unsafe: bool = False


@dataclass(frozen=True)
class CheckMark:
    name: str
    points: float
    out_of: float
    messages: tuple[str, ...]  # for the student
    mistakes: tuple[str, ...]  # their short names
    hidden: bool


@dataclass(frozen=True)
class TaskMark:
    name: str
    checks: tuple[CheckMark, ...]
    seconds: float

    @property
    def points(self) -> float:
        return sum(check.points for check in self.checks)

    @property
    def out_of(self) -> float:
        return sum(check.out_of for check in self.checks)


@dataclass(frozen=True)
class Report:
    """What became of one submission."""

    student: str
    set: str
    status: str  # graded, refused (0 points: it is no notebook), not graded (no fault of theirs)
    reason: str = ""
    digest: str = ""  # sha256 of the notebook
    tasks: tuple[TaskMark, ...] = ()
    notes: tuple[str, ...] = ()  # "cell 4, line 2: …"
    answers: dict[str, str] = field(default_factory=dict)  # grade_id -> words
    code: dict[str, str] = field(default_factory=dict)  # grade_id -> the student's cell
    definitions: dict[str, tuple[str, int]] = field(default_factory=dict)  # name -> digest, lines
    warning: str = ""
    protection: str = ""  # what the student's code was kept in
    seconds: dict[str, float] = field(default_factory=dict)  # total, sandbox, replies, checks

    @property
    def points(self) -> float:
        return sum(task.points for task in self.tasks)

    @property
    def out_of(self) -> float:
        return sum(task.out_of for task in self.tasks)


def as_json(report: Report) -> dict[str, Any]:
    return asdict(report)


def from_json(row: dict[str, Any]) -> Report:
    """The inverse of `as_json`, after JSON. Raises TypeError or KeyError for anything else."""

    def check(values: dict[str, Any]) -> CheckMark:
        lists = {name: tuple(values[name]) for name in ("messages", "mistakes")}
        return CheckMark(**{**values, **lists})

    marks = tuple(
        TaskMark(t["name"], tuple(check(c) for c in t["checks"]), t["seconds"])
        for t in row["tasks"]
    )
    definitions = {name: (d, int(n)) for name, (d, n) in row["definitions"].items()}
    changed = {"tasks": marks, "notes": tuple(row["notes"]), "definitions": definitions}
    return Report(**{**row, **changed})


def mark(data: bytes, order: Order) -> Report:
    """Marks a notebook in this thread's sandbox. Raises NoSandbox where none can be had."""
    started = time.monotonic()
    digest = hashlib.sha256(data).hexdigest()
    try:
        book = parse(data)
    except NotebookError as error:
        return refused(order, str(error), digest)
    todo = [task for task in tasks(order.set) if not order.only or task.name in order.only]
    spent = {"sandbox": 0.0, "replies": 0.0}
    marks: list[TaskMark] = []
    faults: dict[str, None] = {}  # what did not run, in order; tasks share definitions
    try:
        box = own_sandbox(order)
        warning, protection = box.warning, box.protection
        for task in todo:
            rounds = hidden_rounds(order, task, digest)
            deadline = started + order.seconds
            marks.append(_mark_task(task, book, order, rounds, deadline, spent, faults))
    except SandboxBroken as error:
        close_sandbox()
        reason = f"the sandbox failed {ATTEMPTS} times, last: {error}; grade this one again"
        return Report(order.student, order.set, NOT_GRADED, reason, digest, _blank(todo))
    total = time.monotonic() - started
    seconds = {"total": total, **spent, "checks": total - sum(spent.values())}
    return Report(
        order.student, order.set, GRADED, "", digest, tuple(marks), 
        (*_notes(book, todo), *list(faults)[:MAX_NOTES]),
        {name: text[:MAX_WRITTEN] for name, text in book.answers.items()},
        {task.name: book.solutions.get(task.name, "")[:MAX_WRITTEN] for task in todo},
        definitions(book.pieces, {name for task in todo for name in task.functions}),
        warning, protection, {name: round(value, 4) for name, value in seconds.items()},
    )  # fmt: skip


def refused(order: Order, reason: str, digest: str = "") -> Report:
    """The report on what cannot be graded at all: 0 points, and why."""
    return Report(order.student, order.set, REFUSED, reason, digest, _blank(tasks(order.set)))


def _blank(todo: Iterable[Task]) -> tuple[TaskMark, ...]:
    return tuple(
        TaskMark(t.name, tuple(CheckMark(c.name, 0, c.points, (), (), False) for c in t.checks), 0)
        for t in todo
    )


def hidden_rounds(order: Order, task: Task, digest: str) -> Rounds:
    """Seeds and sizes that only the key's owner can know; the same for the same notebook."""
    rounds = []
    for number, (low, high) in enumerate(HIDDEN_SIZES):
        words = "\0".join((order.set, task.name, order.student, digest, str(number)))
        drawn = hmac.digest(order.key, words.encode("utf-8", "surrogatepass"), "sha256")
        size = low + int.from_bytes(drawn[8:12], "big") % (high - low)
        rounds.append((int.from_bytes(drawn[:4], "big") >> 1, size))
    return tuple(rounds)


def _mark_task(
    task: Task,
    book: Notebook,
    order: Order,
    hidden: Rounds,
    deadline: float,
    spent: dict[str, float],
    faults: dict[str, None],
) -> TaskMark:
    """One process of the sandbox for one task; adds to `spent` and `faults`.

    Raises SandboxBroken after ATTEMPTS.
    """
    pieces, _ = book.needed(task.functions)
    for attempt in range(ATTEMPTS):
        started = time.monotonic()
        try:
            with own_sandbox(order).task(pieces, deadline) as session:
                ready, waited = time.monotonic(), session.seconds
                results = run_task(task, session.call(task.functions), hidden=hidden)
            break
        except SandboxBroken:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.2 * 4**attempt)  # a machine that is short of something needs a moment
    spent["sandbox"] += ready - started
    spent["replies"] += session.seconds - waited
    used = looked_up(pieces, task.functions)
    for number, said in session.faults:
        piece = pieces[number] if number in range(len(pieces)) else None
        if piece and used & set(piece.names):
            names = ", ".join(piece.names)
            faults[f"cell {piece.cell}: {names} could not be run: {said}"[:500]] = None
    checks = tuple(
        CheckMark(
            r.check, r.points, r.out_of, tuple(f.text(r.hidden) for f in r.findings),
            tuple(f.mistake for f in r.findings), r.hidden,
        )
        for r in results
    )  # fmt: skip
    return TaskMark(task.name, checks, round(time.monotonic() - started, 4))


def _notes(book: Notebook, todo: list[Task]) -> Iterator[str]:
    _, about = book.needed(name for task in todo for name in task.functions)
    for note in (*book.notes, *about):
        line = f", line {note.line}" if note.line else ""
        yield f"cell {note.cell}{line}: {note.message}"[:500]


def definitions(pieces: Iterable[Piece], names: set[str]) -> dict[str, tuple[str, int]]:
    """Of each function: a digest of its code without comments and layout, and its lines."""
    found = {}
    for piece in pieces:
        if piece.kind == "definition" and set(piece.names) & names:
            try:
                body = ast.dump(ast.parse(piece.source))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            digest = hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            for name in set(piece.names) & names:
                found[name] = (digest, piece.source.count("\n") + 1)
    return found


_own = threading.local()  # a sandbox is one conversation: each thread has its own


def own_sandbox(order: Order) -> Sandbox:
    """This thread's sandbox, made at its first use. Raises NoSandbox where none can be had."""
    kept = getattr(_own, "kept", None)
    wanted = (order.limits, order.unsafe)
    if kept is None or kept[0] != wanted:
        close_sandbox()
        _own.kept = wanted, Sandbox(order.limits, order.unsafe)
    box: Sandbox = _own.kept[1]
    return box


def close_sandbox() -> None:
    """Ends this thread's sandbox, if it has one."""
    kept = getattr(_own, "kept", None)
    _own.kept = None
    if kept is not None:
        kept[1].close()
