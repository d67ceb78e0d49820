"""Labels are made while the kernel is killed again and again: none may be lost, none written twice.

The browser is played by the test: it keeps each record until the kernel has said that it has it.
"""

import contextlib
import json
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from course_utils.data.labels import Labels, read_labels
from course_utils.data.pairs import read_pairs

from .labelling_process import PAIRS

SCRIPT = Path(__file__).with_name("labelling_process.py")


class Kernel:
    """The process, and what it has answered so far."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.answers: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.known = self.answers.get(timeout=60)["log"]

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("}\n"):  # a killed process may leave half a line
                self.answers.put(json.loads(line))

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead: the browser keeps the label
            self.process.stdin.write(json.dumps(message) + "\n")

    def heard(self, timeout: float = 0) -> list[Any]:
        """New log entries; waits so long for the first answer."""
        found: list[Any] = []
        with contextlib.suppress(queue.Empty):
            if timeout:
                found += self.answers.get(timeout=timeout)["log"]
            while True:
                found += self.answers.get_nowait()["log"]
        return found

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def label_while_killing(path: Path, kills: int, per_life: int) -> tuple[list[Any], Labels]:
    """Labels and takes back, killing `kills` times; returns (records made, the file's labels)."""
    rng = random.Random(kills)
    pairs = read_pairs(PAIRS).kept
    made: list[dict[str, Any]] = []
    outbox: dict[str, Any] = {}  # the browser's storage: id -> record
    for life in range(kills + 1):
        kernel = Kernel(path)
        for entry in kernel.known:
            outbox.pop(entry["id"], None)
        kernel.send({"kind": "labels", "have": 0, "records": list(outbox.values())})
        killer = threading.Timer(rng.uniform(0.0, 0.06), kernel.kill)
        for step in range(per_life):
            number = len(made)
            record = {"id": f"{number:032x}", "annotator": "me", "at": f"{number:09d}"}
            if step % 7 == 6:
                record |= {"kind": "undo", "of": made[-1]["id"]}
            else:
                choice = rng.choice(("left", "right", "tie", "skip"))
                record |= {"kind": "label", "pair": pairs[number].id, "choice": choice}
            made.append(record)
            outbox[record["id"]] = record
            kernel.send({"kind": "labels", "have": 0, "records": [record]})
            if step == 2 and life < kills:
                killer.start()
            for entry in kernel.heard():
                outbox.pop(entry["id"], None)
            time.sleep(0.002)
        if life < kills:
            killer.join()
            assert kernel.process.returncode == -signal.SIGKILL
            continue
        deadline = time.monotonic() + 60
        while outbox and time.monotonic() < deadline:
            for entry in kernel.heard(timeout=1):
                outbox.pop(entry["id"], None)
        kernel.kill()
    assert not outbox
    return made, read_labels(path)


def check(made: list[Any], found: Labels, path: Path) -> None:
    assert path.read_bytes().count(b"\n") == 1 + len(made)  # none twice, and the header
    ids = [r["id"] for r in found.records]
    assert sorted(ids) == sorted(r["id"] for r in made)
    undone = {r["of"] for r in made if r["kind"] == "undo"}
    wanted = {r["id"]: r["choice"] for r in made if r["kind"] == "label" and r["id"] not in undone}
    assert {r["id"]: r["choice"] for r in found.standing()} == wanted


def test_no_label_is_lost_when_the_kernel_is_killed_3_times(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    check(*label_while_killing(path, kills=3, per_life=25), path)


@pytest.mark.nightly
def test_no_label_is_lost_when_the_kernel_is_killed_20_times(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    made, found = label_while_killing(path, kills=20, per_life=60)
    check(made, found, path)
    print(f"20 kills, {len(made)} records made, {len(found.records)} in the file")
