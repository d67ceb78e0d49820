"""The pictures of lesson 02: they show what they are given, and stay inside themselves."""

from xml.etree import ElementTree

import pandas
import pytest

from course_utils.evaluation import Estimate
from course_utils.pictures import sft as sft_pictures


def test_step_one_is_one_svg_with_its_words() -> None:
    picture = sft_pictures.step_one()
    root = ElementTree.fromstring(picture._repr_html_())
    assert root.get("aria-label") == picture.words == repr(picture)
    for box in (e for e in root if e.tag.endswith("rect")):
        x, y, w, h = (float(box.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert 0 <= x < x + w <= picture.width
        assert 0 <= y < y + h <= picture.height
    said = picture._repr_html_().split(">", 1)[1]
    for words in ("labeller", "moon landing", "6 year old"):
        assert words in said


def test_a_token_sees_the_past_and_leaks_are_marked() -> None:
    grid = sft_pictures.who_sees_whom([0, 0, 1]).data[0].z
    assert [list(row) for row in grid] == [[2, 0, 0], [2, 2, 0], [1, 1, 2]]


def test_losses_of_a_run() -> None:
    frame = pandas.DataFrame(
        {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "eval_loss": [None, None, 1.5]}
    )
    raw, smooth, held = sft_pictures.losses_by_step(frame).data
    assert list(raw.y) == [3, 2, 1]
    assert list(smooth.y) == [3, 2.5, 2]
    assert list(held.x) == [3]
    assert list(held.y) == [1.5]


def test_losses_by_pass() -> None:
    small, large = [(0, 1.0, 1.1), (4, 0.1, 1.6)], [(0, 1.0, 1.1), (4, 0.9, 1.0)]
    lines = sft_pictures.losses_by_pass([0, 2], small, large).data
    assert [list(line.y) for line in lines] == [[1.0, 0.1], [1.1, 1.6], [1.1, 1.0]]
    assert all(list(line.x) == [0, 2] for line in lines)


def test_quality_bars_have_two_axes_and_the_same_colours() -> None:
    golds = {"base": Estimate(0.3, 0.2, 0.5, 9), "clean": Estimate(1.2, 1.0, 1.3, 9)}
    figure = sft_pictures.quality_bars(golds, {"base": 0.3, "clean": 0.1})
    left, right = figure.data
    assert list(left.y) == pytest.approx([0.3, 1.2])
    assert list(right.y) == pytest.approx([0.3, 0.1])
    assert right.xaxis == "x2"
    assert left.marker.color == right.marker.color
    assert left.error_y.array is not None
