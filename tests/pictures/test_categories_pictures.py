"""The two drawings of lesson 01: readable without a picture, well-formed, nothing fetched."""

from xml.etree import ElementTree

import pytest

from course_utils.pictures.categories import full_fine_tuning, peft_places
from course_utils.pictures.draw import Picture


@pytest.mark.parametrize("picture", [full_fine_tuning(), peft_places()])
def test_a_picture_is_one_svg_with_its_words(picture: Picture) -> None:
    root = ElementTree.fromstring(picture._repr_html_())
    assert root.tag.endswith("svg")
    assert root.get("aria-label") == picture.words == repr(picture)
    assert "href" not in picture._repr_html_()


@pytest.mark.parametrize("picture", [full_fine_tuning(), peft_places()])
def test_boxes_stay_inside_the_picture(picture: Picture) -> None:
    boxes = [e for e in ElementTree.fromstring(picture._repr_html_()) if e.tag.endswith("rect")]
    assert boxes
    for box in boxes:
        x, y, w, h = (float(box.get(name, "nan")) for name in ("x", "y", "width", "height"))
        assert 0 <= x < x + w <= picture.width
        assert 0 <= y < y + h <= picture.height


def test_every_method_of_the_slide_is_named() -> None:
    drawn = peft_places()._repr_html_()
    for method in ("prompt tuning", "prefix tuning", "LoRA", "Houlsby", "BitFit", "frozen"):
        assert method in drawn.split("aria-label")[1].split(">", 1)[1]
