"""The loop: learning, the log, killing and resuming, precisions, running out of memory."""

import os
import runpy
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from course_utils.errors import CheckpointError, CourseError, RunError
from course_utils.training.ppo import NonFiniteError, update
from course_utils.training.run import RunLog

CONTRACT = {
    *("step", "reward", "kl", "kl_k3", "beta", "entropy", "policy_loss", "value_loss"),
    *("clip_fraction", "ratio_max", "approx_kl", "explained_variance", "completion_tokens"),
    *("eos_rate", "tokens", "seconds", "grad_norm", "learning_rate"),
}


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]


def new_log(path: Path, trainer_config: Any, resume: bool = False) -> RunLog:
    import dataclasses

    return RunLog.create(path, dataclasses.asdict(trainer_config), trainer_config.seed, resume)


# ---- learning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_reward_rises_within_a_few_steps(make_trainer, seed) -> None:
    trainer = make_trainer(
        seed=seed,
        steps=10,
        rollouts_per_step=64,
        micro_batch=64,
        learning_rate=5e-3,
        beta=0.02,
        missing_eos_penalty=0.0,
        max_new_tokens=8,
    )
    rows = [step.stats for step in trainer]
    start = rows[0]["reward"]
    end = sum(row["reward"] for row in rows[-3:]) / 3
    assert end > start + 1.5, [row["reward"] for row in rows]
    assert rows[-1]["kl"] > 0.3
    assert rows[-1]["kl_k3"] > 0.3


def test_an_entropy_bonus_raises_the_entropy(make_trainer, policy) -> None:
    with torch.no_grad():
        policy.lm_head.weight.mul_(8)  # a policy that has made up its mind
    trainer = make_trainer(steps=5, learning_rate=5e-3, entropy_coef=0.5)
    entropies = [step.stats["entropy"] for step in trainer]
    assert entropies[-1] > entropies[0] + 0.3


# ---- the log -----------------------------------------------------------------------------------


def test_rows_have_the_documented_keys_and_plausible_values(make_trainer, tmp_path) -> None:
    trainer = make_trainer(gold=lambda p, c: [float(len(x)) for x in c], rollouts_every=2, steps=3)
    trainer.log = new_log(tmp_path / "run", trainer.config)
    rows = trainer.train(progress=False)
    logged = trainer.log.rows
    assert comparable(logged) == comparable(rows)
    assert [row["step"] for row in logged] == [1, 2, 3]
    for row in logged:
        assert row.keys() >= CONTRACT
        assert all(value is not None for value in row.values())
        assert 0 <= row["eos_rate"] <= 1
        assert 1 <= row["completion_tokens"] <= 10
        assert row["gold"] > 0
        assert row["seconds"] >= row["rollout_seconds"] > 0
    totals = [row["completion_tokens"] * 20 for row in logged]
    assert [row["tokens"] for row in logged] == [round(sum(totals[: i + 1])) for i in range(3)]
    # rollouts of the first, every second and the last step, aligned token by token
    assert sorted({r["step"] for r in trainer.log.rollouts()}) == [1, 2, 3]
    saved = trainer.log.rollouts(2)
    assert len(saved) == 16
    for r in saved:
        for name in ("tokens", "logprobs", "ref_logprobs", "kl", "values", "advantages", "rewards"):
            assert len(r[name]) == len(r["token_ids"]) >= 1
        assert r["kl"] == pytest.approx(
            [a - b for a, b in zip(r["logprobs"], r["ref_logprobs"], strict=True)]
        )
        assert isinstance(r["score"], float)
        assert r["gold"] == len(r["completion"])
        words = [t for t in r["tokens"] if not t.startswith("<|")]
        assert " ".join(words) == r["completion"]


def test_iteration_can_be_left_and_entered_again(make_trainer, policy) -> None:
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    straight = [step.stats for step in make_trainer(steps=3)]
    policy.load_state_dict(start)
    trainer, pieces = make_trainer(steps=3), []
    for step in trainer:
        pieces.append(step.stats)
        break
    assert not trainer.finished
    pieces += [step.stats for step in trainer]
    assert trainer.finished
    assert comparable(pieces) == comparable(straight)


def test_global_randomness_neither_matters_nor_is_used(make_trainer, policy) -> None:
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    results = []
    for seed in (1, 2):
        policy.load_state_dict(start)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        results.append(comparable([step.stats for step in make_trainer()]))
        assert torch.equal(state, torch.get_rng_state())
    assert results[0] == results[1]
    policy.load_state_dict(start)
    assert comparable([step.stats for step in make_trainer(seed=9)]) != results[0]


