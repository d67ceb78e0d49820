"""How far the policy is from its reference: KL estimators, exact KL, control of the coefficient.

Direction, everywhere: KL(π ‖ π_ref) with tokens sampled from π, d_t = log π(y_t) - log π_ref(y_t),
in nats. With d's sign flipped k1 is negative on average and k3 estimates something else.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.objectives.masking import check_range, check_same_shape, zero_masked

LOG_RATIO_LIMIT = 20.0  # e^20 = 4.9e8 is still far from float32's overflow at e^88

KLEstimator = Literal["k1", "k2", "k3"]


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k1 = d = log π - log π_ref per token: unbiased, high variance, may be negative.

    Shapes: (B, T), (B, T) -> (B, T), or any other.

    The one to subtract from rewards. As a *loss* it is useless: E_π[∇ log π] = 0, so its expected
    gradient is zero.
    Source: Schulman 2020, "Approximating KL divergence".
    """
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """k2 = d² / 2 >= 0 per token: low variance, biased value, but E_π[∇k2] = ∇KL(π ‖ π_ref).

    Shapes: (B, T), (B, T) -> (B, T), or any other.
    Source: Schulman 2020.
    """
    return kl_k1(logprobs, ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, limit: float | None = LOG_RATIO_LIMIT) -> Tensor:
    """k3 = exp(-d) - 1 + d >= 0 per token: unbiased like k1, with a lower variance.

    Shapes: (B, T), (B, T) -> (B, T), or any other.

    `limit` (nats) clamps d from below at -limit. There, the policy sampled a token that it finds
    e^20 times less likely than the reference does; exp(-d) would overflow to inf, and in a loss one
    such token would outweigh the batch. Beyond the limit the value is constant and the gradient
    zero. (Clamping the exponential alone would leave d's gradient, which has the wrong sign there.)
    d above the limit needs no clamp: exp(-d) vanishes. None switches the clamp off.

    Unbiased in value, but as a loss it follows the *other* direction: E_π[∇k3] = ∇KL(π_ref ‖ π).
    Source: Schulman 2020; GRPO's penalty (Shao et al. 2024, eq. 4).
    """
    d = kl_k1(logprobs, ref_logprobs)
    if limit is not None:
        d = d.clamp(min=-limit)
    return torch.expm1(-d) + d  # expm1: exp(-d) - 1 loses all digits for d around 1e-7


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, kind: KLEstimator = "k1", mask: Tensor | None = None
) -> Tensor:
    """The per-token estimate of KL(π ‖ π_ref) of the given kind: see `kl_k1`, `kl_k2`, `kl_k3`.

    Args:
        logprobs, ref_logprobs: (B, T) of the same sampled tokens. mask: (B, T); masked positions
            give 0.
    Returns: (B, T) nats. `masked_sum(kl, mask, dim=1)` is the estimate per answer, as logged and as
        the controllers want it.
    """
    functions = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
    if kind not in functions:
        raise ValueError(f"kind must be one of {sorted(functions)}, got {kind!r}")
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    if mask is not None:
        logprobs, ref_logprobs = zero_masked(logprobs, mask), zero_masked(ref_logprobs, mask)
    return functions[kind](logprobs, ref_logprobs)


def exact_kl(
    logits: Tensor, ref_logits: Tensor, temperature: float = 1.0, chunk_rows: int | None = None
) -> Tensor:
    """KL(π ‖ π_ref) at each position over the whole vocabulary: Σ_v π_v (log π_v - log π_ref,v).

    No sampling noise given the prefix, but it needs both logit tensors.

    Args:
        logits, ref_logits: (B, T, V), or any (..., V); -inf forbids a token (0 if π forbids it, inf
            if only π_ref does). temperature: > 0, divides both. chunk_rows: rows of the first axis
            at a time, to hold less at once.
    Returns: (B, T) nats, >= 0 up to rounding.
    """
    check_same_shape(logits=logits, ref_logits=ref_logits)
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if chunk_rows is not None and logits.dim() > 1:
        pairs = zip(logits.split(chunk_rows), ref_logits.split(chunk_rows), strict=True)
        return torch.cat([exact_kl(rows, ref_rows, temperature) for rows, ref_rows in pairs])
    kept = torch.float64 if logits.dtype == torch.float64 else torch.float32
    logp = F.log_softmax(logits.to(kept) / temperature, dim=-1)  # (B, T, V)
    logq = F.log_softmax(ref_logits.to(kept) / temperature, dim=-1)
    difference = torch.where(logp > -torch.inf, logp - logq, torch.zeros_like(logp))  # p = 0: 0
    return (logp.exp() * difference).sum(-1)


def best_of_n_kl(n: int) -> float:
    """KL of best-of-n sampling from its base policy, in nats per answer: log n - (n - 1) / n.

    Exact for continuous distributions without ties, an upper bound for token sequences.
    Source: Stiennon et al. 2020, appendix G.3; Beirami et al. 2024 (the bound).
    """
    if n < 1:
        raise ValueError(f"best-of-n needs n >= 1, got {n}")
    return math.log(n) - (n - 1) / n


@dataclass
class FixedKL:
    """A constant KL coefficient β: L_KL = β KL(π ‖ π_SFT)."""

    beta: float  # β, >= 0, reward units per nat

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 0.0)

    def update(self, kl: float, samples: int) -> float:
        """β unchanged, whatever was measured (the same call as AdaptiveKL's)."""
        return self.beta


@dataclass
class AdaptiveKL:
    """β steered so that the KL per answer approaches `target`; the only state kept here is β.

        β <- β (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)

    Source: Ziegler et al. 2019, §2.2, and their code's n / horizon.
    """

    beta: float  # β at the start, > 0 (from 0 it could never move), reward units per nat
    target: float = 6.0  # nats per answer, KL to the reference summed over its tokens, > 0
    horizon: int = 10_000  # answers (not steps, not tokens) in which β may change by e^±0.2, > 0

    def __post_init__(self) -> None:
        for name in ("beta", "target", "horizon"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"AdaptiveKL needs {name} > 0 and finite, got {value!r}")

    def update(self, kl: float, samples: int) -> float:
        """Set and return the new β.

        Args:
            kl: measured mean KL(π ‖ π_ref) per answer in nats, not per token (an estimate just
                below 0 is allowed). samples: n, answers generated since the last update.
        Raises: ValueError if kl is not finite, or samples not in [0, 5 horizon) (β could reach 0).
        """
        if not math.isfinite(kl):
            raise ValueError(f"the measured KL is {kl}: the policy has diverged or a mask is wrong")
        if not 0 <= samples < 5 * self.horizon:
            raise ValueError(
                f"samples must be in [0, 5 * horizon) = [0, {5 * self.horizon}), got {samples}: "
                "raise horizon above the answers per iteration"
            )
        error = min(max(float(kl) / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * samples / self.horizon
        return self.beta
