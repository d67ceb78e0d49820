"""The checks of every task: each mutant named, each right solution passed; findings never crash."""

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.grading import checks, mutants
from course_utils.grading.call import Failed, LocalCall, Outcome
from course_utils.grading.checks import Mutant
from course_utils.grading.protocol import Opaque


@pytest.mark.parametrize("task", checks.tasks(), ids=lambda t: t.name)
def test_every_mutant_is_named_and_every_right_solution_passes(task):
    score = mutants.score(task)
    assert score.survivors == ()
    assert score.refused == ()
    assert score.perfect
    assert score.mutants >= 8
    assert len(task.alternatives) >= 2


@pytest.mark.parametrize("task", checks.tasks(), ids=lambda t: t.name)
@pytest.mark.parametrize(
    "value",
    [None, 3, "x", [], {}, Opaque("a.B"), torch.zeros(0), torch.zeros(2, 3), torch.tensor(True),
     torch.tensor(float("nan")), torch.tensor(float("inf"))],
)  # fmt: skip
def test_no_value_passes_or_crashes_a_check(task, value):
    def call(*args, wrt=(), **kwargs):
        return Outcome(value, (value,) * len(wrt), (value,) * len(args))

    for result in checks.run_task(task, call, 0, 0):
        assert result.points == 0
        assert all(len(f.text()) < 400 for f in result.findings)


def test_a_survivor_and_a_refused_solution_are_reported():
    task = checks.find("02", "masked-sft-loss")
    harmless = Mutant("harmless", "total = -(chosen", "total = - (chosen", "sign")
    changed = type(task)(**{**vars(task), "mutants": (harmless,), "alternatives": ("def "
                            "masked_sft_loss(*a, **k): return None",)})  # fmt: skip
    score = mutants.score(changed)
    assert not score.perfect
    assert score.caught == 0
    assert "harmless" in score.survivors[0]
    assert "not a tensor" in score.refused[0]


def test_a_mutant_must_fit_its_solution():
    task = checks.find("02", "masked-sft-loss")
    with pytest.raises(CourseError, match="stands 0 times"):
        mutants.mutated(task, Mutant("x", "no such text", "", ""))


def test_an_unknown_task_is_told_the_names():
    with pytest.raises(CourseError, match="masked-sft-loss"):
        checks.find("02", "nope")


def test_a_local_call_copies_differentiates_and_says_where_it_failed():
    def double(x):
        x *= 2
        return x.sum()

    ones = torch.ones(3)
    assert torch.equal(LocalCall(double)(ones).arguments[0], ones * 2)
    assert ones.sum() == 3
    assert LocalCall(lambda x: (x * 3).sum())(ones, wrt=(0,)).gradients[0].tolist() == [3, 3, 3]
    assert LocalCall(lambda x: x.detach().sum())(ones, wrt=(0,)).gradients == (None,)
    namespace = {}
    exec(compile("\ndef bad(x):\n    return 1 / 0", "cell 7", "exec"), namespace)
    with pytest.raises(Failed, match=r"ZeroDivisionError.*cell 7, line 3"):
        LocalCall(namespace["bad"])(ones)
