"""Set 03: the scalar head reads the last real token, wherever the padding is.

    last_token_scores(hidden (B, T, D), input_ids (B, T), mask (B, T), weight (D,)) -> (B,)

A row without a real token scores 0; hidden states of padding may hold anything.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_03._inputs import generator

EOS = 2  # ends the prompt's turn and (if it was not cut) the answer; fills the padding too
Spans = list[tuple[int, int]]  # of real tokens: first, last


def _inputs(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Spans]:
    """Rows padded right, left, on both sides (and cut off: no EOS at the end), and not at all."""
    g = generator(seed)
    B, T, D = 4 + size % 3, 9 + size, 3 + size
    hidden, weight = torch.randn(B, T, D, generator=g), torch.randn(D, generator=g)
    ids = torch.randint(3, 50, (B, T), generator=g)
    mask = torch.zeros(B, T, dtype=torch.long)
    spans = []
    for row in range(B):
        a, b = (1 + int(torch.randint(2, (), generator=g)) for _ in range(2))  # 1 or 2 columns
        first, last = [(0, T - 1 - b), (a, T - 1), (a, T - 1 - b), (0, T - 1)][row % 4]
        mask[row, first : last + 1] = 1
        ids[row, :first] = ids[row, last + 1 :] = EOS
        ids[row, first + 2] = EOS  # the end of the prompt's turn
        if row % 4 != 2:
            ids[row, last] = EOS
        spans.append((first, last))
    return hidden, ids, mask, weight, spans


def _score(hidden: Tensor, weight: Tensor, places: list[int]) -> Tensor:
    """(B,) float64: each row's hidden state at its place, times the head's weight."""
    rows = [hidden[row, place].double().dot(weight.double()) for row, place in enumerate(places)]
    return torch.stack(rows)


def _known(
    hidden: Tensor, ids: Tensor, mask: Tensor, weight: Tensor, spans: Spans
) -> dict[str, tuple[Tensor, str]]:
    B, T, _ = hidden.shape
    scores = (hidden.double() * weight.double()).sum(-1)  # (B, T)
    keep = mask.double()
    no_eos = [[t for t in range(T) if ids[row, t] != EOS][-1] for row in range(B)]
    ends = [[t for t in range(T) if ids[row, t] == EOS] for row in range(B)]
    first_eos = [found[0] for found in ends]

    def at(places: list[int]) -> Tensor:
        return _score(hidden, weight, [place % T for place in places])

    by_ids = (
        "the ids cannot tell the end of an answer from padding where both are EOS: which other "
    )
    by_ids += "argument can?"
    return {
        "zero": (scores[:, 0] * 0, "your scores are 0 whatever the hidden states are"),
        "sign": (-at([last for _, last in spans]), "the sign of the scores is flipped"),
        "last column": (at([-1] * B), "you read the last column, which is padding in rows that are "
                        "padded on the right"),
        "counted": (at([last - first for first, last in spans]), "you count the real tokens to "
                    "find the last one: that is its place only where no padding stands before it"),
        "after the end": (at([last - first + 1 for first, last in spans]), "you count the real "
                          "tokens and read the one after: columns count from 0, and padding may "
                          "stand on the left"),
        "before the end": (at([last - 1 for _, last in spans]), "you read the token *before* the "
                           "last real one: off by one"),
        "by ids": (at(no_eos), "you read the last token that is not EOS; an answer ends with EOS, "
                   "and " + by_ids),
        "first eos": (at(first_eos), "you read the first EOS: a prompt's turn ends with one too, "
                      "and so does padding on the left"),
        "before the first eos": (at([t - 1 for t in first_eos]), "you look for the first EOS: a "
                                 "prompt's turn ends with one too, and so does padding on the "
                                 "left"),
        "first token": (at([first for first, _ in spans]), "you read the first real token; a "
                        "causal model knows nothing there of what comes later"),
        "first column": (at([0] * B), "you read the first column; a causal model knows nothing "
                         "there of what comes later"),
        "mean of the real": ((scores * keep).sum(1) / keep.sum(1), "you average over the tokens; "
                             "only the last one has seen the whole answer"),
        "mean of all": (scores.mean(1), "you average over all columns, padding too; only the last "
                        "real one is asked for"),
        "sum": ((scores * keep).sum(1), "you sum over the tokens; only the last one is asked for"),
        "largest": (scores.masked_fill(mask == 0, -torch.inf).amax(1), "you take the largest score "
                    "of a row; only the last token has seen the whole answer"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """All kinds of padding in one batch."""
    hidden, ids, mask, weight, spans = _inputs(seed, size)
    outcome = call(hidden, ids, mask, weight)
    expected = _score(hidden, weight, [last for _, last in spans])
    known = _known(hidden, ids, mask, weight, spans)
    fault = (
        wrong_type(outcome.value, tuple(expected.shape))
        or name_mistake(outcome.value, expected, known)
        or changed(
            ("hidden", "input_ids", "mask", "weight"),
            (hidden, ids, mask, weight),
            outcome.arguments,
        )
    )
    return [fault] if fault else []


def check_padding(call: Call, seed: int, size: int) -> list[Finding]:
    """NaN in padding, a bool mask, a row of one token, an empty row."""
    hidden, ids, mask, weight, spans = _inputs(seed, size)
    expected = _score(hidden, weight, [last for _, last in spans])
    broken = hidden.masked_fill(mask.unsqueeze(-1) == 0, torch.nan)
    got = call(broken, ids, mask.bool(), weight).value
    fault = wrong_type(got, tuple(expected.shape))
    if not fault and bool(got.isnan().any()):
        message = (
            "NaN in the hidden states of padding reaches your scores: 0 · NaN is NaN, so pick the "
            "last token instead of multiplying the others away"
        )
        fault = Finding("padding's nan", message, show(got), show(expected))
    if not fault and not is_close(got, expected):
        message = "with a mask of True and False the scores are not those of 1 and 0"
        fault = Finding("bool mask", message, show(got), show(expected))
    if fault:
        return [fault]
    one = torch.zeros_like(mask)
    places = [(seed + row) % mask.shape[1] for row in range(len(mask))]
    one[range(len(mask)), places] = 1
    got = call(hidden, ids, one, weight).value
    if not isinstance(got, Tensor) or not is_close(got, _score(hidden, weight, places)):
        message = "a row with a single real token is scored at the wrong place"
        return [Finding("one token", message, show(got))]
    mask[1], expected[1] = 0, 0.0
    got = call(hidden, ids, mask, weight).value
    if not isinstance(got, Tensor) or not is_close(got, expected):
        message = "a row without any real token must score 0, and the other rows as before"
        return [Finding("empty row", message, show(got), show(expected))]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """∂Σ/∂hidden is the weight at each row's last token and 0 elsewhere."""
    hidden, ids, mask, weight, spans = _inputs(seed, size)
    expected = torch.zeros_like(hidden)
    for row, (_, last) in enumerate(spans):
        expected[row, last] = weight
    by_weight = torch.stack([hidden[row, last] for row, (_, last) in enumerate(spans)]).sum(0)
    gradients = call(hidden, ids, mask, weight, wrt=(0, 3)).gradients
    for name, got, wanted in zip(
        ("hidden", "weight"), gradients, (expected, by_weight), strict=True
    ):
        if not isinstance(got, Tensor):
            message = f"no gradient reaches {name!r}: something is detached, or under no_grad"
            return [Finding("detached", message)]
        if not is_close(got, wanted, atol=1e-5):
            message = f"the gradient by {name!r} is wrong, though the scores are right"
            return [Finding("gradient", message, show(got.norm()), show(wanted.norm()))]
    return []


TASK = Task(
    set="03",
    name="last-token-score",
    functions=("last_token_scores",),
    checks=(
        Check("the right token", 2, check_value),
        Check("odd rows", 1, check_padding),
        Check("gradient", 1, check_gradient),
    ),
)
