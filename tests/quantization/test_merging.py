"""Merging one matrix: against the formula by hand, and what must hold between the four ways."""

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.quantization import dequantize, quantize
from course_utils.quantization.codebooks import NF4_TAIL, nf4_values, normal_values
from course_utils.quantization.merging import WAYS, merged_weight, output_error


@pytest.fixture
def parts():
    generator = torch.Generator().manual_seed(0)
    weight, update = (torch.randn(7, 29, generator=generator) for _ in range(2))
    return weight, 0.02 * update, torch.randn(5, 29, generator=generator)


def test_the_four_ways_are_the_formula(parts):
    weight, update, _ = parts
    rounded = dequantize(quantize(weight))
    expected = {
        "dequantize": rounded + update,
        "requantize": dequantize(quantize(rounded + update)),
        "original": weight + update,
        "original-requantize": dequantize(quantize(weight + update)),
    }
    for how in WAYS:
        assert torch.equal(merged_weight(weight, update, how), expected[how])


def test_an_update_below_the_gaps_is_lost_by_rounding_again(parts):
    weight, update, _ = parts
    kept = merged_weight(weight, update * 1e-3, "requantize")
    assert (kept - dequantize(quantize(weight))).abs().max() < 1e-4


def test_the_output_error_is_that_of_a_loop(parts):
    weight, update, x = parts
    merged = merged_weight(weight, update, "original")
    wanted = merged_weight(weight, update, "dequantize")
    off = sum(float((merged @ row - wanted @ row).square().sum()) for row in x)
    size = sum(float((wanted @ row).square().sum()) for row in x)
    assert output_error(x, merged, wanted).item() == pytest.approx((off / size) ** 0.5, rel=1e-5)
    assert output_error(x, wanted, wanted) == 0


def test_what_cannot_be_merged_is_named(parts):
    weight, update, _ = parts
    with pytest.raises(CourseError, match="requantise"):
        merged_weight(weight, update, "requantise")
    with pytest.raises(CourseError, match="differ"):
        merged_weight(weight, update.T, "dequantize")


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_normal_float_of_any_width_has_its_ends_and_its_zero(bits):
    values = normal_values(bits, 0.95)
    half = 2 ** (bits - 1)
    assert values.shape == (2 * half,)
    assert values[0] == -1
    assert values[half - 1] == 0
    assert values[-1] == 1
    assert (values.diff() > 0).all()


def test_a_normal_float_of_four_bits_is_nf4():
    assert torch.equal(normal_values(4, NF4_TAIL), nf4_values())
    for bits, tail in ((1, 0.9), (9, 0.9), (4, 0.5), (4, 1.0)):
        with pytest.raises(CourseError, match="2 to 8 bits"):
            normal_values(bits, tail)
