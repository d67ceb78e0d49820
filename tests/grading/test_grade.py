"""`course grade` from a folder of notebooks to its tables: marks, resuming, regrading, faults."""

import csv
import hashlib
import json
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace

import pytest

from course_utils import cli
from course_utils.errors import CourseError
from course_utils.grading import grade as grading
from course_utils.grading import marking
from course_utils.grading.checks import SETS, tasks
from course_utils.grading.grade import Options
from course_utils.grading.marking import Order, Report, close_sandbox, mark
from course_utils.grading.sandbox import Sandbox, SandboxBroken

from . import made
from .conftest import open_sandbox

ORDER = Order(made.SET, "anna", b"a key")


@pytest.fixture(scope="module", autouse=True)
def thread():
    """Marks in one thread of this process, whose sandbox all tests share; skips without one."""
    open_sandbox().close()
    with ThreadPoolExecutor(1) as pool:
        yield pool
        pool.submit(close_sandbox).result()


@pytest.fixture
def inline(monkeypatch, thread):
    """No new processes, for which a test would have to wait."""

    @contextmanager
    def executor(options, todo):
        yield thread, 1

    monkeypatch.setattr(grading, "executor", executor)


def course(*words):
    return cli.main(["grade", *(str(w) for w in words)])


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def subs(tmp_path, monkeypatch):
    """anna: everything right; bob smith: the hand-out; carla: a loss of zero; dan: no notebook."""
    monkeypatch.chdir(made.ROOT)
    folder = tmp_path / "subs"
    name = made.exercise()
    made.write(folder / "anna" / "02_sft" / "02_sft.ipynb", made.solution())
    made.write(folder / "bob smith" / "02_sft.ipynb", name)
    source = "def masked_sft_loss(*a, **k):\n    return torch.zeros(())\n"
    made.write(
        folder / "carla_02_sft.ipynb",
        made.with_code(made.solution(), "masked-sft-loss", source),
    )
    made.write(folder / "dan_02_sft.ipynb", b"")
    return folder


def test_a_folder_is_graded(subs, tmp_path, inline, capsys):
    out = tmp_path / "out"
    assert course(subs, "--out", out) == 0
    rows = {row["student"]: row for row in table(out / "grades.csv")}
    assert {n: (r["status"], float(r["points"])) for n, r in rows.items()} == {
        "anna": ("graded", made.POINTS),
        "bob smith": ("graded", 0),
        "carla_02_sft": ("graded", made.POINTS - 4),
        "dan_02_sft": ("refused", 0),
    }
    assert rows["dan_02_sft"]["reason"] == "the notebook is empty"
    assert rows["anna"]["total"] == ""  # her words wait for a person
    assert rows["bob smith"]["total"] == "0"  # he wrote none
    assert all(row["warning"] == "" for row in rows.values())
    marks = {(r["student"], r["task"]): r["mistakes"] for r in table(out / "tasks.csv")}
    assert marks["bob smith", "masked-sft-loss"] == "blank"
    assert marks["carla_02_sft", "masked-sft-loss"] == "zero"
    said = capsys.readouterr()
    assert "3 graded, 1 refused" in said.out
    assert "protection: bubblewrap" in said.out
    assert "[4/4]" in said.err
    page = next((out / "feedback").glob("carla*/*/*.html")).read_text()
    assert "your loss is 0 whatever the input" in page
    similar = table(out / "similar.csv")
    assert {r["function"] for r in similar} == {f for t in tasks(made.SET) for f in t.functions} - {
        "masked_sft_loss"
    }
    assert {r["names"] for r in similar} == {"anna; carla_02_sft"}


def test_run_again_it_grades_what_is_new_or_changed_only(subs, tmp_path, inline, capsys):
    out = tmp_path / "out"
    course(subs, "--out", out)
    before = (out / "grades.csv").read_bytes()
    capsys.readouterr()
    assert course(subs, "--out", out) == 0
    assert "[" not in capsys.readouterr().err
    assert (out / "grades.csv").read_bytes() == before
    made.write(subs / "dan_02_sft.ipynb", made.solution())
    made.write(subs / "eve_02_sft.ipynb", made.exercise())
    course(subs, "--out", out)
    err = capsys.readouterr().err
    assert "[2/2]" in err
    assert "anna" not in err
    rows = {row["student"]: row["points"] for row in table(out / "grades.csv")}
    assert float(rows["dan_02_sft"]) == made.POINTS
    assert course(subs, "--out", out, "--again", "--student", "anna") == 0
    assert "[1/1] 02 anna" in capsys.readouterr().err


