"""What a training step costs with each of several models: peak memory and time, measured in turn.

A clock on one method after the other would measure who else used the machine; here every round
times each model once, in CPU seconds, so that a busy machine slows all alike.
"""

import copy
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from course_utils.errors import CourseError
from course_utils.experiments.loop import Batch, train_step
from course_utils.memory.measure import LiveTensorMemory


@dataclass(frozen=True)
class StepCost:
    """Of one step on one batch, weights, gradients, Adam's moments and activations included."""

    peak_mb: float  # live tensors at most, 10^6 bytes
    held_mb: float  # of weights (4 bytes each) and, where trained, gradient and moments (12 more)
    cpu_ms: float  # of all threads, median over rounds
    relative: float  # its ratio to the first model's in the same round, median


def step_costs(models: Mapping[str, Any], batch: Batch, rounds: int = 5) -> dict[str, StepCost]:
    """Measures copies of the models (CPU, fp32), each with what it has unfrozen; AdamW.

    Args: models: name -> model; the first is the one that the others are compared with.
    Raises: CourseError without rounds or models, or for a model with nothing to train.
    """
    if rounds < 1 or not models:
        raise CourseError(f"need at least 1 round and 1 model, got {rounds} and {len(models)}")
    ready: dict[str, tuple[Any, torch.optim.Optimizer]] = {}
    peaks = {}
    for name, model in models.items():
        model = copy.deepcopy(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise CourseError(f"{name} has no parameter that trains; apply a method first")
        ready[name] = model, torch.optim.AdamW(trained, lr=1e-5)
        train_step(*ready[name], batch)  # afterwards the optimizer has its moments
        with LiveTensorMemory(*ready[name]) as memory:
            train_step(*ready[name], batch)
        peaks[name] = memory.peak / 1e6
    spent: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, pair in ready.items():
            began = time.process_time()
            train_step(*pair, batch)
            spent[name].append(time.process_time() - began)
    first = spent[next(iter(spent))]
    return {
        name: StepCost(
            peak_mb=peaks[name],
            held_mb=sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters())
            / 1e6,
            cpu_ms=1e3 * statistics.median(spent[name]),
            relative=statistics.median(a / b for a, b in zip(spent[name], first, strict=True)),
        )
        for name, (model, _) in ready.items()
    }
