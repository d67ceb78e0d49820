"""A killed or interrupted training goes on, and ends with the same weights bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.errors import CheckpointError, CourseError, RunError
from course_utils.training.run import RunLog

SCRIPT = Path(__file__).with_name("killed_run.py")
DIES_AT = 12  # checkpoints at 5 and 10; the third pass over the data


def without_seconds(log):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in log.rows]


def kill_and_compare(toy, tmp_path, stages):
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{SCRIPT.parent}"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "killed"), str(DIES_AT), *stages],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [f"{stage} -9" for stage in stages], done.stderr
    for stage in stages:
        killed = RunLog.open(tmp_path / "killed" / stage)
        assert killed.column("step") == list(range(1, DIES_AT + 1))
        assert killed.latest_checkpoint()[0] == 10
        model, log = toy.train(stage, tmp_path / "killed" / stage, resume=True)
        whole, whole_log = toy.train(stage, tmp_path / "whole" / stage)
        assert toy.digest(model) == toy.digest(whole), stage
        assert without_seconds(log) == without_seconds(whole_log)
        assert log.column("step") == list(range(1, 15))
        seconds = log.column("seconds")
        assert seconds == sorted(seconds)


def test_killed_sft_and_reward_training_go_on_bit_for_bit(toy, tmp_path, one_thread):
    kill_and_compare(toy, tmp_path, ["sft", "reward"])


@pytest.mark.nightly
def test_killed_dpo_and_lora_training_go_on_bit_for_bit(toy, tmp_path, one_thread):
    kill_and_compare(toy, tmp_path, ["dpo", "dpo-lora"])


@pytest.fixture
def interrupted(toy, tmp_path, monkeypatch, one_thread):
    """A DPO run that Ctrl-C stopped at step 12."""
    append = RunLog.append

    def press_ctrl_c(log, row):
        append(log, row)
        if row["step"] == DIES_AT:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "append", press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        toy.train("dpo", tmp_path / "run")
    monkeypatch.undo()
    return tmp_path / "run"


def test_ctrl_c_keeps_log_and_checkpoint_and_dpo_goes_on(toy, tmp_path, interrupted):
    log = RunLog.open(interrupted)
    assert log.column("step") == list(range(1, DIES_AT + 1))
    assert [p.name for p in sorted((interrupted / "checkpoints").iterdir())] == [
        "step-000005",
        "step-000010",
    ]
    model, log = toy.train("dpo", interrupted, resume=True)
    whole, whole_log = toy.train("dpo", tmp_path / "whole")
    assert toy.digest(model) == toy.digest(whole)
    assert without_seconds(log) == without_seconds(whole_log)
    again, log = toy.train("dpo", interrupted, resume=True)  # finished: weights are restored
    assert toy.digest(again) == toy.digest(whole)
    assert len(log.rows) == 14


def test_resume_refuses_what_would_mix_two_runs(toy, interrupted):
    from course_utils.training.dpo import DPOSettings, train_dpo

    tokenizer = toy.build_tokenizer()

    def resume(model=None, data=None, **changes):
        log = RunLog.create(interrupted, {"stage": "dpo"}, seed=0, resume=True)
        settings = DPOSettings(**{**toy.SHORT, **changes})
        model = toy.build_model(tokenizer) if model is None else model
        data = toy.preferences(22) if data is None else data
        train_dpo(model, tokenizer, data, settings, log=log, resume=True, progress=False)

    with pytest.raises(CheckpointError, match=r"settings\.beta \(0\.1 then, 0\.2 now\)"):
        resume(beta=0.2)
    with pytest.raises(CheckpointError, match="other training data; resume with the same"):
        resume(data=toy.preferences(22, seed=5))
    with pytest.raises(CheckpointError, match="other reference"):
        resume(model=toy.build_model(tokenizer, seed=3))
    assert len(RunLog.open(interrupted).rows) == DIES_AT  # a refusal takes nothing away
    resume(save_every=7, log_every=1)  # how often to save may change


def test_a_damaged_checkpoint_stops_the_resumption(toy, interrupted):
    path = interrupted / "checkpoints" / "step-000010" / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match=r"delete .*step-000010 to resume from step 5"):
        toy.train("dpo", interrupted, resume=True)


def test_no_resumption_without_a_log_and_no_second_training_into_one(toy, tmp_path):
    from course_utils.training.sft import SFTSettings, train_sft

    tokenizer = toy.build_tokenizer()
    model, data = toy.build_model(tokenizer), toy.demonstrations(8)
    settings = SFTSettings(steps=1, batch_size=2)
    with pytest.raises(CourseError, match="pass log="):
        train_sft(model, tokenizer, data, settings, resume=True, progress=False)
    log = RunLog.create(tmp_path / "r", {}, seed=0)
    train_sft(model, tokenizer, data, settings, log=log, progress=False)
    with pytest.raises(RunError, match="has rows of a training already"):
        train_sft(model, tokenizer, data, settings, log=log, progress=False)
