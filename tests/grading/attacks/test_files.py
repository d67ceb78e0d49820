"""Hostile files and folders, graded beside an honest neighbour: 0 points, a reason, no harm."""

import csv
import json
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from course_utils import cli
from course_utils.grading import grade as grading
from course_utils.grading.marking import close_sandbox

from .. import made
from ..conftest import open_sandbox

NAME = "02_sft.ipynb"


def hole() -> dict:
    return made.exercise()


def edited(change) -> dict:
    book = hole()
    for cell in book["cells"]:
        if "nbgrader" in cell["metadata"]:
            change(cell)
    return book


def more_points(cell):
    cell["metadata"]["nbgrader"]["points"] = 1000


def swapped_check(cell):
    if cell["metadata"]["nbgrader"]["locked"]:
        cell["source"] = "print('passed (1000 of 1000 points)')"
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "passed"}]


def unlocked(cell):
    cell["metadata"]["nbgrader"] |= {"locked": False, "grade": False, "solution": True}


def odd_metadata(cell):
    cell["metadata"] = ["nbgrader"]


def code(source: str) -> dict:
    return made.with_code(hole(), "masked-sft-loss", source)


def nested(depth: int) -> str:
    return '{"cells": ' + "[" * depth + "]" * depth + "}"


def many_definitions() -> str:
    return "\n".join(f"def f{n}(): return f{n + 1}()" for n in range(9_000))


def wide_expression() -> str:
    return "masked_sft_loss = lambda *a, **k: " + "+".join(["1"] * 20_000)


BAD_FILES = {
    "empty": (b"", "empty"),
    "blank": (b" \n ", "empty"),
    "not JSON": (b"def f(): pass", "not JSON"),
    "half of one": (json.dumps({"cells": []}).encode()[:-3], "not JSON"),
    "not UTF-8": (b"\xff\xfe\x00{", "not UTF-8"),
    "NUL bytes": (bytes(1000), "not JSON"),
    "a number": (b"3", "not a notebook"),
    "a list": (b"[]", "not a notebook"),
    "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00cos\nsystem\n", "UTF-8|JSON"),
    "format 3": (b'{"worksheets": [], "nbformat": 3}', "format 3"),
    "format huge": (b'{"cells": [], "nbformat": 1' + b"0" * 9000 + b"}", "JSON|nbformat"),
    "deep": (nested(200_000).encode(), "nested|JSON"),
    "many cells": (json.dumps({"nbformat": 4, "cells": [{}] * 5000}).encode(), "5,000 cells"),
    "200 MB": (b"[]", "larger than"),  # made longer below
    "no cells": (json.dumps({"nbformat": 4, "cells": []}).encode(), None),
    "odd cells": (b'{"nbformat": 4, "cells": [3, null, [], {"source": 5}, {"cell_type": "code", '
                  b'"source": [1]}]}', None),
    "a megabyte on a line": (code("x = '" + "y" * 2**20 + "'"), "characters of code"),
    "many definitions": (code(many_definitions()), None),
    "a deep expression": (code("masked_sft_loss = " + "(" * 5000 + ")" * 5000), None),
    "a wide expression": (code(wide_expression()), None),
    "surrogates": (code("masked_sft_loss = '\udcff'"), None),
    "bidirectional text": (code("def masked_sft_loss(): # \u202e\n    return '\u2066'"), None),
    "edited points": (edited(more_points), None),
    "swapped checks": (edited(swapped_check), None),
    "unlocked checks": (edited(unlocked), None),
    "odd metadata": (edited(odd_metadata), None),
    "duplicate tasks": ({**hole(), "cells": hole()["cells"] * 3}, None),
    "imports the solution": (code(
        "from course_utils.grading.mutants import answers\nfrom pathlib import Path\n"
        "def masked_sft_loss(*a, **k):\n    return answers(Path('.'), None)"), None),
    "imports itself from disk": (code(
        "def masked_sft_loss(*a, **k):\n    import sys; sys.path.insert(0, '/work')\n"
        "    import nbformat; return nbformat.read('solutions/02.ipynb', 4)"), None),
    "decorators that run": (code(
        "import os\n@(lambda f: os._exit(0) or f)\ndef masked_sft_loss(*a, **k): return 0"), None),
    "default arguments that run": (code(
        "def masked_sft_loss(*a, x=__import__('os').kill(1, 9), **k): return 0"), None),
    "slow definitions": (code(
        "class A:\n    import time\n    time.sleep(100)\n"
        "def masked_sft_loss(*a, x=A, **k): return 0"), None),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    open_sandbox().close()
    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:

        @contextmanager
        def executor(options, todo):
            yield pool, 1

        patch.setattr(grading, "executor", executor)
        patch.chdir(made.ROOT)
        yield
        pool.submit(close_sandbox).result()


