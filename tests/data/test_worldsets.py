"""The world as datasets. A stand-in world: what these functions add is the shape, not the text."""

import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

import course_utils
from course_utils import data
from course_utils.errors import DataError


@dataclass(frozen=True)
class Asked:
    text: str


class Shorter:
    """Prefers the shorter answer, and remembers what it was shown."""

    def __init__(self):
        self.shown = []

    def compare(self, prompt, a, b):
        self.shown.append((prompt, a, b))
        return 0 if len(a) <= len(b) else 1


@pytest.fixture
def toy_world(monkeypatch):
    calls = {}

    def prompts(**arguments):
        calls["prompts"] = arguments
        return [Asked("what is a star ?"), Asked("and a hole ?")]

    def demonstrations(**arguments):
        calls["demonstrations"] = arguments
        return [(Asked("what is a star ?"), "a big light .")]

    world = ModuleType("course_utils.world")
    world.prompts, world.demonstrations = prompts, demonstrations
    monkeypatch.setitem(sys.modules, "course_utils.world", world)
    monkeypatch.setattr(course_utils, "world", world, raising=False)
    return calls


def test_prompts_pass_their_arguments_on(toy_world):
    dataset = data.worldsets.prompts("heldout", n=2, seed=7, families=["explain"])
    assert toy_world["prompts"] == {
        "split": "heldout",
        "n": 2,
        "seed": 7,
        "families": ["explain"],
    }
    data.validate(dataset, "prompt-only", "the world's prompts")
    assert dataset["prompt"][1] == [{"role": "user", "content": "and a hole ?"}]


def test_demonstrations_are_conversational(toy_world):
    dataset = data.worldsets.demonstrations("train", n=1, seed=3)
    assert toy_world["demonstrations"] == {"split": "train", "n": 1, "seed": 3}
    data.validate(dataset, "prompt-completion", "the world's demonstrations")
    assert data.detect(dataset).conversational
    assert dataset[0]["completion"] == [{"role": "assistant", "content": "a big light ."}]


def test_preferences_follow_the_annotator_and_leave_out_what_cannot_be_compared():
    rows = [
        (Asked("q1"), "long answer", "short"),
        ("q2", "tiny", "a longer answer"),
        ("q3", "same", " same"),
        ("q4", "", "text"),
    ]
    judge = Shorter()
    dataset = data.worldsets.preferences(rows, judge)
    assert judge.shown == [("q1", "long answer", "short"), ("q2", "tiny", "a longer answer")]
    data.validate(dataset, "preference", "pairs")
    assert data.to_standard(dataset)[:] == {
        "prompt": ["q1", "q2"],
        "chosen": ["short", "tiny"],
        "rejected": ["long answer", "a longer answer"],
    }


def test_no_pair_left_is_an_error():
    with pytest.raises(DataError, match="none of 2 pairs"):
        data.worldsets.preferences([("q", "a", "a"), ("q", "", "b")], Shorter())


# --- the real world ---------------------------------------------------------------------------


def test_the_worlds_datasets_are_valid_and_repeatable():
    for split in ("train", "heldout"):
        prompts = data.worldsets.prompts(split, n=50, seed=1)
        demonstrations = data.worldsets.demonstrations(split, n=50, seed=1)
        data.validate(prompts, "prompt-only", "prompts")
        data.validate(demonstrations, "prompt-completion", "demonstrations")
        assert len(prompts) == len(demonstrations) == 50
        assert prompts[:] == data.worldsets.prompts(split, n=50, seed=1)[:]
        assert prompts[:] != data.worldsets.prompts(split, n=50, seed=2)[:]
    explain = data.worldsets.prompts("train", n=20, families=["explain"])
    assert all("explain" in row[0]["content"] for row in explain["prompt"])


def test_the_worlds_annotator_prefers_the_right_answer():
    from course_utils import world

    pairs = [
        (prompt, *((answer, "who cares.") if i % 2 else ("who cares.", answer)))
        for i, (prompt, answer) in enumerate(world.demonstrations("train", n=30, seed=5))
    ]
    dataset = data.worldsets.preferences(pairs, world.Annotator(temperature=0))
    data.validate(dataset, "preference", "pairs")
    assert [row[0]["content"] for row in dataset["rejected"]] == ["who cares."] * 30
