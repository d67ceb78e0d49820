"""The lecture's categories of fine-tuning on one task and one budget: quality, forgetting, cost.

    python -m course_utils.experiments.categories --seeds 3                # known words, a new way
    python -m course_utils.experiments.categories --seeds 3 --task ship    # words never seen before

Every method trains on the same batches for the same number of steps. Forgetting is the rise of the
loss on the dry texts that the base was pretrained on. A method that learns less also forgets less,
so it is set beside what full fine-tuning had forgotten when its task loss was the same.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from course_utils import adapters, world
from course_utils.errors import CourseError
from course_utils.evaluation.costs import CostMeter
from course_utils.experiments import loop
from course_utils.experiments.styles import saved_style_base, styled_demonstrations
from course_utils.experiments.sweep import Row, sweep, table
from course_utils.memory.measure import LiveTensorMemory
from course_utils.training.tokenise import demonstration_rows
from course_utils.world.styles import STYLES

TASKS = (*STYLES, "instructions", *world.domains.DOMAINS)
START = 20  # tokens at most: prompt and prefix begin as the first training text so short

# name -> (makes a model trainable in this way, learning rate: the best of a grid on "pirate" and
# another seed, but for full_fast, which is there to show what the rate does)
METHODS: dict[str, tuple[Callable[[Any, list[int]], Any], float]] = {
    "full": (lambda model, ids: model.requires_grad_(True), 3e-4),
    "full_fast": (lambda model, ids: model.requires_grad_(True), 1e-3),
    "houlsby": (lambda model, ids: adapters.apply_houlsby(model, 8), 1e-2),
    "lora": (lambda model, ids: adapters.apply_lora(model, 2, 4.0), 1e-2),
    "lora_16": (lambda model, ids: adapters.apply_lora(model, 16, 32.0), 3e-3),
    "prefix": (lambda model, ids: adapters.apply_prefix_tuning(model, token_ids=ids), 3e-2),
    "prompt": (lambda model, ids: adapters.apply_prompt_tuning(model, token_ids=ids), 1e-2),
    "bitfit": (lambda model, ids: adapters.apply_bitfit(model, add_missing=True), 3e-2),
}
COLUMNS = {
    "trainable": ("trainable %", 2),
    "task": ("task loss", 3),
    "forgetting": ("forgetting", 3),
    "full_then": ("full FT's at that task loss", 3),
    "peak_mb": ("peak MB", 1),
    "seconds": ("s", 1),
    "cpu_seconds": ("CPU s", 1),
}


def task_rows(task: str, split: str, n: int, seed: int, tokenizer: Any) -> list[loop.Row]:
    """Answers of demonstrations (the prompt is context), or whole documents of a domain."""
    if task not in TASKS:
        raise CourseError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    if task in (*STYLES, "instructions"):
        said = [None if task == "instructions" else task]
        return demonstration_rows(styled_demonstrations(said, n, seed, split), tokenizer, 256, task)
    documents = world.domain_corpus(task, n, seed if split == "train" else 10**6 + seed)
    return loop.text_rows(documents, tokenizer)


def measure(
    method: str,
    seed: int,
    *,
    folder: Path,
    task: str = "pirate",
    steps: int = 60,
    batch: int = 16,
    held: int = 64,
    rate: float | None = None,
) -> Row:
    """Trains with one method.

    Args: folder: keeps the base of the style tasks, which has read all styles (see styles.py);
        held: texts for each of the two losses; rate: learning rate, None: the method's own.
    Returns: trainable (% of parameters), task and forgetting (nats per token, at the end), curve
        [(step, task, forgetting)], peak_mb (live tensors of a step, 10^6 bytes), seconds and
        cpu_seconds (of training steps alone).
    """
    if method not in METHODS:
        raise CourseError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if steps < 3:
        raise CourseError(f"steps is {steps}; it must be at least 3, one is for the memory")
    torch.manual_seed(seed)
    if task in STYLES:
        model, tokenizer = saved_style_base(folder / "base")
    else:
        model, tokenizer = world.load_base_model(), world.load_tokenizer()
    rows = task_rows(task, "train", steps * batch, seed, tokenizer)
    heldout = task_rows(task, "heldout", held, 0, tokenizer)
    dry = loop.text_rows(world.plain_corpus(held, seed=1), tokenizer)
    before = loop.mean_loss(model, dry)
    apply, usual = METHODS[method]
    short = (row["input_ids"] for row in rows if len(row["input_ids"]) <= START)
    model = apply(model, next(short, rows[0]["input_ids"][:START]))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate or usual, weight_decay=0.0)
    cost, curve = CostMeter(method), []

    for number, given in zip(range(steps + 1), loop.batches(rows, batch, seed), strict=False):
        if number % max(1, steps // 10) == 0 or number == steps:
            losses = loop.mean_loss(model, heldout), loop.mean_loss(model, dry) - before
            curve.append((number, *losses))
        if number == 2:  # the optimizer has its moments; the count takes time, so it is not timed
            with LiveTensorMemory(model, optimizer) as memory:
                loop.train_step(model, optimizer, given)
        elif number < steps:
            with cost:
                loop.train_step(model, optimizer, given)
    return {
        "trainable": adapters.trainable_report(model).share,
        "task": curve[-1][1],
        "forgetting": curve[-1][2],
        "curve": curve,
        "peak_mb": memory.peak / 1e6,
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
    }


def with_full_then(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with what full fine-tuning of the same seed had forgotten at its task loss."""
    full = {row["seed"]: row["curve"] for row in rows if row["method"] == "full"}
    return [
        {**row, "full_then": loop.value_at(full.get(row["seed"], []), row["task"])} for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seeds", type=int, default=3)
    add("--task", choices=TASKS, default="pirate")
    add("--steps", type=int, default=60)
    add("--methods", nargs="+", default=[*METHODS], metavar="NAME", help=", ".join(METHODS))
    add("--rate", type=float, help="one learning rate for all, instead of each one's own")
    add("--out", type=Path, help="default: runs/categories-TASK; continued if it is there")
    given = parser.parse_args(arguments)
    config = {"task": given.task, "steps": given.steps, "rate": given.rate}
    points = [{"method": m, "seed": s} for s in range(given.seeds) for m in given.methods]
    directory = given.out or Path("runs") / f"categories-{given.task}"
    work = functools.partial(measure, folder=directory, **config)
    rows = with_full_then(sweep(directory, config, points, work))
    print(f"{given.task}: {given.steps} steps of 16 texts, {given.seeds} seeds; losses in nats")
    print("\n".join(table(rows, ["method"], COLUMNS)))
    return rows


if __name__ == "__main__":
    main()
