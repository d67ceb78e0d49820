"""Datasets of the embedded world: what it asks, good answers, and which of two is preferred."""

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from course_utils.data import turns
from course_utils.data.shapes import features
from course_utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

CLEAR = 1.0  # gold reward by which the two answers of a written pair differ at least


class Comparer(Protocol):
    """Who prefers one answer to another; course_utils.world.Annotator is one."""

    def compare(self, prompt: str, a: str, b: str) -> int:
        """0 when `a` is preferred, 1 when `b` is."""


def prompts(
    split: str = "train", n: int | None = None, seed: int = 0, families: Iterable[str] | None = None
) -> "Dataset":
    """The world's prompts, {prompt}, conversational. Arguments as for world.prompts."""
    from course_utils import world

    drawn = world.prompts(split=split, n=n, seed=seed, families=families)
    return _dataset("prompt-only", [{"prompt": turns.user_turn(p.text)} for p in drawn])


def demonstrations(split: str = "train", n: int | None = None, seed: int = 0) -> "Dataset":
    """The world's demonstrations, {prompt, completion}, conversational."""
    from course_utils import world

    pairs = world.demonstrations(split=split, n=n, seed=seed)
    return _dataset(
        "prompt-completion",
        [
            {"prompt": turns.user_turn(p.text), "completion": turns.assistant_turn(a)}
            for p, a in pairs
        ],
    )


def preferences(rows: Iterable[tuple[Any, str, str]], annotator: Comparer) -> "Dataset":
    """Pairs of answers, judged -> {prompt, chosen, rejected}, conversational.

    A pair whose answers are equal, or of which one is empty, is left out: nothing to compare.

    Args:
        rows: (prompt, answer a, answer b); the prompt a text or a world Prompt.
        annotator: judges each pair once, in the order of `rows`.

    Raises:
        DataError: no pair is left.
    """
    made = []
    total = 0
    for prompt, a, b in rows:
        total += 1
        if not a.strip() or not b.strip() or a.strip() == b.strip():
            continue
        text = prompt if isinstance(prompt, str) else prompt.text
        chosen, rejected = (a, b) if annotator.compare(text, a, b) == 0 else (b, a)
        made.append(
            {
                "prompt": turns.user_turn(text),
                "chosen": turns.assistant_turn(chosen),
                "rejected": turns.assistant_turn(rejected),
            }
        )
    if not made:
        raise DataError(
            f"none of {total} pairs has two different answers with text in them; sample answers "
            "at a higher temperature or from two models"
        )
    return _dataset("preference", made)


def written_pairs(
    n: int, split: str = "train", seed: int = 0, annotator: Comparer | None = None
) -> "Dataset":
    """`n` pairs of answers that the world's forum writers wrote, judged; no model has to answer.

    As in a public preference dataset, the answers are not the trained model's own. Pairs whose gold
    rewards differ by less than CLEAR are drawn again: few pairs have to be enough to learn from.

    Args: annotator: None: the world's, unbiased.
    """
    from course_utils import world
    from course_utils.world.answers import WEB, answer

    rng = random.Random(f"written pairs:{split}:{seed}")
    asked = world.prompts(split=split, n=min(n, len(world.prompts(split=split))), seed=seed)
    rows: list[tuple[Any, str, str]] = []
    while len(rows) < n:
        prompt = asked[len(rows) % len(asked)]
        a, b = (answer(prompt, rng, WEB) for _ in range(2))
        gap = world.gold_reward(prompt.text, a).total - world.gold_reward(prompt.text, b).total
        if abs(gap) >= CLEAR:
            rows.append((prompt, a, b))
    return preferences(rows, annotator or world.Annotator(seed=seed))


def _dataset(kind: str, rows: list[dict[str, Any]]) -> "Dataset":
    import pyarrow as pa
    from datasets import Dataset

    return Dataset(pa.Table.from_pylist(rows, features(kind).arrow_schema))
