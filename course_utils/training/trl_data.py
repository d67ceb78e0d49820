"""Tokenised rows, and the order in which a trainer on TRL sees them."""

import dataclasses
import hashlib
import math
import os
from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler

from course_utils.training.settings import TrainSettings
from course_utils.training.tokenise import Row, data_order

if TYPE_CHECKING:
    from datasets import Dataset


@dataclasses.dataclass
class Data:
    """Tokenised rows, sorted by length, and the order in which training sees them."""

    rows: list[Row]
    lengths: list[int]  # tokens of the longer side
    steps: int  # optimizer steps
    order: list[int]  # indices into rows, one per row of every forward pass

    @classmethod
    def of(cls, rows: list[Row], settings: TrainSettings) -> "Data":
        rows = sorted(rows, key=_length)
        per_step = rows_per_step(settings)
        epochs = 1.0 if settings.epochs is None else settings.epochs
        steps = settings.steps or max(1, math.ceil(epochs * len(rows) / per_step))
        lengths = [_length(row) for row in rows]
        order = data_order(
            lengths, steps * per_step, settings.batch_size, settings.seed, settings.group_by_length
        )
        return cls(rows, lengths, steps, order)

    def dataset(self) -> "Dataset":
        return as_dataset(self.rows)

    def sha256(self) -> str:
        """Of the rows and their order: two runs with the same one see the same batches."""
        digest = hashlib.sha256()
        for row in self.rows:
            for name, ids in sorted(row.items()):
                digest.update(f"{name} {len(ids)} ".encode() + array("q", ids).tobytes())
        digest.update(array("q", self.order).tobytes())
        return digest.hexdigest()


def rows_per_step(settings: TrainSettings) -> int:
    """Rows of one optimizer step, over all processes."""
    return settings.batch_size * settings.gradient_accumulation * _processes()


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch and torchrun


def _length(row: Row) -> int:
    prompt = len(row.get("prompt_ids", ()))
    return prompt + max(len(v) for k, v in row.items() if k != "prompt_ids")


def as_dataset(rows: list[Row]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict({key: [row[key] for row in rows] for key in rows[0]})


def needed(dataset: "Dataset", settings: TrainSettings) -> "Dataset":
    """A random part of the data when the steps will not reach all of it: tokenising costs time."""
    if settings.steps is None or settings.steps * rows_per_step(settings) >= len(dataset):
        return dataset
    rows = settings.steps * rows_per_step(settings)
    return dataset.shuffle(seed=settings.seed).select(range(rows))


def tokenised(
    make: Callable[..., list[Row]],
    kind: str,
    tokenizer: Any,
    settings: TrainSettings,
    dataset: "Dataset",
    eval_dataset: "Dataset | None",
) -> tuple[list[Row], list[Row] | None]:
    """Checks both datasets to be of that kind and tokenises them with `make`, from tokenise.py."""
    from course_utils.data.shapes import validate

    names = {"prompt-completion": "the demonstrations", "preference": "the preferences"}
    validate(dataset, kind, names[kind])
    used = needed(dataset, settings)
    rows = make(used, tokenizer, settings.max_length, names[kind])
    if eval_dataset is None:
        return rows, None
    validate(eval_dataset, kind, "the evaluation data")
    return rows, make(eval_dataset, tokenizer, settings.max_length, "the evaluation data")


class Order(Sampler[int]):
    """A sampler that yields the given indices."""

    def __init__(self, indices: list[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
