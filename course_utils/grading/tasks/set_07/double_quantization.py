"""Set 07: the scales quantized too, and the bits that are left of them.

    double_quantize(scales (M,), levels (256,), block=256) -> codes (M,) uint8, second (K,), mean ()
    restore_scales(codes, second, mean, levels, block=256) -> (M,) float32
    bits_per_parameter(n, block=64, second_block=256, double=True) -> float

The mean of all scales is subtracted; what remains is quantized blockwise, K = ⌈M / block⌉.
"""

import math

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_07._inputs import (
    fits,
    float_of,
    generator,
    name_number,
    named,
    nearest,
    pieces,
    random_book,
    ratio,
    same,
    scales_of,
    spread,
)

WHAT = "codes, second, mean"


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, int]:
    """Scales (M,), all above 0, blocks of different size, a ragged tail; levels (256,); block."""
    block = (32, 256, 48)[size % 3]
    M = 2 * block + 11 + size
    scales = 0.05 + 0.1 * torch.rand(M, generator=generator(seed))
    scales[:block] *= 4  # the blocks' second scales differ, and no mean of a block is the mean
    return scales, random_book(seed + 1, 256), block


def _centred(scales: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """(M,) less the mean, (K,) second scales, () mean: float64."""
    mean = scales.double().mean()
    centred = scales.double() - mean
    return centred, scales_of(centred, block), mean


def _wrong_pieces(
    codes: Tensor, second: Tensor, mean: Tensor, M: int, block: int
) -> Finding | None:
    """Findings about shapes and dtypes."""
    K = -(-M // block)
    if codes.shape != (M,):
        more = "; cut the filling off again" if codes.shape == (K * block,) else ""
        message = f"there must be one code for each scale{more}"
        return Finding("wrong shape", message, show(codes), f"shape ({M},)")
    if codes.dtype != torch.uint8:
        return Finding("wrong dtype", "codes must be uint8", show(codes), "uint8")
    if second.numel() == 1 and K > 1:
        message = "there is one second scale for all; each block of scales has its own"
        return Finding("one scale", message, show(second), f"shape ({K},)")
    if mean.numel() == K > 1:
        message = "subtract the mean of *all* scales: one number, not one for each block"
        return Finding("mean of blocks", message, show(mean), "shape ()")
    return float_of(second, (K,), "second") or float_of(mean, (), "mean")


def check_second_level(call: Call, seed: int, size: int) -> list[Finding]:
    """Mean, second scales and codes."""
    scales, levels, block = _inputs(seed, size)
    outcome = call(scales, levels, block)
    fault = pieces(outcome.value, 3, WHAT)
    if fault:
        return [fault]
    codes, second, mean = outcome.value
    fault = _wrong_pieces(codes, second, mean, len(scales), block)
    if fault:
        return [fault]
    centred, expected, right_mean = _centred(scales, block)
    fault = name_mistake(mean, right_mean, _known_means(scales))
    if fault:
        return [Finding(fault.mistake, f"mean: {fault.message}", fault.got, fault.expected)]
    raw = scales_of(scales, block)
    known = {
        "zero": (expected * 0, "your second scales are all 0"),
        "not centred": (raw, "subtract the mean *before* the largest magnitude is taken"),
        "signed maximum": (_largest(centred, block), "the second scale is the largest *magnitude*: "
                           "less their mean, scales have both signs"),
    }  # fmt: skip
    fault = named(second, expected, known, "second: ")
    if fault:
        return [fault]
    fault = _wrong_codes(codes, scales, levels, block)
    fault = fault or changed(("scales", "levels"), (scales, levels), outcome.arguments)
    return [fault] if fault else []


def _largest(flat: Tensor, block: int) -> Tensor:
    return torch.stack([part.max() for part in flat.split(block)])


def _known_means(scales: Tensor) -> dict[str, tuple[Tensor, str]]:
    zero = scales.double().mean() * 0
    return {
        "mean not subtracted": (zero, "it is 0, but the scales' mean is not: subtract it, for all "
                                "scales are positive"),
        "minimum": (scales.double().min(), "this is the least of the scales, not their mean"),
        "median": (scales.double().median(), "this is their median"),
        "half of the range": ((scales.max() + scales.min()).double() / 2, "this is the middle of "
                              "the range, not the mean"),
        "sign": (-scales.double().mean(), "the sign is flipped"),
        "sum": (scales.double().sum(), "this is their sum"),
    }  # fmt: skip


def _wrong_codes(codes: Tensor, scales: Tensor, levels: Tensor, block: int) -> Finding | None:
    centred, second, _ = _centred(scales, block)
    if fits(codes, ratio(centred, second, block), levels):
        return None
    wrong = (
        ("codes not centred", ratio(scales, second, block), "the codes are those of the scales "
         "themselves; quantize the scales *less their mean*"),
        ("not scaled", centred, "divide by the second scales before you look for the nearest "
         "level"),
        ("one scale", centred / centred.abs().max(), "all are divided by one second scale; each "
         "block has its own"),
    )  # fmt: skip
    for mistake, scaled, message in wrong:
        if fits(codes, scaled, levels):
            return Finding(mistake, f"codes: {message}")
    index = codes.long()
    shifted = (nearest(ratio(centred, second, block), levels) - index).double()
    if float(shifted.min()) == 0 and float(shifted.max()) == 1 and float(shifted.mean()) > 0.2:
        message = "you take the level below, not the *nearest* one"
        return Finding("level below", f"codes: {message}")
    if fits(255 - index, ratio(centred, second, block), levels):
        return Finding("other end", "codes: code 0 must be the first level, -1")
    return Finding("something else", "codes: they are wrong, by no mistake known here")


def check_back(call: Call, seed: int, size: int) -> list[Finding]:
    """Scales from given codes; and scales that are all equal, from the student's own."""
    scales, levels, block = _inputs(seed + 1, size)
    centred, second, mean = _centred(scales, block)
    codes = nearest(ratio(centred, second, block), levels)
    small = levels.double()[codes] * spread(second, block, len(codes))
    tiled = second.repeat(-(-len(codes) // len(second)))[: len(codes)]
    looked_up = levels.double()[codes]
    got = call.second(codes.to(torch.uint8), second.float(), mean.float(), levels, block).value
    known = {
        "zero": (small * 0, "your scales are all 0"),
        "mean not added": (small, "add the mean again that was subtracted"),
        "mean subtracted": (small - mean, "the mean must be *added* when you go back"),
        "not scaled": (looked_up + mean, "multiply each level by its block's second scale"),
        "mean scaled": ((looked_up + mean) * spread(second, block, len(codes)), "multiply first, "
                        "then add the mean: the mean was never divided"),
        "scales not repeated": (looked_up * tiled + mean, "each second scale belongs to `block` "
                                "neighbours: a a a b b b, not a b c a b c"),
        "codes as numbers": (codes * spread(second, block, len(codes)) + mean, "a code is the "
                             "*number of* a level, not its value"),
    }  # fmt: skip
    fault = wrong_type(got, (len(codes),)) or named(got, small + mean, known, "restore_scales: ")
    if fault:
        return [fault]
    for equal in (torch.full((block + 3,), 0.75), torch.full((1,), 0.3)):
        made = call(equal, levels, block).value
        message = "scales that are all equal, or only one, must come back as they were: less " \
                  "their mean they are 0, and nothing is divided by 0"  # fmt: skip
        if pieces(made, 3, WHAT) or _wrong_pieces(made[0], made[1], made[2], len(equal), block):
            return [Finding("equal scales", message)]
        again = call.second(*made, levels, block).value
        if not same(again, equal):
            return [Finding("equal scales", message, show(again), show(equal))]
    return []


def _stored(n: int, block: int, second_block: int, double: bool) -> int:
    """Bytes of n weights: codes, scales and what double quantization adds, counted."""
    codes, blocks = math.ceil(n / 2), math.ceil(n / block)
    if not double:
        return codes + 4 * blocks
    return codes + blocks + 4 * math.ceil(blocks / second_block) + 4


def check_bits(call: Call, seed: int, size: int) -> list[Finding]:
    """Large tensors and ragged small ones, with and without double quantization."""
    draw = generator(seed)
    drawn = [16 * int(torch.randint(low, high, (), generator=draw)) for low, high in
             ((10**4, 10**5), (3, 60), (1, 30))]  # fmt: skip
    # even ones first: what is wrong with blocks shows before what is wrong with odd codes
    for n in (2 * drawn[0] + 6, 2 * drawn[1] + 6, 2 * drawn[2] + 1):
        for block, second_block in ((64, 256), (32 + 16 * (size % 4), 128)):
            for double in (True, False):
                arguments = (n, block, second_block, double)
                fault = _wrong_bits(call.nth(2, *arguments).value, *arguments)
                if fault:
                    return [fault]
    got = call.nth(2, 2**20).value
    fault = name_number(got, 8 * _stored(2**20, 64, 256, True) / 2**20, {}, "the default")
    return [Finding("defaults", fault.message, fault.got, fault.expected)] if fault else []


def _wrong_bits(got: object, n: int, block: int, second_block: int, double: bool) -> Finding | None:
    right = 8 * _stored(n, block, second_block, double) / n
    blocks = math.ceil(n / block)
    second = math.ceil(blocks / second_block)
    half, whole = math.ceil(n / 2), math.floor(n / 2)
    other = 8 * _stored(n, block, second_block, not double) / n
    formula = 8 / block + 32 / (block * second_block) if double else 32 / block
    fewer = n // block
    floor = fewer + 4 * math.ceil(fewer / second_block) + 4 if double else 4 * fewer
    floors = fewer + 4 * (fewer // second_block) + 4 if double else floor
    known = {
        "odd code": (8 * (_stored(n, block, second_block, double) - half + whole) / n, "an odd "
                     "number of codes fills its last byte only by half; round up"),
        "double ignored": (other, "this is the number with `double` the other way round"),
        "scales only": (right - 8 * half / n, "the codes are missing, four bits a weight"),
        "codes only": (8 * half / n, "the scales are missing"),
        "bytes": (right / 8, "these are bytes; a byte has 8 bits"),
        "all of them": (right * n, "these are the bits of the whole tensor; divide by n"),
        "formula": (4 + formula, "this is the formula for a very large tensor: round the numbers "
                    "of bytes and blocks up, and count the mean"),
        "rounded down": (8 * (half + floor) / n, "a last block that is shorter has a scale of its "
                         "own too: round up"),
        "rounded down twice": (8 * (half + floors) / n, "last blocks that are shorter have a scale "
                               "of their own too, of weights as of scales: round up"),
    }  # fmt: skip
    if double:
        known |= {
            "mean missing": (right - 32 / n, "the mean is stored too, in 32 bits"),
            "second scales missing": (right - 32 * second / n, "the second scales are missing: one "
                                      "for each block of scales, in 32 bits"),
            "second scales of the weights": (
                8 * (half + blocks + 4 * math.ceil(n / second_block) + 4) / n,
                "a second scale belongs to `second_block` scales, not to as many weights"),
            "second scales of 8 bits": (right - 24 * second / n, "the second scales have 32 bits"),
            "scales of 32 bits": (right + 24 * blocks / n, "with double quantization a block's "
                                  "scale takes 8 bits"),
        }  # fmt: skip
    fault = name_number(got, right, known, "bits_per_parameter", rtol=1e-9)
    if fault is None or fault.mistake == "not a number":
        return fault
    at = f" (n={n:,}, block={block}, second_block={second_block}, double={double})"
    return Finding(fault.mistake, fault.message + at, fault.got, fault.expected)


TASK = Task(
    set="07",
    name="double-quantization",
    functions=("double_quantize", "restore_scales", "bits_per_parameter"),
    checks=(
        Check("the second level", 2, check_second_level),
        Check("and back again", 1, check_back),
        Check("bits per parameter", 2, check_bits),
    ),
)
