"""The student's side: check.task(f), check.use(f), `course check`, and what nbgrader would see."""

import json
from dataclasses import replace

import pytest

from course_utils import check, cli
from course_utils.errors import CourseError
from course_utils.grading.mutants import answers, mutated
from course_utils.grading.notebook import NotebookError

from . import made

TASK = next(t for t in check.tasks(made.SET) if t.name == "masked-sft-loss")


def function(source):
    namespace = {}
    exec(source, namespace)
    return namespace["masked_sft_loss"]


@pytest.fixture(scope="module")
def known():
    return answers(made.ROOT, TASK)


def blank(*args, **kwargs):
    raise NotImplementedError("your code here")


def torch_says_so(*args, **kwargs):
    raise NotImplementedError('"svd" not implemented for BFloat16')


def test_what_is_written_already_is_shown_beside_what_is_not(known):
    def half(logits, ids, mask, reduction="mean"):
        if reduction == "sum" or logits.abs().max() > 100:
            raise NotImplementedError("your code here")
        return function(known.solution)(logits, ids, mask)

    results = check.masked_sft_loss(half).results
    assert [r.findings[0].mistake for r in results] == ["blank", "not looked at", "not looked at"]
    right = check.Verdict(TASK, (results[0], results[1], replace(results[2], findings=())))
    assert right.state == "not yet"
    assert "✓" in repr(right)


def test_the_three_states_in_text_and_html(known):
    passed = check.masked_sft_loss(function(known.solution))
    assert passed.passed
    assert repr(passed).startswith("masked-sft-loss: passed (4 of 4 points)")
    empty = check.masked_sft_loss(blank)
    assert repr(empty) == "masked-sft-loss: not written yet (0 of 4 points)"
    unfinished = check.masked_sft_loss(torch_says_so)
    assert unfinished.state == "not yet"
    assert "not implemented for" in repr(unfinished)
    wrong = check.masked_sft_loss(function(mutated(TASK, known.solution, known.mutants[2])))
    assert wrong.state == "not yet"
    assert "the prompt's tokens" in repr(wrong)
    assert "got" in repr(wrong)
    html = wrong._repr_html_()
    assert "prompt&#x27;s tokens" in html
    assert "✗ <b>value</b>" in html


def test_messages_are_escaped():
    html = check.masked_sft_loss(lambda *a, **k: "<script>")._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_use_takes_the_very_function_that_passed_and_says_which(known, capsys):
    mine = function(known.solution)
    assert check.use(mine, otherwise=blank) is blank
    assert "the course's masked_sft_loss" in capsys.readouterr().out
    check.masked_sft_loss(mine)
    assert check.use(mine, otherwise=blank) is mine
    assert "your masked_sft_loss" in capsys.readouterr().out
    again = function(known.solution)  # the cell was run once more: another function
    assert check.use(again, otherwise=blank) is blank


@pytest.mark.parametrize("arguments", [(), (3,), (None,), (blank, blank)])
def test_what_is_no_function_is_told(arguments):
    with pytest.raises(CourseError, match=r"call it as check\.masked_sft_loss\(masked_sft_loss\)"):
        check.masked_sft_loss(*arguments)


def test_an_unknown_task_is_told_the_names():
    with pytest.raises(AttributeError, match=r"there are .*masked_sft_loss"):
        check.nothing_like_this  # noqa: B018
    assert "masked_sft_loss" in dir(check)
    assert not hasattr(check, "__wrapped__")


def test_under_nbgrader_a_wrong_answer_is_an_error(monkeypatch, known):
    """nbgrader counts a cell without error as right."""
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    with pytest.raises(check.CheckFailed, match="not written yet"):
        check.masked_sft_loss(blank)
    assert check.masked_sft_loss(function(known.solution)).passed


def test_course_check_on_files(tmp_path, capsys):
    right = made.write(tmp_path / "right.ipynb", made.solution())
    assert cli.main(["check", made.SET, str(right)]) == 0
    said = capsys.readouterr().out
    assert f"{made.POINTS:g} of {made.POINTS:g} points" in said
    assert "note:" not in said
    empty = made.write(tmp_path / "empty.ipynb", made.exercise())
    assert cli.main(["check", made.SET, str(empty)]) == 1
    assert "not written yet" in capsys.readouterr().out
    for data in (b"", b"{", b"\xff\xfe", b'{"cells": 3}'):
        bad = made.write(tmp_path / "bad.ipynb", data)
        assert cli.main(["check", made.SET, str(bad)]) == 2
        assert "bad.ipynb" in capsys.readouterr().err
    assert cli.main(["check", made.SET, str(tmp_path / "none.ipynb")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert cli.main(["check", "2", str(right)]) == 2
    assert "there are 01, 02" in capsys.readouterr().err


def test_the_notebook_check_runs_definitions_only(tmp_path):
    book = made.solution()
    bomb = {"cell_type": "code", "metadata": {}, "source": "raise SystemExit(3)"}
    book["cells"].insert(0, bomb)
    helper = "1/0\nSCALE = 2\ndef helper():\n    return SCALE\n"
    source = "".join(made.cell(book, TASK.name)["source"])
    made.with_code(book, TASK.name, helper + source)
    verdicts = check.notebook(made.SET, made.write(tmp_path / "b.ipynb", book))
    assert all(v.passed for v in verdicts)
    made.with_code(book, TASK.name, "def masked_sft_loss(a, b=unknown): pass")
    verdicts = check.notebook(made.SET, made.write(tmp_path / "b.ipynb", book))
    assert "that could be run: NameError: name 'unknown'" in repr(verdicts[1])
    made.with_code(book, TASK.name, "x = 3")
    verdicts = check.notebook(made.SET, made.write(tmp_path / "b.ipynb", book))
    assert "defines no 'masked_sft_loss'" in repr(verdicts[1])
    with pytest.raises(NotebookError):
        check.notebook(made.SET, made.write(tmp_path / "c.ipynb", json.dumps([])))
