"""Set 02: several examples in one row of tokens, and none of them sees another.

    pack(rows, width, pad) -> {input_ids (1, W), position_ids (1, W), labels (1, W),
                               attention_mask (1, 1, W, W) bool, True where a token may look}

`rows`: {input_ids, labels}, lists. Each example's first token is counted nowhere: the token before
it belongs to another. What the filling's positions are, and what it looks at, is left open.
"""

import random

import torch
from torch import Tensor

from course_utils.grading.call import Call, Failed
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, show
from course_utils.grading.tasks.set_02._inputs import IGNORED, Row, fields, name_exactly, rows

Known = dict[str, tuple[Tensor, str]]


def _draw(seed: int, size: int, same_pad: bool = False) -> tuple[list[Row], int, int]:
    """Rows, the width of the pack (some places are left over), pad: with `same_pad` the end."""
    draw = random.Random(seed * 1013 + size)
    pad = 3 if same_pad else 0
    examples = rows(draw, 3 + size % 3, 6 + size // 2, pad, end=3, plain=True)
    return examples, sum(len(row["input_ids"]) for row in examples) + 2 + size % 3, pad


def _expected(examples: list[Row], width: int, pad: int) -> dict[str, Tensor]:
    """The four tensors, token by token, without the first dimensions: (W,), (W, W)."""
    ids, positions, labels, owner = [], [], [], []
    for number, row in enumerate(examples):
        for place, token in enumerate(row["input_ids"]):
            ids.append(token)
            positions.append(place)
            labels.append(row["labels"][place] if place else IGNORED)
            owner.append(number)
    filling = width - len(ids)
    allowed = [[owner[q] == owner[k] and k <= q for k in range(len(owner))]
               for q in range(len(owner))]  # fmt: skip
    return {
        "input_ids": torch.tensor(ids + [pad] * filling),
        "position_ids": torch.tensor(positions),  # of the real tokens only: (n,)
        "labels": torch.tensor(labels + [IGNORED] * filling),
        "attention_mask": torch.tensor(allowed),  # likewise: (n, n)
    }


def _fields(value: object, width: int) -> Finding | None:
    row = ((1, width), torch.long)
    square = ((1, 1, width, width), torch.bool)
    return fields(value, {"input_ids": row, "position_ids": row, "labels": row,
                          "attention_mask": square})  # fmt: skip


def _known_ids(examples: list[Row], width: int, expected: Tensor, pad: int) -> Known:
    n = sum(len(row["input_ids"]) for row in examples)
    by_length = sorted(examples, key=lambda row: -len(row["input_ids"]))
    return {
        "sorted": (_expected(by_length, width, pad)["input_ids"], "the examples must stay in their "
                   "order; yours are sorted"),
        "zero": (expected * 0, "your ids are all 0"),
        "filled left": (expected.roll(width - n), "the filling must stand behind the examples"),
    }  # fmt: skip


def _known_positions(examples: list[Row]) -> Known:
    n = sum(len(row["input_ids"]) for row in examples)
    right = _expected(examples, n, 0)["position_ids"]
    return {
        "zero": (right * 0, "all your positions are 0"),
        "positions run on": (torch.arange(n), "your positions run on from one example to the next; "
                             "each example starts at 0 again"),
        "positions from 1": (right + 1, "your positions start at 1; a model counts from 0"),
        "number of the example": (torch.tensor([
            k for k, row in enumerate(examples) for _ in row["input_ids"]
        ]), "you return the number of the example; the place within it was asked for"),
    }  # fmt: skip


def _known_labels(examples: list[Row], width: int, right: Tensor, pad: int) -> Known:
    filling = width - sum(len(row["input_ids"]) for row in examples)
    ids = [row["input_ids"] for row in examples]
    given = [row["labels"] for row in examples]
    firsts = "the first token of an example is counted, and would be predicted from the last " \
             "token of its neighbour: a leak through the loss"  # fmt: skip

    def joined(parts: list[list[int]], fill: int = IGNORED) -> Tensor:
        return torch.tensor([x for part in parts for x in part] + [fill] * filling)

    masked = [[IGNORED, *row[1:]] for row in given]
    return {
        "first token counted": (joined(given), firsts),
        "only the first example's": (joined([masked[0], *given[1:]]), firsts),
        "mask lost": (joined([[IGNORED, *row[1:]] for row in ids]), "your labels are the ids; "
                      "where a row's own labels are -100 they must stay -100"),
        "all counted": (joined(ids), "your labels are the ids; where a row's own labels are -100 "
                        "they must stay -100"),
        "last token dropped": (joined([[*row[:-1], IGNORED] for row in given]), "you hide the "
                               "last token of each example; it is the first that must not count"),
        "filling counted": (joined(masked, pad), "the filling has labels: it must not count"),
        "shifted": (right.roll(-1), "your labels are shifted; the loss shifts by itself, so "
                    "label t belongs to token t"),
        "hidden by id": (right.masked_fill(right == pad, IGNORED), "you hide what looks like "
                         "padding by its id; a real token may have the same id, as where pad is "
                         "the end token"),
    }  # fmt: skip


def _labels(got: Tensor, examples: list[Row], width: int, pad: int) -> list[Finding]:
    """What is wrong with the labels: a known mistake, or several, place by place."""
    right = _expected(examples, width, pad)["labels"]
    known = _known_labels(examples, width, right, pad)
    fault = name_exactly("labels", got, right, known)
    if fault is None or fault.mistake != "something else":
        return [fault] if fault else []
    firsts, n = [], 0
    for row in examples:
        firsts.append(n)
        n += len(row["input_ids"])
    places = {"first token counted": firsts, "filling counted": list(range(n, width))}
    found = [name for name, where in places.items() if bool((got[where] != IGNORED).any())]
    others = [i for i in range(n) if i not in firsts]
    if not torch.equal(got[others], right[others]):
        found.append("mask lost" if torch.equal(got[others], known["all counted"][0][others])
                     else "something else")  # fmt: skip
    said = {**{name: message for name, (_, message) in known.items()},
            "something else": fault.message}  # fmt: skip
    return [Finding(name, said[name], fault.got, fault.expected) for name in found]


def check_row(call: Call, seed: int, size: int) -> list[Finding]:
    """Ids, positions and labels; all mistakes are told at once."""
    examples, width, pad = _draw(seed, size)
    outcome = call(examples, width, pad)
    fault = _fields(outcome.value, width)
    if fault:
        return [fault]
    right = _expected(examples, width, pad)
    got = {name: tensor[0] for name, tensor in outcome.value.items() if name in right}
    n = len(right["position_ids"])
    known = _known_ids(examples, width, right["input_ids"], pad)
    fault = name_exactly("input_ids", got["input_ids"], right["input_ids"], known)
    if fault:
        return [fault]
    places, known = got["position_ids"][:n], _known_positions(examples)
    found = [
        name_exactly("position_ids", places, right["position_ids"], known),
        *_labels(got["labels"], examples, width, pad),
        changed(("rows",), (examples,), outcome.arguments),
    ]
    return [finding for finding in found if finding]


def _known_attention(own: Tensor) -> Known:
    """`own` (n, n): the right one. The messages name whom a token may look at."""
    n = len(own)
    causal = torch.ones(n, n).tril().bool()
    block = own | own.T
    leak = "tokens look at other examples: the mask looks back, but not only within the example"
    return {
        "leak": (causal, leak),
        "not causal": (block, "tokens look ahead within their example"),
        "all": (torch.ones_like(own), "everyone looks at everyone"),
        "none": (torch.zeros_like(own), "nobody may look at anything"),
        "not itself": (own & ~torch.eye(n, dtype=torch.bool), "a token must see itself too: it is "
                       "what the next one is predicted from"),
        "transposed": (own.T, "your mask is transposed: tokens look ahead instead of back. Rows "
                       "look, columns are looked at"),
        "inverted": (~own, "your mask is the wrong way round: True means *may look*"),
        "others only": (causal & ~block, "tokens look at the other examples and not at their own"),
    }  # fmt: skip


def check_attention(call: Call, seed: int, size: int) -> list[Finding]:
    """Who may look at whom: rows look, columns are looked at."""
    examples, width, pad = _draw(seed, size)
    outcome = call(examples, width, pad)
    fault = _fields(outcome.value, width)
    if fault:
        return [fault]
    own = _expected(examples, width, pad)["attention_mask"]
    n = len(own)
    got = outcome.value["attention_mask"][0, 0]
    if bool(got[:n, n:].any()) and torch.equal(got[:n, :n], own):
        return [Finding("filling seen", "real tokens look at the filling")]
    finding = name_exactly("attention_mask", got[:n, :n], own, _known_attention(own))
    if finding:
        shown = [f"{int(g.sum())} of {n * n} pairs may look" for g in (got[:n, :n], own)]
        return [Finding(finding.mistake, finding.message, *shown)]
    return []


def check_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """Pad = end, nothing left over, one token, twins, and rows that do not fit."""
    examples, width, pad = _draw(seed, size, same_pad=True)
    total = sum(len(row["input_ids"]) for row in examples)
    twins = [examples[0], examples[0], {"input_ids": [7], "labels": [7]}, examples[1]]
    cases = ((examples, width), (examples, total), (twins, width + total), (examples[:1], width))
    for given, wide in cases:
        value = call(given, wide, pad).value
        fault = _fields(value, wide) or _edge(value, given, wide, pad)
        if fault:
            return [fault]
    try:
        value = call(examples, total - 1, pad).value
    except Failed as failure:
        if failure.message.startswith("ValueError"):
            return []
        said = "examples that do not fit must raise a ValueError; yours raises something else"
        return [Finding("too long", said, failure.message[:100], "ValueError")]
    said = "examples that do not fit must raise a ValueError, else tokens are lost silently"
    return [Finding("too long", said, show(value), "ValueError")]


def _edge(value: dict[str, Tensor], given: list[Row], wide: int, pad: int) -> Finding | None:
    right = _expected(given, wide, pad)
    own, n = right["attention_mask"], len(right["position_ids"])
    got = value["attention_mask"][0, 0]
    if not bool(got.any(-1).all()):
        said = "a token of the filling looks at nothing: the softmax over an empty row is NaN, " \
               "and spreads. Let it look at something"  # fmt: skip
        return Finding("empty rows", said)
    by_id = own & (right["input_ids"][:n] != pad)
    if torch.equal(got[:n, :n], by_id) and not torch.equal(own, by_id):
        said = "you hide tokens by their id; where pad is the end token, real tokens have that id"
        return Finding("hidden by id", said)
    fault = name_exactly("attention_mask", got[:n, :n], own, _known_attention(own))
    if (fault and fault.mistake == "something else") or bool(got[:n, n:].any()):
        said = "the attention mask is wrong for examples that are alike, end with the pad token, " \
               "or have a single token: go by each example's length, not by its ids"  # fmt: skip
        return Finding("attention by id", said)
    found = [
        fault,
        *_labels(value["labels"][0], given, wide, pad),
        name_exactly("input_ids", value["input_ids"][0], right["input_ids"], {}),
        name_exactly("position_ids", value["position_ids"][0, :n], right["position_ids"], {}),
    ]
    if any(found):
        return next(filter(None, found))
    places = value["position_ids"][0, n:]
    if bool(((places < 0) | (places >= wide)).any()):
        said = f"the filling's positions must lie in 0 to {wide - 1}: a model may look them up"
        return Finding("filling's positions", said)
    return None


TASK = Task(
    set="02",
    name="packing",
    functions=("pack",),
    checks=(
        Check("one row", 2, check_row),
        Check("attention", 2, check_attention),
        Check("edges", 1, check_edges),
    ),
)