def test_one_task_is_graded_again_and_the_others_stay(subs, tmp_path, inline, monkeypatch):
    out = tmp_path / "out"
    course(subs, "--out", out)
    real = marking.run_task
    seen = []

    def spoilt(task, *rest, **options):
        seen.append(task.name)
        results = real(task, *rest, **options)
        return [replace(r, points=0.5 if r.points else 0.0) for r in results]

    monkeypatch.setattr(marking, "run_task", spoilt)
    course(subs, "--out", out, "--task", "packing")
    assert set(seen) == {"packing"}
    points = {(r["student"], r["task"]): float(r["points"]) for r in table(out / "tasks.csv")}
    assert points["anna", "packing"] == 0.5 * len(tasks(made.SET)[2].checks)
    assert points["anna", "masked-sft-loss"] == 4
    with pytest.raises(CourseError, match="has no task 'nope'"):
        grading.grade(
            None,
            [grading.Submission("a", "02", "", tmp_path)],
            Options(only=("nope",)),
            lambda *_: None,
        )


def test_another_version_of_the_checks_grades_again(subs, tmp_path, inline, capsys, monkeypatch):
    out = tmp_path / "out"
    course(subs, "--out", out)
    capsys.readouterr()
    monkeypatch.setattr(grading, "grader_version", lambda set: "another")
    course(subs, "--out", out)
    assert "[4/4]" in capsys.readouterr().err


def test_damaged_results_are_made_again_and_a_damaged_key_is_told(subs, tmp_path, inline, capsys):
    out = tmp_path / "out"
    course(subs, "--out", out)
    (out / "results" / "02" / "anna.json").write_text("{")
    capsys.readouterr()
    course(subs, "--out", out)
    assert "anna.json is damaged" in capsys.readouterr().out
    (out / "key").write_text("short")
    assert course(subs, "--out", out) == 2
    assert "key is damaged" in capsys.readouterr().err


def test_what_the_machine_spoils_is_not_graded_rather_than_zero(
    subs, tmp_path, inline, monkeypatch, capsys
):
    def broken(self):
        raise SandboxBroken("no memory")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Sandbox, "_spawn", broken)
        patch.setattr(marking.time, "sleep", lambda seconds: None)
        assert course(subs, "--out", out, "--student", "anna") == 1
    rows = {row["student"]: row for row in table(out / "grades.csv")}
    assert rows["anna"]["status"] == "not graded"
    assert rows["anna"]["points"] == rows["anna"]["total"] == ""
    assert "no memory" in rows["anna"]["reason"]
    assert course(subs, "--out", out, "--student", "anna") == 0  # the next run tries again
    rows = {row["student"]: row for row in table(out / "grades.csv")}
    assert float(rows["anna"]["points"]) == made.POINTS


def test_hidden_inputs_are_the_keys_own(monkeypatch):
    task = tasks(made.SET)[0]
    rounds = marking.hidden_rounds(ORDER, task, "digest")
    assert rounds == marking.hidden_rounds(ORDER, task, "digest")
    others = [
        marking.hidden_rounds(replace(ORDER, key=b"another"), task, "digest"),
        marking.hidden_rounds(replace(ORDER, student="bob"), task, "digest"),
        marking.hidden_rounds(ORDER, task, "other"),
        marking.hidden_rounds(ORDER, tasks(made.SET)[1], "digest"),
    ]
    assert all(other != rounds for other in others)


def test_a_function_that_knows_the_visible_numbers_gets_nothing(thread):
    """It returns right values for the seeds of its own check, and nonsense for all others."""
    solution = made.cell(made.solution(), "masked-sft-loss")["source"]
    source = "".join(solution).replace("def masked_sft_loss", "def right")
    source += (
        "\n\nimport hashlib\nseen = ('x',)\n"
        "def masked_sft_loss(logits, input_ids, mask, reduction='mean'):\n"
        "    value = right(logits, input_ids, mask, reduction)\n"
        "    known = logits.shape[0] in (2,) and logits.shape[1] in (7, 10)\n"
        "    return value if known else value * 0 + 0.5\n"
    )
    book = made.with_code(made.solution(), "masked-sft-loss", source)
    order = replace(ORDER, only=("masked-sft-loss",))
    report = thread.submit(mark, json.dumps(book).encode(), order).result()
    (task,) = report.tasks
    assert task.points == 0
    assert task.checks[0].hidden
    assert "got" not in task.checks[0].messages[0]


