"""Preference pairs of models' own answers: sampled, paired, judged."""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

    from course_utils.lab import Lab

SAMPLES = 2  # answers of one model that may meet in a pair


def sample_pairs(
    lab: "Lab",
    models: Mapping[str, Any],
    asked: Sequence[str],
    annotator: Any,
    options: Mapping[str, Any],
) -> "Dataset":
    """One pair for each prompt of `asked`, its two answers drawn among all models' samples.

    Args:
        annotator: anything with `compare(prompt, a, b) -> 0 | 1`; None: the world's, unbiased.
        options: of `lab.generate`.
    """
    from course_utils import world
    from course_utils.data import worldsets

    candidates = [(name, sample) for name in models for sample in range(SAMPLES)]
    rng = random.Random(f"pairs:{lab.seed}")
    pairs = [rng.sample(range(len(candidates)), 2) for _ in asked]
    answers: dict[tuple[int, int], str] = {}  # (pair, candidate) -> text
    for number, (name, _) in enumerate(candidates):
        rows = [i for i, pair in enumerate(pairs) if number in pair]
        seed = lab.seed * len(candidates) + number + 1
        texts = lab.generate(models[name], [asked[i] for i in rows], **{"seed": seed, **options})
        answers |= {(i, number): text for i, text in zip(rows, texts, strict=True)}
    judged = [
        (prompt, answers[i, a], answers[i, b])
        for i, (prompt, (a, b)) in enumerate(zip(asked, pairs, strict=True))
    ]
    return worldsets.preferences(judged, annotator or world.Annotator(seed=lab.seed))
