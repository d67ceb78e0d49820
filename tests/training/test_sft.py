"""train_sft: the right loss, it falls, and nothing of the caller's is left changed."""

import json
import math
import random

import numpy as np
import pytest
import torch

from course_utils.errors import CourseError, DataError, RunError
from course_utils.objectives.likelihood import next_token_logprobs, sft_loss
from course_utils.training.run import RunLog
from course_utils.training.sft import SFTSettings, train_sft
from course_utils.training.tokenise import demonstration_rows
from course_utils.training.trl_data import Data, needed

QUICK = {"progress": False}


@pytest.fixture
def log(tmp_path):
    return RunLog.create(tmp_path / "run", {}, seed=0)


def batch_tensors(rows):
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([r["input_ids"] + [0] * (width - len(r["input_ids"])) for r in rows])
    labels = torch.tensor([r["labels"] + [-100] * (width - len(r["labels"])) for r in rows])
    return ids, labels != -100


def our_loss(model, rows):
    ids, mask = batch_tensors(rows)
    real = torch.tensor([[i < len(r["input_ids"]) for i in range(ids.shape[1])] for r in rows])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=real.long()).logits
    return sft_loss(next_token_logprobs(logits, ids), mask[:, 1:]).item()


def test_loss_falls_and_rows_say_how(toy, tiny_model, tiny_tokenizer, log):
    before = {name: p.clone() for name, p in tiny_model.named_parameters()}
    settings = SFTSettings(
        steps=25,
        batch_size=8,
        learning_rate=1e-2,
        save_every=0,
        eval_every=10,
        group_by_length=False,
    )
    data, held_out = toy.demonstrations(40), toy.demonstrations(8, seed=9)
    model = train_sft(tiny_model, tiny_tokenizer, data, settings, log, held_out, progress=False)
    assert model is tiny_model
    assert not model.training
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    rows = log.rows
    assert [row["step"] for row in rows] == list(range(1, 26))
    wanted = {"loss", "learning_rate", "grad_norm", "tokens", "seconds", "accuracy", "entropy"}
    assert all(wanted | {"epoch"} <= set(row) for row in rows)
    assert sum(row["loss"] for row in rows[-3:]) < 0.7 * sum(row["loss"] for row in rows[:3])
    assert rows[-1]["accuracy"] > 0.35 > 0.2 > rows[0]["accuracy"]
    assert rows[4]["epoch"] == 1.0
    assert [row["step"] for row in rows if "eval_loss" in row] == [10, 20, 25]
    assert rows[-1]["eval_loss"] < rows[9]["eval_loss"]
    ids = demonstration_rows(data, tiny_tokenizer, 256, "data")
    assert rows[4]["tokens"] == sum(len(row["input_ids"]) for row in ids)
    assert log.latest_checkpoint() is None


def test_first_loss_is_that_of_our_objective_on_the_same_batch(
    toy, tiny_model, tiny_tokenizer, log
):
    data = toy.demonstrations(24)
    settings = SFTSettings(steps=2, batch_size=6, save_every=0, warmup=0.5)  # step 1 has rate 0
    rows = Data.of(demonstration_rows(needed(data, settings), tiny_tokenizer, 256, "d"), settings)
    batches = [[rows.rows[i] for i in rows.order[start : start + 6]] for start in (0, 6)]
    expected = [our_loss(tiny_model, batch) for batch in batches]
    train_sft(tiny_model, tiny_tokenizer, data, settings, log, **QUICK)
    assert log.column("learning_rate")[0] == 0
    assert log.column("loss") == pytest.approx(expected, abs=1e-5)


def test_accumulated_batches_equal_one_large_batch(toy, tiny_tokenizer, tmp_path):
    weights = []
    for number, (size, parts) in enumerate([(8, 1), (2, 4)]):
        model = toy.build_model(tiny_tokenizer)
        settings = SFTSettings(
            steps=3, batch_size=size, gradient_accumulation=parts, group_by_length=False, warmup=0
        )
        log = RunLog.create(tmp_path / str(number), {}, seed=0)
        train_sft(model, tiny_tokenizer, toy.demonstrations(24), settings, log, **QUICK)
        weights.append((log.column("loss"), [p.detach() for p in model.parameters()]))
    assert weights[0][0] == pytest.approx(weights[1][0], abs=1e-5)  # token mean over all parts
    for a, b in zip(weights[0][1], weights[1][1], strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_the_callers_things_are_left_as_they_were(toy, tiny_model, tiny_tokenizer):
    from transformers.utils import logging

    tiny_tokenizer.pad_token = None
    special = tiny_tokenizer.special_tokens_map
    logging.set_verbosity_info()
    random.seed(5)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = random.random(), torch.rand(2).tolist(), np.random.rand()  # noqa: NPY002
    random.seed(5)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    train_sft(tiny_model, tiny_tokenizer, toy.demonstrations(8), SFTSettings(steps=1), **QUICK)
    assert (random.random(), torch.rand(2).tolist(), np.random.rand()) == expected  # noqa: NPY002
    assert tiny_tokenizer.pad_token is None
    assert tiny_tokenizer.special_tokens_map == special
    assert not {"forward", "_original_forward"} & set(tiny_model.__dict__)
    assert logging.get_verbosity() == logging.INFO
    logging.set_verbosity_warning()


def test_same_seed_same_weights_other_seed_other_weights(toy, tiny_tokenizer, one_thread):
    digests = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(digests))  # the global state does not matter
        model = toy.build_model(tiny_tokenizer)
        settings = SFTSettings(steps=3, batch_size=4, seed=seed)
        train_sft(model, tiny_tokenizer, toy.demonstrations(40), settings, **QUICK)
        digests.append(toy.digest(model))
    assert digests[0] == digests[1] != digests[2]


