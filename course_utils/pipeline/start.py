"""Where lessons start from: the models of `course run`, each trained once here and then kept.

Lesson 04 needs a reward model, lesson 10 all of them, and each lesson can be opened first. So the
first one that asks for a model trains it as `course run` would; later it is read from the disk.
"""

import dataclasses
import hashlib
import io
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import course_utils
from course_utils.errors import CourseError
from course_utils.files import waiting_lock
from course_utils.pipeline.job import STAGES, Job
from course_utils.training.jsonl import JsonLines
from course_utils.training.run import RunLog

if TYPE_CHECKING:
    from datasets import Dataset

    from course_utils.lab import Lab
    from course_utils.training.reward_model import RewardModel

MODELS = ("sft", "reward", "ppo", "ppo_low_beta", "dpo")
_NEEDS: dict[str, tuple[str, ...]] = {
    "sft": (),
    "pairs": ("sft",),
    "reward": ("pairs",),
    "ppo": ("reward",),
    "ppo_low_beta": ("reward",),
    "dpo": ("pairs",),
}
_NAMES = {
    "sft": "SFT model",
    "reward": "reward model",
    "ppo": "PPO model",
    "ppo_low_beta": "PPO model that is pushed too far",
    "dpo": "DPO model",
    "pairs": "preference pairs",
}


class Start:
    """The trained models of a lab's tier and seed, in a directory of their own under runs/start."""

    def __init__(self, lab: "Lab") -> None:
        self.lab = lab
        self.directory = lab.run_directory("start") / f"{lab.tier.name}-{lab.seed}-{_digest(lab)}"

    def policy(self, key: str) -> Any:
        """A fresh copy of the policy "sft", "ppo", "ppo_low_beta" or "dpo".

        Raises: CourseError for another name; TierError where the tier's data cannot be loaded.
        """
        from course_utils.models import load_policy
        from course_utils.training.trl_common import quiet_libraries

        directory = self._made(key)
        with quiet_libraries(progress=False):
            return load_policy(str(directory), device=self.lab.device)[0]

    def reward(self) -> "RewardModel":
        """The reward model: trained on `pairs`, normalised on the SFT model's answers."""
        from course_utils.training.reward_model import RewardModel
        from course_utils.training.trl_common import quiet_libraries

        directory = self._made("reward")
        with quiet_libraries(progress=False):
            return RewardModel.load(directory, device=self.lab.device)

    def pairs(self) -> "tuple[Dataset, Dataset]":
        """(train, held-out) preference pairs: reward model and DPO learn them, and are measured."""
        from course_utils.pipeline.inputs import Inputs

        if not self._there("pairs"):
            self._train("pairs")
        return Inputs(self._job(), self.lab).preferences({})

    def log(self, key: str) -> RunLog:
        """What the training of a model left behind, step by step."""
        self._made(key)
        return RunLog.open(self.directory / key)

    def held_out(self, key: str) -> list[dict[str, Any]]:
        """What "ppo" or "ppo_low_beta" was worth on held-out prompts along its training: rows of
        step, kl (nats per answer, to SFT), proxy, gold, interval (of gold), prompt, text."""
        self._made(key)
        return JsonLines(self.directory / key / "heldout.jsonl").read()

    def cost(self, key: str) -> dict[str, Any]:
        """What the training of a model took: seconds, cpu_seconds, generated_tokens,
        trained_tokens, flops; of that stage alone."""
        self._made(key)
        return json.loads((self.directory / key / "done.json").read_text(encoding="utf-8"))

    def _made(self, key: str) -> Path:
        """The directory of a model's weights; trains it first where it is missing."""
        if key not in MODELS:
            raise CourseError(f'there is no trained model "{key}"; choose from {", ".join(MODELS)}')
        if not self._there(key):
            self._train(key)
        return self.directory / "models" / key

    def _there(self, key: str) -> bool:
        if key == "pairs":
            from course_utils.pipeline.inputs import Inputs

            return Inputs(self._job(), self.lab).has_pairs
        return (self.directory / key / "done.json").exists()

    def _train(self, key: str) -> None:
        """Trains a model when what it stands on is there; two notebooks never train the same."""
        from course_utils.pipeline.stages import Pipeline
        from course_utils.training.trl_common import quiet_libraries

        for needed in _NEEDS[key]:
            if not self._there(needed):
                self._train(needed)
        with self._only_one(key):
            if self._there(key):
                return
            before = time.perf_counter()
            print(f"making the {_NAMES[key]} of tier {self.lab.tier.name}, once …", flush=True)
            quiet = quiet_libraries(progress=False), redirect_stdout(io.StringIO())
            with _same_randomness(), quiet[0], quiet[1]:
                Pipeline(self._job(), self.lab).train_one(key)
            took = time.perf_counter() - before
            print(f"… {took:.0f} s; kept for all lessons in {self.directory}")

    @contextmanager
    def _only_one(self, key: str) -> Iterator[None]:
        """Waits while another notebook makes the same model, and says so."""
        self.directory.mkdir(parents=True, exist_ok=True)
        waiting = f"another notebook is making the {_NAMES[key]}: waiting for it …"
        with waiting_lock(self.directory / f".{key}.lock", waiting):
            yield

    def _job(self) -> Job:
        return Job(
            out=self.directory,
            choice=self.lab.choice,
            seed=self.lab.seed,
            stages=STAGES,
            files={},
            fast=self.lab.tier.is_fast,
            quiet=True,
            resume=True,
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        )


def _digest(lab: "Lab") -> str:
    """Changes with everything that the models depend on: tier, precision and version."""
    parts = [dataclasses.asdict(lab.tier), lab.choice.precision, course_utils.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Leaves all generators as they were: a notebook must not depend on who trained the model."""
    import numpy
    import torch

    states = random.getstate(), numpy.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])  # noqa: NPY002
