"""A lab and a run on tiers whose data is public: shapes, splits and sizes, without any model."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from course_utils import Lab
from course_utils.errors import CourseError
from course_utils.pipeline.inputs import Inputs
from course_utils.pipeline.job import STAGES, Job
from course_utils.tiers import TIERS, choose_tier

from . import repos
from .server import Hub


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Any) -> None:
    """A tokenizer, and a test that fails when a model is loaded or asked for an answer."""
    monkeypatch.setattr(Lab, "tokenizer", tiny_tokenizer)
    monkeypatch.setattr("course_utils.models.load_policy", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr(Lab, "generate", lambda *_, **__: pytest.fail("asked for an answer"))


def open_lab(tier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> Lab:
    """The tier as COURSE_FAST=1 shrinks it, on this CPU."""
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "runs"))
    choice = choose_tier("tiny", environ={})
    return Lab(dataclasses.replace(choice, tier=TIERS[tier].fast()), seed)


def fill(hub: Hub) -> None:
    hub.add("tatsu-lab/alpaca", repos.alpaca(600))
    hub.add("Anthropic/hh-rlhf", repos.hh())
    hub.add("HuggingFaceH4/ultrachat_200k", repos.ultrachat())
    hub.add("HuggingFaceH4/ultrafeedback_binarized", repos.ultrafeedback())


def check_pairs(train: Any, held: Any) -> None:
    for rows in (train, held):
        assert rows.column_names == ["prompt", "chosen", "rejected"]
        for row in rows:
            assert [m["role"] for m in row["prompt"]] == ["user"]
            assert row["chosen"][-1]["role"] == row["rejected"][-1]["role"] == "assistant"
            assert row["chosen"] != row["rejected"]
    asked = [{row["prompt"][0]["content"] for row in rows} for rows in (train, held)]
    assert not asked[0] & asked[1]


@pytest.mark.parametrize("tier", ["small", "medium", "large"])
def test_a_lab_hands_out_the_tiers_own_data(
    hub: Hub, no_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    fill(hub)
    lab = open_lab(tier, tmp_path, monkeypatch)
    assert lab.gold is None
    train, held = lab.prompts("train", 30), lab.prompts("heldout", 10)
    assert len(set(train)) == 30
    assert len(held) == 10
    assert not set(train) & set(held)
    assert all(isinstance(text, str) for text in train + held)
    assert lab.lecture_prompts
    shown, measured = lab.demonstrations(), lab.demonstrations("heldout", 10)
    assert (len(shown), len(measured)) == (48, 10)
    assert shown.column_names == ["prompt", "completion"]
    assert shown[0]["prompt"][-1]["role"] == "user"
    assert shown[0]["completion"][0]["role"] == "assistant"
    check_pairs(lab.preferences({}, 20), lab.preferences({}, 10, "heldout"))
    pairs = lab.pairs()
    assert 40 <= len(pairs[0]) <= 48
    assert len(pairs[1]) == 8
    check_pairs(*pairs)
    assert lab.pairs()[0].to_list() == pairs[0].to_list()
    assert not (tmp_path / "runs" / "start").exists()  # nothing was trained or sampled for them
    with pytest.raises(CourseError, match="families"):
        lab.prompts("train", 5, families=["how"])


def test_another_seed_draws_other_rows_of_the_same_splits(
    hub: Hub, no_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(hub)
    labs = [open_lab("small", tmp_path, monkeypatch, seed) for seed in (0, 1)]
    held = [lab.prompts("heldout") for lab in labs]
    assert held[0] != held[1]
    assert set(held[0]) == set(held[1])
    drawn = [lab.prompts("train", 20) for lab in labs]
    assert drawn[0] != drawn[1]
    assert not {*drawn[0], *drawn[1]} & set(held[0])


def test_the_inputs_of_a_run_need_no_model(
    hub: Hub, no_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(hub)
    lab = open_lab("small", tmp_path, monkeypatch)
    job = Job(tmp_path / "run", lab.choice, 0, STAGES, {}, True, True, False, "2024-01-01")
    inputs = Inputs(job, lab)
    inputs.read_files()
    asked = len(hub.requests)
    assert inputs.has_pairs
    assert not inputs.samples_pairs
    check_pairs(*inputs.preferences({}))
    train, held = inputs.demonstrations
    assert held is not None
    prompts = [{row["prompt"][-1]["content"] for row in rows} for rows in (train, held)]
    assert not prompts[0] & prompts[1]
    assert inputs.gold is None
    assert inputs.plain_documents is None
    assert len(inputs.evaluation_prompts) <= 48
    assert not set(inputs.prompts) & set(inputs.evaluation_prompts)
    assert inputs.shown_prompts == lab.lecture_prompts
    assert len(hub.requests) - asked < 5  # read before training: only the commit is asked for
    assert not (tmp_path / "run").exists()


def test_an_annotator_of_your_own_judges_answers_to_the_tiers_prompts(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(hub)
    lab = open_lab("small", tmp_path, monkeypatch)

    def generate(self: Lab, model: str, prompts: list[str], **options: Any) -> list[str]:
        return [f"{model} {options['seed']} on {prompt}" for prompt in prompts]

    monkeypatch.setattr(Lab, "generate", generate)
    judge = SimpleNamespace(compare=lambda prompt, a, b: int(b < a))
    made = lab.preferences({"a": "a", "b": "b"}, 12, annotator=judge)
    assert len(made) == 12
    for row in made:
        asked = row["prompt"][0]["content"]
        assert asked.startswith("Name thing")
        assert row["chosen"][0]["content"].endswith(asked)
        assert row["chosen"][0]["content"] < row["rejected"][0]["content"]
