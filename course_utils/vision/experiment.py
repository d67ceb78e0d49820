"""From nothing to the measured result: train on the web's captions, align, hold against the truth.

The claim: alignment carries over to vision. The control beside it: the same captioners on other
scenes' pictures, where whatever is right comes from habit alone.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from course_utils.evaluation.statistics import Estimate, estimate
from course_utils.vision.align import AlignSettings, align, preference_pairs
from course_utils.vision.captioner import Captioner, CaptionerSettings, describe, train_captioner
from course_utils.vision.hallucination import judge
from course_utils.vision.scenes import SceneSet, random_scenes

COLUMNS = ("hallucinated", "coverage", "correct", "words")


@dataclass(frozen=True)
class Measured:
    """A captioner on N scenes: means over scenes with 95% bootstrap intervals."""

    hallucinated: Estimate  # false claims over claims, in [0, 1]
    coverage: Estimate  # share of the scene's facts that are told, in [0, 1]
    correct: Estimate  # captions with nothing false and nothing left out, in [0, 1]
    words: Estimate  # length without the full stop
    captions: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"hallucinated {self.hallucinated}, coverage {self.coverage}, "
            f"correct {self.correct}, {self.words.mean:.1f} words"
        )


def measure(model: Captioner, data: SceneSet, temperature: float = 1.0, seed: int = 0) -> Measured:
    """One caption for each picture, judged. Temperature 0 takes the likeliest word each time."""
    captions = describe(model, data.images, temperature, seed)
    judged = [judge(scene, text) for scene, text in zip(data.scenes, captions, strict=True)]
    return Measured(
        hallucinated=estimate([j.hallucinated for j in judged]),
        coverage=estimate([j.coverage for j in judged]),
        correct=estimate([float(j.correct) for j in judged]),
        words=estimate([float(sum(word != "." for word, _ in j.verdicts)) for j in judged]),
        captions=tuple(captions),
    )


@dataclass(frozen=True)
class Study:
    """One seed's result."""

    supervised: Captioner
    aligned: Captioner
    pairs: int  # preference pairs that DPO saw
    measured: dict[str, Measured]  # by ROWS' names
    seconds: dict[str, float]  # CPU: "captioner", "pairs", "DPO", "measuring"


ROWS = (
    "supervised",
    "DPO",
    "supervised, greedy",
    "DPO, greedy",
    "supervised, wrong picture",
    "DPO, wrong picture",
    "DPO trained blind",
    "DPO without the guard",
)


def study(
    seed: int = 0,
    steps: int = 300,
    dpo_steps: int = 60,
    scenes: int = 1000,
    heldout: int = 400,
    controls: bool = False,
) -> Study:
    """The whole miniature for one seed.

    Args:
        steps, dpo_steps: optimizer steps of the captioner and of DPO.
        scenes: training scenes of which captions are sampled for the pairs; heldout: of new
            combinations, on which all is measured. The same held-out scenes for every seed.
        controls: also align two more copies, each as costly as DPO: one with other scenes'
            pictures (what can be mended without looking?), one on pairs in which only
            hallucinations count (does silence pay?).
    """
    times = [time.process_time()]
    base = CaptionerSettings()
    settings = CaptionerSettings(steps=steps, seed=seed, scenes=min(base.scenes, 64 * steps))
    supervised, _ = train_captioner(settings)
    times.append(time.process_time())
    data, test = random_scenes(scenes, "train", seed + 1000), random_scenes(heldout, "heldout", 0)
    pairs = preference_pairs(supervised, data, seed=seed)
    times.append(time.process_time())
    aligned, _ = align(supervised, data, pairs, AlignSettings(steps=dpo_steps, seed=seed))
    times.append(time.process_time())
    wrong = test.wrong_images()
    measured = {
        "supervised": measure(supervised, test, seed=seed),
        "DPO": measure(aligned, test, seed=seed),
        "supervised, greedy": measure(supervised, test, temperature=0),
        "DPO, greedy": measure(aligned, test, temperature=0),
        "supervised, wrong picture": measure(supervised, wrong, seed=seed),
        "DPO, wrong picture": measure(aligned, wrong, seed=seed),
    }
    times.append(time.process_time())
    if controls:
        how = AlignSettings(steps=dpo_steps, seed=seed)
        blind, _ = align(supervised, data.wrong_images(), pairs, how)
        silent_pairs = preference_pairs(supervised, data, guard=False, seed=seed)
        silent, _ = align(supervised, data, silent_pairs, how)
        measured["DPO trained blind"] = measure(blind, test, seed=seed)
        measured["DPO without the guard"] = measure(silent, test, seed=seed)
    names = ("captioner", "pairs", "DPO", "measuring")
    seconds = {name: times[i + 1] - times[i] for i, name in enumerate(names)}
    return Study(supervised, aligned, len(pairs), measured, seconds)


def table(studies: Sequence[Study]) -> str:
    """Means over seeds and, with several, their standard deviation, one row a captioner."""
    lines = [f"{'held-out scenes':<28}" + "".join(f"{name:>18}" for name in COLUMNS)]
    for row in ROWS:
        if row not in studies[0].measured:
            continue
        cells = []
        for column in COLUMNS:
            values = [float(getattr(s.measured[row], column)) for s in studies]
            places = 1 if column == "words" else 3
            width = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
            cells.append(f"{f'{statistics.mean(values):.{places}f}{width}':>18}")
        lines.append(f"{row:<28}" + "".join(cells))
    total = [sum(s.seconds.values()) for s in studies]
    parts = ", ".join(
        f"{name} {statistics.mean(s.seconds[name] for s in studies):.1f}"
        for name in studies[0].seconds
    )
    lines.append(
        f"CPU seconds a seed: {statistics.mean(total):.1f} ({parts}); "
        f"{statistics.mean(s.pairs for s in studies):.0f} preference pairs"
    )
    spread = "; ± standard deviation over seeds" if len(studies) > 1 else ""
    lines.append(f"sampled at temperature 1 but for the greedy rows{spread}")
    return "\n".join(lines)
