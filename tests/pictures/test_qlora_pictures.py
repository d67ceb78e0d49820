"""The QLoRA figure: well-formed, and its bytes are the shape's."""

import re
import xml.etree.ElementTree as tree

import pytest

from course_utils.errors import CourseError
from course_utils.memory import find_shape
from course_utils.pictures.qlora import three_ways

SHAPE = find_shape("llama-65b", online=False)


def test_the_picture_is_well_formed_and_uses_the_pages_own_colour():
    html = three_ways(SHAPE)._repr_html_()
    assert tree.fromstring(html).tag.endswith("svg")
    assert "currentColor" in html
    used = set(re.findall(r"url\(#([\w-]+)\)", html))
    assert used == set(re.findall(r'marker id="([\w-]+)"', html))


def test_its_bytes_are_plain_arithmetic_over_the_shape():
    said = repr(three_ways(SHAPE))
    billion = SHAPE.parameters / 1e9
    assert f"base in 16 bits ({2 * billion:,.0f} GB)" in said
    assert f"32-bit optimizer states ({8 * billion:,.0f} GB)" in said
    four_bits = float(re.search(r"NF4 \(([\d.]+) GB\)", said)[1])
    matrices = SHAPE.layers * sum(x.weights for x in SHAPE.linears)
    rest = SHAPE.parameters - matrices  # embedding, head, norms: 16 bits
    assert four_bits == pytest.approx((matrices * 4.127 / 8 + rest * 2) / 1e9, rel=5e-3)


def test_a_rank_that_does_not_fit_says_so():
    with pytest.raises(CourseError, match="rank 0"):
        three_ways(SHAPE, rank=0)
