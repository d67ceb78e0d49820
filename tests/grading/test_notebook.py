"""The reader of untrusted notebooks: what it takes, what it refuses, that nothing crashes it."""

import ast
import contextlib
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_utils.grading import notebook
from course_utils.grading.notebook import NotebookError, parse, read

BOUNDED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def ipynb(*cells, **top):
    """Cells are code, or (code, nbgrader metadata), or whole dicts."""

    def cell(c):
        if isinstance(c, str):
            return {"cell_type": "code", "source": c, "metadata": {}}
        if isinstance(c, tuple):
            return {"cell_type": "code", "source": c[0], "metadata": {"nbgrader": c[1]}}
        return c

    return json.dumps({"nbformat": 4, "cells": [cell(c) for c in cells], **top}).encode()


def names(book):
    return [name for piece in book.pieces for name in piece.names]


def test_takes_imports_definitions_and_literals_and_nothing_that_runs():
    book = parse(
        ipynb(
            "import torch, numpy as np\nfrom math import log\nprint('hello')\nEPS = -1e-4",
            "@decorator\ndef f(x):\n    return g(x)\nclass A: pass\nf(1)\ny = f(2)\nx.y = 3",
            "K: int = 3\ntable = {'a': [1, (2, 3)]}; h = lambda x: x\nfor i in range(3): pass",
        )
    )
    assert names(book) == ["torch", "np", "log", "EPS", "f", "A", "K", "table", "h"]
    f = next(p for p in book.pieces if p.names == ("f",))
    assert f.source == "@decorator\ndef f(x):\n    return g(x)"
    assert [s.names for s in book.skipped] == [("y",)]


def test_every_piece_is_python_on_its_own_even_on_a_shared_line_and_with_odd_characters():
    book = parse(ipynb("é = 'ünï\u2028x'; b = 2\nif 1: pass\nc = '''a\nb'''; d = 4"))
    assert [ast.unparse(ast.parse(p.source)) for p in book.pieces] == [
        "é = 'ünï\\u2028x'",
        "b = 2",
        "c = 'a\\nb'",
        "d = 4",
    ]


def test_needed_follows_names_and_keeps_the_order_and_the_last_definition():
    book = parse(
        ipynb(
            "import torch\nimport os",
            "def helper(): return SCALE\nSCALE = 2\ndef other(): pass",
            "def task(x): return 0",
            "def task(x): return torch.tensor(helper())",
        )
    )
    pieces, notes = book.needed(["task"])
    assert [p.names[0] for p in pieces] == ["torch", "helper", "SCALE", "task", "task"]
    assert [(n.cell, "last definition" in n.message) for n in notes] == [(4, True)]


def test_a_needed_name_that_is_computed_is_named():
    book = parse(ipynb("scale = compute()\nunrelated = compute()", "def f(): return scale"))
    _, notes = book.needed(["f"])
    assert [(n.cell, n.line) for n in notes] == [(1, 1)]
    assert "'scale' is computed" in notes[0].message


def test_a_cell_that_does_not_parse_is_skipped_and_reported_the_others_stay():
    book = parse(ipynb("def f(:\n  pass", "def g(): pass", "x = '\x00'"))
    assert names(book) == [
        "g",
    ] or names(book) == ["g", "x"]  # a NUL is an error before 3.12
    assert book.notes[0].cell == 1
    assert "not valid Python" in book.notes[0].message


def test_magics_are_dropped():
    book = parse(
        ipynb("%matplotlib inline\n!pip install x\ndef f():\n    %time g()\n    return 1\nf?",
              "%%time\ndef g(): pass", "%%bash\nrm -rf /")
    )  # fmt: skip
    assert names(book) == ["f", "g"]
    assert not book.notes


def test_locked_cells_duplicate_tasks_and_edited_metadata():
    hole = {"grade_id": "loss", "solution": True, "locked": False}
    check = {"grade_id": "loss-check", "grade": True, "locked": True, "points": 3}
    book = parse(
        ipynb(
            ("def loss(): pass", hole),
            ("def loss(): return 'planted in a check'", check),
            ("def loss(): return 2", {**hole, "points": 1e9}),
            ("def odd(): pass", "not a dict"),
            ("def odder(): pass", {"grade_id": ["list"], "locked": "yes"}),
        )
    )
    assert [(p.cell, p.names) for p in book.pieces] == [
        (1, ("loss",)), (3, ("loss",)), (4, ("odd",)), (5, ("odder",))
    ]  # fmt: skip
    messages = " | ".join(n.message for n in book.notes)
    assert "locked cell" in messages
    assert "stands in cell 1 already" in messages


