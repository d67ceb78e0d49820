"""The picture gallery: small, self-contained, false words marked in HTML and in text."""

import re
import zlib

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.vision import pictures_of, random_scenes, show_scenes, true_caption
from course_utils.vision.scenes import Scene, Thing
from course_utils.vision.show import png

ONE = pictures_of([Scene((Thing("circle", "red", "large", 0, 0),))])


def test_a_png_holds_the_pixels() -> None:
    image = torch.rand(3, 4, 5) * 1.4 - 0.2
    data = png(image)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data[16:24] == (5).to_bytes(4, "big") + (4).to_bytes(4, "big")
    start = data.index(b"IDAT") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big")
    raw = zlib.decompress(data[start : start + length])
    rows = torch.tensor(list(raw)).view(4, 1 + 15)
    assert bool((rows[:, 0] == 0).all())
    expected = (image.clamp(0, 1) * 255).round().permute(1, 2, 0)
    assert torch.equal(rows[:, 1:].reshape(4, 5, 3).float(), expected)


def test_false_words_are_marked() -> None:
    shown = show_scenes(ONE, title="A <test>", web=["a red circle and a blue cross."])
    text = repr(shown)
    assert "a red circle and a *blue* *cross*.  (2 of 4 false)" in text
    assert "large red circle" in text
    html = shown._repr_html_()
    assert "A &lt;test&gt;" in html
    marked = re.findall(r"rgb\(213,94,0\)[^>]*>(\w+)<", html)
    assert marked == ["blue", "cross", "word"]  # the last is the legend's


def test_eight_scenes_are_small_and_self_contained() -> None:
    data = random_scenes(8)
    texts = [true_caption(scene) for scene in data.scenes]
    html = show_scenes(data, SFT=texts, DPO=texts, third=texts)._repr_html_()
    assert len(html.encode()) < 100_000
    assert html.count("<img") == 8
    assert not re.search(r"(?:src|href)=\"(?!data:)", html)
    assert "color:" not in html.replace("background-color:", "")  # the page's own ink


def test_bad_input_is_named() -> None:
    with pytest.raises(CourseError, match="no captions"):
        show_scenes(ONE)
    with pytest.raises(CourseError, match='"DPO" has 0 captions for 1 scenes'):
        show_scenes(ONE, DPO=[])
