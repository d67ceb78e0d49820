"""Starts the worker where it can reach nothing, hands it a submission's pieces, ends it on time.

Two layers. bubblewrap gives the worker a read-only system, no network, no home, an empty
environment; the worker's child for each task then gives up the rest (see `confine`). As root the
child becomes a user id of its own; as an ordinary user it lives in a user namespace.
A failure of the machine (`SandboxBroken`) is never a failure of the student (`Failed`).
"""

import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from course_utils.errors import CourseError
from course_utils.grading.call import Call, Failed, MachineFailed, Outcome
from course_utils.grading.notebook import Piece
from course_utils.grading.protocol import Closed, Late, Pipe, ReplyError

HERE = Path(__file__).parent
INSIDE = ("__init__.py", "call.py", "confine.py", "protocol.py", "worker.py")  # of grading/
START = "import sys; sys.path.insert(0, {!r}); from course_utils.grading.worker import start; "
SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib")
START_SECONDS = 120  # torch's import on a busy machine
ORDER_SECONDS = 20  # for the worker's parent to fork or to kill


class NoSandbox(CourseError):
    """This machine cannot confine a student's code; says why and what to do."""


class SandboxBroken(MachineFailed):
    """The sandbox failed for the machine's reasons: to be retried, then reported as not graded."""


@dataclass(frozen=True)
class Limits:
    """What one task's process may use."""

    call_seconds: float = 20.0  # wall time of one call, and of all definitions together
    cpu_seconds: int = 60
    memory: int = 2 * 2**30  # bytes over what torch maps
    disk: int = 64 * 2**20  # bytes of /tmp, of /dev/shm, of one file
    processes: int = 64  # threads count; new processes are refused where seccomp works


