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
from course_utils.models import reference_of
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

    beta: float = 0.1  # > 0; the smaller, the further from the reference
    steps: int = 120  # optimizer steps
    batch_size: int = 64  # pairs a step
    learning_rate: float = 1e-3  # peak; linear warm-up, cosine to a tenth
    warmup: int = 10  # steps
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise CourseError(
                f"beta must be > 0 and finite, got {self.beta}: it is the weight of the KL to the "
                "reference; 0.1 is usual"
            )
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise CourseError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise CourseError(f"learning_rate must be > 0, got {self.learning_rate}")


# ---- preferences -------------------------------------------------------------------------------


def better(first: Judgement, second: Judgement, slack: float = 0.0) -> bool:
    """Whether the first caption hallucinates less *and* does not buy that with silence.

    Args: slack: how much less of the scene the better caption may tell, in [0, 1].
    """
    return first.hallucinated < second.hallucinated and first.coverage >= second.coverage - slack


def preference_pairs(
    model: Captioner,
    data: SceneSet,
    samples: int = 6,
    temperature: float = 1.0,
    slack: float = 0.0,
    seed: int = 0,
) -> list[CaptionPair]:
    """At most one pair for each picture, from `samples` captions that the model itself writes.

    Of all pairs in which one caption is `better`, the one with the widest gap (in hallucination and
    coverage together) is taken; a picture whose captions tie, or of which none is better in both respects, gives none.
    """
    if samples < 2:
        raise CourseError(f"a preference needs at least 2 captions a picture, got {samples}")
    if not 0 <= slack <= 1:
        raise CourseError(f"slack is a share of the scene's facts, in [0, 1], got {slack}")
    images = data.images.repeat_interleave(samples, dim=0)  # (N * samples, 3, SIDE, SIDE)
    captions = describe(model, images, temperature, seed)
    pairs = []
    for index, scene in enumerate(data.scenes):
        texts = dict.fromkeys(captions[index * samples : (index + 1) * samples])
        judged = [(judge(scene, text), text) for text in texts]
        found = [
            (bad.hallucinated - good.hallucinated + good.coverage - bad.coverage, chosen, rejected)
            for good, chosen in judged
            for bad, rejected in judged
            if better(good, bad, slack)
        ]
        if found:
            _, chosen, rejected = max(found)
            pairs.append(CaptionPair(index, chosen, rejected))
    return pairs


# ---- DPO ---------------------------------------------------------------------------------------


def sequence_logprobs(model: Captioner, images: Tensor, captions: Sequence[str]) -> Tensor:
    """log π(caption | picture), summed over its words and the end: (B,) nats."""
    return sequence_logprob(*caption_logprobs(model, images, encode(captions)))


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

    The model passed in stays as it is and serves as the frozen reference. To blind the training,
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
    reference, policy = reference_of(model), copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine(step, settings.warmup, settings.steps)
    )
    rng = random.Random(settings.seed)
    rows: list[tuple[float, float, float]] = []
    waiting: list[CaptionPair] = []
    for _ in range(settings.steps):
        if len(waiting) < settings.batch_size:
            waiting += rng.sample(list(pairs), len(pairs))
        batch, waiting = waiting[: settings.batch_size], waiting[settings.batch_size :]
        images = data.images[[pair.index for pair in batch]]  # (B, 3, SIDE, SIDE)
        # chosen and rejected in one pass: (2B,) -> two of (B,)
        both, texts = images.repeat(2, 1, 1, 1), [p.chosen for p in batch]
        texts += [p.rejected for p in batch]
        chosen, rejected = sequence_logprobs(policy, both, texts).chunk(2)
        with torch.no_grad():
            ref_chosen, ref_rejected = sequence_logprobs(reference, both, texts).chunk(2)
        four = (chosen, rejected, ref_chosen, ref_rejected)
        loss = dpo_loss(*four, beta=settings.beta)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        margins = reward_margins(*four, beta=settings.beta).detach()
        rows.append((loss.item(), margins.mean().item(), (margins > 0).float().mean().item()))
    losses, margins_seen, accuracies = zip(*rows, strict=True)
    return policy.eval(), AlignLog(losses, margins_seen, accuracies)
