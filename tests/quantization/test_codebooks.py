"""The code books against the published tables and their definitions."""

import math

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.quantization import FORMATS, code_book
from course_utils.quantization.codebooks import NF4_TAIL, dynamic_book

# Dettmers et al. 2023, appendix E
PUBLISHED_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def test_nf4_is_the_published_table():
    assert torch.equal(code_book("nf4").values, torch.tensor(PUBLISHED_NF4))


def test_nf4_tail_is_the_papers_delta():
    delta = (1 / 32 + 1 / 30) / 2
    assert pytest.approx(1 - delta, abs=5e-8) == NF4_TAIL


def test_nf4_levels_are_equally_likely_steps_of_a_normal_distribution():
    levels = code_book("nf4").values.double()
    sigmas = math.sqrt(2) * torch.erfinv(torch.tensor(2 * NF4_TAIL - 1, dtype=torch.float64))
    probability = 0.5 * (1 + torch.erf(levels * sigmas / math.sqrt(2)))
    below, above = probability[:8].diff(), probability[7:].diff()
    assert torch.allclose(below, below[0], atol=1e-6)
    assert torch.allclose(above, above[0], atol=1e-6)
    assert below.shape == (7,)
    assert above.shape == (8,)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_values_are_bitsandbytes_own(name):
    functional = pytest.importorskip("bitsandbytes.functional")
    theirs = functional.get_4bit_type(name, device="cpu")
    assert torch.equal(code_book(name).values, theirs)


def test_dynamic_book_is_bitsandbytes_own():
    functional = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(dynamic_book().values, functional.create_dynamic_map())


def test_int4_is_even_and_symmetric():
    book = code_book("int4")
    assert torch.allclose(book.levels[1:] * 7, torch.arange(-7.0, 8.0))
    assert torch.equal(book.values[:8] * 7, torch.arange(8.0))
    assert int(book.codes[0]) == 8  # -8/7 comes first, and nothing in [-1, 1] is nearest to it
    assert book.nearest(torch.tensor([-1.0])).item() == 9


@pytest.mark.parametrize("name", FORMATS)
def test_nearest_is_nearest(name):
    book = code_book(name)
    x = torch.linspace(-1, 1, 2001)
    slow = (x.unsqueeze(1) - book.values.unsqueeze(0)).abs().min(dim=1).values
    chosen = (book.values[book.nearest(x).long()] - x).abs()
    assert torch.allclose(chosen, slow, atol=1e-7)
    assert float(chosen.max()) <= book.half_gap + 1e-7


@pytest.mark.parametrize("name", FORMATS)
def test_books_hold_zero_and_both_ends(name):
    book = code_book(name)
    assert book.values[book.zero] == 0
    for end in (-1.0, 0.0, 1.0):
        code = int(book.nearest(torch.tensor([end])))
        assert float(book.values[code]) == end


@pytest.mark.parametrize(
    ("name", "hint"), [("nf5", "nf4"), ("NF-4", "nf4"), ("FP-4", "fp4"), ("int8", "int4")]
)
def test_unknown_format_names_a_near_one(name, hint):
    with pytest.raises(CourseError, match=f'did you mean "{hint}"'):
        code_book(name)


def test_quite_unknown_format_lists_all():
    with pytest.raises(CourseError, match="nf4, fp4, int4"):
        code_book("zzz")
    with pytest.raises(CourseError, match="nf4, fp4, int4"):
        code_book(None)
