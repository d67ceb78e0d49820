"""Preferences between the captioner's own captions, and DPO on them.

The same two steps as with text: sample several answers to each prompt (here: a picture), prefer the
better one, and train with `course_utils.objectives.dpo_loss` against a frozen copy. What is better
is decided by the truth about the scene; a person or an AI labeller would stand there otherwise.
"""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.modes import evaluating
from course_utils.objectives import dpo_loss, reward_margins, sequence_logprob
from course_utils.vision.captioner import Captioner, caption_logprobs, describe, warm_cosine
from course_utils.vision.captions import encode
from course_utils.vision.hallucination import Judgement, judge
from course_utils.vision.scenes import SceneSet


@dataclass(frozen=True)
class CaptionPair:
    """Two captions of one picture of a SceneSet, the first preferred."""

    index: int  # which picture
    chosen: str
    rejected: str


@dataclass(frozen=True)
class AlignSettings:
    """DPO on caption pairs."""

    beta: float = 0.5  # > 0; the smaller, the further from the reference
    steps: int = 60  # optimizer steps
    batch_size: int = 64  # pairs a step
    learning_rate: float = 3e-4  # peak; linear warm-up, cosine to a tenth
    warmup: int = 10  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise CourseError(
                f"beta must be > 0 and finite, got {self.beta}: it is the weight of the KL to the "
                "reference; 0.1 is usual for text, 0.5 works here"
            )
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise CourseError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise CourseError(f"learning_rate must be > 0, got {self.learning_rate}")


# ---- preferences -------------------------------------------------------------------------------


def better(first: Judgement, second: Judgement, guard: bool = True) -> bool:
    """Whether the first caption hallucinates less *and* does not buy that with silence.

    Args: guard: False drops the second half, and then saying little pays.
    """
    tells_enough = first.coverage >= second.coverage or not guard
    return first.hallucinated < second.hallucinated and tells_enough


def _gap(good: Judgement, bad: Judgement, guard: bool) -> float:
    less_false = bad.hallucinated - good.hallucinated
    return less_false + good.coverage - bad.coverage if guard else less_false


def preference_pairs(
    model: Captioner,
    data: SceneSet,
    samples: int = 6,
    temperature: float = 1.0,
    guard: bool = True,
    seed: int = 0,
) -> list[CaptionPair]:
    """At most one pair for each picture, from `samples` captions that the model itself writes.

    Of all pairs in which one caption is `better`, the one with the widest gap is taken, in
    hallucination and coverage together. A picture whose captions tie, or of which none is better in
    both respects, gives none.

    Args: guard: False asks for fewer hallucinations and nothing else, an easy game to win: the
        fewer claims, the fewer can be false.
    """
    if samples < 2:
        raise CourseError(f"a preference needs at least 2 captions a picture, got {samples}")
    images = data.images.repeat_interleave(samples, dim=0)  # (N * samples, 3, SIDE, SIDE)
    captions = describe(model, images, temperature, seed)
    pairs = []
    for index, scene in enumerate(data.scenes):
        texts = dict.fromkeys(captions[index * samples : (index + 1) * samples])
        judged = [(judge(scene, text), text) for text in texts]
        found = [
            (_gap(good, bad, guard), chosen, rejected)
            for good, chosen in judged
            for bad, rejected in judged
            if better(good, bad, guard)
        ]
        if found:
            _, chosen, rejected = max(found)
            pairs.append(CaptionPair(index, chosen, rejected))
    return pairs


# ---- DPO ---------------------------------------------------------------------------------------


def sequence_logprobs(model: Captioner, images: Tensor, captions: Sequence[str]) -> Tensor:
    """log π(caption | picture), summed over its words and the end: (B,) nats."""
    return sequence_logprob(*caption_logprobs(model, images, encode(captions)))


def pair_logprobs(
    model: Captioner, data: SceneSet, pairs: Sequence[CaptionPair]
) -> tuple[Tensor, Tensor]:
    """log π of the chosen and of the rejected captions, (B,) each, in one pass of 2B captions."""
    images = data.images[[pair.index for pair in pairs]]  # (B, 3, SIDE, SIDE)
    texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    chosen, rejected = sequence_logprobs(model, images.repeat(2, 1, 1, 1), texts).chunk(2)
    return chosen, rejected


@torch.no_grad()
def reference_logprobs(
    model: Captioner, data: SceneSet, pairs: Sequence[CaptionPair], batch_size: int = 128
) -> Tensor:
    """log π_ref of (chosen, rejected), (pairs, 2): once, as the reference never changes."""
    with evaluating(model):
        parts = [
            torch.stack(pair_logprobs(model, data, pairs[i : i + batch_size]), dim=1)
            for i in range(0, len(pairs), batch_size)
        ]
    return torch.cat(parts)


@dataclass(frozen=True)
class AlignLog:
    """What DPO did, one number a step."""

    loss: tuple[float, ...]  # log 2 = 0.693 at the start
    margin: tuple[float, ...]  # mean implicit reward of chosen minus rejected
    accuracy: tuple[float, ...]  # share of pairs with a positive margin


def align(
    model: Captioner,
    data: SceneSet,
    pairs: Sequence[CaptionPair],
    settings: AlignSettings | None = None,
) -> tuple[Captioner, AlignLog]:
    """A copy of the captioner after DPO on `pairs`, whose indices point into `data`.

    The model passed in stays as it is: it is the reference. To blind the training,
    pass `data.wrong_images()`: then only what needs no looking can be learned.
    """
    settings = settings or AlignSettings()
    if not pairs:
        raise CourseError(
            "no preference pairs: all sampled captions tie; sample more captions a picture, at a "
            "higher temperature"
        )
    if not all(0 <= pair.index < len(data) for pair in pairs):
        raise CourseError(f"a pair points to a picture that is not among the {len(data)} given")
    reference = reference_logprobs(model, data, pairs)  # (pairs, 2)
    policy = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine(step, settings.warmup, settings.steps)
    )
    rng = random.Random(settings.seed)
    rows: list[tuple[float, float, float]] = []
    waiting: list[int] = []  # pairs of this pass that are still to come
    for _ in range(settings.steps):
        if len(waiting) < settings.batch_size:
            waiting += rng.sample(range(len(pairs)), len(pairs))
        batch, waiting = waiting[: settings.batch_size], waiting[settings.batch_size :]
        chosen, rejected = pair_logprobs(policy, data, [pairs[i] for i in batch])  # (B,) each
        ref_chosen, ref_rejected = reference[batch].unbind(dim=1)
        loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=settings.beta)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            margins = reward_margins(chosen, rejected, ref_chosen, ref_rejected, settings.beta)
        rows.append((loss.item(), margins.mean().item(), (margins > 0).float().mean().item()))
    losses, margins_seen, accuracies = zip(*rows, strict=True)
    return policy.eval(), AlignLog(losses, margins_seen, accuracies)