def test_prompts_come_in_a_new_order_each_epoch_and_none_is_left_out(make_trainer) -> None:
    stream = make_trainer().prompts
    drawn = [stream.draw(7) for _ in range(6)]
    assert all(sorted(epoch) == list(range(7)) for epoch in drawn)
    assert len({tuple(epoch) for epoch in drawn}) > 3
    again = make_trainer().prompts
    flat = [number for epoch in drawn for number in epoch]
    assert [again.draw(5) for _ in range(3)] == [flat[i : i + 5] for i in (0, 5, 10)]


def test_a_dataset_of_conversations_is_a_source_of_prompts(make_trainer) -> None:
    from datasets import Dataset

    chats = [[{"role": "user", "content": text}] for text in ("hello", "why")]
    asked: set[str] = set()

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        asked.update(prompts)
        return [0.0] * len(prompts)

    trainer = make_trainer(prompts=Dataset.from_dict({"prompt": chats}), reward=reward)
    plain = make_trainer(prompts=["hello", "why"])
    assert trainer.prompts.tokens == plain.prompts.tokens
    trainer.step()
    assert asked == {"hello", "why"}


# ---- checkpoints -------------------------------------------------------------------------------

SCRIPT = """
    import dataclasses, importlib.util, os, signal, sys
    from pathlib import Path

    tests, run, kill_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

    def load(name, path):
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    base, here = load("base", tests / "conftest.py"), load("here", tests / "ppo" / "conftest.py")
    from course_utils.training.ppo import PPOConfig, PPOTrainer
    from course_utils.training.run import RunLog

    tokenizer = base.build_tokenizer()
    policy = here.lively(base.build_model(tokenizer), tokenizer)
    config = PPOConfig(steps=6, rollouts_per_step=20, micro_batch=4, max_new_tokens=10,
                       learning_rate=1e-3, save_every=2, rollouts_every=1, rollouts_saved=3,
                       kl_target=0.1, kl_horizon=200, lr_schedule="linear", seed=3)
    calls = 0

    def reward(prompts, completions):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return here.share_of_wanted(prompts, completions)

    log = RunLog.create(run, dataclasses.asdict(config), config.seed, resume=True)
    trainer = PPOTrainer(policy, reward, tokenizer, here.PROMPTS, config, log=log)
    print("resumed at", trainer.resume())
    trainer.train(progress=False)
    total = sum(float(p.detach().double().abs().sum()) for p in trainer.actor.parameters())
    print("hash", total.hex())
"""


def test_a_killed_run_continues_bit_for_bit(tmp_path, monkeypatch, capsys) -> None:
    """SIGKILL in step 4 (the checkpoint is of step 2): the same rows, rollouts and weights."""
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    tests = Path(__file__).resolve().parent.parent

    def arguments(name: str, kill_at: int = 0) -> list[str]:
        return [str(script), str(tests), str(tmp_path / name), str(kill_at)]

    def here(name: str) -> str:
        monkeypatch.setattr(sys, "argv", arguments(name))
        runpy.run_path(str(script))
        return capsys.readouterr().out

    straight = here("straight")
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, *arguments("killed", kill_at=4)]
    killed = subprocess.run(command, capture_output=True, text=True, env=threads, timeout=240)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row["step"] for row in RunLog.open(tmp_path / "killed").rows] == [1, 2, 3]
    resumed = here("killed")
    assert "resumed at 2" in resumed
    assert resumed.split("hash")[1] == straight.split("hash")[1]
    a, b = (RunLog.open(tmp_path / name) for name in ("straight", "killed"))
    assert comparable(a.rows) == comparable(b.rows)
    assert len({row["beta"] for row in a.rows}) == 6  # the controller's state mattered
    assert a.rollouts() == b.rollouts()


