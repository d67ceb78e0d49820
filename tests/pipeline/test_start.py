"""Where lessons start: models trained once, kept, and the same whoever trained them."""

import random
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from course_utils.errors import CourseError
from course_utils.lab import Lab
from course_utils.pipeline.stages import Pipeline
from course_utils.tiers import choose_tier

FAST = {"COURSE_FAST": "1"}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(choose_tier("tiny", environ=FAST), seed=1)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that were really trained, in order."""
    done: list[str] = []
    train_one = Pipeline.train_one

    def counted(self: Pipeline, key: str) -> None:
        done.append(key)
        train_one(self, key)

    monkeypatch.setattr(Pipeline, "train_one", counted)
    return done


def weights(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_model_is_trained_once_and_every_copy_is_fresh(lab: Lab, trainings: list[str]) -> None:
    first = lab.sft()
    with torch.no_grad():
        next(first.parameters()).zero_()
    second = lab.sft()
    assert trainings == ["sft"]
    assert not torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(second), weights(lab.base()))
    assert torch.equal(weights(second), weights(Lab(lab.choice, lab.seed).sft()))
    assert len(lab.log("sft").rows) == lab.tier.sft.steps
    assert trainings == ["sft"]


def test_each_model_brings_what_it_stands_on(lab: Lab, trainings: list[str]) -> None:
    train, held = lab.pairs()
    assert set(train.column_names) == {"prompt", "chosen", "rejected"}
    assert len(train) > 0
    assert len(held) > 0
    reward = lab.reward_model()
    assert len(reward(["how much is 2 + 3?"], ["5."])) == 1
    assert lab.trained("dpo").num_parameters() == lab.base().num_parameters()
    assert lab.trained("ppo").num_parameters() == lab.base().num_parameters()
    assert next(row["step"] for row in lab.held_out("ppo")) == 0
    assert lab.held_out("ppo")[-1]["step"] == lab.tier.ppo.iterations
    assert lab.cost("ppo")["generated_tokens"] > 0
    assert lab.cost("dpo")["cpu_seconds"] > 0
    assert trainings == ["sft", "pairs", "reward", "dpo", "ppo"]
    assert [row["prompt"] for row in lab.pairs()[0]] == [row["prompt"] for row in train]


def test_the_same_as_course_run_trains(lab: Lab, tmp_path: Path) -> None:
    from course_utils.pipeline.job import Job

    job = Job(
        out=tmp_path / "run",
        choice=lab.choice,
        seed=lab.seed,
        stages=("sft",),
        files={},
        fast=True,
        quiet=True,
        resume=False,
        started="",
    )
    pipeline = Pipeline(job)
    pipeline.run()
    assert torch.equal(weights(pipeline.models["sft"]), weights(lab.sft()))


def test_training_leaves_the_generators_as_they_were(lab: Lab) -> None:
    def draw() -> tuple[float, float, float]:
        numbers = numpy.random.random()  # noqa: NPY002
        return random.random(), float(numbers), float(torch.rand(()))

    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)  # noqa: NPY002
    expected = draw()
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)  # noqa: NPY002
    lab.sft()
    assert draw() == expected


def test_an_interrupted_training_goes_on_and_a_second_notebook_waits(
    lab: Lab, trainings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import course_utils.training.sft as module

    train = module.train_sft

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_sft", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.sft()
    monkeypatch.setattr(module, "train_sft", train)
    trainings.clear()
    found: list[Path] = []
    threads = [  # they only make it: transformers cannot load two models in two threads
        threading.Thread(target=lambda: found.append(Lab(lab.choice, 1)._start._made("sft")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert trainings == ["sft"]
    assert not torch.equal(weights(lab.sft()), weights(lab.base()))


def test_a_model_in_the_making_stops_only_those_who_want_the_same(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    with lab._start._only_one("ppo"):
        lab.reward_model()
    ready = threading.Event()

    def hold() -> None:
        with lab._start._only_one("dpo"):
            ready.set()
            while "waiting" not in "".join(said):
                said.append(capsys.readouterr().out)

    said: list[str] = []
    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait()
    lab.trained("dpo")
    thread.join()
    assert "another notebook is making the DPO model" in "".join(said)


def test_what_it_depends_on_has_a_directory_of_its_own(lab: Lab) -> None:
    usual = Lab(choose_tier("tiny", environ={}), seed=1)
    other = Lab(lab.choice, seed=2)
    places = {one._start.directory for one in (lab, usual, other)}
    assert len(places) == 3


def test_names_that_are_no_policy(lab: Lab) -> None:
    with pytest.raises(CourseError, match=r"lab\.reward_model\(\)"):
        lab.trained("reward")
    with pytest.raises(CourseError, match="choose from sft"):
        lab.trained("ppp")
