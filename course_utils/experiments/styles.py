"""Three style adapters for the world, and what comes out when two of them are composed.

    python -m course_utils.experiments.styles --seeds 3

The shipped base model has never seen a word of any style (an adapter on its linear maps alone takes
three times the steps and mixes the words up), so it first reads demonstrations of all of them, as a
real base model has read everything. On that base each style is a LoRA of a few seconds; the
adapters are saved in the sweep's directory.
"""

import argparse
import copy
import functools
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from course_utils import world
from course_utils.composition import METHODS, Adapter, AdapterSet
from course_utils.data import turns
from course_utils.data.shapes import features
from course_utils.evaluation.costs import CostMeter
from course_utils.experiments.sweep import Row, sweep, table
from course_utils.files import atomic_dir
from course_utils.generation import generate_texts
from course_utils.models import load_policy
from course_utils.training.sft import SFTSettings, train_sft
from course_utils.training.trl_common import quiet_libraries
from course_utils.world.styles import STYLES, apply_style, strip_style, style_score

READING = SFTSettings(steps=150, learning_rate=3e-3, batch_size=16, save_every=0)
TRAINING = SFTSettings(steps=60, learning_rate=2e-3, batch_size=16, save_every=0)
RANK, ALPHA = 8, 16
SLIDER = ("0/0", "1/0", "0/1", "0.75/0.25", "0.5/0.5", "0.25/0.75", "1/1")
COLUMNS = {
    "first": ("first style", 2),
    "second": ("second style", 2),
    "other": ("third style", 2),
    "gold": ("gold, styles taken off", 2),
}


def styled_demonstrations(
    styles: Sequence[str | None], n: int, seed: int = 0, split: str = "train"
) -> Any:
    """{prompt, completion}, conversational: neutral prompts, answers in the styles in turn (None:
    neutral). A datasets.Dataset of n rows."""
    import pyarrow as pa
    from datasets import Dataset

    rows = []
    pairs = world.demonstrations(split, n, seed)
    for (prompt, answer), style in zip(pairs, itertools.cycle(styles), strict=False):
        said = answer if style is None else apply_style(answer, style)
        rows.append(
            {"prompt": turns.user_turn(prompt.text), "completion": turns.assistant_turn(said)}
        )
    return Dataset(pa.Table.from_pylist(rows, features("prompt-completion").arrow_schema))


def style_base(seed: int = 0, settings: SFTSettings = READING) -> tuple[Any, Any]:
    """(model, tokenizer): the world's base after reading answers in every style and in none; 12
    CPU seconds. It writes now one, now another."""
    model, tokenizer = load_policy("tiny", device="cpu")
    count = (settings.steps or 1) * settings.batch_size
    rows = styled_demonstrations([None, *STYLES], count, seed=1000 + seed)
    train_sft(model, tokenizer, rows, settings, progress=False)
    return model, tokenizer


