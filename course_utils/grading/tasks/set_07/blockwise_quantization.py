"""Set 07: numbers to codes and scales, block by block, and back.

    quantize_blocks(x (any shape), levels (L,), block=64) -> codes (N,) uint8, scales (M,) float32
    dequantize_blocks(codes, scales, levels, block, shape, dtype="float32") -> tensor of that shape

Blocks are cut from x in row-major order, M = ⌈N / block⌉; the last may be shorter. A scale is the
largest magnitude of its block, a code the number of the level nearest to x / scale.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call, Failed
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show
from course_utils.grading.tasks.set_07._inputs import (
    fits,
    float_of,
    generator,
    named,
    near_border,
    nearest,
    pieces,
    random_book,
    ratio,
    scales_of,
    spread,
)

WHAT = "codes, scales"


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, int]:
    """x (d, k) in blocks of different scales, with a ragged tail; levels (16,); block."""
    block, d, k = (16, 24, 64)[size % 3], 5 + size % 3, 23 + 2 * size
    while not _ragged(d, k, block):
        k += 1
    levels, source = random_book(seed), generator(seed + 1)
    flat = torch.randn(d * k, generator=source)
    for start in range(0, len(flat), block):
        part = flat[start : start + block]
        part *= 10 ** float(torch.rand((), generator=source) * 2 - 1)
        if start % (2 * block) == 0:  # every other block has its largest magnitude below zero
            part[int(part.abs().argmax())] = -float(part.abs().max())
    x = flat.view(d, k)
    x[near_border(x, levels, block)] = 0  # no ties
    return x, levels, block


def _ragged(d: int, k: int, block: int) -> bool:
    """Whether no row, and not the whole, fills its blocks, and blocks are not as many as rows."""
    blocks = -(-d * k // block)
    as_rows = (d, k, d * -(-k // block))  # scales, if rows were cut
    return k % block != 0 and d * k % block > 2 and blocks not in as_rows and blocks > 2


def _known_codes(
    x: Tensor, levels: Tensor, block: int, scales: Tensor
) -> dict[str, tuple[Tensor, str]]:
    flat = x.flatten().double()
    scaled = ratio(flat, scales, block)
    right = nearest(scaled, levels)
    below = (torch.bucketize(scaled, levels.double(), right=True) - 1).clamp(0, 15)
    even = torch.linspace(-1, 1, 16)
    return {
        "zero": (right * 0.0, "your codes are all 0"),
        "level below": (below * 1.0, "you take the level below a number, not the *nearest* one: "
                        "the borders lie halfway between the levels"),
        "level above": ((below + (scaled != levels.double()[below])).clamp(max=15) * 1.0,
                        "you take the level above a number, not the *nearest* one"),
        "not scaled": (nearest(flat, levels) * 1.0, "divide each block by its scale before you "
                       "look for the nearest level"),
        "one scale": (nearest(flat / flat.abs().max(), levels) * 1.0, "all numbers are divided by "
                      "one scale; each block has its own"),
        "multiplied": (nearest(flat * spread(scales, block, len(flat)), levels) * 1.0,
                       "you multiply by the scale; dividing brings a block into [-1, 1]"),
        "magnitudes": (nearest(scaled.abs(), levels) * 1.0, "the sign is lost: only the scale is "
                       "taken from magnitudes"),
        "levels ignored": (nearest(scaled, even) * 1.0, "your codes are those of evenly spaced "
                           "levels; use the argument `levels`"),
        "other end": (15.0 - right, "code 0 must be the first level, -1"),
    }  # fmt: skip


def _known_scales(x: Tensor, block: int) -> dict[str, tuple[Tensor, str]]:
    blocks = x.double().flatten().split(block)
    right = scales_of(x.flatten(), block)

    def each(function: object) -> Tensor:
        return torch.stack([function(b) for b in blocks])  # type: ignore[operator]

    return {
        "zero": (right * 0, "your scales are all 0"),
        "signed maximum": (each(lambda b: b.max()), "the scale is the largest *magnitude*: a "
                           "block's outermost number may be negative"),
        "mean": (each(lambda b: b.abs().mean()), "the scale is the largest magnitude, not the "
                 "mean"),
        "deviation": (each(lambda b: b.std()), "the scale is the largest magnitude, not the "
                      "standard deviation"),
        "range": (each(lambda b: b.max() - b.min()), "the scale is the largest magnitude, not the "
                  "distance between the ends"),
        "one scale": (right.max().expand_as(right), "every block has the whole tensor's largest "
                      "magnitude; each has its own"),
        "inverse": (1 / right, "these are 1 / scale; return the scales themselves"),
    }  # fmt: skip


def _shapes(codes: Tensor, scales: Tensor, x: Tensor, block: int) -> Finding | None:
    """Findings about sizes: each known mistake gives another one."""
    count, blocks = x.numel(), -(-x.numel() // block)
    full = count // block
    shown = f"{show(codes)} and {show(scales)}", f"shapes ({count},) and ({blocks},)"
    if full < blocks and codes.shape == (blocks * block,):
        message = "your codes are as many as the padded numbers; cut the filling off again"
        return Finding("padded", message, *shown)
    if full < blocks and (codes.shape == (full * block,) or scales.shape == (full,)):
        message = "the last numbers, fewer than a block, are lost: they are a block of their own"
        return Finding("tail dropped", message, *shown)
    if scales.numel() == 1 and blocks > 1:
        message = "there is one scale for everything; each block has its own"
        return Finding("one scale", message, *shown)
    rows = sum(-(-x.shape[-1] // block) for _ in range(count // x.shape[-1])) if x.dim() else 0
    if x.dim() == 2 and blocks != scales.numel() in (x.shape[0], x.shape[1], rows):
        message = "blocks run on from one row to the next: cut the *flattened* tensor"
        return Finding("per row", message, *shown)
    if codes.shape != (count,) or scales.shape != (blocks,):
        message = "codes and scales are one-dimensional: a code for each number, in row-major " \
                  "order, and a scale for each block"  # fmt: skip
        return Finding("wrong shape", message, *shown)
    if codes.dtype != torch.uint8:
        return Finding("wrong dtype", "codes must be uint8", show(codes), "uint8")
    return float_of(scales, (blocks,), "scales")


def check_codes(call: Call, seed: int, size: int) -> list[Finding]:
    """Codes and scales of a matrix with a ragged tail; and x is left as it was."""
    x, levels, block = _inputs(seed, size)
    outcome = call(x, levels, block)
    fault = pieces(outcome.value, 2, WHAT)
    if fault:
        return [fault]
    codes, scales = outcome.value
    fault = _shapes(codes, scales, x, block)
    if fault:
        return [fault]
    expected = scales_of(x.flatten(), block)
    known = {name: (v[:-1], said) for name, (v, said) in _known_scales(x, block).items()}
    fault = named(scales[:-1], expected[:-1], known, "scales: ")
    if not fault and not is_close(scales[-1], expected[-1]):
        message = "the last block, which is shorter, has a wrong scale"
        fault = Finding("tail", message, show(scales[-1]), show(expected[-1]))
    if fault:
        return [fault]
    fault = _wrong_codes(codes, x, levels, block, expected)
    fault = fault or changed(("x", "levels"), (x, levels), outcome.arguments)
    return [fault] if fault else []


def _wrong_codes(
    codes: Tensor, x: Tensor, levels: Tensor, block: int, scales: Tensor
) -> Finding | None:
    scaled = ratio(x.flatten(), scales, block)
    right = nearest(scaled, levels)
    between = (scaled - levels.double()[right]).abs() > 1e-6  # a mistake may spare the others
    known = {
        name: (value[between], message)
        for name, (value, message) in _known_codes(x, levels, block, scales).items()
    }
    fault = name_mistake(codes.double()[between], right[between] * 1.0, known)
    if not fault and not torch.equal(codes.long(), right):
        message = "numbers that lie exactly on a level get the code of another"
        fault = Finding("on a level", message)
    first = (codes.long() != right).nonzero()[0] if fault else 0
    shown = f"{int(codes[first])} at [{int(first)}]", f"{int(right[first])}"
    return fault and Finding(fault.mistake, f"codes: {fault.message}", *shown)


def _right(call: Call, x: Tensor, levels: Tensor, block: int) -> bool:
    value = call(x, levels, block).value
    if pieces(value, 2, WHAT) or _shapes(value[0], value[1], x, block):
        return False
    flat = x.flatten()
    expected = scales_of(flat, block)
    return is_close(value[1], expected, atol=0) and fits(
        value[0], ratio(flat, expected, block), levels
    )


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Zeros, tiny numbers, half precision, a transposed matrix, less than a block, no tail."""
    x, levels, block = _inputs(seed, size)
    zeros, tiny = x.flatten().clone(), x.flatten().clone()
    zeros[block : 2 * block] = 0
    tiny[:block] *= 1e-20
    half = torch.randn(40, 53, generator=generator(seed))
    square = torch.randn(block, 4, generator=generator(seed))
    cases = (
        ("zero block", zeros, "a block of zeros breaks it: its scale is 0, its codes are those of "
         "the level 0, and nothing is divided by 0"),
        ("tiny", tiny, "a block of numbers around 1e-20 breaks it: whatever you add to a scale, "
         "or clamp it to, must be far smaller than that"),
        ("half precision", half.bfloat16(), "bfloat16 numbers come out wrong: convert to float32 "
         "before dividing; the scales are float32 too"),
        ("half precision", half.half(), "float16 numbers come out wrong: convert to float32 "
         "before dividing; the scales are float32 too"),
        ("transposed", x.T, "a transposed matrix breaks it: its numbers do not lie one after "
         "another in memory (`reshape` and `flatten` copy where they must)"),
        ("short", x[0, :5].clone(), "fewer numbers than a block break it: they are one block"),
        ("no tail", square, "numbers that fill their blocks exactly break it"),
    )  # fmt: skip
    for mistake, value, message in cases:
        try:
            right, why = _right(call, value, levels, block), ""
        except Failed as failure:
            right, why = False, f": {failure.message}"
        if not right:
            return [Finding(mistake, message + why)]
    return []


