"""HeldOutJudge: ends training when answers to held-out prompts stop getting better.

The reward that PPO maximises keeps rising while true quality falls: the policy learns its errors
(Gao et al. 2023). A second opinion that was never trained on (another reward model, the gold reward
where it is known, an AI judge) shows the turn; this stops there and brings the best policy back.
"""

import statistics
from typing import Any

import torch

from course_utils.errors import CourseError
from course_utils.generation import generate_texts
from course_utils.training.ppo.rewards import checked_scores, reward_name


class HeldOutJudge:
    """Pass it to PPOTrainer(judge=...).

    Args:
        score: like a reward: a function (prompts, completions) -> numbers, or a RewardModel.
        prompts: held-out prompts, strings.
        every: steps between measurements (also before the first step and after the last).
        patience: measurements in a row without a gain after which training ends.
        min_gain: what counts as a gain, in the score's units.
        restore_best: at the end, give the policy the weights of the best measurement.
        max_new_tokens, temperature, seed: of the answers; the same random numbers each time.
    """

    def __init__(
        self,
        score: Any,
        prompts: list[str],
        every: int = 5,
        patience: int = 3,
        min_gain: float = 0.0,
        restore_best: bool = True,
        max_new_tokens: int = 48,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not callable(score):
            raise CourseError(f"the judge is a {type(score).__name__}, which cannot be called")
        if not prompts:
            raise CourseError("the judge needs held-out prompts: the list is empty")
        for name, value in (("every", every), ("patience", patience)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CourseError(f"{name} must be a whole number >= 1, got {value!r}")
        if not min_gain >= 0:
            raise CourseError(f"min_gain must be >= 0, got {min_gain!r}")
        self.score, self.prompts = score, list(prompts)
        self.every, self.patience, self.min_gain = every, patience, min_gain
        self.restore_best = restore_best
        self.max_new_tokens, self.temperature, self.seed = max_new_tokens, temperature, seed
        self.history: list[tuple[int, float]] = []  # (step, mean score)
        self.best: dict[str, torch.Tensor] = {}  # the trained weights of the best measurement

    def due(self, step: int, last: int) -> bool:
        """Whether to measure after `step` (0: before the first)."""
        return step % self.every == 0 or step == last

    def ask(self, policy: Any, tokenizer: Any) -> float:
        """Mean score of the policy's answers to the held-out prompts."""
        answers = generate_texts(
            policy,
            tokenizer,
            self.prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )
        name = f"judge {reward_name(self.score)}"
        return statistics.fmean(checked_scores(self.score, self.prompts, answers, name))

    def record(self, step: int, value: float, policy: Any) -> None:
        """Notes a measurement, and keeps the weights if it is the best so far."""
        best = self.best_value
        self.history.append((step, value))
        if best is None or value > best + self.min_gain:
            self.keep(policy)

    def keep(self, policy: Any) -> None:
        """Remembers the policy's trained weights as they are now."""
        self.best = {n: p.detach().clone() for n, p in _trained(policy)}

    @property
    def _best_index(self) -> int | None:
        """Of the last measurement that was a gain."""
        found: int | None = None
        for number, (_, value) in enumerate(self.history):
            if found is None or value > self.history[found][1] + self.min_gain:
                found = number
        return found

    @property
    def best_step(self) -> int | None:
        return None if self._best_index is None else self.history[self._best_index][0]

    @property
    def best_value(self) -> float | None:
        return None if self._best_index is None else self.history[self._best_index][1]

    @property
    def reason(self) -> str | None:
        """Why training should end now, or None."""
        index = self._best_index
        if index is None or len(self.history) - 1 - index < self.patience:
            return None
        return (
            f"the judge's score has not risen in {self.patience} measurements: best "
            f"{self.best_value:.3g} at step {self.best_step}, now {self.history[-1][1]:.3g}"
        )

    def restore(self, policy: Any) -> None:
        """Gives the policy the best measurement's weights."""
        with torch.no_grad():
            for name, parameter in _trained(policy):
                parameter.copy_(self.best[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.best


def _trained(policy: Any) -> list[tuple[str, torch.Tensor]]:
    return [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
