"""`course build`: same bytes on every run, fitting holes, hidden asserts that run, drift told."""

import argparse
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from course_utils import build
from course_utils.errors import CourseError

LESSON = """# %% [markdown] seconds=30
# # A lesson
# with a sum

# %% tags=["setup"]

# %% tags=["hide-input"]
total = 1 + 1

# %% tags=["hidden-test"]
assert total == 2, total

# %%
print(total)

# %%
print(total)
"""

EXERCISE = """# %% [markdown]
# # Exercises

# %% task="double"
def double(x):
    if x is None:
        ### BEGIN SOLUTION
        return None
        ### END SOLUTION
    ### BEGIN SOLUTION
    y = x + x
    return y
    ### END SOLUTION

# %% task="double" points=3
assert double(2) == 4

# %% [markdown] task="why" points=2
# Why?
# ### BEGIN SOLUTION
# Because.
# ### END SOLUTION

# %% tags=["solution-only"]
print("a remark for the instructor")
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small course in `tmp_path` with the real setup cell; the working directory is in it."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "course_utils"\n[tool.course]\nrepository = "someone/course"\n'
    )
    real = Path(build.__file__).parents[1] / "lessons" / "_setup.py"
    (tmp_path / "lessons" / "exercises").mkdir(parents=True)
    (tmp_path / "lessons" / "_setup.py").write_text(real.read_text())
    (tmp_path / "lessons" / "00_sum.py").write_text(LESSON)
    (tmp_path / "lessons" / "exercises" / "01_double.py").write_text(EXERCISE)
    (tmp_path / "lessons" / "README.md").write_text("not a lesson")
    monkeypatch.chdir(tmp_path / "lessons")
    return tmp_path


def run(check: bool = False) -> int:
    return build.main(argparse.Namespace(check=check))


def load(checkout: Path, name: str) -> dict[str, Any]:
    import nbformat

    text = (checkout / name).read_text()
    nbformat.validate(nbformat.reads(text, as_version=4))
    return json.loads(text)


def cells(checkout: Path, name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in load(checkout, name)["cells"]]


def test_builds_all_three_folders_with_the_same_bytes_on_every_run(checkout: Path) -> None:
    assert run() == 0
    built = {p.relative_to(checkout).as_posix(): p.read_bytes() for p in checkout.rglob("*.ipynb")}
    assert sorted(built) == [
        "exercises/01_double.ipynb",
        "notebooks/00_sum.ipynb",
        "solutions/01_double.ipynb",
    ]
    for name in built:
        (checkout / name).unlink()
    assert run() == 0
    assert {n: (checkout / n).read_bytes() for n in built} == built
    assert run(check=True) == 0


def test_notebook_has_badge_setup_metadata_and_no_outputs(checkout: Path) -> None:
    run()
    notebook = load(checkout, "notebooks/00_sum.ipynb")
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    badge = "colab.research.google.com/github/someone/course/blob/main/notebooks/00_sum.ipynb"
    assert badge in sources[0]
    assert sources[1] == "# A lesson\nwith a sum"
    assert 'REPOSITORY = "someone/course"' in sources[2]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["execution"]["timeout"] > 0
    assert notebook["metadata"]["course"]["budget"] == {"seconds": 30, "tier": "tiny"}
    assert "seconds" not in notebook["cells"][1]["metadata"]
    assert "jupytext" not in notebook["metadata"]
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert code[1]["metadata"]["jupyter"] == {"source_hidden": True}


def test_no_badge_before_the_course_has_a_repository(checkout: Path) -> None:
    (checkout / "pyproject.toml").write_text('[project]\nname = "course_utils"\n')
    run()
    sources = cells(checkout, "notebooks/00_sum.ipynb")
    assert "colab.research" not in sources[0]
    assert 'REPOSITORY = ""' in sources[1]


def test_cell_ids_are_unique_and_survive_an_inserted_cell(checkout: Path) -> None:
    run()
    before = {c["id"] for c in load(checkout, "notebooks/00_sum.ipynb")["cells"]}
    (checkout / "lessons" / "00_sum.py").write_text(
        LESSON.replace("# %%\nprint", "# %%\nnew = 1\n\n# %%\nprint", 1)
    )
    run()
    after = [c["id"] for c in load(checkout, "notebooks/00_sum.ipynb")["cells"]]
    assert len(set(after)) == len(after)
    assert before < set(after)
    assert len(set(after) - before) == 1


def test_hidden_tests_are_run_by_nbmake_and_not_seen(checkout: Path) -> None:
    from nbmake.nb_run import NotebookRun

    text = LESSON.replace('# %% tags=["setup"]\n', "")
    (checkout / "lessons" / "00_sum.py").write_text(text)
    run()
    assert not any("assert" in source for source in cells(checkout, "notebooks/00_sum.ipynb"))
    path = checkout / "notebooks" / "00_sum.ipynb"
    assert NotebookRun(path, 60).execute().error is None
    (checkout / "lessons" / "00_sum.py").write_text(text.replace("1 + 1", "1 + 2"))
    run()
    with pytest.raises(Exception, match="Post cell execution failed"):
        NotebookRun(path, 60).execute()


def test_exercise_has_holes_at_the_right_indent_and_the_solution_has_no_markers(
    checkout: Path,
) -> None:
    run()
    exercise = cells(checkout, "exercises/01_double.ipynb")
    solution = cells(checkout, "solutions/01_double.ipynb")
    assert exercise[2] == (
        "def double(x):\n"
        "    if x is None:\n"
        '        raise NotImplementedError("your code here")\n'
        '    raise NotImplementedError("your code here")'
    )
    assert "Because" not in "".join(exercise)
    assert exercise[4] == "Why?\n*Your answer here.*"
    assert "remark" not in "".join(exercise)
    assert "remark" in "".join(solution)
    assert "SOLUTION" not in "".join(exercise + solution)
    space: dict[str, Any] = {}
    exec(solution[2] + "\n" + solution[3], space)
    assert space["double"](3) == 6
    with pytest.raises(NotImplementedError, match="your code here"):
        exec(exercise[2] + "\n" + exercise[3], {})


def test_nbgrader_metadata(checkout: Path) -> None:
    run()
    for folder in ("exercises", "solutions"):
        found = load(checkout, f"{folder}/01_double.ipynb")["cells"]
        graders = [c["metadata"]["nbgrader"] for c in found if "nbgrader" in c["metadata"]]
        names = [g["grade_id"] for g in graders]
        assert names == ["double", "double-check", "why"]
        kinds = [(g["solution"], g["grade"], g["locked"], g.get("points")) for g in graders]
        assert kinds == [
            (True, False, False, None),
            (False, True, True, 3),
            (True, True, False, 2),
        ]
        assert all(g["schema_version"] == 3 for g in graders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('# %% task="a"\n### BEGIN SOLUTION\nx = 1\n', "'### BEGIN SOLUTION' without"),
        ('# %% task="a"\nx = 1\n### END SOLUTION\n### BEGIN SOLUTION\n', "without its partner"),
        ("# %%\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n", 'a hole needs task="name"'),
        ("# %%\nx = 1\n# %% points=2\nassert x\n", "cell 2: points need"),
        ('# %% task="a"\nx = 1\n', "neither a hole nor points"),
        ('# %% tags=["hidden-test"]\nassert x\n', "needs a code cell above"),
    ],
)
def test_faulty_sources_are_named(checkout: Path, text: str, message: str) -> None:
    (checkout / "lessons" / "exercises" / "01_double.py").write_text(text)
    with pytest.raises(CourseError, match=message) as caught:
        run()
    assert "lessons/exercises/01_double.py cell" in str(caught.value)


def test_a_source_that_is_not_utf8_is_named(checkout: Path) -> None:
    (checkout / "lessons" / "00_sum.py").write_bytes(b"# %%\nx = '\xff'\n")
    with pytest.raises(CourseError, match=r"00_sum\.py cannot be read as UTF-8"):
        run()


def test_check_tells_each_kind_of_drift_and_changes_nothing(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    lesson, exercise = checkout / "notebooks/00_sum.ipynb", checkout / "exercises/01_double.ipynb"
    solution = checkout / "solutions/01_double.ipynb"
    lesson.write_text(lesson.read_text().replace("total = 1 + 1", "total = 1 + 3"))
    executed = json.loads(exercise.read_text())
    executed["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "hi"}]
    exercise.write_text(json.dumps(executed))
    solution.unlink()
    changed = lesson.read_bytes()
    capsys.readouterr()
    assert run(check=True) == 1
    said = capsys.readouterr().out
    assert "notebooks/00_sum.ipynb: 1 lines must go, 1 must come" in said
    assert "-total = 1 + 3" in said
    assert "+total = 1 + 1" in said
    assert "exercises/01_double.ipynb: has outputs" in said
    assert "solutions/01_double.ipynb: missing" in said
    assert lesson.read_bytes() == changed
    lesson.write_text("{")
    assert run(check=True) == 1
    assert "00_sum.ipynb: not a notebook" in capsys.readouterr().out
    assert run() == 0
    assert run(check=True) == 0


def test_stale_notebooks_are_reported_and_a_students_copy_is_not(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    (checkout / "lessons" / "00_sum.py").rename(checkout / "lessons" / "00_total.py")
    old = checkout / "notebooks" / "00_sum.ipynb"
    (checkout / "notebooks" / "my copy.ipynb").write_text(old.read_text())
    assert run() == 0
    capsys.readouterr()
    assert run(check=True) == 1
    said = capsys.readouterr().out
    assert "notebooks/00_sum.ipynb: stale" in said
    assert "my copy" not in said
    assert old.exists()


def test_outside_a_checkout_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "something else"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match="not inside a checkout of the course"):
        run()


def test_the_repositorys_own_notebooks_are_as_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(build.__file__).parent)
    assert run(check=True) == 0


# ---- the setup cell --------------------------------------------------------------------------


class Colab:
    """A pretended Colab without the course; records what pip is asked, may replace packages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, on_colab: bool = True) -> None:
        self.commands: list[list[str]] = []
        self.replaces: dict[str, str] = {}
        real_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, *a: None if name == "course_utils" else real_spec(name, *a),
        )
        monkeypatch.setattr(subprocess, "check_call", self.commands.append)
        monkeypatch.setattr(importlib.metadata, "version", self.version)
        if on_colab:
            monkeypatch.setitem(sys.modules, "google.colab", object())  # type: ignore[arg-type]

    def version(self, name: str) -> str:
        return self.replaces.get(name, "1.0") if self.commands else "1.0"

    def run(self, repository: str = "someone/course") -> None:
        path = Path(build.__file__).parents[1] / "lessons" / "_setup.py"
        exec(path.read_text().replace("@REPOSITORY@", repository), {})


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("numpy", "pyarrow", "torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_setup_changes_nothing_where_the_course_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(subprocess, "check_call", asked.append)
    path = Path(build.__file__).parents[1] / "lessons" / "_setup.py"
    exec(path.read_text(), {})
    assert asked == []
    assert "transformers 5." in capsys.readouterr().out


@pytest.mark.usefixtures("empty_folder")
def test_setup_installs_from_the_repository_on_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    colab = Colab(monkeypatch)
    colab.run()
    (command,) = colab.commands
    assert command[1:4] == ["-m", "pip", "install"]
    assert command[-2:] == ["git+https://github.com/someone/course", "torchao>=0.16"]


def test_setup_prefers_an_uploaded_wheel(
    monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    wheel = empty_folder / "course_utils-0.1.0-py3-none-any.whl"
    wheel.touch()
    colab = Colab(monkeypatch)
    colab.run(repository="")
    assert colab.commands[0][-2] == str(wheel)


@pytest.mark.usefixtures("empty_folder")
def test_setup_says_what_to_do_when_it_cannot_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="Upload the course's wheel"):
        Colab(monkeypatch).run(repository="")
    monkeypatch.delitem(sys.modules, "google.colab")
    with pytest.raises(SystemExit, match="make lab"):
        Colab(monkeypatch, on_colab=False).run()


@pytest.mark.usefixtures("empty_folder")
def test_setup_asks_for_a_restart_when_a_loaded_package_was_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    colab = Colab(monkeypatch)
    colab.replaces = {"pyarrow": "21.0"}
    monkeypatch.setitem(sys.modules, "pyarrow", object())  # type: ignore[arg-type]
    with pytest.raises(SystemExit, match="pyarrow was replaced while in use"):
        colab.run()
