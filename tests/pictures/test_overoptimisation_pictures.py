"""The over-optimisation explorer: the slider's steps are the rows, and say what they say."""

import pytest

from course_utils.errors import CourseError
from course_utils.pictures.overoptimisation import stop_explorer

ROWS = [
    {"step": 0, "kl": -1e-9, "proxy": 0.1, "gold": 1.0, "prompt": "a < b?", "text": "yes."},
    {"step": 5, "kl": 4.0, "proxy": 1.1, "gold": 1.5, "prompt": "a < b?", "text": "no & yes."},
    {"step": 9, "kl": 9.0, "proxy": 2.1, "gold": 0.5},
]


def test_the_curves_are_the_rises_over_the_root_of_the_kl() -> None:
    figure = stop_explorer(ROWS)
    proxy, gold, *_ = figure.data
    assert list(proxy.x) == list(gold.x) == [0.0, 2.0, 3.0]
    assert list(proxy.y) == pytest.approx([0, 1, 2])
    assert list(gold.y) == pytest.approx([0, 0.5, -0.5])


def test_every_step_of_the_slider_moves_both_marks_and_the_words() -> None:
    figure = stop_explorer(ROWS)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0", "5", "9"]
    assert slider.active == 2  # where the marks stand before anybody moves it
    assert [mark.y[0] for mark in figure.data[2:]] == pytest.approx([2, -0.5])
    for i, step in enumerate(slider.steps):
        moved, words, traces = step.args
        assert list(traces) == [2, 3]
        assert [y[0] for y in moved["y"]] == [figure.data[0].y[i], figure.data[1].y[i]]
        assert f"gold {ROWS[i]['gold']:+.2f}" in words["annotations"][0]["text"]


def test_answers_are_shown_as_text_not_as_markup() -> None:
    words = stop_explorer(ROWS).layout.sliders[0].steps[1].args[1]["annotations"][0]["text"]
    assert "a &lt; b?" in words
    assert "no &amp; yes." in words


def test_what_cannot_be_drawn_is_refused_with_a_reason() -> None:
    with pytest.raises(CourseError, match="at least two measurements of a run, got 1"):
        stop_explorer(ROWS[:1])
    with pytest.raises(CourseError, match=r"measurement 1 has no kl.*lab\.held_out"):
        stop_explorer([ROWS[0], {**ROWS[1], "kl": None}])
