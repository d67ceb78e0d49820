"""The plainest training loop's parts: rows of token ids, batches in a fixed order, losses.

For experiments in which every method must see the same batches and the clock must measure nothing
but training steps. Rows are right-padded, and attention is causal, so no mask is needed.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.models import evaluating
from course_utils.world.model import IGNORED, document_ids

Row = dict[str, list[int]]  # input_ids, and labels: the same ids, or IGNORED
Batch = tuple[Tensor, Tensor]  # input_ids and labels, (B, T) each


def text_rows(texts: Sequence[str], tokenizer: Any) -> list[Row]:
    """Whole documents, every token learned or scored."""
    rows = [document_ids(text, tokenizer) for text in texts]
    return [{"input_ids": ids, "labels": ids} for ids in rows]


def padded(rows: Sequence[Row]) -> Batch:
    width = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows]
    labels = [row["labels"] + [IGNORED] * (width - len(row["labels"])) for row in rows]
    return torch.tensor(ids), torch.tensor(labels)


def batches(rows: Sequence[Row], size: int, seed: int) -> Iterator[Batch]:
    """Endless; each pass over the rows in another order, the same for every method."""
    if not 1 <= size <= len(rows):
        raise CourseError(f"batches of {size} cannot be made of {len(rows)} rows")
    rng = random.Random(seed)
    while True:
        order = rng.sample(rows, len(rows))
        for first in range(0, len(order) - size + 1, size):
            yield padded(order[first : first + size])


def summed_loss(model: Any, batch: Batch) -> tuple[Tensor, int]:
    """(-Σ log p over the labelled tokens in nats, how many they are)."""
    ids, labels = (tensor.to(model.device) for tensor in batch)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    targets = labels[:, 1:]
    total = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total, int((targets != IGNORED).sum())


@torch.no_grad()
def mean_loss(model: Any, rows: Sequence[Row], size: int = 32) -> float:
    """Nats per labelled token, each token counted once. Raises CourseError without rows."""
    if not rows:
        raise CourseError("there are no rows to take the loss on; ask for at least one text")
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    with evaluating(model):
        parts = [
            summed_loss(model, padded(ordered[i : i + size])) for i in range(0, len(rows), size)
        ]
    return sum(float(total) for total, _ in parts) / sum(count for _, count in parts)


def train_step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step on the mean loss; gradients are cut to norm 1 and gone afterwards."""
    total, count = summed_loss(model, batch)
    (total / count).backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def value_at(curve: Sequence[Sequence[float]], loss: float) -> float | None:
    """What a curve of (step, loss, value) had as value when its loss first came down to `loss`,
    in a straight line between two points; None if it never came there."""
    for (_, high, x), (_, low, y) in itertools.pairwise(curve):
        if low <= loss <= high:
            return x + (y - x) * ((high - loss) / (high - low) if high > low else 1.0)
    return None
