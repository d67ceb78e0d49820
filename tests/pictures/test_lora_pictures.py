"""The picture of LoRA beside regular fine-tuning: its numbers, its words, well-formed SVG."""

import xml.etree.ElementTree as xml

import pytest

from course_utils.errors import CourseError
from course_utils.pictures.draw import Picture
from course_utils.pictures.lora import lora_beside_full


@pytest.fixture
def picture() -> Picture:
    return lora_beside_full(d=384, k=128, rank=8)


def test_is_one_image_with_its_words(picture: Picture) -> None:
    root = xml.fromstring(picture._repr_html_())
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == repr(picture)


def test_counts_both_ways(picture: Picture) -> None:
    drawn = " ".join(xml.fromstring(picture._repr_html_()).itertext())
    for number in ("384 × 128", "49,152 trained", "8 × 128", "384 × 8"):
        assert number in drawn
    assert "4,096 trained" in drawn  # 8 · (384 + 128)
    assert "49,152" in repr(picture)
    assert "4,096" in repr(picture)


def test_everything_drawn_is_inside(picture: Picture) -> None:
    for part in xml.fromstring(picture._repr_html_()).iter():
        if part.tag.endswith(("text", "rect")):
            x, y = float(part.attrib["x"]), float(part.attrib["y"])
            assert 0 <= x <= picture.width
            assert 0 <= y <= picture.height


@pytest.mark.parametrize("sizes", [(4, 4, 0), (0, 4, 1), (4, 4, 5), (4, 4, 1.5)])
def test_refuses_sizes_that_cannot_be(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(CourseError):
        lora_beside_full(*sizes)