def test_the_time_of_a_whole_notebook_is_limited_and_the_rest_is_told(thread):
    loop = "def completion_mask(*a, **k):\n    while True: pass\n"
    book = made.with_code(made.solution(), "completion-mask", loop)
    order = replace(ORDER, seconds=1.5)
    report = thread.submit(mark, json.dumps(book).encode(), order).result()
    assert report.points == 0
    messages = {c.messages[0] for t in report.tasks for c in t.checks[:1]}
    assert messages == {"your function failed: the time for the whole notebook was used up"}


@pytest.mark.parametrize("set", SETS)
def test_the_solution_gets_full_points_and_the_blank_exercise_none(set, thread):
    order = replace(ORDER, set=set)
    (path,) = (made.ROOT / "solutions").glob(f"{set}_*.ipynb")
    report = thread.submit(mark, path.read_bytes(), order).result()
    assert report.points == report.out_of == sum(task.points for task in tasks(set)) > 0
    assert report.notes == ()
    (path,) = (made.ROOT / "exercises").glob(f"{set}_*.ipynb")
    report = thread.submit(mark, path.read_bytes(), order).result()
    assert (report.status, report.points) == ("graded", 0)


def test_definitions_that_fail_are_told_once_and_cost_only_what_needs_them(thread):
    book = made.solution()
    source = "import nothing_like_this\ndef masked_sft_loss(a, b, c, how=nothing_like_this.x): pass"
    made.with_code(book, "masked-sft-loss", source)
    report = thread.submit(mark, json.dumps(book).encode(), ORDER).result()
    points = {task.name: (task.points, task.out_of) for task in report.tasks}
    assert points.pop("masked-sft-loss")[0] == 0
    assert all(got == of for got, of in points.values())
    assert len(report.notes) == 2
    assert "nothing_like_this could not be run: ModuleNotFoundError" in report.notes[0]
    assert "masked_sft_loss could not be run: NameError" in report.notes[1]


def test_a_report_survives_json(thread):
    report = thread.submit(mark, json.dumps(made.solution()).encode(), ORDER).result()
    assert marking.from_json(json.loads(json.dumps(marking.as_json(report)))) == report
    assert set(report.seconds) == {"total", "sandbox", "replies", "checks"}


def test_processes_the_command_line_and_a_lock(subs, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "course_utils", "grade", str(subs), "--out", str(out)]
    done = subprocess.run([*command, "-j", "2"], capture_output=True, text=True, cwd=made.ROOT)
    assert done.returncode == 0, done.stderr
    rows = {row["student"]: float(row["points"]) for row in table(out / "grades.csv")}
    assert rows["anna"] == made.POINTS
    from course_utils.grading.store import Store

    with Store(out, {}).locked():
        again = subprocess.run(command, capture_output=True, text=True, cwd=made.ROOT)
    assert again.returncode == 2
    assert "another `course grade`" in again.stderr


def test_an_interrupted_run_shows_what_is_there_and_goes_on(subs, tmp_path, inline, monkeypatch):
    from course_utils.grading import grade_command

    out = tmp_path / "out"

    def interrupted(done, of, report):
        if done == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grade_command, "print_progress", interrupted)
        assert course(subs, "--out", out) == 130
    assert len(table(out / "grades.csv")) == 2
    assert course(subs, "--out", out) == 0
    assert len(table(out / "grades.csv")) == 4


