"""train_dpo: the losses are our objectives', the margin rises, the reference stays."""

import math

import pytest
import torch

from course_utils.errors import CourseError
from course_utils.objectives.likelihood import next_token_logprobs, sequence_logprob
from course_utils.objectives.preference import dpo_loss
from course_utils.training.dpo import DPOSettings, train_dpo
from course_utils.training.run import RunLog
from course_utils.training.tokenise import preference_rows
from course_utils.training.trl_data import Data, needed

QUICK = {"progress": False}


@pytest.fixture
def log(tmp_path):
    return RunLog.create(tmp_path / "run", {}, seed=0)


def answer_logprobs(model, rows, side, reduction):
    """Row by row, without padding: the slow way."""
    values = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row[side]])
        mask = torch.zeros_like(ids)
        mask[:, len(row["prompt_ids"]) :] = 1
        with torch.no_grad():
            logprobs = next_token_logprobs(model(input_ids=ids).logits, ids)
        values.append(sequence_logprob(logprobs, mask[:, 1:], reduction))
    return torch.cat(values)


LOSSES = {
    "sigmoid": {},
    "cdpo": {"loss": "sigmoid", "label_smoothing": 0.2},
    "ipo": {"loss": "ipo"},
    "robust": {"loss": "robust", "label_smoothing": 0.1},
    "hinge": {"loss": "hinge"},
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_our_objective_on_the_same_batch(name, toy, tiny_model, tiny_tokenizer, log):
    """The policy differs from the reference, so that all terms count."""
    data, reference = toy.preferences(12), toy.build_model(tiny_tokenizer, seed=1)
    settings = DPOSettings(
        steps=2, batch_size=4, beta=0.3, warmup=0.5, save_every=0, **LOSSES[name]
    )
    rows = Data.of(preference_rows(needed(data, settings), tiny_tokenizer, 256, "d"), settings)
    expected = []
    for start in (0, 4):  # the first step has learning rate 0
        batch = [rows.rows[i] for i in rows.order[start : start + 4]]
        reduction = "mean" if name == "ipo" else "sum"
        sides = [
            answer_logprobs(model, batch, side, reduction)
            for model in (tiny_model, reference)
            for side in ("chosen_ids", "rejected_ids")
        ]
        variant = settings.loss
        expected.append(dpo_loss(*sides, 0.3, variant, settings.label_smoothing).item())
    train_dpo(tiny_model, tiny_tokenizer, data, settings, log, reference=reference, **QUICK)
    assert log.column("learning_rate")[0] == 0
    assert log.column("loss") == pytest.approx(expected, abs=2e-5)


def test_margin_rises_from_zero_and_the_row_says_how(toy, tiny_model, tiny_tokenizer, log):
    settings = DPOSettings(steps=20, batch_size=8, learning_rate=3e-3, save_every=0)
    data, held_out = toy.preferences(40), toy.preferences(8, seed=5)
    model = train_dpo(
        tiny_model, tiny_tokenizer, data, settings, log, eval_dataset=held_out, **QUICK
    )
    assert model is tiny_model
    assert not model.training
    rows = log.rows
    wanted = {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob"}
    assert all(wanted | {"rejected_logprob", "tokens", "seconds"} <= set(row) for row in rows)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["margin"] > 0.2
    assert rows[-1]["loss"] < 0.6
    assert rows[-1]["eval_accuracy"] > 0.8
    assert rows[-1]["eval_margin"] > 0.1
    last = rows[-1]
    assert last["margin"] == pytest.approx(
        last["chosen_reward"] - last["rejected_reward"], abs=1e-5
    )


@pytest.mark.parametrize("given", [False, True], ids=["copied", "given"])
def test_reference_computed_before_or_during_gives_the_same_run(
    given, toy, tiny_tokenizer, tmp_path
):
    runs = []
    for precompute in (True, False):
        model = toy.build_model(tiny_tokenizer)
        reference = toy.build_model(tiny_tokenizer, seed=1) if given else None
        before = toy.digest(reference) if given else None
        settings = DPOSettings(
            steps=5, batch_size=4, learning_rate=3e-3, precompute_reference=precompute
        )
        log = RunLog.create(tmp_path / str(precompute), {}, seed=0)
        train_dpo(model, tiny_tokenizer, toy.preferences(20), settings, log, reference, **QUICK)
        if given:
            assert toy.digest(reference) == before
            assert "forward" not in reference.__dict__
        runs.append(log)
    assert runs[0].column("loss") == pytest.approx(runs[1].column("loss"), abs=1e-5)
    assert runs[0].column("margin") == pytest.approx(runs[1].column("margin"), abs=1e-4)
    assert runs[0].column("loss")[-1] != pytest.approx(runs[0].column("loss")[0], abs=1e-4)


@pytest.mark.parametrize("precompute", [True, False])
def test_lora_trains_against_its_own_start_and_keeps_one_adapter(
    precompute, toy, tiny_model, tiny_tokenizer, log
):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = get_peft_model(tiny_model, lora)
    settings = DPOSettings(
        steps=12, batch_size=8, learning_rate=2e-2, precompute_reference=precompute
    )
    train_dpo(model, tiny_tokenizer, toy.preferences(24), settings, log, **QUICK)
    assert list(model.peft_config) == ["default"]
    assert log.rows[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert log.rows[-1]["margin"] > 0.02
    assert not any(".ref." in name for name, _ in model.named_parameters())


def test_bad_settings_are_named():
    for name, value in {"beta": 0, "loss": "orpo", "label_smoothing": 0.5}.items():
        with pytest.raises(CourseError, match=rf"DPOSettings\.{name} is .* must be"):
            DPOSettings(**{name: value})
    with pytest.raises(CourseError, match='0 with loss "ipo"'):
        DPOSettings(loss="ipo", label_smoothing=0.1)