def test_answers_in_words_are_collected():
    marks = {"grade_id": "why", "solution": True, "grade": True, "points": 2}
    cell = {"cell_type": "markdown", "source": ["Because ", "…"], "metadata": {"nbgrader": marks}}
    assert parse(ipynb(cell)).answers == {"why": "Because …"}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"cells": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b"[]", "not a notebook"),
        (b'{"worksheets": []}', "format 3"),
        (b'{"cells": []}', "nbformat"),
        (b'{"cells": [], "nbformat": true}', "nbformat"),
        (ipynb(*["1"] * (notebook.MAX_CELLS + 1)), "cells"),
        (ipynb("#" * (notebook.MAX_CODE + 1)), "characters"),
    ],
)
def test_what_is_not_a_notebook_is_refused_with_the_reason(data, what):
    with pytest.raises(NotebookError, match=what):
        parse(data, "ada.ipynb")


def test_files_that_are_no_files(tmp_path):
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "secret")
    (tmp_path / "dir.ipynb").mkdir()
    os.mkfifo(tmp_path / "pipe.ipynb")
    for name, what in [
        ("link", "link"),
        ("dir", "regular"),
        ("pipe", "regular"),
        ("no", "No such"),
    ]:
        with pytest.raises(NotebookError, match=what):
            read(tmp_path / f"{name}.ipynb")


def test_a_file_over_the_limit_is_not_read_whole(tmp_path):
    path = tmp_path / "huge.ipynb"
    with open(path, "wb") as file:
        file.truncate(notebook.MAX_BYTES + 1)  # sparse
    with pytest.raises(NotebookError, match="larger than 24 MiB"):
        read(path)


@pytest.mark.parametrize(
    "code",
    ["x=" + "-" * 9999 + "1", "x=" + "(" * 9999, "x=a" + ".b" * 99_999, "x=1" + "+1" * 99_999,
     "x=" + "lambda:" * 9999 + "1", "x=1" + "<1" * 99_999, "x=" + "f'{" * 999,
     "if 1: pass\n" + "elif 1: pass\n" * 9999, "x=\ud800", "a=1\n" * 20_000],
)  # fmt: skip
def test_code_made_to_break_parsers_is_skipped(code):
    book = parse(ipynb(code, "def f(): pass"))
    assert book.defines("f")
    book.needed(["f", "x", "a"])


def test_many_pieces_that_name_each_other_stay_quick_to_resolve():
    book = parse(ipynb("\n".join(f"def f{i}(): f{i + 1}, f{i - 1}" for i in range(8000))))
    assert len(book.needed(["f0"])[0]) == 8000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
LINE = st.sampled_from(
    ["def f(x):", "    return x", "import os", "a = 1", "%%time", "%magic", "!ls", "@d", "x?",
     "class A:", "b = [1, 2", "'''", ";", "\\", "# é\u2028", "\x0c", "lambda: 0", "a, b = 1, 2"]
)  # fmt: skip
SOURCE = st.one_of(st.text(), st.lists(LINE).map("\n".join), JSON)
CELL = st.fixed_dictionaries(
    {"cell_type": st.sampled_from(["code", "markdown", "raw"]), "source": SOURCE},
    optional={"metadata": st.fixed_dictionaries({"nbgrader": JSON}) | JSON},
)


@BOUNDED
@given(cells=st.lists(CELL | JSON, max_size=6))
def test_any_cells_are_read_and_what_is_taken_compiles(cells):
    data = json.dumps({"nbformat": 4, "cells": cells}).encode()
    book = parse(data)
    for piece in book.pieces:
        assert len(ast.parse(piece.source).body) == 1
        assert 1 <= piece.cell <= len(cells)


@BOUNDED
@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_notebook_or_refused(data):
    with contextlib.suppress(NotebookError):
        parse(data)
