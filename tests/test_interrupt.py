"""Interrupting a training cell in a real kernel: the notebook stays usable, the cell runs again."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jupyter_client")

PREPARE = """
import os
os.environ["COURSE_FAST"] = "1"
from dataclasses import asdict, replace
import torch
from course_utils import Lab, PPOTrainer, RunLog, train_dpo, train_reward_model, train_sft
lab = Lab.open(tier="tiny")
pairs = lab.preferences({"a": lab.base(), "b": lab.base()}, 24)
LONG = 100_000


def log(name):
    return RunLog.create(lab.run_directory(name), {}, lab.seed, overwrite=True)


def steps(n):
    return {"steps": n, "batch_size": 4}
"""
TRAIN = {
    "sft": """
model = lab.base()
run = log("sft")
train_sft(model, lab.tokenizer, lab.demonstrations(), replace(lab.settings.sft, **steps(N)), run)
""",
    "reward": """
model = lab.base()
run = log("reward")
train_reward_model(model, lab.tokenizer, pairs, replace(lab.settings.reward, **steps(N)), run)
""",
    "dpo": """
model = lab.base()
run = log("dpo")
train_dpo(model, lab.tokenizer, pairs, replace(lab.settings.dpo, **steps(N)), run)
""",
    "ppo": """
model = lab.base()
run = log("ppo")
settings = replace(lab.settings.ppo, steps=N, rollouts_per_step=8, micro_batch=8)
reward = lambda prompts, answers: [float(len(answer)) for answer in answers]
trainer = PPOTrainer(model, reward, lab.tokenizer, lab.prompts(n=8), settings, log=run)
for step in trainer:
    pass
""",
}
AFTER = """
assert torch.is_grad_enabled()
assert not torch.are_deterministic_algorithms_enabled()
answer = lab.generate(model, ["how much is 2 + 3?"])
assert isinstance(answer[0], str)
"""


class Kernel:
    """One kernel for all tests of this file; `run` returns None or the error's name and text."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(
            kernel_name="python3", cwd=str(folder), startup_timeout=120
        )

    def send(self, code: str) -> str:
        # by default a failing cell aborts what is sent soon after it
        return str(self.client.execute(code, stop_on_error=False))

    def wait(self, sent: str) -> tuple[str, str] | None:
        while True:
            reply: dict[str, Any] = self.client.get_shell_msg(timeout=200)
            if reply["parent_header"].get("msg_id") == sent:
                break
        content = reply["content"]
        return None if content["status"] == "ok" else (content["ename"], content["evalue"])

    def run(self, code: str) -> tuple[str, str] | None:
        return self.wait(self.send(code))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def kernel(folder: Path) -> Iterator[Kernel]:
    made = Kernel(folder)
    assert made.run(PREPARE) is None
    yield made
    made.client.stop_channels()
    made.manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("name", TRAIN)
def test_an_interrupted_training_cell_can_be_run_again(
    kernel: Kernel, folder: Path, name: str
) -> None:
    sent = kernel.send(TRAIN[name].replace("N)", "LONG)").replace("N,", "LONG,"))
    rows = folder / "runs" / name / "log.jsonl"
    deadline = time.monotonic() + 150
    while not (rows.exists() and rows.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel.manager.interrupt_kernel()
    error = kernel.wait(sent)
    assert error is not None
    assert error[0] == "KeyboardInterrupt"
    assert kernel.run(AFTER) is None, "generation with what the interrupted cell left"
    again = TRAIN[name].replace("N)", "2)").replace("N,", "2,")
    assert kernel.run(again) is None
    assert kernel.run("assert len(run.rows) == 2\n" + AFTER) is None