def test_ctrl_c_leaves_the_log_and_the_last_checkpoint_good(make_trainer, tmp_path, policy) -> None:
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    calls = []

    def interrupted(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return [float(len(c)) for c in completions]

    settings = {"steps": 5, "save_every": 2}
    trainer = make_trainer(reward=interrupted, **settings)
    trainer.log = new_log(tmp_path / "run", trainer.config)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(progress=False)
    assert [row["step"] for row in RunLog.open(tmp_path / "run").rows] == [1, 2, 3]
    policy.load_state_dict(start)
    again = make_trainer(reward=interrupted, **settings)
    again.log = new_log(tmp_path / "run", again.config, resume=True)
    assert again.resume() == 2
    assert len(again.train(progress=False)) == 3
    assert [row["step"] for row in again.log.rows] == [1, 2, 3, 4, 5]
    assert again.log.latest_checkpoint()[0] == 5


def test_resume_needs_the_same_reference_and_prompts(make_trainer, tmp_path, policy) -> None:
    trainer = make_trainer(learning_rate=1e-2)
    with pytest.raises(CourseError, match="no log"):
        trainer.resume()
    with pytest.raises(CourseError, match="needs a log"):
        trainer.save_checkpoint()
    trainer.log = new_log(tmp_path / "run", trainer.config)
    trainer.train(progress=False)
    other = make_trainer(learning_rate=1e-2)  # made from the trained policy
    other.log = new_log(tmp_path / "run", other.config, resume=True)
    with pytest.raises(CheckpointError, match="another reference"):
        other.resume()
    fewer = make_trainer(learning_rate=1e-2, prompts=["hello"])
    fewer.log = other.log
    with pytest.raises(CheckpointError, match="7 prompts"):
        fewer.resume()


def test_a_log_that_holds_steps_is_not_written_into_by_accident(make_trainer, tmp_path) -> None:
    trainer = make_trainer()
    trainer.log = new_log(tmp_path / "run", trainer.config)
    trainer.step()
    second = make_trainer()
    second.log = new_log(tmp_path / "run", second.config, resume=True)
    with pytest.raises(RunError, match="resume"):
        second.step()
    assert second.resume() == 0  # no checkpoint yet: from the beginning
    second.step()
    assert [row["step"] for row in second.log.rows] == [1]


# ---- numbers that go wrong ---------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_step_and_saves_the_answers(
    make_trainer, tmp_path, policy
) -> None:
    def poisoned(prompts: list[str], completions: list[str]) -> list[float]:
        if trainer.steps_done == 1:
            with torch.no_grad():  # after sampling: the second forward pass meets a NaN
                policy.model.norm.weight[0] = float("nan")
        return [1.0] * len(prompts)

    trainer = make_trainer(reward=poisoned, steps=3)
    trainer.log = new_log(tmp_path / "run", trainer.config)
    trainer.step()
    before = trainer.actor.value_head.weight.clone()
    with pytest.raises(NonFiniteError, match=r"step 2, epoch 1, minibatch 1: .* not finite"):
        trainer.step()
    assert torch.equal(before, trainer.actor.value_head.weight)  # nothing was applied
    assert len(trainer.log.rollouts(2)) == 20
    assert [row["step"] for row in trainer.log.rows] == [1]


def test_when_memory_runs_out_the_micro_batch_halves_and_the_result_is_the_same(
    make_trainer, policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    plain = make_trainer(micro_batch=10).step().stats
    plain_weights = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.load_state_dict(start)
    trainer = make_trainer(micro_batch=10)
    loss = trainer.updater._loss
    seen = []

    def limited(rollouts: Any, rows: torch.Tensor, tokens: int) -> Any:
        seen.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(rollouts, rows, tokens)

    monkeypatch.setattr(trainer.updater, "_loss", limited)
    stats = trainer.step().stats
    assert stats["micro_batch"] == 3
    assert seen[:3] == [10, 5, 3]
    assert stats["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
    for name, value in policy.state_dict().items():
        torch.testing.assert_close(value, plain_weights[name], atol=1e-4, rtol=1e-3)

    def never(rollouts: Any, rows: torch.Tensor, tokens: int) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(trainer.updater, "_loss", never)
    with pytest.raises(CourseError, match="single answer"):
        trainer.step()


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_trainer, monkeypatch) -> None:
    trainer = make_trainer()

    def broken(*args: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer.updater, "_loss", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.step()
    assert trainer.updater.micro_batch == 4
    assert not update._out_of_memory(ValueError("x"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precisions_train_with_fp32_weights(make_trainer, precision) -> None:
    trainer = make_trainer(precision=precision, steps=3)
    before = {name: value.clone() for name, value in trainer.actor.named_parameters()}
    rows = trainer.train(progress=False)
    assert rows[-1]["updates"] > 0
    assert all(p.dtype == torch.float32 for p in trainer.actor.parameters())
    assert any(not torch.equal(before[n], p) for n, p in trainer.actor.named_parameters())
    assert ("loss_scale" in rows[0]) == (precision == "fp16")


def test_fp16_overflows_are_skipped_and_the_scale_falls(make_trainer) -> None:
    trainer = make_trainer(precision="fp16", steps=1)
    trainer.updater.scaler._init_scale = 2.0**120
    row = trainer.step().stats
    assert row["updates"] < 4
    assert row["loss_scale"] < 2.0**120


def test_checkpointed_activations_change_memory_only(make_trainer, policy) -> None:
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    plain = make_trainer().step().stats
    policy.load_state_dict(start)
    saving = make_trainer(checkpoint_activations=True)
    assert comparable([saving.step().stats])[0] == pytest.approx(comparable([plain])[0], rel=1e-4)
    assert not saving.policy.training


def test_the_linear_schedule_falls_to_zero_after_the_last_step(make_trainer) -> None:
    rows = make_trainer(lr_schedule="linear", learning_rate=1e-3, steps=4).train(progress=False)
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_progress_is_shown_with_the_phase(make_trainer, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer().train(progress=True)
    shown = capsys.readouterr().err
    assert "PPO" in shown
    assert "reward=" in shown
    assert "kl=" in shown
