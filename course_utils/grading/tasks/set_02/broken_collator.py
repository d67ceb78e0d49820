"""Set 02: rows of different lengths -> one batch; the notebook gives a broken version to mend.

    collate(rows, pad, side="right") -> {input_ids, attention_mask, labels}, (B, T) long each

`rows`: {input_ids, labels}, lists. T is the longest row. Filling has id `pad`, attention 0 and
label -100; a real token may have the same id as `pad` and is real all the same.
"""

import random

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, show
from course_utils.grading.tasks.set_02._inputs import IGNORED, Row, fields, name_exactly, rows

NAMES = ("input_ids", "attention_mask", "labels")
Known = dict[str, tuple[Tensor, str]]


def _draw(seed: int, size: int, pad: int) -> list[Row]:
    """Rows of different lengths, neither the first nor the last the longest; `end` is 3."""
    draw = random.Random(seed * 1019 + size)
    made = rows(draw, 2 + size % 3, 7 + size // 2, pad, end=3)
    longest = rows(draw, 1, 5, pad, end=3)[0]
    extra = draw.sample(range(60, 90), 6 + size // 2)  # longer than all the others
    longest = {name: values[:-1] + extra + values[-1:] for name, values in longest.items()}
    return [made[0], longest, *made[1:]]


def _fill(rows: list[list[int]], filling: int, side: str) -> Tensor:
    """(B, T), one place at a time."""
    width = max(len(row) for row in rows)
    filled = torch.empty(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        first = 0 if side == "right" else width - len(row)
        for place in range(width):
            inside = first <= place < first + len(row)
            filled[i, place] = row[place - first] if inside else filling
    return filled


def _expected(given: list[Row], pad: int, side: str) -> dict[str, Tensor]:
    ids, labels = [row["input_ids"] for row in given], [row["labels"] for row in given]
    return {
        "input_ids": _fill(ids, pad, side),
        "attention_mask": _fill([[1] * len(row) for row in ids], 0, side),
        "labels": _fill(labels, IGNORED, side),
    }


def _known(given: list[Row], pad: int, side: str) -> dict[str, Known]:
    """For each of the three tensors: mistake -> (the value that it gives, its message)."""
    other = "left" if side == "right" else "right"
    right, wrong = _expected(given, pad, side), _expected(given, pad, other)
    ids, mask, labels = (right[name] for name in NAMES)
    real = mask.bool()
    placed = {name: f"your {name} are filled on the {other} side; side={side!r} was asked for, and "
              "all three must be filled alike" for name in NAMES}  # fmt: skip
    flat = [row["labels"] for row in given]
    return {
        "input_ids": {
            "wrong side": (wrong["input_ids"], placed["input_ids"]),
            "zeros for pad": (ids * mask, "the filling must have the id `pad`"),
            "label for pad": (ids.masked_fill(~real, IGNORED), "the filling's id is -100: that is "
                              "a label, no embedding has this number"),
            "zero": (ids * 0, "your ids are all 0"),
        },
        "attention_mask": {
            "wrong side": (wrong["attention_mask"], placed["attention_mask"]),
            "hidden by id": ((ids != pad).long(), "the attention mask goes by the pad token's id, "
                             "and hides real tokens that have the same: go by length"),
            "all": (torch.ones_like(mask), "the filling is attended to: its mask must be 0"),
            "inverted": (1 - mask, "your attention mask is the wrong way round: 1 is a real token"),
            "labels' mask": ((labels != IGNORED).long(), "your attention mask hides the prompt: it "
                             "is not learned, but it must be read"),
        },
        "labels": {
            "wrong side": (wrong["labels"], placed["labels"]),
            "filling counted": (_fill(flat, pad, side), "the filling's label must be -100; yours "
                                "teaches the model to write padding"),
            "mask lost": (ids.masked_fill(~real, IGNORED), "your labels are the ids: the prompt, "
                          "which is -100 in the rows, is learned too"),
            "ids": (ids, "your labels are the ids: prompt and filling are learned too"),
            "hidden by id": (labels.masked_fill(ids == pad, IGNORED), "labels are hidden by the "
                             "pad token's id: an end token with the same id is never learned"),
            "shifted": (labels.roll(-1, dims=1), "your labels are shifted; the model shifts by "
                        "itself, so it would learn the token after the next"),
            "zero": (_fill(flat, 0, side), "the filling's label must be -100"),
        },
    }  # fmt: skip


def _compare(call: Call, given: list[Row], pad: int, side: str | None) -> list[Finding]:
    """Everything that is wrong with one batch; `side` None: not named in the call."""
    outcome = call(given, pad) if side is None else call(given, pad, side=side)
    expected = _expected(given, pad, side or "right")
    shape = tuple(expected["input_ids"].shape)
    fault = fields(outcome.value, dict.fromkeys(NAMES, (shape, torch.long)))
    if fault:
        return [fault]
    known = _known(given, pad, side or "right")
    found = [name_exactly(n, outcome.value[n], expected[n], known[n]) for n in NAMES]
    said = "your function changes the rows that it is given: at the next pass over the data they " \
           "come filled already"  # fmt: skip
    if changed(("rows",), (given,), outcome.arguments):
        found.append(Finding("in place", said, show(outcome.arguments[0][:1]), show(given[:1])))
    return [finding for finding in found if finding]


def check_right(call: Call, seed: int, size: int) -> list[Finding]:
    """Filled on the right, with a pad token of its own."""
    return _compare(call, _draw(seed, size, 5), 5, None)


def check_left(call: Call, seed: int, size: int) -> list[Finding]:
    """Filled on the left."""
    return _compare(call, _draw(seed, size, 5), 5, "left")


def check_same(call: Call, seed: int, size: int) -> list[Finding]:
    """The pad token is the end token, on both sides."""
    given = _draw(seed, size, 3)
    return _compare(call, given, 3, "right") or _compare(call, given, 3, "left")


def check_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """One row; rows of one length; a row of one token; a row of which nothing counts."""
    given = _draw(seed, size, 5)
    nothing = {"input_ids": [11, 12], "labels": [IGNORED, IGNORED]}
    batches = (
        given[:1],
        [given[0], given[0]],
        [{"input_ids": [3], "labels": [3]}, given[0]],
        [nothing, given[0]],
    )
    for side in ("right", "left"):
        for batch in batches:
            found = _compare(call, batch, 5, side)
            if found:
                return found
    return []


TASK = Task(
    set="02",
    name="broken-collator",
    functions=("collate",),
    checks=(
        Check("right", 1, check_right),
        Check("pad is end", 2, check_same),
        Check("left", 1, check_left),
        Check("edges", 1, check_edges),
    ),
)
