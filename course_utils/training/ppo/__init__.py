"""PPO for language models: small, stepwise, with any function as the reward.

config      every setting with its unit and range
rollout     prompts drawn, answers sampled, reference and reward applied
rewards     functions, reward models and ensembles, checked
judge       a second opinion on held-out prompts that ends training in time
processes   several processes as one: shares of rows, sums of gradients, FSDP
sequences   rows of tokens with as little padding as possible
advantages  per-token rewards, GAE, whitening
update      minibatches, the clipped losses, the optimizer
trainer     the loop, the log, checkpoints
"""

from course_utils.training.ppo.config import PPOConfig
from course_utils.training.ppo.judge import HeldOutJudge
from course_utils.training.ppo.rewards import Ensemble, LengthControlled, per_answer
from course_utils.training.ppo.rollout import Rollouts
from course_utils.training.ppo.trainer import PPOTrainer, Step
from course_utils.training.ppo.update import NonFiniteError

__all__ = [
    "Ensemble",
    "HeldOutJudge",
    "LengthControlled",
    "NonFiniteError",
    "PPOConfig",
    "PPOTrainer",
    "Rollouts",
    "Step",
    "per_answer",
]
