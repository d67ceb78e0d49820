"""Every loss and estimator of the lecture as a pure function of tensors; needs torch only.

    likelihood       token log-probabilities, the SFT loss, entropy
    preference       Bradley-Terry, reward normalisation, DPO and its relatives
    kl               k1 / k2 / k3, exact KL, the KL coefficient's controllers, best-of-n's KL
    policy_gradient  per-token rewards, GAE, PPO's policy and value losses
    groups           GRPO and RLOO: baselines from several answers per prompt
    masking          masked sums, means, variances, whitening; masks from EOS positions

Shapes: B batch, T tokens, C completion tokens, V vocabulary, N prompts, G answers per prompt.
"""

from course_utils.objectives.groups import (
    group_advantages,
    grpo_loss,
    rloo_advantages,
    rloo_baseline,
)
from course_utils.objectives.kl import (
    LOG_RATIO_LIMIT,
    AdaptiveKL,
    FixedKL,
    best_of_n_kl,
    exact_kl,
    kl_estimate,
    kl_k1,
    kl_k2,
    kl_k3,
)
from course_utils.objectives.likelihood import (
    IGNORE_INDEX,
    entropy_from_logits,
    next_token_logprobs,
    sequence_logprob,
    sft_loss,
    token_logprobs,
)
from course_utils.objectives.masking import (
    completion_mask_from_eos,
    explained_variance,
    last_token_index,
    masked_mean,
    masked_sum,
    masked_var,
    masked_whiten,
    zero_masked,
)
from course_utils.objectives.policy_gradient import (
    Advantages,
    LossStats,
    clipped_surrogate,
    clipped_value_loss,
    gae,
    log_ratio,
    per_token_rewards,
    ppo_policy_loss,
)
from course_utils.objectives.preference import (
    RewardNormalisation,
    bradley_terry_loss,
    dpo_gradient_weight,
    dpo_loss,
    implicit_rewards,
    reward_accuracy,
    reward_margins,
)

__all__ = [
    "IGNORE_INDEX",
    "LOG_RATIO_LIMIT",
    "AdaptiveKL",
    "Advantages",
    "FixedKL",
    "LossStats",
    "RewardNormalisation",
    "best_of_n_kl",
    "bradley_terry_loss",
    "clipped_surrogate",
    "clipped_value_loss",
    "completion_mask_from_eos",
    "dpo_gradient_weight",
    "dpo_loss",
    "entropy_from_logits",
    "exact_kl",
    "explained_variance",
    "gae",
    "group_advantages",
    "grpo_loss",
    "implicit_rewards",
    "kl_estimate",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "last_token_index",
    "log_ratio",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "next_token_logprobs",
    "per_token_rewards",
    "ppo_policy_loss",
    "reward_accuracy",
    "reward_margins",
    "rloo_advantages",
    "rloo_baseline",
    "sequence_logprob",
    "sft_loss",
    "token_logprobs",
    "zero_masked",
]
