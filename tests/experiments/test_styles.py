"""Style adapters: their data, their scores, and a sweep over compositions, on a few steps."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils.experiments import styles
from course_utils.world.styles import STYLES, style_score


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    short = dataclasses.replace(styles.TRAINING, steps=2, batch_size=4)
    real = styles.style_base, styles.train_style, styles.style_scores
    monkeypatch.setattr(styles, "style_base", lambda seed: real[0](seed, short))
    monkeypatch.setattr(styles, "train_style", lambda b, t, s, seed: real[1](b, t, s, seed, short))
    monkeypatch.setattr(styles, "style_scores", lambda m, t: real[2](m, t, n=3))
    styles.prepared.cache_clear()


def test_demonstrations_take_the_styles_in_turn() -> None:
    rows = styles.styled_demonstrations([None, "pirate", "bard"], 6)
    answers = [row["completion"][0]["content"] for row in rows]
    for number, answer in enumerate(answers):
        for style in STYLES:
            wanted = (None, "pirate", "bard")[number % 3] == style
            assert (style_score(answer, style) == 1) == wanted
    again = styles.styled_demonstrations(["bard"], 6)
    assert [row["prompt"] for row in again] == [row["prompt"] for row in rows]


def test_scores_of_a_model_that_knows_no_style(monkeypatch: pytest.MonkeyPatch) -> None:
    def neutral(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> list[str]:
        return ["ahoy, lions arr big cats, matey."] * len(prompts)

    monkeypatch.setattr(styles, "generate_texts", neutral)
    scores = styles.style_scores(None, None, n=4)
    assert 0.5 < scores["pirate"] < 1
    assert scores["formal"] == 0
    assert set(scores) == {*STYLES, "gold"}


def test_the_sweep_composes_resumes_and_prints(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--seeds", "1", "--pairs", "pirate+bard", "--out", str(tmp_path)]
    rows = styles.main([*given, "--methods", "cat", "ties"])
    made = {(row["method"], row["weights"]): row for row in rows}
    assert len(made) == len(rows) == len(styles.SLIDER) + 2
    slider, cat = made["slider", "1/1"], made["cat", "1/1"]
    for part in ("first", "second", "other", "gold"):
        assert slider[part] == pytest.approx(cat[part])  # the slider is cat, without the making
    assert "| pirate+bard | cat | 1/1 |" in capsys.readouterr().out
    styles.prepared.cache_clear()
    weights = tmp_path / "adapters" / "seed-0" / "pirate" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    more = styles.main([*given, "--methods", "cat", "ties", "svd"])
    assert (
        len(more) == len(rows) + 1
    )  # the new method only; adapters from their files, on the saved base
    assert weights.stat().st_mtime_ns == before


def test_training_leaves_the_base_alone(quick: None) -> None:
    base, tokenizer = styles.style_base(0)
    before = [p.clone() for p in base.parameters()]
    adapter = styles.train_style(base, tokenizer, "bard", 0)
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))
    assert max(float(t.abs().max()) for n, t in adapter.weights.items() if "lora_B" in n) > 0
