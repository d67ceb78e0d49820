"""Learning from comparisons: Bradley-Terry reward models and DPO with its relatives.

c / w is the chosen (preferred) answer, r / l the rejected one; all tensors are (B,), one per pair.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.objectives.masking import check_dims, check_same_shape

Reduction = Literal["mean", "sum", "none"]
DPOVariant = Literal["sigmoid", "ipo", "robust", "hinge"]


def _reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if losses.numel() == 0:
        raise ValueError("no pairs: an empty batch has no loss")
    return losses.mean() if reduction == "mean" else losses.sum()


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:  # at one half a label says nothing
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing!r}")


def _smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - ε) log σ(x) - ε log σ(-x): cross entropy if labels are wrong with probability ε."""
    # logsigmoid, not log(sigmoid(x)): the latter is -inf, with a NaN gradient, from x = -104 down
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


# -- reward model --------------------------------------------------------------------------------


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """L_RM = -log σ(r_φ(x, y_A) - r_φ(x, y_B) - m), A preferred; finite at ±1e4, gradients too.

    Args:
        chosen, rejected: (B,) scores r_φ. margin: (B,) how much better A was said to be, >= 0, or
            None.
        label_smoothing: ε in [0, 0.5), the supposed share of wrong labels.
    Returns: scalar, or (B,) for "none". log 2 = 0.693 for a model that scores all alike.
    Source: Bradley & Terry 1952; Ouyang et al. 2022, eq. 1; margin: Touvron et al. 2023 (Llama 2),
        eq. 2.
    """
    check_same_shape(chosen=chosen, rejected=rejected, margin=margin)
    check_dims("chosen", chosen, "B")
    _check_smoothing(label_smoothing)
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    return _reduce(_smoothed_logistic(difference, label_smoothing), reduction)


