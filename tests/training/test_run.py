"""RunLog: what is written is read back, whatever kills the writer."""

import errno
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from course_utils.errors import CheckpointError, CourseError, RunError
from course_utils.training.run import FORMAT, RunLog


@pytest.fixture
def log(tmp_path):
    return RunLog.create(tmp_path / "run", {"learning_rate": 1e-3, "steps": 4}, seed=7)


def write_number(value):
    def write(directory: Path) -> None:
        (directory / "sub").mkdir()
        (directory / "sub" / "value.txt").write_text(str(value))
        (directory / "big.bin").write_bytes(bytes(range(256)) * 10)

    return write


def test_rows_keep_full_precision_and_come_back_in_order(log):
    log.append({"step": 1, "loss": 0.1 + 0.2, "note": "naïve \u2028 line\nbreak", "flag": True})
    log.append({"step": 2, "loss": np.float32(1.5), "shape": (2, 3), "array": np.arange(3)})
    again = RunLog.open(log.directory)
    assert again.rows == [
        {"step": 1, "loss": 0.1 + 0.2, "note": "naïve \u2028 line\nbreak", "flag": True},
        {"step": 2, "loss": 1.5, "shape": [2, 3], "array": [0, 1, 2]},
    ]
    assert again.column("loss") == [0.1 + 0.2, 1.5]
    assert again.column("flag") == [True, None]
    assert list(again.frame()["step"]) == [1, 2]
    with pytest.raises(RunError, match=r"no column 'lost'.*'loss'"):
        again.column("lost")


def test_a_row_is_on_disk_as_soon_as_append_returns(log):
    for step in range(3):
        log.append({"step": step})
        assert len((log.directory / "log.jsonl").read_text().splitlines()) == step + 1


def test_values_that_json_lacks(log):
    log.append({"step": 1, "nan": math.nan, "inf": -math.inf, "list": [1.0, math.inf]})
    assert log.rows == [{"step": 1, "nan": None, "inf": None, "list": [1.0, None]}]
    with pytest.raises(RunError, match="cannot write object"):
        log.append({"step": 2, "bad": object()})
    for bad in ({"loss": 1.0}, {"step": "3"}, {"step": True}):
        with pytest.raises(RunError, match='int "step"'):
            log.append(bad)
    assert len(log.rows) == 1