def test_lora_trains_the_adapters_alone(toy, tiny_model, tiny_tokenizer, log):
    from peft import LoraConfig, get_peft_model

    before = {name: p.clone() for name, p in tiny_model.named_parameters()}
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model, lora)
    settings = SFTSettings(steps=12, batch_size=8, learning_rate=3e-2, save_every=6)
    trained = train_sft(model, tiny_tokenizer, toy.demonstrations(24), settings, log, **QUICK)
    assert trained is model
    assert log.rows[-1]["loss"] < log.rows[0]["loss"]
    for name, p in model.get_base_model().named_parameters():
        plain = name.replace("base_layer.", "")
        assert plain not in before or torch.equal(p, before[plain])
    saved = log.checkpoint_dir(12) / "trained.safetensors"
    assert saved.stat().st_size < 20_000  # the adapters alone


def test_standard_text_and_epochs(toy, tiny_model, tiny_tokenizer, log):
    settings = SFTSettings(epochs=1.5, batch_size=8, save_every=0)
    data = toy.demonstrations(20, standard=True)
    train_sft(tiny_model, tiny_tokenizer, data, settings, log, **QUICK)
    assert len(log.rows) == 4  # 30 rows in batches of 8


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(toy, tiny_model, tiny_tokenizer, log):
    seen = []
    tiny_model.lm_head.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    settings = SFTSettings(steps=3, batch_size=8, precision="bf16", save_every=0)
    train_sft(tiny_model, tiny_tokenizer, toy.demonstrations(24), settings, log, **QUICK)
    assert torch.bfloat16 in seen
    assert tiny_model.dtype == torch.float32
    assert all(math.isfinite(loss) for loss in log.column("loss"))


def test_a_lost_loss_stops_the_run_and_is_on_record(toy, tiny_model, tiny_tokenizer, log):
    with torch.no_grad():
        tiny_model.lm_head.weight[5] = float("nan")
    with pytest.raises(RunError, match=r"SFT: the loss is nan at step 1; lower learning_rate"):
        train_sft(
            tiny_model, tiny_tokenizer, toy.demonstrations(8), SFTSettings(steps=4), log, **QUICK
        )
    assert [row["loss"] for row in log.rows] == [None]
    assert log.latest_checkpoint() is None


def test_a_lost_gradient_never_reaches_a_checkpoint(toy, tiny_model, tiny_tokenizer, log):
    tiny_model.lm_head.weight.register_hook(lambda grad: grad * float("inf"))
    settings = SFTSettings(steps=4, save_every=1)
    with pytest.raises(RunError, match=r"the gradient's norm is (nan|inf) at step 1"):
        train_sft(tiny_model, tiny_tokenizer, toy.demonstrations(8), settings, log, **QUICK)
    assert math.isfinite(log.rows[0]["loss"])
    assert log.latest_checkpoint() is None


def test_ctrl_c_in_an_evaluation_keeps_the_row(toy, tiny_model, tiny_tokenizer, log, monkeypatch):
    import trl

    def press(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trl.SFTTrainer, "evaluate", press)
    settings = SFTSettings(steps=4, batch_size=4, eval_every=2)
    data = toy.demonstrations(16)
    with pytest.raises(KeyboardInterrupt):
        train_sft(tiny_model, tiny_tokenizer, data, settings, log, data, **QUICK)
    assert log.column("step") == [1, 2]


def test_log_every_and_save_every(toy, tiny_model, tiny_tokenizer, log):
    settings = SFTSettings(steps=7, batch_size=4, log_every=3, save_every=4)
    train_sft(tiny_model, tiny_tokenizer, toy.demonstrations(28), settings, log, **QUICK)
    assert log.column("step") == [3, 4, 6, 7]
    assert log.latest_checkpoint()[0] == 7
    directory = log.checkpoint_dir(7)
    kinds = {path.suffix for path in directory.iterdir()}
    assert kinds == {".safetensors", ".json"}  # no pickle
    state = json.loads((directory / "trainer_state.json").read_text())
    assert state["global_step"] == 7
    assert state["log_history"] == []


def test_progress_bar_only_when_asked(toy, tiny_model, tiny_tokenizer, capsys):
    settings = SFTSettings(steps=2, batch_size=4)
    train_sft(tiny_model, tiny_tokenizer, toy.demonstrations(8), settings, progress=False)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")
    train_sft(tiny_model, tiny_tokenizer, toy.demonstrations(8), settings, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "SFT" in shown.err
    assert "2/2" in shown.err


def test_bad_rows_and_bad_settings_are_named(toy, tiny_model, tiny_tokenizer):
    with pytest.raises(DataError, match="completion"):
        train_sft(tiny_model, tiny_tokenizer, toy.preferences(4), SFTSettings(steps=1), **QUICK)
    bad = {
        "learning_rate": 0.0,
        "batch_size": 0,
        "steps": 0,
        "epochs": -1.0,
        "warmup": 5,
        "max_length": 1,
        "precision": "half",
        "schedule": "cubic",
        "save_every": -1,
        "log_every": 0,
    }
    for name, value in bad.items():
        with pytest.raises(CourseError, match=rf"SFTSettings\.{name} is .* must be"):
            SFTSettings(**{name: value})
    with pytest.raises(CourseError, match="give one of them"):
        SFTSettings(steps=3, epochs=1.0)
    if not torch.cuda.is_available():
        settings = SFTSettings(steps=1, precision="fp16")
        with pytest.raises(CourseError, match="fp16 training needs a CUDA GPU"):
            train_sft(tiny_model, tiny_tokenizer, toy.demonstrations(4), settings, **QUICK)
