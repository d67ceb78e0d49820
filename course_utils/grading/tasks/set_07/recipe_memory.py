"""Set 07: what weights, scales, gradients and optimizer states of a recipe take.

    recipe_memory(linear, other, adapters, recipe, block=64, second_block=256) -> dict of GiB

| recipe | weights | scales | trained |
|---|---|---|---|
| "full" | 2 (linear + other) | 0 | linear + other |
| "lora" | 2 (linear + other + adapters) | 0 | adapters |
| "qlora" | linear / 2 + 2 (other + adapters) | linear / block · (1 + 4 / second_block) | adapters |

in bytes; gradients take 2 bytes for each trained parameter, Adam's two moments 4 each.
"""

import math

import torch

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, show
from course_utils.grading.tasks.set_07._inputs import generator, number

KEYS = ("weights", "scales", "gradients", "optimizer", "total")
GIB = 1024**3
Known = dict[str, dict[str, tuple[float, str]]]


def _inputs(seed: int, size: int) -> tuple[int, int, int]:
    """Parameters of the linear maps, of all else, of the adapters: of a 0.1B to 70B model."""
    source = generator(seed)
    draw = [float(torch.rand((), generator=source)) for _ in range(3)]
    linear = int((1 + draw[0]) * 1e8 * 2 ** (size % 10))
    return linear, int(linear * (0.05 + 0.3 * draw[1])), int(linear * (0.01 + 0.04 * draw[2]))


def _right(
    linear: int, other: int, adapters: int, recipe: str, block: int, second_block: int
) -> dict[str, float]:
    """Bytes by term."""
    trained = linear + other if recipe == "full" else adapters
    bits = {"full": 16.0, "lora": 16.0, "qlora": 4.0}[recipe]
    extra = 0 if recipe == "full" else adapters
    scale_bits = 8 / block + 32 / block / second_block if recipe == "qlora" else 0.0
    found = {
        "weights": (bits * linear + 16 * other + 16 * extra) / 8,
        "scales": scale_bits * linear / 8,
        "gradients": 16 * trained / 8,
        "optimizer": 2 * 32 * trained / 8,
    }
    return {**found, "total": sum(found.values())}


def _known(
    right: dict[str, float], linear: int, other: int, adapters: int, recipe: str, block: int,
    second_block: int
) -> Known:  # fmt: skip
    """The known mistakes of each term, in bytes."""
    base, weights, scales = linear + other, right["weights"], right["scales"]
    trained = base if recipe == "full" else adapters
    known: Known = {
        "weights": {
            "fp32 weights": (2 * weights, "16-bit numbers have two bytes, not four"),
            "bits": (8 * weights, "these are bits"),
        },
        "scales": {"bits": (8 * scales, "these are bits")} if scales else {},
        "gradients": {
            "fp32 gradients": (4 * trained, "gradients are 16-bit here: two bytes"),
            "no gradients": (0, "what is trained has gradients"),
        },
        "optimizer": {
            "half the moments": (4 * trained, "this is one moment of 32 bits, or two of 16; Adam "
                                 "keeps two of 32 bits"),
            "master copy": (12 * trained, "this has a 32-bit copy of the weights in it, which "
                            "some recipes keep and this one does not"),
            "no states": (0, "what is trained has optimizer states"),
        },
        "total": {
            "scales not in total": (right["total"] - scales, "the total lacks the scales"),
            "total of the weights": (weights + scales, "the total lacks gradients and states"),
            "total without states": (right["total"] - right["optimizer"], "the total lacks the "
                                     "optimizer's states"),
            "counted twice": (2 * right["total"], "the total counts everything twice"),
        },
    }  # fmt: skip
    if recipe == "full":
        message = "full fine-tuning has no adapters; their number does not matter"
        known["weights"]["adapters in full"] = 2 * (base + adapters), message
        return known
    known["weights"]["adapters missing"] = (
        weights - 2 * adapters,
        "the adapters' own weights are missing",
    )
    message = "the base is frozen: only the adapters have gradients and states"
    for term, each in (("gradients", 2), ("optimizer", 8)):
        known[term]["frozen base trained"] = each * base, message
        known[term]["base and adapters"] = each * (base + adapters), message
    if recipe == "qlora":
        known["weights"] |= _known_weights(linear, other, adapters, weights + scales)
        known["scales"] |= _known_scales(linear, scales * base / linear, block, second_block)
    return known