def test_meta_says_what_made_the_run(log):
    meta = json.loads((log.directory / "meta.json").read_text())
    assert meta["format"] == FORMAT
    assert meta["seed"] == 7
    assert meta["config"] == {"learning_rate": 1e-3, "steps": 4}
    assert meta["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(meta["packages"]) >= {"torch", "transformers", "trl", "peft", "datasets"}
    assert meta["packages"]["torch"][0].isdigit()
    opened = RunLog.open(log.directory)
    assert (opened.config, opened.seed) == (log.config, 7)


def test_git_commit_of_a_checkout_and_of_a_package_that_git_does_not_know(tmp_path, monkeypatch):
    import course_utils
    from course_utils.training.run import git_commit

    def git(*words):
        options = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(
            ["git", *options, *words], cwd=tmp_path, check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    module = tmp_path / "__init__.py"
    module.write_text("")
    monkeypatch.setattr(course_utils, "__file__", str(module))
    git("init")
    assert git_commit() is None  # installed below somebody's repository, not part of it
    git("add", "__init__.py")
    git("commit", "-m", "first")
    assert git_commit() == git("rev-parse", "HEAD")
    module.write_text("changed")
    assert git_commit() == git("rev-parse", "HEAD") + "-dirty"


def test_importing_the_run_module_imports_no_torch():
    code = "import sys, course_utils.training.run; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- starting, continuing, refusing ----------------------------------------------------------


def test_a_second_run_in_the_same_directory_is_refused_continued_or_replaces(log):
    log.append({"step": 1})
    log.save_checkpoint(1, write_number(1))
    with pytest.raises(RunError, match=r"already holds a run.*resume=True"):
        RunLog.create(log.directory, log.config, seed=7)
    again = RunLog.create(log.directory, log.config, seed=7, resume=True)
    again.append({"step": 2})
    assert again.column("step") == [1, 2]
    new = RunLog.create(log.directory, {"other": 1}, seed=8, overwrite=True)
    assert new.rows == []
    assert new.latest_checkpoint() is None


def test_resume_without_a_run_starts_one(tmp_path):
    log = RunLog.create(tmp_path / "new" / "run", {}, seed=0, resume=True)
    log.append({"step": 1})
    assert log.column("step") == [1]


def test_resume_with_other_settings_names_them(log):
    with pytest.raises(RunError, match=r"learning_rate was 0.001, is now 0.01"):
        RunLog.create(log.directory, {"learning_rate": 1e-2, "steps": 4}, seed=7, resume=True)
    with pytest.raises(RunError, match="seed was 7, is now 8"):
        RunLog.create(log.directory, log.config, seed=8, resume=True)


def test_config_survives_the_trip_through_json(tmp_path):
    config = {"betas": (0.9, 0.95), "path": Path("x"), "nested": {"a": 1.5}}
    RunLog.create(tmp_path / "r", config, seed=0)
    RunLog.create(tmp_path / "r", config, seed=0, resume=True)  # the tuple compares equal


def test_another_format_version_is_refused_with_the_fix(log):
    path = log.directory / "meta.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "format": 99, "course_version": "9.1"})
    )
    for attempt in (RunLog.open, lambda d: RunLog.create(d, log.config, seed=7, resume=True)):
        with pytest.raises(RunError, match=r"course 9\.1 in run format 99.*start a new run"):
            attempt(log.directory)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_damaged_meta_is_refused(log, text):
    (log.directory / "meta.json").write_text(text)
    with pytest.raises(RunError):
        RunLog.open(log.directory)


def test_not_a_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory.*meta\.json"):
        RunLog.open(tmp_path)


def test_opened_for_reading_it_cannot_be_written(log):
    reader = RunLog.open(log.directory)
    for attempt in (
        lambda: reader.append({"step": 1}),
        lambda: reader.save_rollouts(1, []),
        lambda: reader.rewind(0),
        lambda: reader.save_checkpoint(1, write_number(1)),
    ):
        with pytest.raises(RunError, match="opened for reading"):
            attempt()


# ---- torn lines, damage ----------------------------------------------------------------------


def test_a_torn_last_line_is_dropped_and_not_continued(log):
    log.append({"step": 1})
    with open(log.directory / "log.jsonl", "a") as file:
        file.write('{"step": 2, "lo')  # killed here
    assert RunLog.open(log.directory).column("step") == [1]
    again = RunLog.create(log.directory, log.config, seed=7, resume=True)
    again.append({"step": 2})
    assert RunLog.open(log.directory).column("step") == [1, 2]


@pytest.mark.parametrize("line", ["garbage", "[1]", '{"loss": 1}', '{"step": "1"}', ""])
def test_damage_in_the_middle_names_the_line(log, line):
    log.append({"step": 1})
    with open(log.directory / "log.jsonl", "a") as file:
        file.write(line + "\n")
    log.append({"step": 3})
    with pytest.raises(RunError, match=r"log\.jsonl line 2 is not a row"):
        RunLog.open(log.directory).rows  # noqa: B018


def test_full_disk_while_appending_leaves_whole_lines(log, monkeypatch):
    log.append({"step": 1})
    real_open = open

    class FullDisk:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *details):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.file.write(data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    import course_utils.training.jsonl as module

    def full(path, *args, **kwargs):
        return FullDisk(real_open(path, *args, **kwargs))

    monkeypatch.setattr(module, "open", full, raising=False)
    with pytest.raises(CourseError, match="no space left"):
        log.append({"step": 2})
    monkeypatch.undo()
    log.append({"step": 2})
    assert log.column("step") == [1, 2]


def test_rollouts_by_step(log):
    rollout = {"prompt": "hi", "tokens": ["a", "b"], "kl": np.array([0.5, 0.25], dtype=np.float32)}
    log.save_rollouts(0, [rollout, rollout])
    log.save_rollouts(5, [rollout])
    assert [r["step"] for r in log.rollouts()] == [0, 0, 5]
    assert log.rollouts(5) == [{"prompt": "hi", "tokens": ["a", "b"], "kl": [0.5, 0.25], "step": 5}]
    assert "step" not in rollout


def test_rewind_drops_what_came_later(log):
    for step in range(1, 7):
        log.append({"step": step, "loss": 1 / step})
        log.save_rollouts(step, [{"text": "x"}])
        if step % 2 == 0:
            log.save_checkpoint(step, write_number(step), keep=3)
    before = log.rows
    log.rewind(4)
    assert log.rows == before[:4]
    assert [r["step"] for r in log.rollouts()] == [1, 2, 3, 4]
    assert log.latest_checkpoint()[0] == 4
    log.append({"step": 5})
    assert log.column("step") == [1, 2, 3, 4, 5]


def test_reading_while_another_process_writes(log):
    code = """
    import sys
    from course_utils.training.run import RunLog
    log = RunLog.create(sys.argv[1], {"learning_rate": 1e-3, "steps": 4}, seed=7, resume=True)
    for step in range(400):
        log.append({"step": step, "text": "x" * (step * 7 % 5000)})
        if step % 100 == 99:
            log.rewind(step)
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(log.directory)])
    seen = 0
    while writer.poll() is None:
        rows = RunLog.open(log.directory).rows
        assert [row["step"] for row in rows] == list(range(len(rows)))
        assert len(rows) >= seen
        seen = len(rows)
    assert writer.returncode == 0
    assert len(RunLog.open(log.directory).rows) == 400


# ---- checkpoints -----------------------------------------------------------------------------


def test_checkpoints_keep_the_newest_two(log):
    assert log.latest_checkpoint() is None
    for step in (10, 20, 30):
        log.save_checkpoint(step, write_number(step))
    names = sorted(p.name for p in (log.directory / "checkpoints").iterdir())
    assert names == ["step-000020", "step-000030"]
    step, directory = RunLog.open(log.directory).latest_checkpoint()
    assert step == 30
    assert directory == log.checkpoint_dir(30)
    assert (directory / "sub" / "value.txt").read_text() == "30"


def test_an_error_or_ctrl_c_while_saving_leaves_no_half(log):
    log.save_checkpoint(10, write_number(10))
    for error in (ValueError, KeyboardInterrupt):

        def write(directory, error=error):
            (directory / "half").write_text("half")
            raise error

        with pytest.raises(error):
            log.save_checkpoint(20, write)
    assert [p.name for p in (log.directory / "checkpoints").iterdir()] == ["step-000010"]
    assert log.latest_checkpoint()[0] == 10


def test_a_killed_save_leaves_the_earlier_checkpoint_and_is_swept_up(log):
    log.save_checkpoint(10, write_number(10))
    code = """
    import os, signal, sys
    from course_utils.training.run import RunLog
    log = RunLog.create(sys.argv[1], {"learning_rate": 1e-3, "steps": 4}, seed=7, resume=True)
    def write(directory):
        (directory / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    log.save_checkpoint(20, write)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(log.directory)])
    assert done.returncode == -9
    assert RunLog.open(log.directory).latest_checkpoint()[0] == 10
    assert len(list((log.directory / "checkpoints").iterdir())) == 2
    RunLog.create(log.directory, log.config, seed=7, resume=True)
    assert [p.name for p in (log.directory / "checkpoints").iterdir()] == ["step-000010"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped": (lambda d: flip(d / "big.bin"), r"big\.bin is corrupted"),
    "cut": (lambda d: os.truncate(d / "big.bin", 100), r"big\.bin is cut.*100 bytes, not 2560"),
    "missing": (lambda d: (d / "sub" / "value.txt").unlink(), r"value\.txt is missing"),
    "no manifest": (lambda d: (d / "manifest.json").unlink(), r"manifest\.json is missing"),
    "bad manifest": (lambda d: (d / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
    "other step": (
        lambda d: (d / "manifest.json").write_text('{"format": 1, "step": 3, "files": {}}'),
        "of step 3",
    ),
    "other format": (
        lambda d: (d / "manifest.json").write_text('{"format": 9, "step": 20, "files": {}}'),
        "has format 9",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_never_skipped_in_silence(log, kind):
    damage, seen = DAMAGE[kind]
    log.save_checkpoint(10, write_number(10))
    log.save_checkpoint(20, write_number(20))
    damage(log.checkpoint_dir(20))
    with pytest.raises(
        CheckpointError, match=f"{seen}.*delete .*step-000020 to resume from step 10"
    ):
        log.latest_checkpoint()
    damage, _ = DAMAGE["flipped"]
    damage(log.checkpoint_dir(10))
    with pytest.raises(CheckpointError, match="to start from the beginning"):
        log.latest_checkpoint()
