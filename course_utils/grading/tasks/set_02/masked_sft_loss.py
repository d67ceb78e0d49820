"""Set 02: the loss of supervised fine-tuning over the completion's tokens.

    masked_sft_loss(logits (B, T, V), input_ids (B, T), mask (B, T), reduction="mean") -> ()

`mask` is 1 on the completion's tokens. Logits at t predict token t + 1; the mean is over all
counted tokens of the batch, and 0 where none counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.grading.call import Call
from course_utils.grading.checks import Check, Task
from course_utils.grading.finding import Finding, is_close, name_mistake, show, wrong_type


def _inputs(seed: int, size: int, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, T, V), ids (B, T), mask (B, T): prompts and padding of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    B, T, V = 2 + size % 3, 7 + size, 9 + size
    logits = torch.randn(B, T, V, generator=generator) * scale
    ids = torch.randint(V, (B, T), generator=generator)
    mask = torch.zeros(B, T, dtype=torch.long)
    for row in range(B):
        prompt = 1 + int(torch.randint(2, (), generator=generator)) + row % 2
        mask[row, prompt : T - row % 3] = 1  # from 1 or more: the first token has no logits
    return logits, ids, mask


def _nll(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p of tokens 1 … T-1, in float64: (B, T - 1)."""
    return F.cross_entropy(logits[:, :-1].double().transpose(1, 2), ids[:, 1:], reduction="none")


def _known(logits: Tensor, ids: Tensor, mask: Tensor) -> dict[str, tuple[Tensor, str]]:
    """The values of the known mistakes: all of them computed from the same inputs."""
    nll, keep = _nll(logits, ids), mask[:, 1:].double()
    total, count = (nll * keep).sum(), keep.sum()
    same = F.cross_entropy(logits.double().transpose(1, 2), ids, reduction="none")
    return {
        "zero": (total * 0, "your loss is 0 whatever the input"),
        "sign": (-total / count, "the sign is flipped: the loss is the *negative* log-likelihood"),
        "no mask": (nll.mean(), "your loss is the mean over all tokens; the prompt's tokens and "
                    "the padding must not count"),
        "no shift": ((same * mask).sum() / mask.sum(), "logits at position t are scored against "
                     "token t; they predict token t + 1"),
        "mask not shifted": ((nll * mask[:, :-1]).sum() / mask[:, :-1].sum(), "the mask is cut at "
                             "the wrong end: it belongs to the tokens predicted, mask[:, 1:]"),
        "sum": (total, "your loss is the sum; the mean was asked for"),
        "mean per sequence": (((nll * keep).sum(1) / keep.sum(1)).mean(), "you average each "
                              "sequence first, so tokens of short answers weigh more"),
        "divided by all": (total / nll.numel(), "you divide by all tokens, not by those that "
                           "count"),
        "divided by batch": (total / len(ids), "you divide by the number of sequences, not by the "
                             "number of tokens that count"),
        "probabilities": (-((-nll).exp() * keep).sum() / count, "you average probabilities; take "
                          "their logarithms"),
    }  # fmt: skip


def check_value(call: Call, seed: int, size: int) -> list[Finding]:
    """The mean, the sum, and that the inputs are left as they were."""
    logits, ids, mask = _inputs(seed, size)
    known = _known(logits, ids, mask)
    mean = known["sum"][0] / mask[:, 1:].sum()
    outcome = call(logits, ids, mask)
    fault = wrong_type(outcome.value, ()) or name_mistake(outcome.value, mean, known)
    if fault:
        return [fault]
    for name, before, after in zip(
        ("logits", "input_ids", "mask"), (logits, ids, mask), outcome.arguments, strict=True
    ):
        if not isinstance(after, Tensor) or not torch.equal(before, after):
            return [Finding("in place", f"your function changes its argument {name!r}")]
    total = call(logits, ids, mask, reduction="sum").value
    fault = wrong_type(total, ())
    if not fault and not is_close(total, known["sum"][0]):
        message = 'reduction="sum" must give the sum over the tokens that count'
        fault = Finding("reduction ignored", message, show(total), show(known["sum"][0]))
    return [fault] if fault else []


def check_extremes(call: Call, seed: int, size: int) -> list[Finding]:
    """Large logits, half precision, a batch in which nothing counts."""
    logits, ids, mask = _inputs(seed, size, scale=2000.0)
    mean = (_nll(logits, ids) * mask[:, 1:]).sum() / mask[:, 1:].sum()
    got = call(logits, ids, mask).value
    fault = wrong_type(got, ())
    if not fault and not is_close(got, mean):
        message = "logits of several thousand break your loss: use log_softmax, not log of softmax"
        fault = Finding("unstable", message, show(got), show(mean))
    if fault:
        return [fault]
    for draw in range(4):  # one bfloat16 loss may lie near the right one by chance, four do not
        logits, ids, mask = _inputs(seed + 1000 * draw, size)
        logits = logits.bfloat16()
        mean = (_nll(logits, ids) * mask[:, 1:]).sum() / mask[:, 1:].sum()
        got = call(logits, ids, mask).value
        if not isinstance(got, Tensor) or not is_close(got, mean):
            message = "with bfloat16 logits the loss loses digits: convert them to float32 first"
            return [Finding("half precision", message, show(got), show(mean))]
    got = call(logits.float(), ids, mask * 0).value
    if not isinstance(got, Tensor) or not is_close(got, mean * 0):
        message = "where no token counts the loss must be 0, not 0/0"
        return [Finding("empty mask", message, show(got), "0")]
    return []


def check_gradient(call: Call, seed: int, size: int) -> list[Finding]:
    """∂L/∂logits = mask (p - onehot) / n at the positions that predict, and 0 elsewhere."""
    logits, ids, mask = _inputs(seed, size)
    leaf = logits.clone().requires_grad_(True)
    loss = (_nll(leaf, ids) * mask[:, 1:]).sum() / mask[:, 1:].sum()
    (expected,) = torch.autograd.grad(loss, leaf)
    (gradient,) = call(logits, ids, mask, wrt=(0,)).gradients
    if gradient is None:
        message = "no gradient reaches the logits: something is detached, or under no_grad"
        return [Finding("detached", message)]
    if not is_close(gradient, expected):
        message = "the gradient by the logits is wrong"
        return [Finding("gradient", message, show(gradient.norm()), show(expected.norm()))]
    return []


TASK = Task(
    set="02",
    name="masked-sft-loss",
    functions=("masked_sft_loss",),
    checks=(
        Check("value", 2, check_value),
        Check("extreme inputs", 1, check_extremes),
        Check("gradient", 1, check_gradient),
    ),
)
