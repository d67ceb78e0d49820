"""Annotators: who prefers which of two answers, with the weaknesses of people to switch on.

A label is a Bradley-Terry choice (Bradley & Terry 1952) over the gold reward of the world.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from course_utils.errors import CourseError

Judge = Callable[[str, str], Any]  # (prompt, answer) -> a number, or an object with .total


@dataclass(frozen=True)
class Annotator:
    """A person who compares answers; frozen, and the same answer to the same question every time.

    utility(y) = gold(y) + length_bias * words(y) / 10 + sycophancy * flattering phrases in y
    P(a preferred) = sigmoid((utility(a) + position_bias - utility(b)) / temperature)

    The choice depends on (seed, prompt, a, b) alone: the order of calls changes nothing, and the
    two answers shown the other way round get another label only if `position_bias` is not 0.
    """

    temperature: float = 0.5  # gold points, >= 0; 0: always the better one (a coin for equals)
    noise: float = 0.0  # probability in [0, 1] that the label is flipped by mistake
    length_bias: float = 0.0  # gold points for ten words, -10..10
    sycophancy: float = 0.0  # gold points for a flattering phrase, -10..10
    position_bias: float = 0.0  # gold points for being shown first, -10..10
    seed: int = 0  # another seed is another person of the same character
    judge: Judge | None = None  # true quality; None: course_utils.world.gold.gold_reward

    def __post_init__(self) -> None:
        ranges = {"temperature": (0.0, math.inf), "noise": (0.0, 1.0)}
        for name in (f.name for f in fields(self) if f.type is float or f.type == "float"):
            low, high = ranges.get(name, (-10.0, 10.0))
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                raise CourseError(f"Annotator({name}={value}): must lie in [{low:g}, {high:g}]")

    def utility(self, prompt: str, answer: str) -> float:
        """How much this person likes an answer, in gold points; without the position bias."""
        value = _total(self._judge()(prompt, answer))
        if self.length_bias:
            value += self.length_bias * len(answer.split()) / 10
        if self.sycophancy:
            value += self.sycophancy * flattery(answer)
        return value

    def probability(self, prompt: str, a: str, b: str) -> float:
        """P(label is "a preferred") when `a` is shown first, with the mistakes of `noise` in it."""
        gap = self.utility(prompt, a) + self.position_bias - self.utility(prompt, b)
        if self.temperature == 0:
            right = 0.5 + 0.5 * (gap > 0) - 0.5 * (gap < 0)
        else:
            right = _sigmoid(gap / self.temperature)
        return right + self.noise * (1 - 2 * right)

    def compare(self, prompt: str, a: str, b: str) -> int:
        """Which answer is preferred when `a` is shown first: 0 for `a`, 1 for `b`."""
        first, second = sorted((a, b))
        draw = _uniform(self.seed, prompt, first, second)
        if a != first:  # shown the other way round: the same decision
            draw = 1 - draw
        return int(draw >= self.probability(prompt, a, b))

    def label(self, rows: Iterable[tuple[str, str, str]]) -> list[dict[str, str]]:
        """Turn (prompt, a, b) into preference rows {prompt, chosen, rejected}.

        A pair of equal answers teaches nothing and is left out.
        """
        labelled = []
        for prompt, a, b in rows:
            if a != b:
                chosen, rejected = (a, b) if self.compare(prompt, a, b) == 0 else (b, a)
                labelled.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        return labelled

    def rank(self, prompt: str, answers: Sequence[str]) -> list[int]:
        """Positions of the answers, best first: a Plackett-Luce draw (Luce 1959; Plackett 1975).

        Utility plus Gumbel noise, sorted; any two answers then stand in the order of their
        Bradley-Terry choice. `position_bias` favours the first; `noise` turns the order around.
        """
        keys = []
        for index, answer in enumerate(answers):
            utility = self.utility(prompt, answer) + self.position_bias * (index == 0)
            draw = _uniform(self.seed, prompt, answer)
            gumbel = -math.log(-math.log(draw))
            keys.append((utility + self.temperature * gumbel, gumbel))
        order = sorted(range(len(answers)), key=lambda i: keys[i], reverse=True)
        mistaken = _uniform(self.seed, prompt, "rank", *sorted(answers)) < self.noise
        return order[::-1] if mistaken else order

    def _judge(self) -> Judge:
        if self.judge is not None:
            return self.judge
        from course_utils.world.gold import gold_reward

        return gold_reward


def flattery(answer: str) -> int:
    """How many flattering phrases of the world an answer contains, repetitions counted."""
    from course_utils.world.families import normalise
    from course_utils.world.phrases import FLATTERY

    text = normalise(answer)
    return sum(text.count(phrase) for phrase in FLATTERY)


def _total(score: Any) -> float:
    return float(getattr(score, "total", score))


def _sigmoid(x: float) -> float:
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))  # the same, without overflow


def _uniform(seed: int, *texts: str) -> float:
    """A number in (0, 1) that depends on these texts and nothing else, on every machine."""
    digest = hashlib.sha256("\0".join((str(seed), *texts)).encode()).digest()
    return (int.from_bytes(digest[:6], "big") + 0.5) / 2**48
