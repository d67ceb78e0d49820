"""Set 05: the log-probability of whole answers, from a model's logits.

    sequence_logprobs(logits (B, T, V), input_ids (B, T), mask (B, T), reduction="sum") -> (B,)

`mask` is 1 on the answer's tokens, never on column 0. Logits at t predict token t + 1. Positions
outside the mask must not matter, whatever their logits hold. A row without an answer gives 0.
"""

import torch
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, changed, is_close, show
from course_utils.grading.tasks.set_05._inputs import Known, mistake_in_rows

Batch = tuple[Tensor, Tensor, Tensor]


def _inputs(seed: int, size: int, scale: float = 1.5) -> Batch:
    """Logits (B, T, V), ids (B, T), mask (B, T): prompts and answers of many lengths.

    Padded on the right as far as the longest row, whose answer ends at the last column.
    """
    generator = torch.Generator().manual_seed(seed)
    stride = 1 + int(torch.randint(2, (), generator=generator))
    B, V = 2 + size % 4, 6 + size % 4
    lengths = [row * stride % 3 for row in range(B)]  # neighbours differ in both lengths
    prompts = [2 + k for k in lengths]
    answers = [2 + k * (1 + size // 4) for k in lengths]
    T = max(p + a for p, a in zip(prompts, answers, strict=True))
    mask = torch.zeros(B, T, dtype=torch.long)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        mask[row, prompt : prompt + answer] = 1
    logits = torch.randn(B, T, V, generator=generator) * scale
    return logits, torch.randint(V, (B, T), generator=generator), mask


def _token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log p of tokens 1 … T-1 in float64, (B, T - 1): the chosen logit less the log-sum-exp."""
    z = logits[:, :-1].double()
    return z.gather(-1, ids[:, 1:, None])[..., 0] - z.logsumexp(-1)


def _expected(logits: Tensor, ids: Tensor, mask: Tensor, mean: bool = False) -> Tensor:
    """(B,): sum or mean over the answer's tokens; those outside are never touched."""
    per_token = _token_logprobs(logits, ids)
    rows = [row[keep == 1] for row, keep in zip(per_token, mask[:, 1:], strict=True)]
    sums = torch.stack([row.sum() for row in rows])
    counts = torch.tensor([max(len(row), 1) for row in rows])
    return sums / counts if mean else sums


def _known(logits: Tensor, ids: Tensor, mask: Tensor) -> Known:
    """The sums that the known mistakes give on these inputs."""
    logp, keep = _token_logprobs(logits, ids), mask[:, 1:].double()
    total = (logp * keep).sum(1)
    z = logits.double()
    same = z.gather(-1, ids[..., None])[..., 0] - z.logsumexp(-1)
    raw = z[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    over_time = raw - z[:, :-1].logsumexp(1).gather(-1, ids[:, 1:])
    later = torch.cat([torch.zeros_like(keep[:, :1]), keep[:, :-1]], dim=1) * keep
    earlier = torch.cat([keep[:, 1:], torch.zeros_like(keep[:, :1])], dim=1) * keep
    at_end = torch.arange(keep.shape[1]) >= keep.shape[1] - keep.sum(1, keepdim=True)
    return {
        "zero": (total * 0, "your log-probabilities are 0 whatever the input"),
        "sign": (-total, "the sign is flipped: a log-probability is never positive"),
        "no mask": (logp.sum(1), "you sum over all tokens; the prompt's tokens and the padding "
                    "are not part of the answer"),
        "no shift": ((same * mask).sum(1), "logits at position t are scored against token t; "
                     "they predict token t + 1"),
        "mask not shifted": ((logp * mask[:, :-1]).sum(1), "the mask is cut at the wrong end: it "
                             "belongs to the tokens predicted"),
        "first token": ((logp * later).sum(1), "the answer's first token is missing: the prompt's "
                        "last logits predict it"),
        "last token": ((logp * earlier).sum(1), "the answer's last token is missing: a model must "
                       "also learn to stop"),
        "last column": ((logp * keep)[:, :-1].sum(1), "the last column is cut off twice: a row "
                        "without padding loses the end of its answer"),
        "from the end": ((logp * at_end).sum(1), "you take the answer to be the last tokens of "
                         "the row; after it there may be padding"),
        "mean": (total / keep.sum(1), 'your result is the mean per token; reduction="sum" is '
                 "the default"),
        "probability": (total.exp(), "your result is a probability; its logarithm was asked for"),
        "probabilities": ((logp.exp() * keep).sum(1), "you sum probabilities; sum their "
                          "logarithms"),
        "no softmax": ((raw * keep).sum(1), "you sum the logits themselves; they are no "
                       "log-probabilities yet"),
        "wrong axis": ((over_time * keep).sum(1), "the softmax runs over the wrong axis: over the "
                       "vocabulary, not over the positions"),
    }  # fmt: skip


def _known_means(logits: Tensor, ids: Tensor, mask: Tensor) -> Known:
    total, keep = _expected(logits, ids, mask), mask[:, 1:].double()
    return {
        "reduction ignored": (total, 'reduction="mean" gives the sum'),
        "mean over all": (total / keep.shape[1], 'with reduction="mean" you divide by all '
                          "positions, not by the answer's own tokens"),
        "mean over the batch": (total * len(total) / keep.sum(), 'with reduction="mean" you '
                                "divide every row by one number; each answer has its own length"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """The sum, the mean, and that the inputs are left as they were."""
    batch = _inputs(seed, size)
    outcome = call(*batch)
    total = _expected(*batch)
    fault = mistake_in_rows(outcome.value, total, _known(*batch))
    if fault:
        return [fault]
    fault = changed(("logits", "input_ids", "mask"), batch, outcome.arguments)
    if fault:
        return [fault]
    mean = call(*batch, reduction="mean").value
    fault = mistake_in_rows(mean, _expected(*batch, mean=True), _known_means(*batch))
    return [fault] if fault else []


def _with_padding(batch: Batch, left: int, right: int) -> Batch:
    """Columns of junk around each row, where the mask is 0."""
    logits, ids, mask = batch
    B, _, V = logits.shape

    def around(x: Tensor, fill: float) -> Tensor:
        shape = x.shape[2:]
        columns = [x.new_full((B, n, *shape), fill) for n in (left, right)]
        return torch.cat([columns[0], x, columns[1]], dim=1)

    return around(logits, 3.0), around(ids, V - 1), around(mask, 0)


def check_padding(call: Call, seed: int, size: int) -> list[Finding]:
    """Padding on either side, junk where the mask is 0, a row without an answer."""
    batch = _inputs(seed, size)
    total = _expected(*batch)
    for side, (left, right) in {"left": (3, 0), "right": (0, 4)}.items():
        got = call(*_with_padding(batch, left, right)).value
        if not isinstance(got, Tensor) or not is_close(got, total):
            message = f"padding on the {side} changes the result; go by the mask alone"
            return [Finding("padding", message, show(got), show(total))]
    logits, ids, mask = batch
    got = call(logits, ids, mask.bool()).value
    if not isinstance(got, Tensor) or not is_close(got, total):
        return [Finding("bool mask", "the mask may also be a tensor of booleans", show(got))]
    unused = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1) == 0  # predict nothing
    for junk in (float("-inf"), float("nan")):
        got = call(logits.masked_fill(unused[..., None], junk), ids, mask).value
        if not isinstance(got, Tensor) or not is_close(got, total):
            message = (
                "NaN or -inf in logits outside of the answer reaches your result: 0 times those "
                "is NaN, so do not multiply by the mask, choose by it"
            )
            return [Finding("masked by multiplication", message, show(got), show(total))]
    for reduction in ("sum", "mean"):
        empty = mask.clone()
        empty[0] = 0
        expected = _expected(logits, ids, empty, mean=reduction == "mean")
        got = call(logits, ids, empty, reduction=reduction).value
        if not isinstance(got, Tensor) or not is_close(got, expected):
            message = f'a row without an answer must give 0 (reduction="{reduction}"), not 0/0'
            return [Finding("empty answer", message, show(got), show(expected))]
    return []


def check_precision(call: Call, seed: int, size: int) -> list[Finding]:
    """Large logits, bfloat16, and the gradient by the logits."""
    batch = _inputs(seed, size, scale=2000.0)
    total = _expected(*batch)
    got = call(*batch).value
    if not isinstance(got, Tensor) or not is_close(got, total):
        message = "logits of several thousand break it: use log_softmax, not log of softmax"
        return [Finding("unstable", message, show(got), show(total))]
    logits, ids, mask = _inputs(seed, size)
    half = logits.bfloat16()
    got = call(half, ids, mask).value
    if not isinstance(got, Tensor) or not is_close(got, _expected(half, ids, mask)):
        message = "with bfloat16 logits the result loses digits: convert them to float32 first"
        return [Finding("half precision", message, show(got), show(total))]
    leaf = logits.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(_expected(leaf, ids, mask).sum(), leaf)
    (gradient,) = call(logits, ids, mask, wrt=(0,)).gradients
    if not isinstance(gradient, Tensor):
        message = "no gradient reaches the logits: something is detached, or under no_grad"
        return [Finding("detached", message)]
    if not is_close(gradient, expected):
        message = "the gradient by the logits is wrong"
        return [Finding("gradient", message, show(gradient.norm()), show(expected.norm()))]
    return []


TASK = Task(
    set="05",
    name="sequence-logprobs",
    functions=("sequence_logprobs",),
    checks=(
        Check("value", 2, check_value),
        Check("padding and junk", 1, check_padding),
        Check("precision and gradient", 1, check_precision),
    ),
)
