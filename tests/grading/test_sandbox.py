"""The sandbox itself: refusing, marking, restarting, telling the machine's faults from others."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from course_utils.grading import sandbox
from course_utils.grading.call import Failed
from course_utils.grading.notebook import Piece
from course_utils.grading.sandbox import NoSandbox, Sandbox, SandboxBroken


def piece(source, name="f"):
    return Piece("definition", (name,), frozenset(), source, 2, 4)


DOUBLE = piece("def f(x, by=2):\n    return x * by")


def children_of(pid):
    """Process ids below `pid`, as this process sees them."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *children_of(int(child))]
    return found


def test_values_gradients_and_arguments_come_back(box):
    with box.task([DOUBLE]) as session:
        outcome = session.call(["f"])(torch.ones(3), by=4, wrt=(0,))
    assert outcome.value.tolist() == [4, 4, 4]
    assert outcome.gradients[0].tolist() == [4, 4, 4]
    assert outcome.arguments[0].tolist() == [1, 1, 1]


def test_definitions_that_fail_are_reported_and_the_others_work(box):
    with box.task([piece("import nothing_like_this"), DOUBLE]) as session:
        assert session.faults[0][0] == 0
        assert "ModuleNotFoundError" in session.faults[0][1]
        assert "cell 2, line 4" in session.faults[0][1]
        assert session.call(["f"])(3).value == 6
        with pytest.raises(Failed, match="defines no 'g'"):
            session.call(["g"])()


def test_after_the_process_ended_every_call_fails_alike_and_at_once(box):
    with box.task([piece("def f():\n    import os\n    os._exit(5)")]) as session:
        for _ in range(3):
            with pytest.raises(Failed, match=r"ended \(5\)"):
                session.call(["f"])()


def test_the_deadline_of_the_whole_session_cuts_calls(box):
    late = time.monotonic() - 1
    with box.task([DOUBLE], deadline=late) as session, pytest.raises(Failed) as caught:
        session.call(["f"])(1)
    assert caught.value.kind == "late"


def test_a_process_killed_by_the_machine_is_not_the_students_fault(box):
    with box.task([piece("def f():\n    while True: pass")]) as session:
        os.kill(max(children_of(box._process.pid)), signal.SIGKILL)
        call = session.call(["f"])
        with pytest.raises(SandboxBroken, match="machine"):
            call()
    with box.task([DOUBLE]) as session:
        assert session.call(["f"])(1).value == 2


def test_a_worker_that_died_is_started_again(box):
    os.killpg(box._process.pid, signal.SIGKILL)
    with box.task([DOUBLE]) as session:
        assert session.call(["f"])(1).value == 2


def test_nothing_lives_on_after_the_sandbox(box):
    with Sandbox(box.limits) as other, other.task([DOUBLE]):
        pids = children_of(other._process.pid)
        assert len(pids) >= 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_without_bubblewrap_grading_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(NoSandbox, match=r"bwrap\) is not installed.*apt-get install bubblewrap"):
        Sandbox()


def test_a_bubblewrap_that_cannot_start_is_refused_with_its_own_words(monkeypatch):
    words = "bwrap: No permissions to create new namespace"
    monkeypatch.setattr(
        sandbox, "bwrap_command", lambda root: ["/bin/sh", "-c", f"echo {words} >&2; exit 1"]
    )
    with pytest.raises(NoSandbox, match=words):
        Sandbox()


def test_unsafe_grading_works_and_says_so_for_every_row():
    with Sandbox(unsafe=True) as box:
        assert "WITHOUT" in box.warning
        with box.task([DOUBLE]) as session:
            assert session.call(["f"])(2).value == 4


def test_no_home_nor_data_is_shown_to_the_worker():
    try:
        words = sandbox.bwrap_command(root=True)
    except SandboxBroken as error:
        pytest.skip(str(error))
    shown = [Path(b) for a, b in itertools.pairwise(words) if a == "--ro-bind"]
    here = Path(sandbox.__file__).parent
    for private in (Path.home(), here, here / "tasks", Path("/etc"), Path("/var"), Path("/usr")):
        assert not any(private.is_relative_to(path) for path in shown)


def test_the_worker_imports_no_checks():
    code = "import sys, course_utils.grading.worker as w; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {m for m in done.stdout.split() if m.startswith("course_utils")}
    files = {name.removesuffix(".py") for name in sandbox.INSIDE} - {"__init__"}
    assert ours == {"course_utils", "course_utils.grading"} | {
        f"course_utils.grading.{name}" for name in files
    }
