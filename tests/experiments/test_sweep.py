"""A sweep goes on where it was interrupted, and its tables hide nothing."""

import math
from pathlib import Path
from typing import Any

import pytest

from course_utils.errors import CourseError, RunError
from course_utils.experiments.sweep import mean_and_spread, sweep, table

POINTS = [{"method": m, "seed": s} for s in (0, 1) for m in ("a", "b")]


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    resumed: list[bool] = []

    def measure(method: str, seed: int) -> dict[str, Any]:
        if len(calls) == 3 and not resumed:
            raise KeyboardInterrupt
        calls.append((method, seed))
        return {"loss": seed + 0.5, "curve": [(0, 1.0)], "bad": math.nan}

    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, {"steps": 3}, POINTS, measure, progress=False)
    assert len(calls) == 3
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 3, "method": "b", "se')  # a line torn by a kill
    calls.clear()
    resumed.append(True)
    rows = sweep(tmp_path, {"steps": 3}, POINTS, measure, progress=False)
    assert calls == [("b", 1)]  # only what was missing
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("a", 0),
        ("b", 0),
        ("a", 1),
        ("b", 1),
    ]
    assert rows[0]["curve"] == [[0, 1.0]]
    assert rows[3]["bad"] is None  # the same from memory as from the file
    assert sweep(tmp_path, {"steps": 3}, POINTS, measure, progress=False) == rows
    more = [*POINTS, {"method": "a", "seed": 2}]
    assert len(sweep(tmp_path, {"steps": 3}, more, measure, progress=False)) == 5


def test_another_config_is_refused(tmp_path: Path) -> None:
    sweep(tmp_path, {"steps": 3}, POINTS[:1], lambda method, seed: {}, progress=False)
    with pytest.raises(RunError, match="steps was 3, is now 4"):
        sweep(tmp_path, {"steps": 4}, POINTS, lambda method, seed: {}, progress=False)


def test_spread() -> None:
    assert mean_and_spread([1.0, 3.0]) == (2.0, math.sqrt(2))
    assert mean_and_spread([4.0]) == (4.0, 0.0)
    assert mean_and_spread([1.0, None]) is None
    assert mean_and_spread([]) is None


def test_table() -> None:
    rows = [
        {"method": "a", "seed": 0, "loss": 1.0, "then": None},
        {"method": "b", "seed": 0, "loss": 2.0, "then": 5.0},
        {"method": "a", "seed": 1, "loss": 3.0, "then": 1.0},
    ]
    lines = table(rows, ["method"], {"loss": ("task loss", 2), "then": ("then", 1)})
    assert lines == [
        "| method | task loss | then |",
        "|---|---|---|",
        "| a | 2.00 ± 1.41 | — |",
        "| b | 2.00 ± 0.00 | 5.0 ± 0.0 |",
    ]
    with pytest.raises(CourseError, match="no rows"):
        table([], ["method"], {})
