"""The calculator against what really is in memory: autograd's saved tensors, the CPU allocator."""

import contextlib
import dataclasses
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from course_utils.memory import ModelShape, Recipe, block, estimate
from course_utils.memory.cases import GPT2, LLAMA, OPT, QUICK, QWEN3, Case
from course_utils.memory.measure import LiveTensorMemory, allocator_peak
from course_utils.memory.practice import blocks, build, measure
from course_utils.models import unwrapped

ROOT = Path(__file__).parents[2]
BATCH, SEQ = 3, 40
TINY = {
    shape.name: dataclasses.replace(
        shape, vocabulary=331, hidden=64, layers=2, heads=4, head_dim=16, ffn=176, context=128
    )
    for shape in (
        dataclasses.replace(LLAMA, kv_heads=2),
        dataclasses.replace(QWEN3, kv_heads=2),
        dataclasses.replace(GPT2, kv_heads=4, positions=128),
        dataclasses.replace(OPT, kv_heads=4, positions=130),
    )
}


def saved_bytes(shape: ModelShape, recipe: Recipe) -> int:
    """Bytes that the second block's forward pass leaves with autograd, its weights' not counted."""
    model = build(shape, recipe)
    storages: dict[int, Any] = {}
    inside = [False]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        rows = tensor.shape[0] if tensor.dim() else 0
        if inside[0] and rows in (BATCH, BATCH * SEQ, BATCH * shape.heads):  # else: weights, cos
            storages[tensor.untyped_storage()._cdata] = tensor.detach()
        return tensor

    layer = blocks(model)[1]
    layer.register_forward_pre_hook(lambda *_: inside.__setitem__(0, True))
    layer.register_forward_hook(lambda *_: inside.__setitem__(0, False))
    casting = torch.autocast("cpu", torch.bfloat16)
    ids = torch.randint(2, shape.vocabulary, (BATCH, SEQ))
    with (
        contextlib.nullcontext() if recipe.autocast == "none" else casting,
        saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        unwrapped(model).base_model(input_ids=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "changes",
    [
        {"autocast": "none"},
        {},
        {"weights": "bf16"},
        {"method": "lora", "weights": "bf16"},
        {"method": "lora", "weights": "bf16", "autocast": "none"},
        {"method": "lora", "targets": ("out_proj", "attn.c_proj", "o_proj"), "rank": 4},
        {"method": "qlora", "weights": "bf16", "adapters": "bf16"},
    ],
    ids=str,
)
def test_a_block_keeps_what_autograd_keeps(
    name: str, attention: str, changes: dict[str, Any]
) -> None:
    shape = TINY[name]
    if "targets" in changes:
        known = {linear.name for linear in shape.linears}
        changes = {**changes, "targets": tuple(t for t in changes["targets"] if t in known)}
    recipe = Recipe("test", attention=attention, **changes)
    found = block(shape, recipe, BATCH, SEQ, device="cpu")
    assert found.saved == pytest.approx(saved_bytes(shape, recipe), rel=0.006)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.label)
def test_within_five_percent_of_the_measured_peak(case: Case) -> None:
    where = (case.seq, case.batch, case.completion)
    measured = measure(case.shape, case.recipe, *where)
    found = estimate(case.shape, case.recipe, *where, device="cpu")
    assert found.peak == pytest.approx(measured, rel=0.05)


def test_live_tensors_are_counted_once_and_let_go() -> None:
    start = torch.zeros(1000)
    with LiveTensorMemory(start) as memory:
        more = start + 1
        view = more.view(10, 100)
        assert memory.live == 8000
        del more
        assert memory.live == 8000  # the view holds it
        del view
        assert memory.live == 4000
        parameter = torch.ones(100, requires_grad=True)
        loss = parameter.exp().exp().sum()  # autograd keeps both results
        assert memory.live == 4000 + 3 * 400 + 4
        loss.backward()
        assert memory.live == 4000 + 2 * 400 + 4  # the parameter, its gradient, the loss
    assert memory.peak >= 4000 + 4 * 400


def test_the_allocators_account_agrees_with_it() -> None:
    start = torch.zeros(1000, 10)

    def step() -> None:
        first = start.exp()  # 40 kB
        second = torch.cat([first, first])  # 80 kB more, at the peak
        del first
        second.sum()

    with LiveTensorMemory(start) as memory:
        step()
    assert memory.peak == allocator_peak(step, 40_000) == 160_000


def test_gpu_script_says_that_there_is_no_gpu_and_can_be_tried_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "benchmarks" / "gpu" / "memory.py")
    run = runpy.run_path(script)["main"]
    monkeypatch.setattr(sys, "argv", [script, "--dry-run"])
    assert run() == 0
    assert "2 of 2 recipes measured" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", [script])
    assert run() == 2
    assert "no CUDA GPU here" in capsys.readouterr().err
    assert len(runpy.run_path(script)["recipes"]()) >= 12