def train_style(
    base: Any, tokenizer: Any, style: str, seed: int = 0, settings: SFTSettings = TRAINING
) -> Adapter:
    """A LoRA on every linear map that makes a base answer in a style; 6 CPU seconds on the world.

    Each style starts from an A of its own, as adapters of strangers do: with one A for all, PEFT's
    `linear` would give twice the sum of the changes.

    Args: base: left as it is (a copy is trained), e.g. `style_base()`.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed * len(STYLES) + list(STYLES).index(style))
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with quiet_libraries(progress=False):
        model = get_peft_model(copy.deepcopy(base), config)
    rows = styled_demonstrations([style], (settings.steps or 1) * settings.batch_size, seed)
    train_sft(model, tokenizer, rows, settings, progress=False)
    return Adapter.of(model)


def style_scores(model: Any, tokenizer: Any, n: int = 64) -> dict[str, float]:
    """Mean score of each style, [0, 1], and the gold reward of the answers with all styles taken
    off, over the likeliest answers to n held-out prompts.

    Some words have a version in several styles, so no text can score 1 in two of them.
    """
    prompts = world.prompts(split="heldout", n=n, seed=0)
    answers = generate_texts(model, tokenizer, [p.text for p in prompts], temperature=0.0)
    scores = {s: statistics.fmean(style_score(a, s) for a in answers) for s in STYLES}
    neutral = [functools.reduce(strip_style, STYLES, answer) for answer in answers]
    golds = [float(world.gold_reward(p.text, a)) for p, a in zip(prompts, neutral, strict=True)]
    return {**scores, "gold": statistics.fmean(golds)}


# ---- the sweep -----------------------------------------------------------------------------------


def saved_style_base(folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """`style_base`, made once and kept in a folder: with another number of threads it would not be
    the same bit for bit, and an adapter fits one base only."""
    if not folder.is_dir():
        with atomic_dir(folder) as staging:
            for part in style_base(seed):
                part.save_pretrained(staging)
    return load_policy(str(folder), device="cpu")


@functools.lru_cache(maxsize=1)
def prepared(seed: int, folder: Path) -> tuple[AdapterSet, Any]:
    """(set of the three adapters, tokenizer); what is in the folder already is loaded."""
    place = folder / f"seed-{seed}"
    base, tokenizer = saved_style_base(place / "base", seed)
    adapters = AdapterSet(copy.deepcopy(base))
    for style in STYLES:
        path = place / style
        if not path.is_dir():
            with CostMeter(style) as cost:
                train_style(base, tokenizer, style, seed).save(path)
            print(f"  {style}: {cost.cpu_seconds:.0f} CPU s", flush=True)
        adapters.add(style, path)
    return adapters, tokenizer


def measure(seed: int, pair: str, method: str, weights: str, *, folder: Path) -> Row:
    """Scores of the pair "first+second", made one by `method` with the weights "w/w".

    The method "slider" combines nothing: it sets the adapters' own factors, and with "0/0" it is
    the base, with "1/0" the first adapter alone.
    """
    adapters, tokenizer = prepared(seed, folder)
    first, second = pair.split("+")
    wanted = dict(zip((first, second), map(float, weights.split("/")), strict=True))
    if method == "slider":
        adapters.set_weights(wanted)
    else:
        adapters.combine("both", wanted, method, seed=seed)
        adapters.set("both")
    scores = style_scores(adapters.model, tokenizer)
    if method != "slider":
        adapters.delete("both")
    (other,) = set(STYLES) - {first, second}
    return {
        "first": scores[first],
        "second": scores[second],
        "other": scores[other],
        "gold": scores["gold"],
    }


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    pairs = ["+".join(pair) for pair in itertools.combinations(STYLES, 2)]
    add("--seeds", type=int, default=3)
    add("--pairs", nargs="+", default=pairs, choices=pairs, metavar="A+B", help=", ".join(pairs))
    add("--weights", nargs="+", default=["1/1"], metavar="W/W", help="for the methods")
    add("--methods", nargs="+", default=[*METHODS], choices=METHODS, metavar="NAME")
    add("--out", type=Path, default=Path("runs/styles"), help="continued if it is there")
    given = parser.parse_args(arguments)
    kinds = [
        *itertools.product(["slider"], SLIDER),
        *itertools.product(given.methods, given.weights),
    ]
    points = [
        {"seed": seed, "pair": pair, "method": method, "weights": weights}
        for seed in range(given.seeds)
        for pair in given.pairs
        for method, weights in kinds
    ]
    config = {"reading": READING, "training": TRAINING, "rank": RANK, "alpha": ALPHA}
    work = functools.partial(measure, folder=given.out / "adapters")
    rows = sweep(given.out, config, points, work, progress=False)
    print(f"style scores in [0, 1], {given.seeds} seeds, mean ± standard deviation")
    print("\n".join(table(rows, ["pair", "method", "weights"], COLUMNS)))
    return rows


if __name__ == "__main__":
    main()
