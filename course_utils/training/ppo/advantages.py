"""From scores to advantages: which token gets the credit for an answer's score."""

import torch
from torch import Tensor

from course_utils.objectives import gae, masked_whiten, per_token_rewards
from course_utils.training.ppo.config import PPOConfig
from course_utils.training.ppo.rollout import Rollouts


def penalised_scores(scores: Tensor, ended: Tensor, penalty: float) -> Tensor:
    """(B,) scores, minus the penalty where the answer was cut off before it ended.

    *Subtracted* (not replaced by a fixed low score), so that among cut answers better ones are
    still better. Decided by the answer's own tokens: an EOS in the prompt does not count.
    """
    return scores - penalty * (~ended).to(scores.dtype)


def compute_advantages(rollouts: Rollouts, beta: float, config: PPOConfig) -> None:
    """Fills `rewards`, `advantages` and `returns` of the rollouts, all (B, C), without gradients.

    1. r_t = -β (log π_old - log π_ref), plus the score on the last real token (EOS included)
    2. GAE on the values of the rollout; returns R = Â + V are taken before whitening
    3. advantages are whitened once over all tokens of the step, before it is cut into minibatches
    """
    mask = rollouts.mask
    scores = penalised_scores(rollouts.scores, rollouts.ended, config.missing_eos_penalty)
    rewards = per_token_rewards(rollouts.logprobs, rollouts.ref_logprobs, scores, mask, beta)
    several = int(mask.sum()) > 1  # one token alone has no variance
    if config.whiten_rewards and several:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(
        rewards, rollouts.values, mask, config.gamma, config.lam, rollouts.last_values
    )
    if config.whiten_advantages and several:
        advantages = masked_whiten(advantages, mask)
    rollouts.rewards, rollouts.advantages, rollouts.returns = rewards, advantages, returns


def sequence_kl(rollouts: Rollouts) -> tuple[float, float]:
    """(k1, k3): estimates of KL(π ‖ π_ref) per answer, in nats, averaged over the answers."""
    from course_utils.objectives import kl_estimate

    with torch.no_grad():
        k1, k3 = (
            kl_estimate(rollouts.logprobs, rollouts.ref_logprobs, kind, rollouts.mask).sum(1).mean()
            for kind in ("k1", "k3")
        )
    return float(k1), float(k3)