def _known_weights(
    linear: int, other: int, adapters: int, with_scales: float
) -> dict[str, tuple[float, str]]:
    """Of QLoRA's weights."""
    rest = 2 * (other + adapters)
    return {
        "16-bit base": (2 * linear + rest, "the linear maps are in 4 bits: half a byte"),
        "all in 4 bits": ((linear + other) / 2 + 2 * adapters, "only the linear maps are in 4 "
                          "bits; embedding, head and norms stay in 16"),
        "adapters in 4 bits": (linear / 2 + 2 * other + adapters / 2, "the adapters are not "
                               "quantized: they are trained in 16 bits"),
        "bytes for bits": (4 * linear + rest, "4 *bits* are half a byte"),
        "one byte": (linear + rest, "two codes share a byte"),
        "scales in weights": (with_scales, "the scales have a term of their own"),
    }  # fmt: skip


def _known_scales(
    linear: int, of_all: float, block: int, second_block: int
) -> dict[str, tuple[float, str]]:
    """Of QLoRA's scales."""
    blocks = linear / block
    return {
        "no double quantization": (4 * blocks, "these are scales of 32 bits; with double "
                                   "quantization they take 8, and the second scales 32"),
        "second scales missing": (blocks, "the second scales are missing: 32 bits for each "
                                  "second_block scales"),
        "second scales of the weights": (
            blocks + 4 * linear / second_block,
            "a second scale belongs to `second_block` scales, not to as many weights"),
        "second scales of 8 bits": (blocks * (1 + 1 / second_block), "the second scales have 32 "
                                    "bits, four bytes"),
        "scales of all": (of_all, "only the linear maps have scales"),
        "no scales": (0, "a 4-bit weight cannot be read without its block's scale"),
    }  # fmt: skip


def _look(
    call: Call, arguments: tuple[int, int, int], recipe: str, block: int, second_block: int
) -> Finding | None:
    value = call(*arguments, recipe, block, second_block).value
    if not isinstance(value, dict) or set(value) != set(KEYS):
        message = f"your function must return a dict with the keys {', '.join(KEYS)}"
        if isinstance(value, dict):
            lacking = [key for key in KEYS if key not in value]
            message += f"; missing: {', '.join(lacking)}" if lacking else "; it has more of them"
        return Finding("not the dict", message, show(value), "a dict of numbers")
    right = _right(*arguments, recipe, block, second_block)
    known = _known(right, *arguments, recipe, block, second_block)
    for key in KEYS:
        got = number(value[key])
        shown = show(value[key]), f"{right[key] / GIB:.6g}"
        where = f'{key} of "{recipe}": '
        if got is None or not math.isfinite(got):
            return Finding("not a number", where + "it must be a number", *shown)
        if math.isclose(got, right[key] / GIB, rel_tol=1e-6, abs_tol=1e-12):
            continue
        units = {
            "GB": (right[key] * GIB / 1e9, "these are GB of 10^9 bytes; a GiB has 2^30"),
            "bytes": (right[key] * GIB, "these are bytes; divide by 2^30"),
            "MiB": (right[key] * 1024, "these are MiB; divide by 2^30"),
        }
        for mistake, (wrong, message) in (units | known[key]).items():
            if math.isclose(got, wrong / GIB, rel_tol=1e-6, abs_tol=1e-12):
                return Finding(mistake, where + message, *shown)
        if got == 0:
            return Finding("zero", where + "it is 0", *shown)
        return Finding("something else", where + "wrong, by no mistake known here", *shown)
    return None


def check_sixteen_bits(call: Call, seed: int, size: int) -> list[Finding]:
    """All weights trained, and LoRA."""
    for recipe in ("full", "lora"):
        fault = _look(call, _inputs(seed, size), recipe, 64, 256)
        if fault:
            return [fault]
    return []


def check_four_bits(call: Call, seed: int, size: int) -> list[Finding]:
    """QLoRA, with the usual blocks and others; the usual ones are the defaults."""
    arguments = _inputs(seed, size)
    for block, second_block in ((64, 256), (32 * (1 + size % 4), 128)):
        fault = _look(call, arguments, "qlora", block, second_block)
        if fault:
            return [fault]
    value = call(*arguments, "qlora").value
    if value != call(*arguments, "qlora", 64, 256).value:
        message = "blocks of 64 weights and of 256 scales must be the defaults"
        return [Finding("defaults", message)]
    return []


TASK = Task(
    set="07",
    name="recipe-memory",
    functions=("recipe_memory",),
    checks=(
        Check("full and LoRA", 2, check_sixteen_bits),
        Check("QLoRA", 2, check_four_bits),
    ),
)
