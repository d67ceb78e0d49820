"""The category experiment: its losses, its budget, its comparison at equal task loss."""

from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils import world
from course_utils.errors import CourseError
from course_utils.experiments import categories, loop
from course_utils.experiments.categories import METHODS, measure, with_full_then

SMALL: dict[str, Any] = {"steps": 4, "batch": 4, "held": 6, "folder": Path("unused")}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    return {method: measure(method, 0, task="ship", **SMALL) for method in METHODS}


def test_every_method_learns_the_task(rows: dict[str, dict[str, Any]]) -> None:
    for method, row in rows.items():
        steps, losses, _ = zip(*row["curve"], strict=True)
        assert steps == (0, 1, 2, 3, 4)
        assert losses[-1] < losses[0] - 0.02, method
        assert row["task"] == losses[-1]
        assert row["forgetting"] == row["curve"][-1][2]
        assert row["seconds"] > 0
        assert row["cpu_seconds"] > 0


def test_what_starts_as_the_base_has_forgotten_nothing(rows: dict[str, dict[str, Any]]) -> None:
    for method in ("full", "houlsby", "lora", "bitfit"):
        assert rows[method]["curve"][0][2] == pytest.approx(0, abs=1e-5), method
        assert rows[method]["curve"][0][1] == pytest.approx(rows["full"]["curve"][0][1], abs=1e-5)


def test_shares_and_memory(rows: dict[str, dict[str, Any]]) -> None:
    share = {method: row["trainable"] for method, row in rows.items()}
    assert share["full"] == 100
    assert share["prompt"] < share["bitfit"] < 1 < share["lora"] < 3
    peak = {method: row["peak_mb"] for method, row in rows.items()}
    parameters = sum(p.numel() for p in world.load_base_model().parameters())
    # weights, gradients and two moments; a frozen base has its weights alone
    full = peak.pop("full")
    assert full > 4 * 4 * parameters / 1e6
    assert peak.pop("full_fast") == full
    assert all(full > other + 4 * parameters / 1e6 for other in peak.values())


def test_the_same_point_gives_the_same_row(rows: dict[str, dict[str, Any]]) -> None:
    again = measure("lora", 0, task="ship", **SMALL)
    assert again["curve"] == rows["lora"]["curve"]
    assert measure("lora", 1, task="ship", **SMALL)["curve"] != rows["lora"]["curve"]


def test_losses_are_those_of_the_evaluation() -> None:
    from course_utils.evaluation import perplexity

    model, tokenizer = world.load_base_model(), world.load_tokenizer()
    texts = world.plain_corpus(7, seed=3)
    ours = loop.mean_loss(model, loop.text_rows(texts, tokenizer), size=3)
    assert ours == pytest.approx(perplexity(model, tokenizer, texts).loss.mean, rel=1e-5)


def test_batches_are_padded_and_masked() -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    ids, labels = loop.padded(rows)
    assert ids.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert labels.tolist() == [[-100, 2, 3], [4, -100, -100]]
    stream = loop.batches(rows * 2, 2, seed=1)
    first = [next(stream)[0].tolist() for _ in range(5)]
    stream = loop.batches(rows * 2, 2, seed=1)
    assert [next(stream)[0].tolist() for _ in range(5)] == first
    with pytest.raises(CourseError, match="batches of 3"):
        next(loop.batches(rows, 3, seed=0))


def test_forgetting_at_equal_task_loss() -> None:
    curve = [(0, 4.0, 0.0), (10, 2.0, 0.4), (20, 2.5, 0.5), (30, 1.0, 0.8)]
    assert loop.value_at(curve, 3.0) == pytest.approx(0.2)
    assert loop.value_at(curve, 2.0) == pytest.approx(0.4)  # the first time
    assert loop.value_at(curve, 1.5) == pytest.approx(0.5 + 0.3 * 2 / 3)
    assert loop.value_at(curve, 1.0) == pytest.approx(0.8)
    assert loop.value_at(curve, 0.9) is None
    assert loop.value_at(curve, 4.1) is None
    assert loop.value_at([], 1.0) is None
    rows = [
        {"method": "full", "seed": 0, "task": 1.0, "curve": curve},
        {"method": "lora", "seed": 0, "task": 3.0, "curve": []},
        {"method": "lora", "seed": 1, "task": 3.0, "curve": []},
    ]
    then = [row["full_then"] for row in with_full_then(rows)]
    assert then[:2] == [pytest.approx(0.8), pytest.approx(0.2)]
    assert then[2] is None  # full fine-tuning has not run with that seed


def test_the_command_prints_a_table_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def measured(method: str, seed: int, **config: Any) -> dict[str, Any]:
        calls.append((method, seed, config["steps"]))
        values = dict.fromkeys(("trainable", "task", "forgetting", "seconds"), 1.0 + seed)
        return {
            **values,
            "peak_mb": 2.0,
            "cpu_seconds": 3.0,
            "curve": [(0, 9.0, 0.0), (1, 1.0, 2.0)],
        }

    monkeypatch.setattr(categories, "measure", measured)
    given = ["--seeds", "2", "--steps", "7", "--methods", "full", "lora", "--out", str(tmp_path)]
    rows = categories.main(given)
    assert len(rows) == 4
    assert calls[0] == ("full", 0, 7)
    said = capsys.readouterr().out
    assert "| lora | 1.50 ± 0.71 | 1.500 ± 0.707 |" in said
    categories.main(given)
    assert len(calls) == 4


def test_bad_settings() -> None:
    with pytest.raises(CourseError, match="unknown method 'lor'"):
        measure("lor", 0, **SMALL)
    with pytest.raises(CourseError, match="unknown task 'shop'"):
        measure("lora", 0, task="shop", **SMALL)
    with pytest.raises(CourseError, match="steps is 2"):
        measure("lora", 0, **{**SMALL, "steps": 2})


def test_a_style_is_learned_on_the_base_that_has_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def base(folder: Path) -> Any:
        asked.append(folder)
        return world.load_base_model(), world.load_tokenizer()

    monkeypatch.setattr(categories, "saved_style_base", base)
    row = measure("bitfit", 0, task="bard", **{**SMALL, "folder": tmp_path})
    assert asked == [tmp_path / "base"]
    assert row["task"] < row["curve"][0][1]


@pytest.mark.parametrize("task", ["instructions", "pirate"])
def test_demonstrations_learn_answers_only(task: str) -> None:
    tokenizer = world.load_tokenizer()
    for row in categories.task_rows(task, "train", 5, 0, tokenizer):
        start = next(i for i, label in enumerate(row["labels"]) if label != -100)
        assert start > 0
        assert row["labels"][start:] == row["input_ids"][start:]
    held = categories.task_rows("ship", "heldout", 3, 0, tokenizer)
    assert held != categories.task_rows("ship", "train", 3, 0, tokenizer)


def test_a_loss_needs_rows() -> None:
    with pytest.raises(CourseError, match="no rows to take the loss on"):
        loop.mean_loss(None, [])
