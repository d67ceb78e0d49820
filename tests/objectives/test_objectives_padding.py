"""What stands at masked positions changes nothing: not NaN, not padding on either side.

Every masked function is run on the same answers with garbage, with more padding, with other mask
dtypes, and cut into micro-batches; results and gradients must not move.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from course_utils import objectives as O

Batch = dict[str, torch.Tensor]
TOKEN_NAMES = ("logprobs", "old", "ref", "advantages", "values", "old_values", "returns", "rewards")
GRADIENTS = ("logprobs", "values")
GARBAGE = (math.nan, math.inf, -math.inf, 1e38, -1e38)


def a_batch(rows: int = 5, width: int = 6, seed: int = 3) -> Batch:
    g = torch.Generator().manual_seed(seed)
    batch = {
        name: torch.randn(rows, width, generator=g, dtype=torch.float64) for name in TOKEN_NAMES
    }
    batch["old"] = batch["logprobs"] + 0.4 * batch["old"]  # ratios on both sides of the clip
    batch["ref"] = batch["logprobs"] + 0.4 * batch["ref"]
    lengths = torch.tensor([width, 1, 3, 2, 4])[:rows]
    batch["mask"] = torch.arange(width) < lengths.unsqueeze(1)
    batch["scores"] = torch.randn(rows, generator=g, dtype=torch.float64)
    return batch


def pad(batch: Batch, left: int, right: int) -> Batch:
    """The same answers between `left` and `right` columns of garbage."""
    result = dict(batch)
    for name in TOKEN_NAMES:
        result[name] = torch.nn.functional.pad(batch[name], (left, right), value=math.nan)
    result["mask"] = torch.nn.functional.pad(batch["mask"], (left, right), value=False)
    return result


def with_garbage(batch: Batch, value: float) -> Batch:
    result = dict(batch)
    for name in TOKEN_NAMES:
        result[name] = batch[name].masked_fill(~batch["mask"], value)
    return result


def ppo(b: Batch, **options) -> dict[str, torch.Tensor]:
    loss, stats = O.ppo_policy_loss(b["logprobs"], b["old"], b["advantages"], b["mask"], **options)
    return {"loss": loss, **stats}


def value(b: Batch, **options) -> dict[str, torch.Tensor]:
    loss, stats = O.clipped_value_loss(
        b["values"], b["old_values"], b["returns"], b["mask"], **options
    )
    return {"loss": loss, **stats}


def grpo(b: Batch, **options) -> dict[str, torch.Tensor]:
    loss, stats = O.grpo_loss(
        b["logprobs"], b["old"], b["scores"], b["mask"], b["ref"], beta=0.3, **options
    )
    return {"loss": loss, **stats}


def gae(b: Batch, bootstrap: bool = False) -> dict[str, torch.Tensor]:
    tail = b["scores"] if bootstrap else None
    return O.gae(b["rewards"], b["values"], b["mask"], 0.9, 0.8, tail)._asdict()


def per_token(b: Batch) -> dict[str, torch.Tensor]:
    return {"r": O.per_token_rewards(b["logprobs"], b["ref"], b["scores"], b["mask"], 0.2)}


SCALAR: dict[str, Callable[[Batch], dict[str, torch.Tensor]]] = {
    "masked_sum": lambda b: {"x": O.masked_sum(b["logprobs"], b["mask"])},
    "masked_mean": lambda b: {"x": O.masked_mean(b["logprobs"], b["mask"])},
    "masked_mean_rows": lambda b: {"x": O.masked_mean(b["logprobs"], b["mask"], dim=1)},
    "masked_var": lambda b: {"x": O.masked_var(b["logprobs"], b["mask"])},
    "explained_variance": lambda b: {
        "x": O.explained_variance(b["values"], b["returns"], b["mask"])
    },
    "sequence_sum": lambda b: {"x": O.sequence_logprob(b["logprobs"], b["mask"])},
    "sequence_mean": lambda b: {"x": O.sequence_logprob(b["logprobs"], b["mask"], "mean")},
    "sft_mean": lambda b: {"x": O.sft_loss(b["logprobs"], b["mask"])},
    "sft_sum": lambda b: {"x": O.sft_loss(b["logprobs"], b["mask"], "sum")},
    "ppo": ppo,
    "ppo_dual": lambda b: ppo(b, dual_clip=1.25, clip_high=0.22),
    "value": value,
    "value_unclipped": lambda b: value(b, clip=None),
    "grpo": grpo,
    "grpo_unbiased_kl": lambda b: grpo(b, unbiased_kl=True),
    "bnpo": lambda b: grpo(b, aggregation="bnpo"),
    "dr_grpo": lambda b: grpo(b, aggregation="dr_grpo", max_completion_length=6),
}
PER_TOKEN: dict[str, Callable[[Batch], dict[str, torch.Tensor]]] = {
    "zero_masked": lambda b: {"x": O.zero_masked(b["logprobs"], b["mask"])},
    "whiten": lambda b: {"x": O.masked_whiten(b["logprobs"], b["mask"])},
    "whiten_unshifted": lambda b: {
        "x": O.masked_whiten(b["logprobs"], b["mask"], shift_mean=False)
    },
    "k1": lambda b: {"x": O.kl_estimate(b["logprobs"], b["ref"], "k1", b["mask"])},
    "k2": lambda b: {"x": O.kl_estimate(b["logprobs"], b["ref"], "k2", b["mask"])},
    "k3": lambda b: {"x": O.kl_estimate(b["logprobs"], b["ref"], "k3", b["mask"])},
    "log_ratio": lambda b: {"x": O.log_ratio(b["logprobs"], b["old"], b["mask"])},
    "rewards": per_token,
    "gae": gae,
    "gae_bootstrap": lambda b: gae(b, bootstrap=True),
}
ALL = SCALAR | PER_TOKEN


def run(function, batch: Batch) -> tuple[dict[str, torch.Tensor], Batch]:
    """Results, and the gradient of their sum with respect to what may carry one."""
    batch = dict(batch)
    for name in GRADIENTS:
        batch[name] = batch[name].clone().requires_grad_()
    results = function(batch)
    differentiable = [x.square().sum() for x in results.values() if x.requires_grad]
    if differentiable:
        sum(differentiable).backward()
    zeros = torch.zeros_like
    gradients = {
        n: batch[n].grad if batch[n].grad is not None else zeros(batch[n]) for n in GRADIENTS
    }
    return {name: x.detach() for name, x in results.items()}, gradients


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensor.isfinite().all(), name
        torch.testing.assert_close(got[name], tensor, rtol=1e-12, atol=1e-13, msg=name)


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name", ALL)
def test_garbage_at_masked_positions_reaches_neither_result_nor_gradient(name, garbage):
    clean, clean_gradients = run(ALL[name], a_batch())
    dirty, dirty_gradients = run(ALL[name], with_garbage(a_batch(), garbage))
    assert_same(dirty, clean)
    assert_same(dirty_gradients, clean_gradients)
    for gradient in dirty_gradients.values():
        assert not gradient[~a_batch()["mask"]].any()


@pytest.mark.parametrize("name", ALL)
def test_per_token_results_are_zero_where_masked(name):
    batch = a_batch()
    for tensor in run(ALL[name], batch)[0].values():
        if tensor.shape == batch["mask"].shape:
            assert tensor[batch["mask"]].any()
            assert not tensor[~batch["mask"]].any()


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 2), (2, 5)])
@pytest.mark.parametrize("name", ALL)
def test_padding_on_either_side_changes_nothing(name, left, right):
    batch = a_batch()
    width = batch["mask"].shape[1]
    plain, plain_gradients = run(ALL[name], batch)
    padded, padded_gradients = run(ALL[name], pad(batch, left, right))

    def cut(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        wide = width + left + right
        return {
            n: t[:, left : left + width] if t.dim() == 2 and t.shape[1] == wide else t
            for n, t in tensors.items()
        }

    assert_same(cut(padded), plain)
    assert_same(cut(padded_gradients), plain_gradients)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
@pytest.mark.parametrize("name", ALL)
def test_the_masks_dtype_changes_nothing(name, dtype):
    batch = a_batch()
    assert_same(
        run(ALL[name], batch | {"mask": batch["mask"].to(dtype)})[0], run(ALL[name], batch)[0]
    )


SPLIT: dict[str, tuple[Callable[..., dict[str, torch.Tensor]], Callable[[Batch], float]]] = {
    "sft": (
        lambda b, denominator: {
            "loss": O.sft_loss(b["logprobs"], b["mask"], denominator=denominator)
        },
        lambda b: float(b["mask"].sum()),
    ),
    "ppo": (ppo, lambda b: float(b["mask"].sum())),
    "value": (value, lambda b: float(b["mask"].sum())),
    "grpo": (grpo, lambda b: len(b["mask"])),
    "bnpo": (lambda b, **o: grpo(b, aggregation="bnpo", **o), lambda b: float(b["mask"].sum())),
    "dr_grpo": (
        lambda b, **o: grpo(b, aggregation="dr_grpo", max_completion_length=6, **o),
        lambda b: len(b["mask"]) * 6,
    ),
}


@pytest.mark.parametrize("cuts", [[0, 5], [0, 1, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("name", SPLIT)
def test_micro_batches_with_the_whole_denominator_give_the_whole_gradient(name, cuts):
    function, count = SPLIT[name]
    batch = a_batch()
    whole = (lambda b: function(b, denominator=None)) if name == "sft" else function
    expected, expected_gradients = run_loss(whole, batch)
    total = torch.zeros((), dtype=torch.float64)
    gradients: dict[str, list[torch.Tensor]] = {n: [] for n in GRADIENTS}
    for low, high in itertools.pairwise(cuts):
        part = {name: tensor[low:high] for name, tensor in batch.items()}
        loss, part_gradients = run_loss(lambda b: function(b, denominator=count(batch)), part)
        total = total + loss
        for n in GRADIENTS:
            gradients[n].append(part_gradients[n])
    torch.testing.assert_close(total, expected)
    for n in GRADIENTS:
        torch.testing.assert_close(torch.cat(gradients[n]), expected_gradients[n])


def run_loss(function, batch: Batch) -> tuple[torch.Tensor, Batch]:
    leaves = {n: batch[n].clone().requires_grad_() for n in GRADIENTS}
    loss = function(batch | leaves)["loss"]
    loss.backward()
    return loss.detach(), {
        n: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        for n, leaf in leaves.items()
    }


def test_ppo_statistics_with_the_denominator_add_up_over_micro_batches():
    batch = a_batch()
    whole = ppo(batch)
    tokens = float(batch["mask"].sum())
    parts = [ppo({n: t[i : i + 1] for n, t in batch.items()}, denominator=tokens) for i in range(5)]
    for name in ("loss", "clip_fraction", "approx_kl"):
        torch.testing.assert_close(torch.stack([p[name] for p in parts]).sum(), whole[name])
    assert max(p["ratio_max"] for p in parts) == whole["ratio_max"]
    assert min(p["ratio_min"] for p in parts) == whole["ratio_min"]


def test_an_empty_micro_batch_adds_nothing_and_does_not_fail():
    batch = a_batch() | {"mask": torch.zeros(5, 6, dtype=torch.bool)}
    for function in (ppo, value, grpo):
        loss, gradients = run_loss(lambda b, f=function: f(b, denominator=10.0), batch)
        assert loss == 0
        assert not any(g.any() for g in gradients.values())
    assert ppo(batch, denominator=10)["ratio_max"] == 1


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("masked_sum", "zero_masked")])
def test_unequal_shapes_are_an_error_that_shows_them(name):
    batch = a_batch()
    with pytest.raises(ValueError, match=r"\(5, 6\).*\(5, 4\)"):
        ALL[name](batch | {"mask": batch["mask"][:, :4]})


def test_an_empty_answer_in_the_batch_is_an_error_where_it_has_no_meaning():
    batch = a_batch()
    batch["mask"][2] = False
    for function in (per_token, grpo, SCALAR["sequence_mean"], SCALAR["masked_mean_rows"]):
        with pytest.raises(ValueError, match="2"):
            function(batch)
    assert SCALAR["sequence_sum"](batch)["x"][2] == 0