def reward_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Share of pairs whose preferred answer scores higher, a scalar in [0, 1].

    A tie counts one half, so that a constant model is at chance (TRL counts it as wrong).

    Args: chosen, rejected: (B,) scores, B >= 1.
    """
    check_same_shape(chosen=chosen, rejected=rejected)
    if chosen.numel() == 0:
        raise ValueError("no pairs: accuracy of an empty batch")
    return ((chosen > rejected).float() + 0.5 * (chosen == rejected).float()).mean()


@dataclass(frozen=True)
class RewardNormalisation:
    """Affine map that gives the reference answers' rewards mean 0 and standard deviation 1.

    Bradley-Terry fixes differences of rewards only; their zero and scale are arbitrary, and the KL
    coefficient and the value loss depend on them. Fit once on the
    reference's answers, stored with the reward model.
    Source: Ziegler et al. 2019, §2; Ouyang et al. 2022, §3.5 (a bias: demonstrations get
        mean 0).
    """

    mean: float = 0.0  # reward units
    std: float = 1.0  # reward units, > 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(
                f"need a finite mean and std > 0, got mean {self.mean}, std {self.std}"
            )

    @classmethod
    def fit(cls, rewards: Tensor) -> "RewardNormalisation":
        """From raw rewards of reference outputs: (N,), N >= 2, finite, not all equal; unbiased."""
        rewards = rewards.detach().double().flatten()
        if rewards.numel() < 2 or not bool(rewards.isfinite().all()):
            raise ValueError(
                f"need at least 2 finite rewards, got {rewards.numel()}: {rewards[:8]}"
            )
        std = float(rewards.std())
        if std == 0:
            raise ValueError(
                f"all {rewards.numel()} reference rewards equal {rewards[0]:g}: nothing to scale by"
            )
        return cls(mean=float(rewards.mean()), std=std)

    def apply(self, rewards: Tensor) -> Tensor:
        """(r - mean) / std, any shape."""
        return (rewards - self.mean) / self.std

    def inverse(self, normalised: Tensor) -> Tensor:
        """normalised * std + mean, any shape: the raw reward again."""
        return normalised * self.std + self.mean


# -- DPO -----------------------------------------------------------------------------------------


def implicit_rewards(logprobs: Tensor, ref_logprobs: Tensor, beta: float) -> Tensor:
    """r̂(x, y) = β (log π(y|x) - log π_ref(y|x)): the reward a DPO policy implies, up to f(x).

    Args: logprobs, ref_logprobs: (B,) summed over each answer. beta: β > 0, reward units per nat.
    Returns: (B,), with the policy's gradient (detach for logging); the reference is a constant.
    Source: Rafailov et al. 2023, §4 (after eq. 7).
    """
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    check_dims("logprobs", logprobs, "B")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be > 0 and finite, got {beta!r}")
    return beta * (logprobs - ref_logprobs.detach())


def reward_margins(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float,
) -> Tensor:
    """u = r̂(x, y_w) - r̂(x, y_l) (B,): > 0 where policy against reference prefers the chosen.

    The share that is positive is DPO's "reward accuracy". Args as in `dpo_loss`.
    """
    check_same_shape(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    chosen = implicit_rewards(chosen_logprobs, ref_chosen_logprobs, beta)
    return chosen - implicit_rewards(rejected_logprobs, ref_rejected_logprobs, beta)


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float = 0.1,
    variant: DPOVariant = "sigmoid",
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Direct preference optimisation. With u = β [log π/π_ref (y_w) - log π/π_ref (y_l)]:

        sigmoid  -log σ(u)                                    Rafailov et al. 2023, eq. 7
                 -(1-ε) log σ(u) - ε log σ(-u)                with label_smoothing ε: cDPO (Mitchell
                 2023)
        robust   [-(1-ε) log σ(u) + ε log σ(-u)] / (1 - 2ε)   Chowdhury et al. 2024
        ipo      (u / β - 1 / (2β))²                          Azar et al. 2023, eq. 17 (β is their
        τ)
        hinge    max(0, 1 - u)                                Zhao et al. 2023 (SLiC), as in TRL

    The minus is there: the lecture writes the objective to be maximised, this is the loss to
    minimise.

    Args:
        chosen_logprobs, rejected_logprobs: (B,) log π(y|x) of the policy, summed over the answer's
            tokens; for "ipo" TRL (with the authors' consent) uses the mean per token: pass
            `sequence_logprob(..., "mean")` for all four.
        ref_chosen_logprobs, ref_rejected_logprobs: (B,) the same under the frozen reference, no
            gradient.
        beta: β > 0, how strongly the policy is tied to the reference; 0.1 is usual.
        label_smoothing: ε in [0, 0.5), for "sigmoid" and "robust" only.
    Returns: scalar, or (B,) for "none". log 2 for "sigmoid" while policy = reference.
    """
    margins = reward_margins(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta
    )
    _check_smoothing(label_smoothing)
    if label_smoothing and variant in ("ipo", "hinge"):
        raise ValueError(f'label_smoothing has no meaning for variant "{variant}"')
    if variant == "sigmoid":
        losses = _smoothed_logistic(margins, label_smoothing)
    elif variant == "robust":
        clean, flipped = F.logsigmoid(margins), F.logsigmoid(-margins)
        losses = -(1 - label_smoothing) * clean + label_smoothing * flipped
        losses = losses / (1 - 2 * label_smoothing)
    elif variant == "ipo":
        losses = (margins / beta - 1 / (2 * beta)).square()
    elif variant == "hinge":
        losses = torch.relu(1 - margins)
    else:
        raise ValueError(f'variant must be "sigmoid", "ipo", "robust" or "hinge", got {variant!r}')
    return _reduce(losses, reduction)


def dpo_gradient_weight(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """How much each pair counts in DPO's gradient: w = σ(r̂(y_l) - r̂(y_w)), large where the order
    is wrong.

        ∇L_DPO = -β mean_pairs w [∇ log π(y_w|x) - ∇ log π(y_l|x)]

    With label smoothing ε (cDPO) w = σ(-u) - ε, negative once the margin u exceeds log((1-ε)/ε).

    Args: as in `dpo_loss`. Returns: (B,) without gradient, in (0, 1) for ε = 0.
    Source: Rafailov et al. 2023, §4, "What does the DPO update do?".
    """
    _check_smoothing(label_smoothing)
    with torch.no_grad():
        margins = reward_margins(
            chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta
        )
        return torch.sigmoid(-margins) - label_smoothing
