"""The drawings of lesson 03: readable without a picture, well-formed, nothing fetched."""

from xml.etree import ElementTree

import pytest

from course_utils.pictures.draw import Picture
from course_utils.pictures.reward import STEPS, three_steps, two_heads

BOTH = pytest.mark.parametrize("picture", [three_steps(), two_heads()])


@BOTH
def test_a_picture_is_one_svg_with_its_words(picture: Picture) -> None:
    root = ElementTree.fromstring(picture._repr_html_())
    assert root.tag.endswith("svg")
    assert root.get("aria-label") == picture.words == repr(picture)
    assert "href" not in picture._repr_html_()


@BOTH
def test_everything_stays_inside_the_picture(picture: Picture) -> None:
    boxes = [e for e in ElementTree.fromstring(picture._repr_html_()) if e.tag.endswith("rect")]
    assert boxes
    for box in boxes:
        x, y, w, h = (float(box.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert 0 <= x < x + w <= picture.width
        assert 0 <= y < y + h <= picture.height


def test_what_the_slides_show_is_drawn() -> None:
    steps = three_steps()._repr_html_().split(">", 1)[1]
    for _, _, boxes in STEPS:
        assert all(name in steps and words in steps for _, name, words in boxes)
    heads = two_heads()._repr_html_().split(">", 1)[1]
    for words in ("scalar head", "next word", "prompt x", "answer y"):
        assert words in heads