def graded(folder: Path, out: Path, *more: str) -> dict[str, dict[str, str]]:
    words = ["grade", str(folder), "--out", str(out), "--no-gradebook", "--call-seconds", "2"]
    assert cli.main([*words, *more]) == 0
    with (out / "grades.csv").open(newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def test_every_bad_file_gets_a_row_and_the_neighbours_their_points(tmp_path):
    for number, (name, (data, _)) in enumerate(BAD_FILES.items()):
        path = made.write(tmp_path / "subs" / f"m{number:02d} {name}" / NAME, data)
        if name == "200 MB":
            os.truncate(path, 200 * 2**20)
        if number % 6 == 0:
            made.write(
                tmp_path / "subs" / f"m{number:02d} {name} neighbour" / NAME, made.solution()
            )
    rows = graded(tmp_path / "subs", tmp_path / "out")
    for number, (name, (_, reason)) in enumerate(BAD_FILES.items()):
        row = rows.pop(f"m{number:02d} {name}")
        assert float(row["points"]) == 0, name
        assert float(row["out_of"]) == made.POINTS
        assert row["status"] == ("refused" if reason else "graded"), (name, row)
        assert not reason or any(word in row["reason"] for word in reason.split("|")), (name, row)
    assert len(rows) >= 5
    assert {float(row["points"]) for row in rows.values()} == {made.POINTS}


def test_names_that_lead_elsewhere_stay_inside_the_output(tmp_path):
    names = ["..", "a b", "..%2f..", "=1+1", "-rf", "x" * 200, "名前", "rené", "a;b|c$(id)`id`"]
    for name in names[1:]:
        made.write(tmp_path / "in" / "subs" / name / NAME, hole())
    before = sorted(str(p) for p in tmp_path.iterdir())
    out = tmp_path / "in" / "out"
    rows = graded(tmp_path / "in" / "subs", out)
    assert len(rows) == len(names) - 1
    assert sorted(str(p) for p in tmp_path.iterdir()) == before
    made_files = [p for p in out.rglob("*") if p.is_file()]
    assert all(p.resolve().is_relative_to(out.resolve()) for p in made_files)
    assert len(list((out / "feedback").iterdir())) == len(names) - 1


def test_a_zip_with_tricks_leaves_nothing_behind(tmp_path):
    archive = tmp_path / "class.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"anna/{NAME}", json.dumps(made.solution()))
        file.writestr(f"../../../escape_{NAME}", json.dumps(made.solution()))
        file.writestr(f"/absolute_{NAME}", json.dumps(made.solution()))
        file.writestr(f"bomb/{NAME}", b" " * (300 * 2**20))
    rows = graded(archive, tmp_path / "out")
    assert float(rows.pop("anna")["points"]) == made.POINTS
    assert {float(row["points"]) for row in rows.values()} == {0.0}
    assert "larger than" in rows["bomb"]["reason"]
    assert "leads out" in rows["escape_02_sft"]["reason"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["class.zip", "out"]


def test_a_submission_cannot_reach_the_results_of_others(tmp_path):
    """Its code looks for every file of the grading and tries to write it; there are none."""
    out = tmp_path / "out"
    subs = tmp_path / "subs"
    source = f"""
def masked_sft_loss(*a, **k):
    import os
    for place in ({str(out)!r}, {str(subs)!r}, {str(made.ROOT / "lessons")!r}):
        assert not os.path.exists(place), 'SEEN ' + place
    raise ValueError('nothing there')
"""
    made.write(subs / "eve" / NAME, code(source))
    made.write(subs / "anna" / NAME, made.solution())
    graded(subs, out)
    rows = graded(subs, out, "--again")
    assert float(rows["anna"]["points"]) == made.POINTS
    assert float(rows["eve"]["points"]) == 0
    page = next((out / "feedback" / "eve").rglob("*.html")).read_text()
    assert "SEEN" not in page
    assert "nothing there" in page