@pytest.mark.nightly
def test_killed_at_any_moment_and_resumed_the_grades_are_the_same(tmp_path, monkeypatch):
    folder, out = tmp_path / "subs", tmp_path / "out"
    for number in range(12):
        book = made.solution() if number % 3 else made.exercise()
        book["metadata"]["number"] = number
        made.write(folder / f"s{number:02d}_02_sft.ipynb", book)
    command = [sys.executable, "-m", "course_utils", "grade", str(folder), "-j", "2", "--out"]
    made.write(out / "key", "00" * 32 + "\n")
    made.write(tmp_path / "whole" / "key", "00" * 32 + "\n")
    subprocess.run([*command, str(tmp_path / "whole")], check=True, cwd=made.ROOT)
    for attempt in range(10):
        process = subprocess.Popen(
            [*command, str(out)], cwd=made.ROOT, stderr=subprocess.PIPE, text=True
        )
        for _ in range(attempt % 4):  # from the start of the processes to well after some results
            process.stderr.readline()
        time.sleep(0.13 * attempt)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run([*command, str(out)], check=True, cwd=made.ROOT)
    for name in ("grades.csv", "tasks.csv", "similar.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_marking_process_that_dies_costs_nobody_else_anything(
    subs, tmp_path, monkeypatch, thread
):
    """Should a submission ever bring one down: it alone is not graded, and named."""
    out = tmp_path / "out"

    @contextmanager
    def executor(options, todo):
        class Pool:
            broken = False

            def submit(self, function, data, order):
                if self.broken:
                    raise BrokenProcessPool("gone")
                if order.student != "anna":
                    return thread.submit(function, data, order)
                self.broken = True
                future = Future()
                future.set_exception(BrokenProcessPool("gone"))
                return future

        yield Pool(), 1 if options.jobs == 1 else 2

    monkeypatch.setattr(grading, "executor", executor)
    assert course(subs, "--out", out) == 1
    rows = {row["student"]: row for row in table(out / "grades.csv")}
    assert rows["anna"]["status"] == "not graded"
    assert "please report" in rows["anna"]["reason"]
    assert [r["status"] for r in rows.values()].count("graded") == 2


def test_the_dask_scheduler_gives_the_same(subs, tmp_path):
    distributed = pytest.importorskip("distributed")
    out = tmp_path / "out"
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        assert course(subs, "--out", out, "--scheduler", cluster.scheduler_address) == 0
    rows = {row["student"]: float(row["points"]) for row in table(out / "grades.csv")}
    assert rows["anna"] == made.POINTS
    assert rows["bob smith"] == 0


def test_a_scheduler_that_does_not_answer(subs, tmp_path, capsys, monkeypatch):
    distributed = pytest.importorskip("distributed")
    real = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: real(address, timeout=0.2))
    assert course(subs, "--out", tmp_path / "o", "--scheduler", "tcp://127.0.0.1:9") == 2
    assert "no dask scheduler answers" in capsys.readouterr().err


def test_without_a_sandbox_grading_stops_or_says_so_on_every_row(
    subs, tmp_path, inline, capsys, monkeypatch, thread
):
    from course_utils.grading import sandbox

    thread.submit(close_sandbox).result()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    out = tmp_path / "out"
    assert course(subs, "--out", out, "--no-gradebook") == 2
    assert "bubblewrap (bwrap) is not installed" in capsys.readouterr().err
    assert course(subs, "--out", out, "--no-gradebook", "--unsafe-no-sandbox") == 0
    assert "WARNING" in capsys.readouterr().err
    rows = table(out / "grades.csv")
    assert {r["warning"] for r in rows if r["status"] == "graded"} == {"graded WITHOUT a sandbox"}
    monkeypatch.undo()
    course(subs, "--out", out, "--no-gradebook")  # now there is one: graded again
    assert {r["warning"] for r in table(out / "grades.csv")} == {""}


def test_a_formula_in_a_name_stays_text(tmp_path, inline, monkeypatch):
    monkeypatch.chdir(made.ROOT)
    made.write(tmp_path / "s" / "=cmd|x" / "02_sft.ipynb", made.exercise())
    course(tmp_path / "s", "--out", tmp_path / "out")
    (row,) = table(tmp_path / "out" / "grades.csv")
    assert row["student"] == "'=cmd|x"


def test_the_result_of_a_student_is_one_file_with_the_notebooks_digest(subs, tmp_path, inline):
    out = tmp_path / "out"
    course(subs, "--out", out)
    row = json.loads((out / "results" / "02" / "anna.json").read_text())
    data = (subs / "anna" / "02_sft" / "02_sft.ipynb").read_bytes()
    assert row["report"]["digest"] == hashlib.sha256(data).hexdigest()
    assert isinstance(marking.from_json(row["report"]), Report)
    assert oct((out / "key").stat().st_mode)[-3:] == "600"
    name = next((made.ROOT / "exercises").glob("02_*.ipynb")).stem
    assert (out / "submitted" / "anna" / name / f"{name}.ipynb").read_bytes() == data


def test_a_missing_student_and_a_place_that_cannot_be_written(subs, tmp_path, capsys):
    assert course(subs, "--out", tmp_path / "o", "--student", "zoe") == 2
    assert "no submission of zoe" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert course(subs, "--out", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err
