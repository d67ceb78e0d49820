"""How likely the model finds given tokens: log-probabilities, the SFT loss, entropy.

The shift is never hidden: logits at position t predict the token at t + 1. `token_logprobs` takes
logits and labels that are already aligned; `next_token_logprobs` is the one place that shifts.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.objectives.masking import check_dims, masked_mean, masked_sum

IGNORE_INDEX = -100  # the label Hugging Face gives to tokens that do not count


def _logprobs_of(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Aligned logits (..., V) and labels (...) -> (...) in float32 (float64 stays)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logits = logits / temperature if temperature != 1.0 else logits
    ignored = labels == IGNORE_INDEX
    index = labels.masked_fill(ignored, 0).unsqueeze(-1)  # gather cannot read index -100
    # log_softmax subtracts the row's maximum first: exact to ulp(logprob) even for logits of ±1e4,
    # where `logit - logsumexp` would lose three digits
    chosen = F.log_softmax(logits, dim=-1).gather(-1, index).squeeze(-1)
    return chosen.masked_fill(ignored, 0.0)


def _check_logits(logits: Tensor, labels: Tensor | None, temperature: float) -> None:
    if labels is not None and logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits must have the labels' shape and then V: got logits {tuple(logits.shape)}, "
            f"labels {tuple(labels.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")


def token_logprobs(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, chunk_rows: int | None = None
) -> Tensor:
    """log p(label) at each position; logits and labels are *already aligned* (no shift here).

        log p(y_t) = logits_t[y_t] / T - logsumexp(logits_t / T)

    Args:
        logits: (B, T, V), or any (..., V), in any float type; the softmax is computed in float32.
        labels: (B, T) token ids; IGNORE_INDEX (-100) gives 0 with no gradient.
        temperature: the sampling temperature, > 0. What was sampled at T must be scored at T, for
            the policy and the reference alike, or the ratio is not 1 on on-policy data.
        chunk_rows: work on so many rows (of the first axis) at a time. The (B, T, V) float32
            log-softmax is then never held whole when no gradient is needed (scoring, rollouts);
            with gradients autograd keeps it, but not its temporaries (two such tensors, not three).
    Returns: (B, T) float32 (float64 for float64 logits).
    Raises: ValueError if the shapes do not fit.
    """
    _check_logits(logits, labels, temperature)
    if chunk_rows is None or labels.dim() == 0:
        return _logprobs_of(logits, labels, temperature)
    pairs = zip(logits.split(chunk_rows), labels.split(chunk_rows), strict=True)
    return torch.cat([_logprobs_of(rows, wanted, temperature) for rows, wanted in pairs])


def next_token_logprobs(
    logits: Tensor, input_ids: Tensor, temperature: float = 1.0, chunk_rows: int | None = None
) -> Tensor:
    """log p(x_{t+1} | x_{<=t}): the model's logits on a sequence scored against that same sequence.

    Entry t of the result belongs to token t + 1, so a mask over tokens must be cut to mask[:, 1:],
    and the C tokens of a completion that ends the sequence are the last C entries.

    Args:
        logits: (B, T, V) as the model returned them. input_ids: (B, T) what the model was fed.
        temperature, chunk_rows: see `token_logprobs`.
    Returns: (B, T - 1).
    """
    check_dims("input_ids", input_ids, "BT")
    _check_logits(logits, input_ids, temperature)
    return token_logprobs(logits[:, :-1], input_ids[:, 1:], temperature, chunk_rows)


def sequence_logprob(
    logprobs: Tensor, mask: Tensor, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """log π(y|x) = Σ_t log π(y_t | y_<t, x) of each answer, or its mean per token.

    Args:
        logprobs: (B, T). mask: (B, T), 1 on the answer's tokens (not the prompt, not padding).
        reduction: "sum" (DPO, PPO) or "mean" (IPO, length-normalised variants).
    Returns: (B,) in nats. Raises: ValueError for "mean" if a row has no token.
    """
    check_dims("logprobs", logprobs, "BT")
    if reduction not in ("sum", "mean"):
        raise ValueError(f'reduction must be "sum" or "mean", got {reduction!r}')
    reduce = masked_sum if reduction == "sum" else masked_mean
    return reduce(logprobs, mask, dim=1)


def sft_loss(
    logprobs: Tensor,
    mask: Tensor,
    reduction: Literal["token_mean", "sum"] = "token_mean",
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Supervised fine-tuning: L_SFT = -Σ_t log p_θ(y_t | y_<t, x), or its mean per token.

    Args:
        logprobs: (B, T) from `next_token_logprobs`. mask: (B, T), 1 on the answer's tokens; after
            the shift, so mask[:, 1:] of a mask over the input.
        reduction: "sum" is the lecture's formula; "token_mean" divides it by the number of answer
            tokens in the *whole batch* (not per row), as TRL and Transformers do.
        denominator: with "token_mean", the token count to divide by instead: that of the whole
            minibatch when this is a micro-batch of it.
    Returns: scalar, nats (per token for "token_mean").
    Raises: ValueError if the mask is empty (with a denominator it adds 0 instead).
    Source: Ouyang et al. 2022, §3.5; the lecture's L_SFT.
    """
    if reduction == "token_mean":
        return -masked_mean(logprobs, mask, denominator=denominator)
    if reduction != "sum":
        raise ValueError(f'reduction must be "token_mean" or "sum", got {reduction!r}')
    if denominator is not None:
        raise ValueError('a denominator has no meaning with reduction="sum"')
    if not bool(mask.any()):
        raise ValueError(
            f"the mask of shape {tuple(mask.shape)} selects no token: nothing to learn"
        )
    return -masked_sum(logprobs, mask)


def _entropy_of(logits: Tensor, temperature: float) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logp = F.log_softmax(logits / temperature if temperature != 1.0 else logits, dim=-1)
    # tokens forbidden by a logit of -inf: p = 0 and p log p -> 0, but 0 * -inf would be NaN
    finite = torch.where(
        logp > -torch.inf, logp, torch.zeros((), dtype=logp.dtype, device=logp.device)
    )
    return -(logp.exp() * finite).sum(-1)


def entropy_from_logits(
    logits: Tensor, temperature: float = 1.0, chunk_rows: int | None = None
) -> Tensor:
    """H(π(.|s_t)) = -Σ_v p_v log p_v at each position, in nats, in [0, log V].

    Args:
        logits: (B, T, V), or any (..., V); -inf forbids a token. temperature, chunk_rows: as in
            `token_logprobs`.
    Returns: (B, T).
    """
    _check_logits(logits, None, temperature)
    if chunk_rows is None or logits.dim() == 1:
        return _entropy_of(logits, temperature)
    return torch.cat([_entropy_of(rows, temperature) for rows in logits.split(chunk_rows)])
