"""Training state comes back bit for bit, from safetensors and JSON alone."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from course_utils.errors import CheckpointError
from course_utils.training.checkpoint import (
    load_training_state,
    random_state,
    restore_random_state,
    save_training_state,
)


class Tied(nn.Module):
    """Tied embeddings, a transposed and a sliced parameter view, an int buffer, a bf16 one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.turned = nn.Parameter(torch.randn(3, 5, generator=g).t())
        self.low = nn.Parameter(torch.randn(4, generator=g).bfloat16())
        self.register_buffer("count", torch.tensor(3))
        whole = torch.randn(10, generator=g)
        self.register_buffer("left", whole[:5])
        self.register_buffer("right", whole[3:])
        with torch.no_grad():
            self.embed.weight.copy_(torch.randn(7, 4, generator=g))

    def forward(self, ids):
        return self.head(self.embed(ids)).sum() + (self.turned**2).sum() + self.low.float().sum()


def make(seed):
    model = Tied(seed)
    groups = [
        {"params": [model.embed.weight], "lr": 3e-3},
        {"params": [model.turned, model.low], "weight_decay": 0.01},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return model, optimizer, scheduler


def train(model, optimizer, scheduler, generators, steps):
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 7, (5,), generator=generators["torch"])
        noise = torch.randn(()) + random.random() + np.random.rand()  # noqa: NPY002
        noise = noise + generators["numpy"].normal() + generators["python"].random()
        loss = model(ids) * (1 + 0.1 * noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def make_generators(seed):
    return {
        "torch": torch.Generator().manual_seed(seed),
        "numpy": np.random.default_rng(seed),
        "python": random.Random(seed),
    }


def test_training_goes_on_bit_for_bit(tmp_path):
    torch.manual_seed(1)
    model, optimizer, scheduler = make(0)
    generators = make_generators(5)
    train(model, optimizer, scheduler, generators, 3)
    extra = {
        "step": 3,
        "beta": 0.1 + 0.2,
        "pair": (1, [2.5, None]),
        4: "int key",
        "t": torch.ones(2),
    }
    optimizers = {"adam": optimizer, "schedule": scheduler}
    save_training_state(tmp_path, {"policy": model}, optimizers, extra, generators)
    expected = train(model, optimizer, scheduler, generators, 4)

    assert not [p.name for p in tmp_path.iterdir() if p.suffix not in (".safetensors", ".json")]
    other, other_optimizer, other_scheduler = make(99)
    other_generators = make_generators(77)
    torch.manual_seed(2)
    random.seed(2)
    back = load_training_state(
        tmp_path,
        {"policy": other},
        {"adam": other_optimizer, "schedule": other_scheduler},
        other_generators,
    )
    assert torch.equal(back.pop("t"), extra.pop("t"))
    assert back == extra
    assert isinstance(back["pair"], tuple)
    assert train(other, other_optimizer, other_scheduler, other_generators, 4) == expected
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.head.weight is other.embed.weight
    state, other_state = optimizer.state_dict(), other_optimizer.state_dict()
    assert state["param_groups"] == other_state["param_groups"]
    for index, values in state["state"].items():
        for key, value in values.items():
            assert torch.equal(value, other_state["state"][index][key])
            assert value.dtype == other_state["state"][index][key].dtype


def test_mersenne_twister_generator_and_fresh_optimizer(tmp_path):
    model, optimizer, _ = make(0)  # no step taken: the optimizer has no state yet
    twister = np.random.Generator(np.random.MT19937(3))
    save_training_state(tmp_path, {"m": model}, {"o": optimizer}, None, {"g": twister})
    expected = twister.random(5)
    other = np.random.Generator(np.random.MT19937(4))
    assert load_training_state(tmp_path, {"m": model}, {"o": optimizer}, {"g": other}) is None
    assert np.array_equal(other.random(5), expected)


def test_only_some_parts_can_be_loaded(tmp_path):
    model, optimizer, _ = make(0)
    save_training_state(tmp_path, {"policy": model}, {"o": optimizer}, {"step": 1})
    other = Tied(1)
    assert load_training_state(tmp_path, {"policy": other}) == {"step": 1}
    assert torch.equal(other.turned, model.turned)
    with pytest.raises(CheckpointError, match=r"no module \['value'\], only \['policy'\]"):
        load_training_state(tmp_path, {"value": other})


def test_another_model_is_refused_before_anything_changes(tmp_path):
    save_training_state(tmp_path, {"policy": nn.Linear(3, 2)})
    for other in (nn.Linear(3, 2, bias=False), nn.Linear(4, 2), nn.Linear(3, 2).double()):
        before = other.weight.clone()
        with pytest.raises(CheckpointError, match="model that the run was started with"):
            load_training_state(tmp_path, {"policy": other})
        assert torch.equal(other.weight, before)


@pytest.mark.parametrize("name", ["policy.safetensors", "random.safetensors", "state.json"])
def test_missing_and_cut_files_are_named(tmp_path, name):
    save_training_state(tmp_path, {"policy": nn.Linear(3, 2)})
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=name):
        load_training_state(tmp_path, {"policy": nn.Linear(3, 2)})
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_training_state(tmp_path, {"policy": nn.Linear(3, 2)})


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"extra\.a\.1: object"):
        save_training_state(tmp_path, {}, extra={"a": [1, object()]})


def test_random_state_round_trip():
    state = random_state()
    first = (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist())  # noqa: NPY002
    restore_random_state(state)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()) == first  # noqa: NPY002
