"""PPO on answers: per-token rewards, generalised advantages, the clipped policy and value losses.

All tensors are (B, C): B answers of up to C tokens, `mask` 1 on the tokens of the answer (EOS
included) and 0 on padding. Token t is the action a_t, the prompt and the tokens before it the state
s_t. What is at masked positions never matters, not even NaN.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from course_utils.objectives.kl import LOG_RATIO_LIMIT
from course_utils.objectives.masking import (
    as_mask,
    check_dims,
    check_range,
    check_same_shape,
    explained_variance,
    last_token_index,
    masked_mean,
    zero_masked,
)


class Advantages(NamedTuple):
    """What `gae` returns; both (B, C), without gradient, 0 at masked positions."""

    advantages: Tensor  # Â_t, not whitened
    returns: Tensor  # R_t = Â_t + V(s_t), the critic's target


class LossStats(NamedTuple):
    """A loss and what to log beside it; the values are detached scalars."""

    loss: Tensor  # scalar, to call backward on
    stats: dict[str, Tensor]


def per_token_rewards(
    logprobs: Tensor, ref_logprobs: Tensor, scores: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """r_t = -β (log π(a_t|s_t) - log π_ref(a_t|s_t)), plus the answer's score on its last real
    token.

    The KL is part of the reward, an ordinary number: nothing is differentiated here.

    Args:
        logprobs, ref_logprobs: (B, C) of the sampled tokens under the policy that sampled them and
            under the reference. scores: (B,) one score per answer, e.g. from the reward model.
        mask: (B, C), at least one token in every row. beta: β >= 0, reward units per nat.
    Returns: (B, C), 0 at masked positions. Its sum over t is score - β k1(answer).
    Raises: ValueError for unequal shapes or a row without a token (no place for its score).
    Source: Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2 (without the pretraining term).
    """
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, mask=mask)
    check_dims("logprobs", logprobs, "BC")
    if scores.shape != logprobs.shape[:1]:
        raise ValueError(
            f"scores must be (B,) = {tuple(logprobs.shape[:1])}, one per answer, "
            f"got {tuple(scores.shape)}"
        )
    check_range("beta", beta, 0.0)
    with torch.no_grad():
        kl = zero_masked(logprobs, mask) - zero_masked(ref_logprobs, mask)  # (B, C) k1, from π
        last = last_token_index(mask).unsqueeze(1)  # (B, 1)
        return (-beta * kl).scatter_add(1, last, scores.to(kl.dtype).unsqueeze(1))


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap_values: Tensor | None = None,
) -> Advantages:
    """Generalised advantage estimation, and the returns Â + V taken *before* any whitening.

        δ_t = r_t + γ V(s_{t+1}) - V(s_t)        Â_t = δ_t + γ λ Â_{t+1}

    After an answer's last token V and Â are 0: the episode is over. An answer cut off by the length
    limit is not over; give V(s_T), the value of the state after its last token, as its bootstrap.
    Masked tokens, wherever they are, are stepped over as if they were not there.

    Args:
        rewards: (B, C) from `per_token_rewards`. values: (B, C) V(s_t), the value *before* token t.
        mask: (B, C). gamma: γ in [0, 1], 1 is usual for answers. lam: λ in [0, 1]; 1 gives
            Σ future rewards - V, 0 gives δ_t.
        bootstrap_values: (B,) V(s_T) for truncated rows and 0 for finished ones; None: all
            finished.
    Returns: Advantages(advantages, returns), each (B, C).
    Source: Schulman et al. 2016 (GAE), eqs. 11, 16.
    """
    check_same_shape(rewards=rewards, values=values, mask=mask)
    check_dims("rewards", rewards, "BC")
    check_range("gamma", gamma, 0.0, 1.0)
    check_range("lam", lam, 0.0, 1.0)
    if bootstrap_values is not None and bootstrap_values.shape != rewards.shape[:1]:
        raise ValueError(
            f"bootstrap_values must be (B,) = {tuple(rewards.shape[:1])}, "
            f"got {tuple(bootstrap_values.shape)}"
        )
    with torch.no_grad():
        keep = as_mask(mask)
        precise = torch.promote_types(values.dtype, rewards.dtype)  # a critic may answer in bf16
        values = zero_masked(values, keep).to(precise)
        advantages = torch.zeros_like(values)
        next_advantage = values.new_zeros(values.shape[0])  # (B,) Â_{t+1}
        next_value = next_advantage if bootstrap_values is None else bootstrap_values.to(values)
        for t in reversed(range(values.shape[1])):
            delta = rewards[:, t] + gamma * next_value - values[:, t]  # δ_t
            advantage = delta + gamma * lam * next_advantage  # Â_t
            advantages[:, t] = advantage.masked_fill(~keep[:, t], 0.0)
            next_advantage = torch.where(keep[:, t], advantage, next_advantage)
            next_value = torch.where(keep[:, t], values[:, t], next_value)
        return Advantages(advantages, advantages + values)


def log_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, limit: float = LOG_RATIO_LIMIT
) -> Tensor:
    """log r_t(θ) = log π_θ(a_t|s_t) - log π_old(a_t|s_t) (B, C), within ±limit nats, 0 if masked.

    The clamp keeps exp finite; beyond it the gradient is zero, so a token whose probability has run
    away under a negative advantage cannot push further.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
    difference = zero_masked(logprobs, mask) - zero_masked(old_logprobs.detach(), mask)
    return difference.clamp(-limit, limit)