def _known_values(
    codes: Tensor, scales: Tensor, levels: Tensor, block: int, shape: tuple[int, ...]
) -> dict[str, tuple[Tensor, str]]:
    count = len(codes)
    found, each = levels.double()[codes.long()], spread(scales, block, count)
    tiled = scales.double().repeat(-(-count // len(scales)))[:count]
    shifted = spread(scales.roll(-1), block, count)
    known = {
        "zero": (found * 0, "your numbers are all 0"),
        "not scaled": (found, "the levels lie in [-1, 1]: multiply each by its block's scale"),
        "divided": (found / each, "you divide by the scales; multiply"),
        "codes as numbers": (codes * each, "a code is the *number of* a level, not its value"),
        "scales not repeated": (found * tiled, "each scale belongs to `block` neighbours: "
                                "a a a b b b, not a b c a b c"),
        "next scale": (found * shifted, "each block gets the scale of its neighbour"),
        "one scale": (found * scales[0], "all blocks get the first one's scale"),
    }  # fmt: skip
    return {name: (value.view(shape), message) for name, (value, message) in known.items()}


def check_back(call: Call, seed: int, size: int) -> list[Finding]:
    """Codes and scales of ours -> numbers, in their shape and dtype."""
    x, levels, block = _inputs(seed + 1, size)
    scales = scales_of(x.flatten(), block).float()
    codes = nearest(ratio(x.flatten(), scales, block), levels).to(torch.uint8)
    shapes: tuple[tuple[int, ...], ...] = (tuple(x.shape), (x.shape[1], x.shape[0]))
    for shape, dtype in zip(shapes, ("float32", "bfloat16"), strict=True):
        got = call.second(codes, scales, levels, block, shape, dtype).value
        if not isinstance(got, Tensor):
            message = "dequantize_blocks must return a tensor"
            return [Finding("not a tensor", message, show(got), "a tensor")]
        if tuple(got.shape) != shape:
            message = "what comes back must have the shape that was asked for"
            if got.numel() != codes.numel():
                message += ", and as many numbers as there are codes (a ragged tail is shorter)"
            return [Finding("shape not restored", message, show(got), f"shape {shape}")]
        if got.dtype != getattr(torch, dtype):
            message = "what comes back must have the dtype that was asked for"
            return [Finding("dtype not restored", message, show(got), dtype)]
        known = _known_values(codes, scales, levels, block, shape)
        expected = (levels.double()[codes.long()] * spread(scales, block, len(codes))).view(shape)
        rtol = 1e-4 if dtype == "float32" else 1e-2
        fault = named(got, expected, known, rtol=rtol)
        if fault:
            return [fault]
    return []


TASK = Task(
    set="07",
    name="blockwise-quantization",
    functions=("quantize_blocks", "dequantize_blocks"),
    checks=(
        Check("codes and scales", 2, check_codes),
        Check("and back again", 2, check_back),
        Check("extreme inputs", 1, check_extremes),
    ),
)
