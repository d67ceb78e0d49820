"""The checks of every task: each mutant named, each right solution passed; findings never crash."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_utils.errors import CourseError
from course_utils.grading import checks, mutants
from course_utils.grading.call import Call, Failed, LocalCall, Outcome
from course_utils.grading.mutants import Mutant
from course_utils.grading.protocol import Opaque

ROOT = Path(__file__).parents[2]
ALL = pytest.mark.parametrize("task", checks.tasks(), ids=lambda t: t.name)


@ALL
def test_every_mutant_is_named_and_every_right_solution_passes(task):
    score = mutants.score(task, mutants.answers(ROOT, task))
    assert score.survivors == ()
    assert score.refused == ()
    assert score.lacking == ()
    assert score.perfect
    assert score.caught == score.mutants >= 8


@ALL
def test_right_solutions_pass_on_many_seeds_and_sizes(task):
    known = mutants.answers(ROOT, task)
    rounds = [(seed * 7919, seed % 13) for seed in range(12)]
    for source in (known.solution, *known.alternatives):
        assert not any(mutants.mistakes(task, source, rounds))


@ALL
@pytest.mark.parametrize(
    "value",
    [None, 3, "x", [], {}, Opaque("a.B"), torch.zeros(0), torch.zeros(2, 3), torch.tensor(True),
     torch.tensor(float("nan")), torch.tensor(float("inf")), 0.0, 1.0, True, (), [0.0] * 3,
     torch.zeros(()), torch.ones(()), (torch.zeros(2), torch.zeros(2)), float("nan")],
    ids=str,
)  # fmt: skip
def test_no_value_passes_or_crashes_a_check(task, value):
    class Constant(Call):
        def nth(self, which, *args, wrt=(), **kwargs):
            return Outcome(value, (value,) * len(wrt), (value,) * len(args))

    assert_nothing(task, Constant())


@ALL
@pytest.mark.parametrize("position", [0, 1])
def test_a_function_that_returns_its_argument_gets_nothing(task, position):
    class Echo(Call):
        def nth(self, which, *args, wrt=(), **kwargs):
            value = args[min(position, len(args) - 1)] if args else None
            return Outcome(value, (None,) * len(wrt), args)

    assert_nothing(task, Echo())


NUMBERS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats()
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8)
TENSORS = st.builds(
    lambda shape, dtype, scale: (torch.randn(shape) * scale).to(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 1.0, 1e30, float("inf")]),
)
REPLIES = st.recursive(
    NUMBERS | st.text(max_size=5) | TENSORS | st.just(Opaque("a.B")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@ALL
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(reply=REPLIES, gradient=REPLIES)
def test_no_reply_at_all_crashes_a_check(task, reply, gradient):
    class Reply(Call):
        def nth(self, which, *args, wrt=(), **kwargs):
            known = gradient if isinstance(gradient, torch.Tensor) else None
            return Outcome(reply, (known,) * len(wrt), (reply,) * len(args))

    assert_nothing(task, Reply())


def assert_nothing(task, call):
    for result in checks.run_task(task, call):
        assert result.points == 0
        assert all(len(f.text()) < 600 for f in result.findings)


def test_names_are_unique_and_points_are_those_of_the_notebooks():
    names = [task.attribute for task in checks.tasks()]
    assert len(names) == len(set(names))
    for source in sorted((ROOT / "exercises").glob("[0-9]*.ipynb")):
        cells = json.loads(source.read_text())["cells"]
        marks = [c["metadata"]["nbgrader"] for c in cells if "nbgrader" in c["metadata"]]
        told = {m["grade_id"]: m["points"] for m in marks if m["grade"] and m["locked"]}
        expected = {f"{t.name}-check": t.points for t in checks.tasks(source.name[:2])}
        assert told == expected, source.name
        text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        headers = [float(n) for n in re.findall(r"minutes · ([\d.]+) points?\*", text)]
        assert headers == list(expected.values()), source.name


def test_the_check_that_gates_the_others_says_so():
    task = checks.find("02", "masked-sft-loss")
    results = checks.run_task(task, LocalCall([lambda *a, **k: torch.zeros(())]))
    assert [r.findings[0].mistake for r in results] == ["zero", "not looked at", "not looked at"]


def test_a_survivor_a_refused_solution_and_too_few_of_them_are_reported():
    task = checks.find("02", "masked-sft-loss")
    known = mutants.answers(ROOT, task)
    harmless = Mutant("harmless", "total = -(chosen", "total = - (chosen", "sign")
    wrong = "def masked_sft_loss(*a, **k): return None"
    score = mutants.score(task, replace(known, mutants=(harmless,), alternatives=(wrong,)))
    assert not score.perfect
    assert score.caught == 0
    assert "harmless" in score.survivors[0]
    assert "not a tensor" in score.refused[0]
    assert len(score.lacking) == 2


def test_a_mutant_must_fit_its_solution():
    task = checks.find("02", "masked-sft-loss")
    with pytest.raises(CourseError, match="stands 0 times"):
        mutants.mutated(task, "def f(): pass", Mutant("x", "no such text", "", ""))


def test_an_unknown_task_is_told_the_names():
    with pytest.raises(CourseError, match="masked-sft-loss"):
        checks.find("02", "nope")


def test_a_local_call_copies_differentiates_and_says_where_it_failed():
    def double(x):
        x *= 2
        return x.sum()

    ones = torch.ones(3)
    assert torch.equal(LocalCall([double])(ones).arguments[0], ones * 2)
    assert ones.sum() == 3
    assert LocalCall([lambda x: (x * 3).sum()])(ones, wrt=(0,)).gradients[0].tolist() == [3, 3, 3]
    assert LocalCall([lambda x: x.detach().sum()])(ones, wrt=(0,)).gradients == (None,)
    namespace = {}
    exec(compile("\ndef bad(x):\n    return 1 / 0", "cell 7", "exec"), namespace)
    with pytest.raises(Failed, match=r"ZeroDivisionError.*cell 7, line 3"):
        LocalCall([namespace["bad"]])(ones)
