"""The lessons on tier small: the models and data come from a Hub, here one on this machine.

The repositories have the real ids and schemas; the "models" are copies of the world's small one. So
every cell runs that a GPU would run, with a few steps, and the gold reward is not known.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from course_utils import world
from course_utils.tiers import TIERS

from . import repos
from .server import Hub

ROOT = Path(__file__).parents[2]
SMALL = TIERS["small"]
JUDGE = "HuggingFaceTB/SmolLM2-360M-Instruct"  # lesson 09 asks it for its opinion
LESSONS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a machine whose Hub is on this one."""
    hub, folder = Hub(), tmp_path_factory.mktemp("lessons")
    hub.add("tatsu-lab/alpaca", repos.alpaca())
    hub.add("Anthropic/hh-rlhf", repos.hh(120))
    for part in (world.load_base_model(), world.load_tokenizer()):
        part.save_pretrained(folder / "model")
    files = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    for id in {SMALL.policy, SMALL.lora_policy, SMALL.qlora_policy, SMALL.reward_model, JUDGE}:
        hub.add(id, files, kind="models")
    kept = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    yield {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "COURSE_TIER": "small",
        "COURSE_FAST": "1",
        "COURSE_RUNS": str(folder / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    hub.close()


@pytest.mark.nightly
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_runs_where_the_truth_is_not_known(
    environment: dict[str, str], tmp_path: Path, lesson: str
) -> None:
    copy = tmp_path / f"{lesson}.ipynb"
    copy.write_bytes((ROOT / "notebooks" / copy.name).read_bytes())
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=900", "-q"]
    command += ["-o", "timeout=1000", "-p", "no:cacheprovider", str(copy)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
