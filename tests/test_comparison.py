"""Models side by side: only columns with data, numbers as the evaluations have them."""

import math
from pathlib import Path

import pytest

from course_utils.comparison import Comparison
from course_utils.errors import CourseError
from course_utils.lab import Lab
from course_utils.tiers import choose_tier


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(choose_tier("tiny", environ={"COURSE_FAST": "1"}), seed=3)


def test_a_column_for_everything_that_is_known(lab: Lab) -> None:
    base = lab.base()
    found = lab.compare(
        {"base": base, "again": base}, n=4, reward=lambda p, a: [1.0] * len(a), reference=base
    )
    frame = found.frame()
    assert list(frame.index) == ["base", "again"]
    assert {"gold", "gold_low", "reward", "kl", "length", "distinct_2"} <= set(frame.columns)
    assert frame.gold["base"] == found.evaluations["base"].mean
    assert frame.reward["base"] == 1.0
    assert abs(frame.kl["base"]) < 1e-5
    assert found.winner("base", "again").rate == 0.5
    for text in (repr(found), found._repr_html_()):
        assert f"{frame.gold['base']:+.2f}" in text
        assert "gold reward" in text


def test_without_gold_the_reward_decides(lab: Lab) -> None:
    base = lab.base()
    found = lab.compare({"a": base}, n=3, gold=None, reward=lambda p, a: [2.0] * len(a))
    assert "gold" not in found.frame().columns
    assert "gold reward" not in found._repr_html_()
    assert found.winner("a", "a").rate == 0.5
    assert "kl" not in found.frame().columns


def test_a_value_that_one_model_lacks(lab: Lab) -> None:
    base = lab.base()
    found = Comparison(
        {"with": lab.evaluate(base, 3, reference=base), "without": lab.evaluate(base, 3)}
    )
    assert math.isnan(found.frame().kl["without"])
    assert "–" in repr(found)


def test_faults(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(CourseError, match="nothing to compare"):
        lab.compare({})
    with pytest.raises(CourseError, match='"c" is not among a'):
        lab.compare({"a": lab.base()}, n=2).winner("a", "c")


def test_a_lab_of_the_world_is_its_own_world(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab.world is lab
    monkeypatch.setattr(Lab, "gold", property(lambda self: None if self.seed == 9 else len))
    real = Lab(lab.choice, seed=9)
    assert real.world is not real
    assert real.world.seed == 9
    assert real.world.tier.name == "tiny"
