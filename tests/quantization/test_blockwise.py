"""Blockwise quantization: against a slow loop, its invariants, its size, and bad input."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.errors import CourseError
from course_utils.quantization import (
    FORMATS,
    bits_per_parameter,
    code_book,
    dequantize,
    pack,
    quantize,
    unpack,
)


def slow_rounded(x, name, block):
    """What dequantize(quantize(x)) is, one number at a time."""
    levels = [float(v) for v in code_book(name).values]
    flat = x.flatten().tolist()
    result = []
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        scale = max(abs(v) for v in part)
        for v in part:
            nearest = min(levels, key=lambda level: abs(v / scale - level)) if scale else 0.0
            result.append(nearest * scale)
    return torch.tensor(result).reshape(x.shape)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("shape", "block"), [((4, 32), 64), ((7, 11), 16), ((5,), 64), ((1,), 3)])
def test_equals_the_slow_loop(name, shape, block):
    x = torch.randn(shape)
    assert torch.allclose(dequantize(quantize(x, name, block)), slow_rounded(x, name, block))


def per_element_scale(q):
    return q.scales().repeat_interleave(q.block)[: q.numel].reshape(q.shape)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FORMATS),
    block=st.integers(1, 100),
    size=st.integers(1, 300),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_invariants(name, block, size, seed, scale):
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale
    q = quantize(x, name, block)
    rounded = dequantize(q)
    # the error stays within half the widest gap of the block's scale
    bound = q.book.half_gap * per_element_scale(q)
    assert bool(((rounded - x).abs() <= bound * (1 + 1e-5)).all())
    # what is on the grid already stays where it is, to the bit
    again = quantize(rounded, name, block)
    assert torch.equal(again.codes, q.codes)
    assert torch.equal(again.absmax, q.absmax)
    # twice the weights (a power of two, so without rounding) have the same codes
    doubled = quantize(2 * x, name, block)
    assert torch.equal(doubled.codes, q.codes)
    assert torch.equal(dequantize(doubled), 2 * rounded)
    # the largest of every block is kept exactly
    first = rounded[:block].abs().max()
    assert first == x[:block].abs().max()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("double", [False, True])
def test_block_of_zeros_stays_zero(name, double):
    x = torch.cat([torch.zeros(64), torch.randn(64)])
    rounded = dequantize(quantize(x, name, 64, double))
    assert torch.equal(rounded[:64], torch.zeros(64))
    assert torch.isfinite(dequantize(quantize(torch.zeros(3, 5), name, 4, double))).all()


@pytest.mark.parametrize("name", FORMATS)
def test_sign_symmetry_where_the_book_is_symmetric(name):
    x = torch.randn(256)
    same = torch.equal(dequantize(quantize(-x, name)), -dequantize(quantize(x, name)))
    assert same == (name != "nf4")  # NF4 has 8 levels above 0 and 7 below


def test_blocks_do_not_see_each_other():
    x = torch.randn(4, 64)
    before = dequantize(quantize(x, block=64))
    x[0, 0] = 1000.0
    assert torch.equal(dequantize(quantize(x, block=64))[1:], before[1:])


@pytest.mark.parametrize("name", FORMATS)
def test_double_quantization_changes_the_scales_only(name):
    x = torch.randn(300, 64) * torch.rand(300, 1)
    plain, double = quantize(x, name), quantize(x, name, double=True)
    assert torch.equal(plain.codes, double.codes)
    assert double.absmax.dtype == torch.uint8
    centred = plain.absmax - plain.absmax.mean()
    largest = torch.stack([part.abs().max() for part in centred.split(256)])  # (2,)
    # the dynamic book's widest step is 0.9/64 of the largest
    bound = largest.repeat_interleave(256)[:300] * 0.9 / 128
    assert bool(((double.scales() - plain.absmax).abs() <= bound * 1.001).all())
    assert not torch.equal(double.scales(), plain.absmax)


def test_bits_per_parameter():
    assert bits_per_parameter(64) == 4.5
    assert bits_per_parameter(64, double=True) == 4 + 8 / 64 + 32 / (64 * 256)
    assert round(bits_per_parameter(64, double=True) - 4, 3) == 0.127
    assert bits_per_parameter(32) == 5.0
    x = torch.randn(256, 64)
    assert quantize(x).bits_per_parameter == 4.5
    extra = 32 / x.numel()  # the mean of the scales, stored once
    double = quantize(x, double=True)
    assert double.bits_per_parameter == pytest.approx(bits_per_parameter(64, True) + extra)
    assert quantize(torch.randn(3)).nbytes == 2 + 4


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_packing_is_undone(codes):
    codes = torch.tensor(codes, dtype=torch.uint8)
    packed = pack(codes)
    assert packed.shape == ((len(codes) + 1) // 2,)
    assert torch.equal(unpack(packed, len(codes)), codes)


def test_the_first_of_a_pair_is_in_the_upper_half():
    assert pack(torch.tensor([1, 2, 15]), fill=7).tolist() == [0x12, 0xF7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_comes_back(dtype):
    x = torch.randn(5, 7, 3).to(dtype)
    rounded = dequantize(quantize(x))
    assert rounded.dtype == dtype
    assert rounded.shape == x.shape
    assert dequantize(quantize(x), torch.float32).dtype == torch.float32


def test_input_is_left_alone_and_views_are_read_right():
    x = torch.randn(8, 16, requires_grad=True)
    kept = x.detach().clone()
    rounded = dequantize(quantize(x.T, block=8))
    assert torch.equal(x.detach(), kept)
    assert not rounded.requires_grad
    assert torch.equal(rounded, dequantize(quantize(x.T.contiguous(), block=8)))
    assert dequantize(quantize(torch.tensor(3.5))) == 3.5  # a number by itself is its own scale


BAD = float("nan"), float("inf"), -float("inf")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: quantize(torch.empty(0, 4)), "empty, shape (0, 4)"),
        (lambda: quantize(torch.ones(4, dtype=torch.int8)), "int8"),
        (lambda: quantize(torch.ones(4, dtype=torch.bool)), "bool"),
        (lambda: quantize(torch.ones(4, dtype=torch.complex64)), "complex64"),
        (lambda: quantize([1.0, 2.0]), "list"),
        (lambda: quantize(None), "NoneType"),
        (lambda: quantize(torch.ones(4, device="meta")), "no values"),
        (lambda: quantize(torch.tensor([1e300], dtype=torch.float64)), "too large"),
        (lambda: quantize(torch.ones(4), "nf8"), "did you mean"),
        *[(lambda bad=bad: quantize(torch.tensor([1.0, bad])), "1 values of 2") for bad in BAD],
        *[
            (lambda block=block: quantize(torch.ones(4), block=block), "block size")
            for block in (0, -64, 64.0, True, None, "64")
        ],
    ],
)
def test_bad_input_is_said_plainly(call, words):
    with pytest.raises(CourseError) as error:
        call()
    assert words in str(error.value)


def test_extreme_magnitudes():
    for size, name in itertools.product((1e-37, 3e38), FORMATS):
        x = torch.tensor([1.0, -0.5, 0.25, 0.0]) * size
        rounded = dequantize(quantize(x, name, 4))
        assert torch.isfinite(rounded).all()
        assert float((rounded - x).abs().max()) <= code_book(name).half_gap * size * 1.001
    assert torch.isfinite(dequantize(quantize(torch.full((4,), 1e-45)))).all()
