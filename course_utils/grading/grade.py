"""`course grade`: every submission once, side by side, resumable; then the tables and the pages.

The parent process only reads files, hands out work and writes results. Notebooks are parsed and
marked in processes of their own (or on a dask cluster), student code runs in their sandboxes.
"""

import hashlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import course_utils
from course_utils.errors import CourseError
from course_utils.grading.checks import find
from course_utils.grading.collect import Submission
from course_utils.grading.marking import GRADED, NOT_GRADED, Order, Report, mark, refused
from course_utils.grading.notebook import NotebookError
from course_utils.grading.protocol import printable
from course_utils.grading.sandbox import Limits
from course_utils.grading.store import Store


@dataclass(frozen=True)
class Options:
    """How to grade."""

    jobs: int = 0  # processes; 0: one for each core
    only: tuple[str, ...] = ()  # task names; all where empty
    again: bool = False  # also what is graded already
    seconds: float = 90.0  # of wall time for one submission
    limits: Limits = field(default_factory=Limits)
    scheduler: str = ""  # a dask scheduler's address
    unsafe: bool = False


Say = Callable[[int, int, Report], None]  # done, of, the newest report


def grade(store: Store, submissions: list[Submission], options: Options, say: Say) -> list[Report]:
    """Grades what is not graded yet and keeps each result as soon as it is there.

    Returns the reports made now. Raises CourseError: an unknown task, no sandbox, no cluster.
    """
    for name in options.only:
        for set in {one.set for one in submissions}:
            find(set, name)
    versions = {set: grader_version(set) for set in {one.set for one in submissions}}
    key = store.key()
    reports: list[Report] = []
    todo = [one for one in submissions if _is_due(store, one, versions[one.set], options)]
    work = _Work(options, key)

    for one, data, report in work.results(todo):
        if data is not None:
            store.keep_original(one.slug, one.set, data)
        merged = _merged(store, one, report) if options.only else report
        store.save(one.slug, merged, versions[one.set])
        reports.append(merged)
        say(len(reports), len(todo), merged)
    return reports


def grader_version(set: str) -> str:
    """A digest of the course's version and of the code that judges this set."""
    here = Path(__file__).parent
    names = [here / name for name in ("checks.py", "finding.py", "call.py", "marking.py")]
    digest = hashlib.sha256(course_utils.__version__.encode())
    for path in (*names, *sorted((here / "tasks" / f"set_{set}").glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _is_due(store: Store, one: Submission, version: str, options: Options) -> bool:
    """Whether a submission must be graded: new, changed, not graded, or other checks by now."""
    if options.again or options.only:
        return True
    kept = store.load(one.set, one.slug)
    if kept is None:
        return True
    report, made_by = kept
    if report.status == NOT_GRADED or made_by != version or report.student != one.student:
        return True
    if (report.warning != "") and not options.unsafe:
        return True  # graded without a sandbox, and now there is to be one
    try:
        return hashlib.sha256(one.read()).hexdigest() != report.digest
    except NotebookError as error:
        return str(error) != report.reason


def _merged(store: Store, one: Submission, report: Report) -> Report:
    """After a regrade of some tasks the others' marks stay, if the notebook is the same."""
    kept = store.load(one.set, one.slug)
    if kept is None or report.status != GRADED:
        return report
    before = kept[0]
    if before.status != GRADED or before.digest != report.digest:
        return report
    new = {task.name: task for task in report.tasks}
    tasks = tuple(new.get(task.name, task) for task in before.tasks)
    return replace(
        before, tasks=tasks, seconds=report.seconds, warning=before.warning or report.warning
    )


Running = dict[Future[Report], tuple[Submission, bytes]]
Done = tuple[Submission, bytes | None, Report]  # None: the notebook could not be read


class _Work:
    """Hands submissions to processes, at most one each at a time, and gives back their reports."""

    def __init__(self, options: Options, key: bytes):
        self.options, self.key = options, key

    def order(self, one: Submission) -> Order:
        o = self.options
        return Order(one.set, one.student, self.key, o.only, o.seconds, o.limits, o.unsafe)

    def results(self, todo: list[Submission]) -> Iterator[Done]:
        """In the order in which they are done.

        If a marking process dies, which no submission should be able to bring about, those that
        were at work are marked again one at a time: so the guilty one is known.
        """
        left = list(reversed(todo))  # the next one last
        while left:
            running: Running = {}
            try:
                yield from self._pooled(left, running, self.options.jobs)
            except BrokenProcessPool:
                for one, data in list(running.values()):
                    yield from self._alone(one, data)

    def _alone(self, one: Submission, data: bytes) -> Iterator[Done]:
        try:
            yield from self._pooled([one], {}, 1)
        except BrokenProcessPool:
            report = refused(self.order(one), "the grader's own process ended; please report this")
            yield one, data, replace(report, status=NOT_GRADED)

    def _unreadable(self, one: Submission, reason: str) -> Report:
        report = refused(self.order(one), reason)
        return replace(report, status=NOT_GRADED) if one.ours else report

    def _pooled(self, left: list[Submission], running: Running, jobs: int) -> Iterator[Done]:
        """Takes from the end of `left`; `running` holds what is at work, also after an error."""
        with executor(replace(self.options, jobs=jobs), len(left)) as (pool, width):
            while left or running:
                while left and len(running) < width:
                    one = left.pop()
                    try:
                        data = one.read()
                    except NotebookError as error:
                        yield one, None, self._unreadable(one, str(error))
                        continue
                    try:
                        running[pool.submit(mark, data, self.order(one))] = one, data
                    except BrokenProcessPool:
                        left.append(one)
                        raise
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    report = future.result()
                    yield *running.pop(future), report


@contextmanager
def executor(options: Options, todo: int) -> Iterator[tuple[Executor, int]]:
    """Processes here, or a dask cluster; and how many submissions to hand out at once."""
    if options.scheduler:
        with _cluster(options.scheduler) as found:
            yield found
        return
    jobs = max(1, min(options.jobs or os.cpu_count() or 1, todo))
    pool = ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), _start_process, (os.getpid(),)
    )
    try:
        yield pool, jobs
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_process(parent: int) -> None:
    """In a marking process: it ends when the grader does, however that ended."""
    os.environ["OMP_NUM_THREADS"] = "1"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _cluster(address: str) -> Iterator[tuple[Any, int]]:
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise CourseError(
            "--scheduler needs dask: pip install distributed, here and on the workers"
        ) from error
    try:
        client = Client(address, timeout=20)
    except (OSError, ValueError, TypeError) as error:
        raise CourseError(f"no dask scheduler answers at {address}: {error}") from error
    try:
        threads = sum(client.nthreads().values())
        if not threads:
            raise CourseError(f"the dask scheduler at {address} has no workers")
        yield client.get_executor(pure=False), threads
    finally:
        with suppress(Exception):
            client.close()


def print_progress(done: int, of: int, report: Report) -> None:
    """A line for each submission, on stderr."""
    points = f"{report.points:g} of {report.out_of:g}" if report.status == GRADED else report.reason
    line = f"[{done}/{of}] {report.set} {printable(report.student)}: {report.status}, {points}"
    if report.seconds:
        line += f" ({report.seconds['total']:.2f} s)"
    print(line.encode("utf-8", "replace").decode(), file=sys.stderr, flush=True)
