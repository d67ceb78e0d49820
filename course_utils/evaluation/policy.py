"""One policy on a set of prompts: gold reward with its parts, reward, KL, lengths, diversity."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from course_utils.errors import CourseError
from course_utils.evaluation.best_of_n import BestOfN, best_of_n
from course_utils.evaluation.preferences import Reward
from course_utils.evaluation.sampling import KLEstimate, Sampling, Sequences, draw, kl_of
from course_utils.evaluation.statistics import Array, Estimate, distinct_n, estimate, finite


class GoldScore(Protocol):
    """What a gold reward returns: the total and what it is the sum of."""

    @property
    def total(self) -> float: ...
    @property
    def parts(self) -> dict[str, float]: ...


Gold = Callable[[str, str], GoldScore]  # (prompt, completion) -> score
_BATCH = 256  # answers scored by a reward at once


@dataclass(frozen=True)
class Completion:
    """One sampled answer and what was found out about it."""

    prompt: str
    text: str
    tokens: int  # end token included
    truncated: bool  # cut off at max_new_tokens
    gold: float | None
    parts: dict[str, float] | None  # of the gold reward
    reward: float | None
    kl: float | None  # exact per-position KL to the reference summed over the answer, nats


@dataclass(frozen=True)
class Evaluation:
    """A policy on P prompts, S answers each. Means are over prompts, intervals 95% bootstrap."""

    prompts: int
    samples_per_prompt: int
    temperature: float
    max_new_tokens: int
    seed: int
    gold: Estimate | None  # None without a gold reward
    parts: dict[str, Estimate] | None  # of the gold reward
    reward: Estimate | None  # None without a reward function
    kl: KLEstimate | None  # None without a reference
    length: Estimate  # tokens per answer, end token included
    truncated_rate: float  # share of answers cut off at max_new_tokens
    distinct_1: float  # over all answers' words
    distinct_2: float
    completions: tuple[Completion, ...]  # P * S, prompt by prompt

    @property
    def score(self) -> Estimate:
        """The gold reward, or without one the reward. Raises CourseError if there is neither."""
        found = self.gold or self.reward
        if found is None:
            raise CourseError(
                "this evaluation has no score: pass gold= or reward= to evaluate_policy"
            )
        return found

    @property
    def mean(self) -> float:
        return self.score.mean

    @property
    def interval(self) -> tuple[float, float]:
        return self.score.interval

    @property
    def eos_rate(self) -> float:
        """Share of answers that the model ended itself."""
        return 1.0 - self.truncated_rate

    def scores(self, which: str = "gold") -> Array:
        """(P, S) "gold", "reward", "kl" or "tokens" of every answer, as `win_rate` takes them."""
        values = [getattr(c, which) for c in self.completions]
        if any(value is None for value in values):
            raise CourseError(f"this evaluation was made without {which}")
        return np.array(values, dtype=np.float64).reshape(self.prompts, self.samples_per_prompt)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: report.schema.EvaluationJSON."""
        plain = {
            "prompts": self.prompts,
            "samples_per_prompt": self.samples_per_prompt,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "parts": None
            if self.parts is None
            else {name: found.to_json() for name, found in self.parts.items()},
            "truncated_rate": finite(self.truncated_rate),
            "distinct_1": finite(self.distinct_1),
            "distinct_2": finite(self.distinct_2),
            "completions": [asdict(c) for c in self.completions],
        }
        for name in ("gold", "reward", "kl", "length"):
            value = getattr(self, name)
            plain[name] = None if value is None else value.to_json()
        return plain