def clipped_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """min(r Â, clip(r, 1-ε, 1+ε) Â) per token, to be maximised, and where it cut the gradient.

    Â > 0 stops paying above 1 + ε, Â < 0 below 1 - ε; on the other side the unclipped term stays,
    so a bad token that became *more* likely is still pushed down. There -r|Â| is unbounded;
    dual_clip = c > 1 floors the objective at c Â for Â < 0.

    Args:
        ratio, advantages: (B, C). clip: ε in (0, 1]. clip_high: another ε above 1 (DAPO), None: the
            same.
    Returns: objective (B, C), clipped (B, C) bool: True where the objective is constant in r.
    Source: Schulman et al. 2017 (PPO), eq. 7; dual clip: Ye et al. 2020, eq. 5.
    """
    check_same_shape(ratio=ratio, advantages=advantages)
    high = clip if clip_high is None else clip_high
    if not (0 < clip <= 1 and high > 0):
        raise ValueError(f"clip must be in (0, 1] and clip_high > 0, got {clip!r} and {high!r}")
    if dual_clip is not None and not dual_clip > 1 + high:
        raise ValueError(f"dual_clip must exceed 1 + clip = {1 + high:g}, got {dual_clip!r}")
    unclipped = ratio * advantages
    bounded = ratio.clamp(1 - clip, 1 + high) * advantages
    objective = torch.minimum(unclipped, bounded)
    clipped = bounded < unclipped
    if dual_clip is not None:
        floor = dual_clip * advantages
        below = (advantages < 0) & (objective < floor)
        objective, clipped = torch.where(below, floor, objective), clipped | below
    return objective, clipped


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    denominator: float | Tensor | None = None,
) -> LossStats:
    """-L_PPO = -E_t[min(r_t(θ) Â_t, clip(r_t(θ), 1-ε, 1+ε) Â_t)].

    r_t(θ) = π_θ(a_t|s_t) / π_old(a_t|s_t). The lecture's L_PPO is maximised, this loss minimised.
    Advantages and old log-probabilities are constants, also if they carry a graph.

    Args:
        logprobs: (B, C) of the current policy, with gradient. old_logprobs: (B, C) of the policy
            that sampled, at the same temperature and precision. advantages: (B, C), as a rule
            whitened once over the whole batch. mask: (B, C).
        clip, clip_high, dual_clip: see `clipped_surrogate`.
        denominator: tokens to divide by; give the whole minibatch's count to every micro-batch of
            it.
    Returns: loss, and stats of this call:
        clip_fraction  share of tokens whose gradient the clip (or dual clip) removed
        approx_kl      mean of (r - 1) - log r: KL(π_old ‖ π_θ) per token, nats (k3), >= 0
        ratio_max, ratio_min  extremes of r_t over the tokens that count (1 if there is none)
        With a denominator the first two are divided by it as well: sum them over the micro-batches.
    Raises: ValueError for unequal shapes, or an empty mask without a denominator.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    keep = as_mask(mask)
    log_r = log_ratio(logprobs, old_logprobs, keep)  # (B, C), 0 where masked
    ratio = log_r.exp()  # r_t(θ)
    constants = zero_masked(advantages.detach(), keep)  # Â_t
    objective, clipped = clipped_surrogate(ratio, constants, clip, clip_high, dual_clip)
    loss = -masked_mean(objective, keep, denominator=denominator)
    with torch.no_grad():
        stats = {
            "clip_fraction": masked_mean(clipped.to(ratio.dtype), keep, denominator=denominator),
            "approx_kl": masked_mean(torch.expm1(log_r) - log_r, keep, denominator=denominator),
            "ratio_max": ratio[keep].max() if bool(keep.any()) else ratio.new_ones(()),
            "ratio_min": ratio[keep].min() if bool(keep.any()) else ratio.new_ones(()),
        }
    return LossStats(loss, stats)


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float | None = 0.2,
    denominator: float | Tensor | None = None,
) -> LossStats:
    """½ E_t[max((V - R)², (V_old + clip(V - V_old, -ε, ε) - R)²)]: steps of at most ε pay.

    Args:
        values: (B, C) V(s_t) of the current critic, with gradient. old_values: (B, C) from the
            rollout, *not* recomputed (recomputed ones equal `values` and the clip does nothing).
        returns: (B, C) from `gae`. mask: (B, C).
        clip: ε > 0 in reward units, so it must fit the scale of the returns; None: plain
            ½ (V - R)².
        denominator: as in `ppo_policy_loss`.
    Returns: loss, and stats: value_clip_fraction (tokens whose gradient the clip removed; divided
        by the denominator), explained_variance of `values` over this call's tokens (0 if there is
        none).
    Source: Schulman et al.'s PPO code (OpenAI baselines ppo2); N implementation details (Huang et
        al. 2024).
    """
    check_same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be > 0 (or None), got {clip!r}")
    keep = as_mask(mask)
    values = zero_masked(values, keep)
    old_values, returns = (zero_masked(x.detach(), keep) for x in (old_values, returns))
    squares = (values - returns).square()
    clipped = torch.zeros_like(keep)
    if clip is not None:
        bounded = old_values + (values - old_values).clamp(-clip, clip)
        bounded_squares = (bounded - returns).square()
        clipped = bounded_squares > squares
        squares = torch.maximum(squares, bounded_squares)
    loss = 0.5 * masked_mean(squares, keep, denominator=denominator)
    with torch.no_grad():
        stats = {
            "value_clip_fraction": masked_mean(
                clipped.to(squares.dtype), keep, denominator=denominator
            ),
            "explained_variance": explained_variance(values, returns, keep)
            if bool(keep.any())
            else squares.new_zeros(()),
        }
    return LossStats(loss, stats)
