"""Combining: each method against a slow loop or a closed form, the rank rules, and PEFT's traps."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from course_utils.composition import METHODS, AdapterSet, resulting_rank
from course_utils.errors import CourseError

MODULE = "model.layers.1.mlp.down_proj"
WEIGHTS = {"one": 1.3, "two": -0.7}
EQUAL = [name for name, method in METHODS.items() if method.equal_ranks]
FREE = [name for name, method in METHODS.items() if not method.equal_ranks]


@pytest.fixture(scope="module")
def base() -> Any:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=61,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    return hf.LlamaForCausalLM(config).eval()


@pytest.fixture
def parts(base: Any, tools: Any) -> dict[str, Any]:
    return {name: tools.adapter(base, seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture
def adapters(base: Any, parts: dict[str, Any]) -> AdapterSet:
    made = AdapterSet(copy.deepcopy(base))
    for name, part in parts.items():
        made.add(name, part)
    return made


def factors(part: Any, module: str = MODULE) -> tuple[Tensor, Tensor]:
    key = f"base_model.model.{module}.lora_"
    return part.weights[f"{key}A.weight"], part.weights[f"{key}B.weight"]


def elect_and_average(tensors: list[Tensor], weights: list[float], keep: int) -> Tensor:
    """TIES, number by number: trim to the largest, elect the sign, average those that have it."""
    trimmed = []
    for tensor in tensors:
        bar = tensor.abs().flatten().sort(descending=True).values[keep - 1]
        trimmed.append(torch.where(tensor.abs() >= bar, tensor, torch.zeros(())))
    out = torch.zeros_like(tensors[0])
    for place in range(out.numel()):
        values = [float(t.flatten()[place]) for t in trimmed]
        elected = 1 if sum(values) >= 0 else -1
        kept = [
            w * v
            for w, v in zip(weights, values, strict=True)
            if v != 0 and (v > 0) == (elected > 0)
        ]
        out.view(-1)[place] = sum(kept) / max(len(kept), 1)
    return out


def test_cat_is_the_sum_of_the_updates(
    adapters: AdapterSet, parts: dict[str, Any], tools: Any
) -> None:
    assert adapters.combine("x", WEIGHTS, "cat") == 8
    made = adapters.take("x")
    expected = sum(w * tools.update(parts[name], MODULE) for name, w in WEIGHTS.items())
    assert torch.allclose(tools.update(made, MODULE), expected, atol=1e-6)
    assert factors(made)[0].shape == (8, 24)


@pytest.mark.parametrize("rank", [None, 8, 2])
def test_svd_is_the_best_cut_of_the_sum(
    adapters: AdapterSet, parts: dict[str, Any], tools: Any, rank: int | None
) -> None:
    found = adapters.combine("x", WEIGHTS, "svd", rank=rank)
    assert found == (4 if rank is None else rank)
    total = sum(w * tools.update(parts[name], MODULE) for name, w in WEIGHTS.items())
    left = total - tools.update(adapters.take("x"), MODULE)
    singular = torch.linalg.svdvals(total)
    assert math.isclose(float(left.norm()), float(singular[found:].norm()), abs_tol=1e-5)


def test_linear_has_cross_terms(adapters: AdapterSet, parts: dict[str, Any], tools: Any) -> None:
    weights = {"one": 0.5, "two": 0.7}
    assert adapters.combine("x", weights, "linear") == 4
    a = b = torch.zeros(())
    for name, w in weights.items():
        config = parts[name].config
        root = math.sqrt(w * config.lora_alpha / config.r)
        a, b = a + root * factors(parts[name])[0], b + root * factors(parts[name])[1]
    found = tools.update(adapters.take("x"), MODULE)
    assert torch.allclose(found, b @ a, atol=1e-5)
    exact = sum(w * tools.update(parts[name], MODULE) for name, w in weights.items())
    assert (found - exact).norm() > 0.3 * exact.norm()


def test_ties_by_the_slow_loop(adapters: AdapterSet, parts: dict[str, Any], tools: Any) -> None:
    weights = {"one": 0.5, "two": 1.2}
    adapters.combine("x", weights, "ties", density=0.3)
    adapters.combine("y", weights, "ties_svd", density=0.3, rank=16)
    for which in (0, 1):
        tensors = [factors(part)[which] for part in parts.values()]
        roots = [
            math.sqrt(w * p.config.lora_alpha / p.config.r)
            for w, p in zip(weights.values(), parts.values(), strict=True)
        ]
        expected = elect_and_average(tensors, roots, int(0.3 * tensors[0].numel()))
        assert torch.allclose(factors(adapters.take("x"))[which], expected, atol=1e-5)
    updates = [tools.update(part, MODULE) for part in parts.values()]
    expected = elect_and_average(updates, [*weights.values()], int(0.3 * updates[0].numel()))
    assert torch.allclose(tools.update(adapters.take("y"), MODULE), expected, atol=1e-4)


def test_dare_drops_at_random_and_rescales(
    adapters: AdapterSet, parts: dict[str, Any], tools: Any
) -> None:
    state = torch.get_rng_state()
    for name, seed in (("x", 1), ("same", 1), ("other", 2)):
        adapters.combine(
            name, {"one": 1.0, "two": 0.0}, "dare_linear_svd", density=0.4, rank=16, seed=seed
        )
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers go on
    found, same, other = (
        tools.update(adapters.take(name), MODULE) for name in ("x", "same", "other")
    )
    assert torch.equal(found, same)
    assert not torch.allclose(found, other, atol=1e-2)
    whole = tools.update(parts["one"], MODULE)
    kept = found.abs() > 1e-4 * whole.abs().max()
    assert 0.25 < kept.float().mean() < 0.55
    assert torch.allclose(found[kept], whole[kept] / 0.4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_rank_it_promises(
    adapters: AdapterSet, parts: dict[str, Any], tools: Any, method: str
) -> None:
    rank = adapters.combine("x", {"one": 0.6, "two": 0.4}, method)
    assert (
        rank
        == adapters.rank("x")
        == {"the same": 4, "the sum": 8, "the largest": 4}[METHODS[method].rank]
    )
    assert len(factors(adapters.take("x"))[0]) == rank
    adapters.combine("nothing", {"one": 0.0, "two": 0.0}, method)
    assert tools.update(adapters.take("nothing"), MODULE).abs().max() == 0
    adapters.combine("scaled", {"one": -2.0}, method)
    twice = -2 * tools.update(parts["one"], MODULE)
    assert torch.allclose(tools.update(adapters.take("scaled"), MODULE), twice, atol=1e-5)


@pytest.mark.parametrize("method", FREE)
def test_different_ranks_are_fine_for_some(base: Any, tools: Any, method: str) -> None:
    made = AdapterSet(copy.deepcopy(base))
    for name, rank in (("a", 2), ("b", 5)):
        made.add(name, tools.adapter(base, rank, r=rank))
    expected = 7 if METHODS[method].rank == "the sum" else 5
    assert made.combine("x", {"a": 1.0, "b": 1.0}, method) == expected


@pytest.mark.parametrize("method", EQUAL)
def test_different_ranks_are_refused_by_others(base: Any, tools: Any, method: str) -> None:
    made = AdapterSet(copy.deepcopy(base))
    for name, rank in (("a", 2), ("b", 5)):
        made.add(name, tools.adapter(base, rank, r=rank))
    said = rf"{method} adds A to A.*a has 2, b has 5.*their sum, 7.*svd.*the largest, 5"
    with pytest.raises(CourseError, match=said):
        made.combine("x", {"a": 1.0, "b": 1.0}, method)
    assert made.names == ("a", "b")
    pattern = tools.adapter(base, 1, rank_pattern={"q_proj": 3})
    made.add("c", pattern)
    made.add("d", pattern)
    with pytest.raises(CourseError, match="rank_pattern"):
        made.combine("x", {"c": 1.0, "d": 1.0}, method)


def test_combining_while_a_slider_is_moved(
    adapters: AdapterSet, parts: dict[str, Any], tools: Any
) -> None:
    """PEFT multiplies by the factor it finds in the layer, which the slider has changed."""
    adapters.set_weights({"one": 0.3, "two": -5.0})
    adapters.combine("x", WEIGHTS, "cat")
    assert adapters.weights == {"one": 0.3, "two": -5.0, "x": 0.0}
    expected = sum(w * tools.update(parts[name], MODULE) for name, w in WEIGHTS.items())
    assert torch.allclose(tools.update(adapters.take("x"), MODULE), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["cat", "svd", "linear"])
def test_rslora_adapters_are_not_scaled_twice(base: Any, tools: Any, method: str) -> None:
    """PEFT gives the result the first adapter's use_rslora, and with it a factor √R too much."""
    text = torch.arange(3, 15).view(2, 6)
    part = tools.adapter(base, 1, use_rslora=True)
    made = AdapterSet(copy.deepcopy(base))
    made.add("one", part)
    made.add("two", part)
    made.set_weights({"one": 1.0})
    expected = made.model(text).logits
    made.combine("x", {"one": 0.25, "two": 0.75} if method != "linear" else {"one": 1.0}, method)
    made.set("x")
    assert torch.allclose(made.model(text).logits, expected, atol=1e-4)
    again = AdapterSet(copy.deepcopy(base))
    again.add("x", made.take("x"))
    again.set("x")
    assert torch.allclose(again.model(text).logits, expected, atol=1e-4)


