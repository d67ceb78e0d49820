"""MemoryExplorer: the memory calculator in JavaScript, byte for byte what Python says."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from course_utils.errors import CourseError
from course_utils.inspectors.explorers.memory import CARDS, MODELS, MemoryExplorer, shape_row
from course_utils.memory import (
    MODELS as KNOWN,
)
from course_utils.memory import (
    RECIPES,
    Recipe,
    answers,
    estimate,
    find_shape,
    recipe,
)

from .twins import Maths, grid, hold

OpenPage = Callable[..., Any]
VARIANTS: tuple[dict[str, Any], ...] = (
    {"weights": "bf16", "autocast": "none"},
    {"weights": "fp32", "autocast": "none"},
    {"autocast": "fp16"},
    {"attention": "eager"},
    {"logits": "all"},
    {"logits": "tiled"},
    {"accumulate": True},
    {"double_quant": False},
    {"optimizer": "paged-adamw-8bit"},
    {"optimizer": "adafactor"},
    {"optimizer": "sgd-momentum"},
    {"adapters": "bf16"},
    {"rank": 7},
    {"rollouts": 9},
    {"checkpointing": True},
    {"checkpointing": False, "attention": "eager", "weights": "bf16", "autocast": "none"},
    {"reference": "copy"},
)


def changed(name: str, changes: dict[str, Any]) -> Recipe | None:
    try:
        return recipe(name, **changes)
    except CourseError:
        return None


def test_every_term_of_every_recipe_on_every_model(open_page: OpenPage) -> None:
    maths = Maths(open_page, MemoryExplorer(), "estimate shapeOf")
    columns = MemoryExplorer().state["columns"]
    cases, expected = [], []
    for model, name in itertools.product(KNOWN, RECIPES):
        shape = find_shape(model, online=False)
        for i, changes in enumerate(({}, *VARIANTS)):
            plan = changed(name, changes)
            if plan is None or (i + len(model) + len(name)) % 19:  # some of them
                continue
            seq, batch = (512, 2) if i % 2 else (63, 5)
            completion = 31 if i % 4 == 1 else None
            cases.append([shape_row(shape), dataclasses.asdict(plan), seq, batch, completion])
            found = estimate(shape, plan, seq, batch, completion)
            expected.append(
                {
                    "moments": found.moments,
                    "moment": found.moment,
                    "terms": found.terms,
                    "peak": found.peak,
                    "context": found.context,
                    "fragmentation": found.fragmentation,
                    "paged": found.paged,
                    "total": found.total,
                }
            )
    assert len(cases) > 300
    theirs = maths.run(
        "([columns, cases]) => cases.map(([row, recipe, seq, batch, completion]) => own.estimate("
        "own.shapeOf('m', { columns, shapes: { m: row } }), recipe, seq, batch, completion))",
        [columns, cases],
    )
    for case, ours, own in zip(cases, expected, theirs, strict=True):
        assert ours == own, case[1:]


def test_the_page_asks_for_what_python_asks_for(open_page: OpenPage) -> None:
    explorer = MemoryExplorer()
    points = grid(model=("qwen3-0.6b",), recipe=RECIPES, seq=(1000,), batch=(24,))
    points += grid(model=MODELS, recipe=("qlora",), seq=(2048,), rank=(8, 4096))
    points += grid(
        optimizer=("recipe", "adamw-8bit", "paged-adamw"), checkpointing=("recipe", "on", "off"),
        recipe=("ppo-qlora",), model=("gpt2",), seq=(512,),
    )  # fmt: skip
    hold(Maths(open_page, explorer), explorer, points)


def test_it_says_what_the_calculator_says() -> None:
    explorer = MemoryExplorer(model="qwen3-1.7b", recipe="lora", seq=1024)
    shape = find_shape("qwen3-1.7b", online=False)
    rows = answers(estimate(shape, RECIPES["lora"], 1024, 1), CARDS)
    found = explorer.frame()
    assert found["fits"] == {row["gpu"]: row["fits"] for row in rows}
    assert found["batches"] == {row["gpu"]: row["largest_batch"] for row in rows}
    assert MemoryExplorer().frame()["fits"]["A6000"]  # 65B on 48 GB
    assert not MemoryExplorer(recipe="full").frame()["fits"]["H100"]


def test_another_model_and_what_is_refused(open_page: OpenPage) -> None:
    explorer = MemoryExplorer("30M", recipe="full")
    assert explorer.chosen["model"] == "a typical 30M"
    hold(Maths(open_page, explorer), explorer, grid(model=("a typical 30M", "gpt2"), seq=(2048,)))
    with pytest.raises(CourseError, match="context"):
        MemoryExplorer(model="gpt2", seq=4096)
    with pytest.raises(CourseError, match="no model 'lama-7b'"):
        MemoryExplorer(model="lama-7b")
    with pytest.raises(CourseError, match="batch"):
        explorer.frame(batch=float("nan"))
    with pytest.raises(CourseError, match="batch"):
        explorer.frame(batch=1.5)