def score_all(reward: Reward, prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
    """One score per answer, in batches. Raises CourseError if the reward returns another number."""
    found: list[float] = []
    for start in range(0, len(texts), _BATCH):
        stop = min(start + _BATCH, len(texts))
        scores = [float(s) for s in reward(list(prompts[start:stop]), list(texts[start:stop]))]
        if len(scores) != stop - start:
            raise CourseError(
                f"the reward function returned {len(scores)} scores for {stop - start} answers; it "
                "must return one number for each"
            )
        found += scores
    return found


def _completions(drawn: Sequences, gold: Gold | None, reward: Reward | None) -> list[Completion]:
    samples = len(drawn.texts[0])
    prompts = [prompt for prompt in drawn.prompts for _ in range(samples)]
    texts = [text for row in drawn.texts for text in row]
    rewards = None if reward is None else score_all(reward, prompts, texts)
    golds = None if gold is None else [gold(p, t) for p, t in zip(prompts, texts, strict=True)]
    lengths, ended = drawn.lengths.ravel(), drawn.ended.ravel()
    kl = None if drawn.kl is None else drawn.kl["exact"].ravel()
    return [
        Completion(
            prompt=prompts[i],
            text=texts[i],
            tokens=int(lengths[i]),
            truncated=not ended[i],
            gold=None if golds is None else float(golds[i].total),
            parts=None if golds is None else {k: float(v) for k, v in golds[i].parts.items()},
            reward=None if rewards is None else rewards[i],
            kl=None if kl is None else float(kl[i]),
        )
        for i in range(len(texts))
    ]


def evaluate_policy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    gold: Gold | None = None,
    reward: Reward | None = None,
    reference: Any = None,
    samples_per_prompt: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    batch_size: int = 128,
) -> Evaluation:
    """Samples answers to `prompts` and measures them.

    Args:
        prompts: strings, message lists, or objects with a `.text` (the world's prompts).
        gold: (prompt, completion) -> object with .total and .parts, such as `world.gold_reward`.
        reward: (prompts, completions) -> scores, such as a RewardModel.
        reference: model to measure the KL against; needs a temperature > 0.
        temperature: 0 takes the likeliest tokens (then one sample a prompt says it all).
    Returns: Evaluation; the same arguments give the same numbers.
    Raises: CourseError for no prompts, overlong prompts, nonsensical settings.
    """
    settings = Sampling(samples_per_prompt, temperature, max_new_tokens, seed, batch_size)
    drawn = draw(model, tokenizer, prompts, settings, reference)
    answers = _completions(drawn, gold, reward)
    shape = (len(prompts), samples_per_prompt)

    def over_prompts(values: list[Any]) -> Estimate:
        return estimate(np.array(values, dtype=np.float64).reshape(shape), seed=seed)

    parts = None
    if gold is not None:
        names = list(dict.fromkeys(name for a in answers for name in a.parts or {}))
        parts = {n: over_prompts([(a.parts or {}).get(n, 0.0) for a in answers]) for n in names}
    texts = [a.text for a in answers]
    return Evaluation(
        prompts=len(prompts),
        samples_per_prompt=samples_per_prompt,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        gold=None if gold is None else over_prompts([a.gold for a in answers]),
        parts=parts,
        reward=None if reward is None else over_prompts([a.reward for a in answers]),
        kl=kl_of(drawn, seed),
        length=over_prompts([a.tokens for a in answers]),
        truncated_rate=float(np.mean([a.truncated for a in answers])),
        distinct_1=distinct_n(texts, 1),
        distinct_2=distinct_n(texts, 2),
        completions=tuple(answers),
    )


def evaluate_best_of_n(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    reward: Reward,
    gold: Gold | None = None,
    samples: int = 16,
    temperature: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    batch_size: int = 128,
) -> BestOfN:
    """Samples N = `samples` answers a prompt; best-of-n by `reward` for every n <= N."""
    settings = Sampling(samples, temperature, max_new_tokens, seed, batch_size)
    drawn = draw(model, tokenizer, prompts, settings)
    answers = _completions(drawn, gold, reward)
    shape = (len(prompts), samples)
    rewards = np.array([a.reward for a in answers], dtype=np.float64).reshape(shape)
    golds = None
    if gold is not None:
        golds = np.array([a.gold for a in answers], dtype=np.float64).reshape(shape)
    return best_of_n(drawn.texts, rewards, golds, seed)