def test_what_is_refused(adapters: AdapterSet) -> None:
    pair = {"one": 1.0, "two": 1.0}
    cases: list[tuple[dict[str, float], dict[str, Any], str]] = [
        ({}, {}, "no adapters to combine"),
        ({"one": 1.0, "tow": 1.0}, {}, "did you mean two"),
        (pair, {"method": "tis"}, r"unknown method 'tis' \(did you mean .*ties"),
        (pair, {"method": "svd", "rank": 0}, "rank must be a whole number of at least 1, got 0"),
        (pair, {"method": "svd", "rank": 17}, r"rank 17 is more than min\(d, k\) = 16"),
        (pair, {"method": "cat", "rank": 4}, "with cat the result has the sum"),
        (pair, {"method": "linear", "rank": 4}, "with linear the result has the same"),
        ({"one": 1.0}, {"method": "svd", "rank": 2}, "keeps its rank"),
        (pair, {"method": "cat", "density": 0.5}, "cat keeps all numbers"),
        (pair, {"method": "ties", "density": 0.0}, r"in \(0, 1\], got 0.0"),
        (pair, {"method": "ties", "density": math.nan}, "got nan"),
        (pair, {"method": "ties", "density": 1.5}, "got 1.5"),
        ({"one": math.nan, "two": 1.0}, {}, "weight of one is nan"),
    ]
    for weights, options, said in cases:
        with pytest.raises(CourseError, match=said):
            adapters.combine("x", weights, **options)
        assert adapters.names == ("one", "two")
    with pytest.raises(CourseError, match="already"):
        adapters.combine("one", pair)  # PEFT would do nothing and not say so


def test_a_combination_that_fails_leaves_nothing_behind(
    adapters: AdapterSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("linalg.svd: did not converge")

    adapters.set("one")
    monkeypatch.setattr(torch.linalg, "svd", broken)
    with pytest.raises(CourseError, match="did not converge"):
        adapters.combine("x", {"one": 1.0, "two": 1.0}, "svd")
    assert adapters.names == ("one", "two")
    assert adapters.weights == {"one": 1.0, "two": 0.0}
    names = [name for name, _ in adapters.model.named_parameters()]
    assert not any(".x." in name for name in names)


def test_rank_rules_alone() -> None:
    assert resulting_rank("cat", {"a": 2, "b": 3}) == 5
    assert resulting_rank("svd", {"a": 2, "b": 3}) == 3
    assert resulting_rank("dare_ties_svd", {"a": 2, "b": 3}, rank=1) == 1
    assert resulting_rank("ties", {"a": 4, "b": 4}) == 4