class Sandbox:
    """A worker process and the way to talk to it; use as a context manager."""

    def __init__(self, limits: Limits | None = None, unsafe: bool = False):
        """Starts the worker. Raises NoSandbox where none can be had and `unsafe` is not asked."""
        self.limits = limits or Limits()
        self.unsafe = unsafe
        self.warning = "graded WITHOUT a sandbox" if unsafe else ""  # for every row
        self.protection = ""  # "bubblewrap and seccomp"; the latter where the kernel takes filters
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except SandboxBroken as error:
            self.close()
            raise NoSandbox(
                f"no sandbox can be had here: {error}. Students' code is not run without one; "
                "install bubblewrap (Debian: apt-get install bubblewrap), allow user namespaces, "
                "or run as root; to run code that you trust anyway, ask for unsafe grading"
            ) from error

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = os.geteuid() == 0
        options = {
            "isolate": not self.unsafe,
            "uid": _fresh_uid() if root and not self.unsafe else None,
            "limits": asdict(self.limits),
        }
        code = START.format(str(HERE.parent.parent) if self.unsafe else "/grader")
        python = [sys.executable, "-I", "-c", code + "start(sys.argv[1:])"]
        python += [str(theirs.fileno()), json.dumps(options)]
        command = python if self.unsafe else [*bwrap_command(root), *python]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._control = ours
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True,
            env=environment() if self.unsafe else {"PATH": os.defpath}, cwd="/",
        )  # fmt: skip
        theirs.close()
        said = self._answer(START_SECONDS).split()
        if said[:1] != ["ready"]:
            raise SandboxBroken("the worker did not start")
        self.protection = "none" if self.unsafe else " and ".join(["bubblewrap", *said[1:]])

    def _answer(self, seconds: float) -> str:
        try:
            self._control.settimeout(seconds)
            said = self._control.recv(2000).decode("utf-8", "replace")
        except OSError as error:
            raise SandboxBroken(f"the worker does not answer: {error}") from error
        if said:
            return said
        self._log.seek(0)
        words = self._log.read(5000).decode("utf-8", "replace").strip().splitlines()
        raise SandboxBroken(words[-1] if words else "the worker ended")

    @contextmanager
    def task(self, pieces: Iterable[Piece], deadline: float | None = None) -> Iterator["Session"]:
        """A fresh process with these definitions run. Raises SandboxBroken after one restart.

        Args: deadline: of the whole session, in time.monotonic()'s seconds.
        """
        try:
            pipe = self._spawn()
        except SandboxBroken:
            self.close()
            self._start()
            pipe = self._spawn()
        session = Session(self, pipe, deadline)
        try:
            session.define(list(pieces))
            yield session
        finally:
            session.end()

    def _spawn(self) -> Pipe:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"spawn"], [theirs.fileno()])
                said = self._answer(ORDER_SECONDS)
            except (OSError, SandboxBroken) as error:
                ours.close()
                raise SandboxBroken(str(error)) from error
        if said != "spawned":
            ours.close()
            raise SandboxBroken(said)
        return Pipe(ours)

    def kill(self) -> tuple[int, float, str]:
        """Ends all of the task's processes: exit code, CPU seconds, "itself" or "order"."""
        try:
            self._control.send(b"kill")
            _, code, seconds, who = self._answer(ORDER_SECONDS).split()
        except (OSError, ValueError) as error:
            raise SandboxBroken(f"the task's process cannot be ended: {error}") from error
        return int(code), float(seconds), who

    def close(self) -> None:
        """Ends the worker and everything in it."""
        if self._process is None:
            return
        self._control.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._log.close()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """One submission's process for one task. After a failure every later call fails alike."""

    def __init__(self, box: Sandbox, pipe: Pipe, deadline: float | None):
        self.box, self.pipe, self.deadline = box, pipe, deadline
        self.faults: list[tuple[int, str]] = []  # (piece's number, what it raised)
        self.failure: Failed | None = None
        self.ended = False
        self.seconds = 0.0  # waited for replies

    def define(self, pieces: list[Piece]) -> None:
        request = {"define": [(p.source, p.cell, p.line) for p in pieces]}
        try:
            reply = self._ask(request)
        except Failed:
            return  # kept: the first call raises it
        faults = reply.get("faults")
        for fault in faults if isinstance(faults, list) else []:
            if isinstance(fault, list) and len(fault) == 2 and isinstance(fault[0], int):
                self.faults.append((fault[0], str(fault[1])[:300]))

    def call(self, names: Sequence[str]) -> "RemoteCall":
        """The functions of these names, as the checks call them."""
        return RemoteCall(self, names)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.failure:
            raise self.failure
        started = time.monotonic()
        deadline = started + self.box.limits.call_seconds
        if self.deadline is not None:
            deadline = min(deadline, self.deadline)
        try:
            self.pipe.send(request, deadline)
            reply = self.pipe.receive(deadline)
        except ReplyError as error:
            raise self._fail(error) from None
        finally:
            self.seconds += time.monotonic() - started
        if not isinstance(reply, dict):
            raise self._fail(ReplyError("the reply is not what the worker sends"))
        return reply

    def _fail(self, error: ReplyError) -> Failed:
        """The student's failure that a bad reply means; SandboxBroken if the machine did it."""
        code, seconds, who = self.end()
        if isinstance(error, Late):
            self.failure = Failed("late", self._too_long())
        elif isinstance(error, Closed):
            used_up = seconds >= self.box.limits.cpu_seconds - 1
            killed = code == -signal.SIGKILL and who == "itself" and not self.box.unsafe
            if killed and not used_up:  # process 1 of its PIDs: nobody inside can do that to it
                raise SandboxBroken("the machine killed the task's process (out of memory?)")
            reason = "it used up its CPU time" if used_up else f"the process ended ({code})"
            self.failure = Failed("ended", reason)
        else:
            self.failure = Failed("reply", f"its reply cannot be used: {error}")
        return self.failure

    def _too_long(self) -> str:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return "the time for the whole notebook was used up"
        return f"it took longer than the {self.box.limits.call_seconds:g} s allowed"

    def end(self) -> tuple[int, float, str]:
        """Ends the process; idempotent."""
        if self.ended:
            return 0, 0.0, "order"
        self.ended = True
        self.pipe.close()
        return self.box.kill()


