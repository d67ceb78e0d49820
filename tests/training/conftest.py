"""Fixtures for the trainers' tests."""

import gc
import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy():
    """tests/training/toy.py as a module."""
    path = Path(__file__).with_name("toy.py")
    spec = importlib.util.spec_from_file_location("training_toy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _frozen_imports():
    """accelerate collects garbage before each training: let it skip what the imports made."""
    from trl import DPOTrainer, RewardTrainer, SFTTrainer  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _quick_collections(request):
    if request.path.name not in ("test_run.py", "test_checkpoint.py"):  # these need no trl
        request.getfixturevalue("_frozen_imports")


@pytest.fixture
def one_thread():
    """Bit for bit comparisons need the same number of threads on both sides."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
