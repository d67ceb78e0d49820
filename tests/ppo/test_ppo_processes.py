"""Two processes on one machine (gloo) do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from course_utils.errors import CourseError
from course_utils.training.ppo.processes import Processes

SCRIPT = Path(__file__).with_name("parallel_run.py")


def run(out: Path, processes: int, **options: Any) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Parameters and log rows of the run."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # with --cpu accelerate starts several processes through MPI only, and one without a word
    # if there is no MPI; --multi_gpu starts them itself, and the script keeps them on the CPU
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no"]
    launch += ["--num_machines", "1", "--dynamo_backend", "no", "--num_cpu_threads_per_process=1"]
    launch += ["--num_processes", str(processes), "--main_process_port", "0"]
    command = [sys.executable, *(launch if processes > 1 else []), str(SCRIPT), str(out)]
    done = subprocess.run(
        [*command, json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["processes"] == processes
    return load_file(out), found["rows"]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict]]:
    return run(tmp_path_factory.mktemp("alone") / "out.safetensors", 1)


def close(
    found: tuple[dict[str, torch.Tensor], list[dict]],
    wanted: tuple[dict[str, torch.Tensor], list[dict]],
) -> None:
    """The same run, up to the order of additions.

    Sums in another order differ by about 1e-7 in a gradient; Adam divides it by its own size, so
    that in the first updates even a tiny gradient moves a weight by the whole learning rate (1e-3),
    and its sign may be rounding. Such weights are rare: all of them agree to a hundredth of what
    they moved, and the log to 1e-4.
    """
    assert largest_difference(found[0], wanted[0]) < 1e-5
    for mine, theirs in zip(found[1], wanted[1], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_two_processes_end_with_the_parameters_of_one(tmp_path, alone) -> None:
    two = run(tmp_path / "out.safetensors", 2)
    close(two, alone)
    assert abs(alone[1][1]["kl"]) > 1e-3  # the policy did move


def test_two_processes_with_a_sharded_policy_end_with_the_parameters_of_one(
    tmp_path, alone
) -> None:
    close(run(tmp_path / "out.safetensors", 2, sharded=True), alone)


def test_adapters_drawn_apart_start_alike(tmp_path) -> None:
    one = run(tmp_path / "one" / "out.safetensors", 1, lora=True, steps=1)
    two = run(tmp_path / "two" / "out.safetensors", 2, lora=True, steps=1, other_seeds=True)
    close(two, one)


@pytest.mark.nightly
@pytest.mark.parametrize("sharded", [False, True])
def test_a_run_of_two_processes_resumes(tmp_path, sharded) -> None:
    settings = {"log": True, "judge": True, "sharded": sharded}
    whole = run(tmp_path / "whole" / "out.safetensors", 2, steps=4, **settings)
    first = run(tmp_path / "parts" / "first.safetensors", 2, steps=2, **settings)
    rest = run(tmp_path / "parts" / "rest.safetensors", 2, steps=4, resume=True, **settings)
    assert [row["step"] for row in first[1] + rest[1]] == [1, 2, 3, 4]
    close((rest[0], first[1] + rest[1]), whole)


@pytest.mark.nightly
def test_two_processes_recompute_in_bf16_what_they_will_train_on(tmp_path) -> None:
    rows = run(tmp_path / "out.safetensors", 2, precision="bf16", epochs=1, minibatches=1)[1]
    assert rows[0]["ratio_max"] == rows[0]["ratio_min"] == 1.0
    assert rows[0]["kl"] == 0.0


def test_rows_that_cannot_be_shared_out_are_refused() -> None:
    processes = Processes()
    processes.check(97, 5)  # alone anything goes
    processes.size = 2
    processes.check(96, 4)
    with pytest.raises(CourseError, match=r"97 .* 2 processes .* multiple of 4"):
        processes.check(97, 2)


def test_one_process_has_nothing_to_share_out(make_trainer) -> None:
    with pytest.raises(CourseError, match="accelerate launch"):
        make_trainer(sharded=True)
    with pytest.raises(CourseError, match="fp16"):
        make_trainer(sharded=True, precision="fp16")
