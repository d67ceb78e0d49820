"""What an answer is worth: plain functions, reward models and ensembles of them, each checked.

A reward is any callable `(prompts, completions) -> one number per answer`. A reward model that
shares the policy's tokenizer is given the tokens instead of the text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.training.ppo.sequences import Sequences, by_length

Reward = Callable[[list[str], list[str]], Sequence[float]]


def per_answer(score: Callable[[str, str], Any]) -> Reward:
    """A reward from a function of one (prompt, completion), such as `world.gold_reward`."""

    def scores(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(score(p, c)) for p, c in zip(prompts, completions, strict=True)]

    scores.__name__ = getattr(score, "__name__", type(score).__name__)
    return scores


@dataclass(frozen=True)
class Answers:
    """What a reward may look at."""

    prompts: list[str]  # what the user asked
    completions: list[str]  # the answers, without special tokens
    sequences: Sequences  # the same as tokens
    ended: Tensor  # (B,) bool: the answer ends with EOS (False: cut at the length limit)


class Ensemble:
    """Several rewards as one; disagreement among them is a sign of reward hacking.

    combine:
        "mean"            the (weighted) mean
        "min"             the worst opinion (Coste et al. 2024, worst-case optimisation)
        "mean_minus_std"  mean - λ std over the members (uncertainty-weighted optimisation)
    """

    def __init__(
        self,
        rewards: Sequence[Any],
        combine: Literal["mean", "min", "mean_minus_std"] = "mean",
        weights: Sequence[float] | None = None,
        std_weight: float = 1.0,
    ) -> None:
        if not rewards:
            raise CourseError("an ensemble needs at least one reward, got an empty list")
        if combine not in ("mean", "min", "mean_minus_std"):
            raise CourseError(f'combine must be "mean", "min" or "mean_minus_std", got {combine!r}')
        if weights is not None and combine == "min":
            raise CourseError('weights have no meaning with combine="min"; leave them out')
        weights = [1.0] * len(rewards) if weights is None else [float(w) for w in weights]
        if len(weights) != len(rewards) or not all(w >= 0 for w in weights) or sum(weights) <= 0:
            raise CourseError(
                f"weights must be {len(rewards)} numbers >= 0, one per reward, with a positive "
                f"sum, got {weights}"
            )
        if not (math.isfinite(std_weight) and std_weight >= 0):
            raise CourseError(f"std_weight must be a number >= 0, got {std_weight!r}")
        self.rewards = list(rewards)
        self.combine = combine
        self.std_weight = std_weight
        self._shares = torch.tensor(weights, dtype=torch.float64) / sum(weights)

    def join(self, scores: Tensor) -> Tensor:
        """(M, B) scores of the members -> (B,) float64."""
        if self.combine == "min":
            return scores.min(dim=0).values
        mean = (self._shares.unsqueeze(1) * scores).sum(dim=0)
        if self.combine == "mean":
            return mean
        variance = (self._shares.unsqueeze(1) * (scores - mean) ** 2).sum(dim=0)
        return mean - self.std_weight * variance.sqrt()

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        """On text alone, for use outside of a trainer."""
        rows = [
            checked_scores(r, prompts, completions, reward_name(r, i))
            for i, r in enumerate(self.rewards)
        ]
        return self.join(torch.tensor(rows, dtype=torch.float64)).tolist()


def word_count(text: str) -> int:
    """Length of an answer where no tokenizer is at hand."""
    return len(text.split())


class LengthControlled:
    """score - slope · (length - mean length): the reward without what length alone explains.

    Annotators like long answers, reward models learn it, and PPO then writes long ones (Singhal et
    al. 2023). `fit` finds the slope by least squares on answers of the starting policy; in PPO the
    answers' lengths then drift away from there, and what they would gain by that is taken off.

    Args:
        reward: any reward. slope: reward units per unit of length. mean: the length that costs
            nothing. length: text -> number, by default its words.
    """

    def __init__(
        self,
        reward: Any,
        slope: float,
        mean: float,
        length: Callable[[str], float] = word_count,
    ) -> None:
        if not callable(reward):
            raise CourseError(f"the reward is a {type(reward).__name__}, which cannot be called")
        for name, value in (("slope", slope), ("mean", mean)):
            if not math.isfinite(value):
                raise CourseError(f"{name} must be a finite number, got {value!r}")
        self.reward, self.slope, self.mean, self.length = reward, slope, mean, length
        self.__name__ = f"length-controlled {reward_name(reward)}"

    @classmethod
    def fit(
        cls,
        reward: Any,
        prompts: Sequence[str],
        completions: Sequence[str],
        length: Callable[[str], float] = word_count,
    ) -> "LengthControlled":
        """The slope of score on length over these answers; several hundred are advisable.

        Raises: CourseError for fewer than two answers, or answers of one length only.
        """
        if not len(prompts) == len(completions) >= 2:
            raise CourseError(
                "the slope needs at least two answers and a prompt for each, got "
                f"{len(prompts)} prompts and {len(completions)} answers"
            )
        scores = checked_scores(reward, list(prompts), list(completions), reward_name(reward))
        lengths = torch.tensor([float(length(text)) for text in completions], dtype=torch.float64)
        spread = lengths - lengths.mean()
        if not bool((spread != 0).any()):
            raise CourseError(
                f"all {len(lengths)} answers have the same length, {lengths[0]:g}: no slope can be "
                "measured; sample at a temperature above 0"
            )
        slope = (spread @ torch.tensor(scores, dtype=torch.float64)) / (spread @ spread)
        return cls(reward, float(slope), float(lengths.mean()), length)

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        scores = checked_scores(self.reward, prompts, completions, reward_name(self.reward))
        return [
            score - self.slope * (self.length(text) - self.mean)
            for score, text in zip(scores, completions, strict=True)
        ]


def reward_name(reward: Any, number: int | None = None) -> str:
    name = getattr(reward, "__name__", type(reward).__name__)
    return name if number is None else f"{name} (number {number} of the ensemble)"


def checked_scores(
    reward: Reward, prompts: list[str], completions: list[str], name: str
) -> list[float]:
    """Calls a reward function and makes sure that it gives one finite number per answer.

    Raises: CourseError that says what came instead, and for which answer.
    """
    try:
        scores: Any = reward(list(prompts), list(completions))
    except CourseError:
        raise
    except Exception as error:
        raise CourseError(
            f"the reward {name} raised {type(error).__name__}: {error} (on {len(prompts)} answers, "
            f"the first to {prompts[0]!r} being {completions[0]!r}); try it on these by hand"
        ) from error
    return _numbers(scores, prompts, completions, name)


def _numbers(scores: Any, prompts: list[str], completions: list[str], name: str) -> list[float]:
    if hasattr(scores, "tolist"):  # a tensor or an array
        scores = scores.tolist()
    if isinstance(scores, str | dict) or not hasattr(scores, "__len__"):
        raise CourseError(
            f"the reward {name} returned {type(scores).__name__}; it must return a list with one "
            "number per answer"
        )
    if len(scores) != len(prompts):
        raise CourseError(
            f"the reward {name} returned {len(scores)} scores for {len(prompts)} answers; it gets "
            "two lists, (prompts, completions), and must return one number for each pair"
        )
    numbers = []
    for i, score in enumerate(scores):
        value = _number(score)
        if value is None or not math.isfinite(value):
            raise CourseError(
                f"the reward {name} returned {score!r} for answer {i}, {completions[i]!r} to "
                f"{prompts[i]!r}; every score must be a finite number"
            )
        numbers.append(value)
    return numbers


def _number(score: Any) -> float | None:
    """Any real number, tensors of one element and objects with __float__ included; text is not."""
    if isinstance(score, str | bytes | None):
        return None
    try:
        return float(score)
    except (TypeError, ValueError):
        return None


class Scorer:
    """Applies a reward of any kind to a step's answers: (B,) float32 on the policy's device."""

    def __init__(self, reward: Any, tokenizer: Any, rows: int) -> None:
        if isinstance(reward, list | tuple):
            reward = Ensemble(reward)
        members = reward.rewards if isinstance(reward, Ensemble) else [reward]
        for number, member in enumerate(members):
            if not callable(member):
                raise CourseError(
                    f"reward {number} is a {type(member).__name__}, which cannot be called; pass a "
                    "function (prompts, completions) -> list of numbers, a RewardModel, or a list"
                )
        self.reward = reward
        self.members = members
        self._rows = rows
        self._eos = tokenizer.eos_token_id
        tail = tokens_after_answer(tokenizer)
        self._tail: list[int] = tail or []
        self._by_tokens = [tail is not None and _reads_tokens(m, tokenizer) for m in members]

    def __call__(self, answers: Answers) -> tuple[Tensor, Tensor | None]:
        """Scores (B,), and for an ensemble the standard deviation over its members (B,)."""
        many = isinstance(self.reward, Ensemble)
        rows = []
        for number, member in enumerate(self.members):
            name = reward_name(member, number if many else None)
            if self._by_tokens[number]:
                rows.append(
                    _numbers(
                        self._score_tokens(member, answers),
                        answers.prompts,
                        answers.completions,
                        name,
                    )
                )
            else:
                rows.append(checked_scores(member, answers.prompts, answers.completions, name))
        scores = torch.tensor(rows, dtype=torch.float64)  # (M, B)
        joined = self.reward.join(scores) if many else scores[0]
        device = answers.sequences.ids.device
        disagreement = scores.std(dim=0, unbiased=False).float().to(device) if many else None
        return joined.float().to(device), disagreement

    def _score_tokens(self, model: Any, answers: Answers) -> Tensor:
        """A reward model on token rows. It was trained on answers that end, so cut ones get an EOS
        here, and all get what the chat template writes after it (only for the reward model: the
        policy never sees a token that it did not sample)."""
        ids, lengths = answers.sequences.ids, answers.sequences.lengths
        cut = ~answers.ended
        ids = torch.cat([ids, ids.new_zeros(len(ids), 1 + len(self._tail))], dim=1)
        ids[cut, lengths[cut]] = self._eos
        lengths = lengths + cut.long()
        for token in self._tail:
            ids.scatter_(1, lengths.unsqueeze(1), token)
            lengths = lengths + 1
        scores = torch.zeros(len(ids), dtype=torch.float64)
        for index in by_length(answers.sequences, self._rows):
            width = int(lengths[index].max())
            mask = torch.arange(width, device=ids.device) < lengths[index].unsqueeze(1)
            with torch.no_grad():
                found = model.score_tokens(ids[index, :width], mask.long())
            scores[index.cpu()] = found.detach().double().cpu()
        return scores


def tokens_after_answer(tokenizer: Any) -> list[int] | None:
    """What the chat template puts after an answer's EOS (ChatML: a line break), as tokens.

    None when a finished chat is not `prompt + answer + EOS + something` token by token; texts must
    then be tokenised again for a reward model.
    """
    eos = tokenizer.eos_token_id
    for prompt, answer in (("a", "b"), ("why ?", "yes .")):
        asked = [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        chat = [*asked, {"role": "assistant", "content": answer}]
        whole = tokenizer.apply_chat_template(chat, tokenize=False)
        words, head, ids = tokenizer([answer, start, whole], add_special_tokens=False)["input_ids"]
        known = [*head, *words, eos]
        if ids[: len(known)] != known:
            return None
    return list(ids[len(known) :])


def _reads_tokens(reward: Any, tokenizer: Any) -> bool:
    """Whether a reward model can take the policy's tokens as they are."""
    theirs = getattr(reward, "tokenizer", None)
    if theirs is None or not hasattr(reward, "score_tokens"):
        return False
    if not getattr(reward, "conversational", True):  # trained on text without the chat template
        return False
    return theirs is tokenizer or (
        theirs.get_vocab() == tokenizer.get_vocab()
        and theirs.chat_template == tokenizer.chat_template
        and theirs.eos_token_id == tokenizer.eos_token_id
    )