class RemoteCall(Call):
    """Functions in the sandbox, called like those here."""

    def __init__(self, session: Session, names: Sequence[str]):
        self.session, self.names = session, names

    def nth(self, which: int, *args: Any, wrt: tuple[int, ...] = (), **kwargs: Any) -> Outcome:
        name = self.names[which]
        request = {"call": name, "args": args, "kwargs": kwargs, "wrt": list(wrt)}
        reply = self.session._ask(request)
        if "missing" in reply:
            raise Failed("missing", f"the notebook defines no {name!r} that could be run")
        if "raised" in reply:
            raise Failed("raised", str(reply["raised"])[:500])
        gradients, after = reply.get("gradients"), reply.get("arguments")
        if not isinstance(gradients, tuple) or len(gradients) != len(wrt):
            raise Failed("reply", "its reply has no gradients where they were asked for")
        if not isinstance(after, tuple) or len(after) != len(args):
            raise Failed("reply", "its reply does not say what became of the arguments")
        known = tuple(g if isinstance(g, Tensor) else None for g in gradients)
        return Outcome(reply.get("value"), known, after)


_counter = itertools.count()


def _fresh_uid() -> int:
    """A user id that no other worker has, among those that this machine maps."""
    wanted = 0x60000000 + os.getpid() * 64 + next(_counter) % 64
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = (int(n) for n in line.split())
        if first <= wanted < first + count:
            return wanted
    return 20_000 + wanted % 40_000  # a container with 65,536 ids


def environment() -> dict[str, str]:
    return {
        "PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip


def bwrap_command(root: bool) -> list[str]:
    """The bubblewrap command line up to the program. Raises SandboxBroken without bwrap."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxBroken("bubblewrap (bwrap) is not installed")
    if Path(sys.prefix).resolve().is_relative_to("/tmp"):
        raise SandboxBroken(
            f"Python's environment lies in {sys.prefix}, and the sandbox has a /tmp of its own: "
            "make the environment in another directory"
        )
    command = [bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv"]
    keep = ["SYS_ADMIN", "SETPCAP"]
    if root:
        keep += ["SETUID", "SETGID", "KILL"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    command += ["--cap-drop", "ALL"]
    command += [word for name in keep for word in ("--cap-add", f"CAP_{name}")]
    for path in _readable():
        command += ["--ro-bind", str(path), str(path)]
    for link in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if Path(link).is_symlink():
            command += ["--symlink", str(Path(link).readlink()), link]
        elif Path(link).exists():
            command += ["--ro-bind", link, link]
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        if (Path(site) / "course_utils").is_dir():  # it holds the checks and the solutions
            hidden = str(Path(site) / "course_utils")
            command += ["--tmpfs", hidden, "--remount-ro", hidden]
    inside = Path("/grader/course_utils")
    command += ["--ro-bind", str(HERE.parent / "__init__.py"), str(inside / "__init__.py")]
    for name in INSIDE:
        command += ["--ro-bind", str(HERE / name), str(inside / "grading" / name)]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp"]
    for name, value in environment().items():
        command += ["--setenv", name, value]
    # bubblewrap's own root and /dev are tmpfs; as an ordinary user the worker would own them, fill
    # memory through them, and leave files there for the next submission.
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--"]


def _readable() -> list[Path]:
    """The system's programs and libraries, Python's and torch's: no home, no /etc, no data."""
    paths = [Path(p) for p in SYSTEM]
    for prefix in {sys.prefix, sys.base_prefix}:
        paths += [Path(prefix) / part for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
    for module in ("torch", "safetensors"):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin:
            paths.append(Path(spec.origin).parent.parent)
    kept: list[Path] = []
    for path in sorted({p for p in paths if p.exists()}):
        if not any(path.is_relative_to(above) for above in kept):
            kept.append(path)
    return kept
