"""Policy gradients without a critic (GRPO, RLOO): a prompt's answers are each other's baseline."""

from typing import Literal

import torch
from torch import Tensor

from course_utils.objectives.kl import kl_estimate
from course_utils.objectives.masking import (
    as_mask,
    check_dims,
    check_range,
    check_same_shape,
    masked_mean,
    masked_sum,
    zero_masked,
)
from course_utils.objectives.policy_gradient import LossStats, clipped_surrogate, log_ratio

GRPOAggregation = Literal["grpo", "bnpo", "dr_grpo"]


def _check_groups(rewards: Tensor) -> None:
    check_dims("rewards", rewards, "NG")
    if rewards.shape[1] < 2:
        raise ValueError(
            f"a group needs at least 2 answers per prompt, got rewards {tuple(rewards.shape)}"
        )


def group_advantages(rewards: Tensor, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """GRPO: Â_i = (r_i - mean of its group) / (std of its group + eps).

    Args:
        rewards: (N, G), G >= 2 answers to each of N prompts (flat (N·G,) rewards: `.view(-1, G)`).
        scale: False leaves the division out (Dr. GRPO: it over-weights prompts that are nearly
            solved or nearly hopeless). eps: reward units; keeps a group of equal rewards at 0.
    Returns: (N, G), each row summing to 0. The std is unbiased (n - 1), as TRL's.
    Source: Shao et al. 2024 (DeepSeekMath), §4.1.2; without scale: Liu et al. 2025.
    """
    _check_groups(rewards)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + eps) if scale else centred


def rloo_baseline(rewards: Tensor) -> Tensor:
    """b_i = mean reward of the *other* answers to the prompt: independent of i, so unbiased.

    Args: rewards: (N, G), G >= 2. Returns: (N, G).
    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO).
    """
    _check_groups(rewards)
    return (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def rloo_advantages(rewards: Tensor) -> Tensor:
    """Â_i = r_i - b_i = G / (G - 1) (r_i - group mean). Args: rewards (N, G). Returns: (N, G)."""
    return rewards - rloo_baseline(rewards)


def _aggregate(
    losses: Tensor,
    keep: Tensor,
    aggregation: GRPOAggregation,
    max_completion_length: int | None,
    denominator: float | Tensor | None,
) -> Tensor:
    """Per-token losses (B, C), 0 where `keep` is False, to a scalar: see `grpo_loss`."""
    if aggregation == "grpo":
        if denominator is None:
            return masked_mean(losses, keep, dim=1).mean()
        per_answer = masked_sum(losses, keep, dim=1) / keep.sum(dim=1).clamp(min=1)  # (B,)
        return per_answer.sum() / denominator
    if aggregation == "bnpo":
        return masked_mean(losses, keep, denominator=denominator)
    if aggregation != "dr_grpo":
        raise ValueError(f'aggregation must be "grpo", "bnpo" or "dr_grpo", got {aggregation!r}')
    if denominator is None:
        if max_completion_length is None:
            raise ValueError('aggregation "dr_grpo" needs max_completion_length')
        denominator = len(losses) * max_completion_length
    return masked_mean(losses, keep, denominator=denominator)


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logprobs: Tensor | None = None,
    beta: float = 0.0,
    clip: float = 0.2,
    clip_high: float | None = None,
    aggregation: GRPOAggregation = "grpo",
    max_completion_length: int | None = None,
    unbiased_kl: bool = False,
    denominator: float | Tensor | None = None,
) -> LossStats:
    """PPO's clipped objective with one advantage per answer, minus β k3(π ‖ π_ref) inside the loss.

    Args:
        logprobs (with gradient), old_logprobs, mask: (B, C). advantages: (B,), e.g.
            group_advantages(...).flatten(). ref_logprobs: (B, C), needed when beta > 0.
        beta: β >= 0, per nat. clip, clip_high: ε, see `clipped_surrogate`.
        aggregation: "grpo" mean over each answer's tokens, then over answers (long answers' tokens
            count less); "bnpo" mean over all tokens of the batch; "dr_grpo" sum over tokens divided
            by B · max_completion_length (no length bias; needs that limit).
        unbiased_kl: multiply k3 by the ratio (with its gradient), as DeepSeek-V3.2 and TRL do: the
            expected gradient is then β ∇KL(π ‖ π_ref) instead of the other direction's, also off
            policy. False is GRPO as published.
        denominator: divide the sum by this instead: answers ("grpo"), tokens ("bnpo"), or answers
            times max_completion_length ("dr_grpo") of the whole minibatch.
    Returns: loss, and stats: clip_fraction (of this call's tokens), kl_k3 (mean per token,
        0 without a reference).
    Raises: ValueError for unequal shapes, an answer without a token ("grpo"), an empty mask.
    Source: Shao et al. 2024, eqs. 3, 4; "dr_grpo": Liu et al. 2025; names as in TRL's `loss_type`.
    """
    check_dims("logprobs", logprobs, "BC")
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
    if advantages.shape != logprobs.shape[:1]:
        raise ValueError(
            f"advantages must be (B,) = {tuple(logprobs.shape[:1])}, got {tuple(advantages.shape)}"
        )
    check_range("beta", beta, 0.0)
    if beta > 0 and ref_logprobs is None:
        raise ValueError(f"beta = {beta:g} needs ref_logprobs")
    keep = as_mask(mask)
    ratio = log_ratio(logprobs, old_logprobs, keep).exp()  # (B, C)
    spread = advantages.detach().to(ratio.dtype).unsqueeze(1).expand_as(ratio)  # (B, C)
    objective, clipped = clipped_surrogate(ratio, spread, clip, clip_high)
    losses = -zero_masked(objective, keep)
    kl = torch.zeros_like(losses)
    if ref_logprobs is not None:
        kl = kl_estimate(logprobs, ref_logprobs.detach(), "k3", keep)
        losses = losses + beta * (kl * ratio if unbiased_kl else kl)
    loss = _aggregate(losses, keep, aggregation, max_completion_length, denominator)
    with torch.no_grad():
        tokens = keep.sum().clamp(min=1)
        stats = {
            "clip_fraction": masked_sum(clipped.to(losses.dtype), keep) / tokens,
            "kl_k3": masked_sum(kl, keep) / tokens,
        }
    return LossStats(loss, stats)
