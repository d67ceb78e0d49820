"""Set 04: what every token of an answer earns.

    token_rewards(logprobs (B, C), ref_logprobs (B, C), scores (B,), mask (B, C), beta) -> (B, C)

-beta (log π - log π_ref) on each real token, and the answer's score on its last one; 0 on padding,
whatever stands there; without gradient.
"""

import math

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, name_mistake, show, wrong_type
from course_utils.grading.tasks.set_04._inputs import Answers, answers, spoil

NAMES = ("logprobs", "ref_logprobs", "scores", "mask")


def _placed(drawn: Answers, offset: int) -> Tensor:
    """(B, C) zeros, with each score `offset` columns from its row's last real token."""
    placed = torch.zeros(drawn.mask.shape, dtype=torch.float64)
    for row, length in enumerate(drawn.mask.sum(1).tolist()):
        placed[row, length - 1 + offset] = drawn.scores[row]
    return placed


def _penalty(drawn: Answers, beta: float) -> Tensor:
    d = drawn.logprobs.double() - drawn.ref_logprobs.double()
    return (-beta * d).masked_fill(~drawn.mask, 0.0)


def _known(drawn: Answers, beta: float) -> dict[str, tuple[Tensor, str]]:
    penalty, score, keep = _penalty(drawn, beta), _placed(drawn, 0), drawn.mask.double()
    d = drawn.logprobs.double() - drawn.ref_logprobs.double()
    everywhere = drawn.scores.double().unsqueeze(1) * keep  # (B, C)
    lengths = keep.sum(1, keepdim=True)
    first, column = torch.zeros_like(penalty), torch.zeros_like(penalty)
    first[:, 0] = column[:, -1] = drawn.scores.double()
    return {
        "zero": (penalty * 0, "your rewards are 0 everywhere"),
        "paid for distance": (score - penalty, "the KL is *paid* to the policy: it must cost, so "
                              "its sign is the other one"),
        "no KL": (score, "the KL penalty is missing: only the score is there"),
        "no score": (penalty, "the score is missing: only the KL penalty is there"),
        "no beta": (score + _penalty(drawn, 1.0), "beta does not weight the KL"),
        "beta on the score": (penalty + beta * score, "beta weights the KL alone, not the score"),
        "score on the first": (penalty + first, "the score stands on the first token"),
        "score in the last column": (penalty + column, "the score stands in the last column, which "
                                     "is padding for short answers; put it on the last *real* "
                                     "token"),
        "score after the end": (penalty + _placed(drawn, 1), "the score stands one token after the "
                                "last real one (a well-known library did this for years)"),
        "score too early": (penalty + _placed(drawn, -1), "the score stands one token before the "
                            "last real one"),
        "score on every token": (penalty + everywhere, "every token gets the whole score; only the "
                                 "last real one should"),
        "score spread": (penalty + everywhere / lengths, "the score is spread over the tokens; it "
                         "comes once, on the last real one"),
        "score overwrites": (torch.where(score != 0, score, penalty), "the last token's own KL "
                             "penalty is lost: *add* the score to what is there"),
        "padding pays": (score - beta * d, "padding pays KL too; its rewards must be 0"),
        "k3": (score - beta * (torch.expm1(-d) + d) * keep, "the penalty in the reward is k1 = d "
               "itself (its expectation has the right gradient); you use k3"),
        "whole KL at the end": (score + torch.where(score != 0, penalty.sum(1, keepdim=True), 0.0),
                                "the whole answer's KL is charged to the last token; charge it "
                                "where it arises"),
        "mean KL": (score + penalty / lengths, "the KL is divided by the answer's length"),
    }  # fmt: skip


def _draw(seed: int, size: int) -> tuple[Answers, float]:
    drawn = answers(seed, size)
    return drawn, 0.05 + 0.4 * float(torch.rand((), generator=drawn.generator))


def _arguments(drawn: Answers, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    return drawn.logprobs, drawn.ref_logprobs, drawn.scores, drawn.mask, beta


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """Where the score goes, what a token costs; the inputs stay as they were."""
    drawn, beta = _draw(seed, size)
    arguments = _arguments(drawn, beta)
    outcome = call(*arguments)
    expected = _penalty(drawn, beta) + _placed(drawn, 0)
    fault = (
        wrong_type(outcome.value, tuple(drawn.mask.shape))
        or name_mistake(outcome.value, expected, _known(drawn, beta))
        or changed(NAMES, arguments, outcome.arguments)
    )
    return [fault] if fault else []


def check_edges(call: Call, seed: int, size: int) -> list[Finding]:
    """NaN and -inf on padding, a row without padding, one of a single token, beta = 0."""
    drawn, beta = _draw(seed, size)
    mask = drawn.mask.clone()
    mask[0], mask[1, 1:] = True, False  # nothing padded; one token
    drawn = drawn._replace(mask=mask)
    for garbage in (math.nan, -math.inf):
        spoilt = [spoil(x, mask, garbage) for x in (drawn.logprobs, drawn.ref_logprobs)]
        got = call(*spoilt, drawn.scores, mask, beta).value
        fault = wrong_type(got, tuple(mask.shape))
        if not fault and bool(got.isnan().any()):
            message = (
                "NaN or infinity on padding reaches the rewards: 0 * nan is nan, so replace what "
                "is masked, do not multiply it by 0"
            )
            fault = Finding("padding leaks", message)
        expected = _penalty(drawn, beta) + _placed(drawn, 0)
        if not fault and not is_close(got, expected):
            rows = (got.double() - expected).abs().amax(1) > 1e-4
            which = "an answer without padding" if rows[0] else "an answer of one token"
            message = (
                f"the rewards of {which} are wrong"
                if rows[:2].any()
                else ("with garbage on the padding the rewards are wrong")
            )
            fault = Finding("edge", message, show(got), show(expected))
        if fault:
            return [fault]
    got = call(*_arguments(drawn, 0.0)).value
    if not isinstance(got, Tensor) or not is_close(got, _placed(drawn, 0)):
        return [Finding("beta 0", "with beta = 0 only the scores must be left")]
    return []


def check_constant(call: Call, seed: int, size: int) -> list[Finding]:
    """A reward is a number: nothing is differentiated through it."""
    drawn, beta = _draw(seed, size)
    for gradient in call(*_arguments(drawn, beta), wrt=(0, 1, 2)).gradients:
        if gradient is not None and bool((gradient != 0).any()):
            message = (
                "gradient flows through your rewards; a reward is a plain number, as if the game "
                "had paid it: detach it, or compute it under torch.no_grad()"
            )
            return [Finding("not detached", message)]
    return []


TASK = Task(
    set="04",
    name="token-rewards",
    functions=("token_rewards",),
    checks=(
        Check("value", 1.5, check_value),
        Check("padding and edges", 1, check_edges),
        Check("no gradient", 0.5, check_constant),
    ),
)
