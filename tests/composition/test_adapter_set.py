"""Swapping, weighing, merging: against weights written out by hand, and back bit for bit."""

import copy
import math
from typing import Any

import pytest
import torch

from course_utils.composition import Adapter, AdapterSet
from course_utils.errors import CourseError


@torch.no_grad()
def logits(model: Any, text: torch.Tensor) -> torch.Tensor:
    return model(text).logits


@pytest.fixture(params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tools: Any) -> Any:
    return tools.build(request.param)


@pytest.fixture
def two(base: Any, tools: Any) -> tuple[Any, Any]:
    """Two adapters of different rank and α; the second scaled the rsLoRA way."""
    return tools.adapter(base, 1), tools.adapter(base, 2, r=2, lora_alpha=5, use_rslora=True)


@pytest.fixture
def adapters(base: Any, two: Any) -> AdapterSet:
    made = AdapterSet(copy.deepcopy(base))
    made.add("one", two[0])
    made.add("two", two[1])
    return made


WEIGHTS = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.7, -0.6), (-1.0, 2.5)]


@pytest.mark.parametrize("pair", WEIGHTS)
def test_weights_add_up_the_updates(
    adapters: AdapterSet, base: Any, two: Any, text: torch.Tensor, tools: Any, pair: Any
) -> None:
    def change(module: str) -> torch.Tensor:
        return sum(w * tools.update(one, module) for w, one in zip(pair, two, strict=True))

    expected = logits(tools.plain_with(base, change), text)
    adapters.set_weights(dict(zip(("one", "two"), pair, strict=True)))
    found = logits(adapters.model, text)
    assert not torch.allclose(found, logits(base, text), atol=1e-2)
    assert torch.allclose(found, expected, atol=2e-4, rtol=1e-5)
    assert adapters.weights == {"one": pair[0], "two": pair[1]}


def test_zero_weights_and_none_give_the_base_bit_for_bit(
    adapters: AdapterSet, base: Any, text: torch.Tensor
) -> None:
    expected = logits(base, text)
    assert torch.equal(logits(adapters.model, text), expected)  # adding alone changes nothing
    for switch_off in ({"one": 0.0, "two": -0.0}, {}):
        adapters.set_weights({"one": 0.3, "two": 1.0})
        adapters.set_weights(switch_off)
        assert torch.equal(logits(adapters.model, text), expected)
    adapters.set("one")
    adapters.set(None)
    assert torch.equal(logits(adapters.model, text), expected)
    with adapters.model.disable_adapter():
        assert torch.equal(logits(adapters.model, text), expected)


def test_hot_swap_is_peft_with_that_adapter_alone(base: Any, two: Any, text: torch.Tensor) -> None:
    from peft import get_peft_model

    made = AdapterSet(copy.deepcopy(base))
    for name, one in zip(("one", "two"), two, strict=True):
        made.add(name, one)
    for name, one in zip(("two", "one"), (two[1], two[0]), strict=True):
        alone = get_peft_model(copy.deepcopy(base), copy.deepcopy(one.config)).eval()
        state = {key.replace(".weight", ".default.weight"): t for key, t in one.weights.items()}
        assert not alone.load_state_dict(state, strict=False).unexpected_keys
        made.set(name)
        assert torch.equal(logits(made.model, text), logits(alone, text))


def test_a_slider_moved_and_put_back_is_exact(adapters: AdapterSet, text: torch.Tensor) -> None:
    adapters.set_weights({"one": 1.0, "two": 1.0})
    before = logits(adapters.model, text)
    for weight in (0.1, -3.0, 0.0, 7.0):
        adapters.set_weights({"one": weight, "two": 1 / 3})
    adapters.set_weights({"one": 1.0, "two": 1.0})
    assert torch.equal(logits(adapters.model, text), before)


@pytest.mark.parametrize("pair", WEIGHTS[2:])
def test_merge_is_exact_and_unmerge_bit_for_bit(
    adapters: AdapterSet, text: torch.Tensor, pair: Any
) -> None:
    adapters.set_weights(dict(zip(("one", "two"), pair, strict=True)))
    before = logits(adapters.model, text)
    weights = {n: p.clone() for n, p in adapters.model.named_parameters()}
    adapters.merge()
    merged = logits(adapters.model, text)
    assert not torch.equal(merged, before)  # rounding: it did go another way
    scale = float(before.abs().max())
    assert (merged - before).abs().max() <= 1e-5 * scale
    with pytest.raises(CourseError, match="merged into the weights"):
        adapters.set("one")
    adapters.unmerge()
    assert torch.equal(logits(adapters.model, text), before)
    for name, parameter in adapters.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    with pytest.raises(CourseError, match="not merged"):
        adapters.unmerge()


def test_the_error_of_merging_is_rounding_and_nothing_else(text: torch.Tensor, tools: Any) -> None:
    base = tools.build("gpt2")  # Llama's norm computes in float32 whatever the weights are
    adapters = AdapterSet(base)
    for name, seed in (("one", 1), ("two", 2)):
        adapters.add(name, tools.adapter(tools.build("gpt2"), seed))
    adapters.model.double()
    adapters.set_weights({"one": 1.7, "two": -0.6})
    before = logits(adapters.model, text)
    adapters.merge()
    assert 0 < (logits(adapters.model, text) - before).abs().max() <= 1e-13 * before.abs().max()


def test_merged_copy_is_a_plain_model(
    adapters: AdapterSet, base: Any, text: torch.Tensor, tmp_path: Any
) -> None:
    adapters.set_weights({"one": 0.8, "two": -0.4})
    before = logits(adapters.model, text)
    for merged in (False, True):
        if merged:
            adapters.merge()
        plain = adapters.merged_copy()
        assert type(plain) is type(base)
        assert not any("lora" in name for name, _ in plain.named_modules())
        assert (logits(plain, text) - before).abs().max() <= 1e-5 * before.abs().max()
        plain.save_pretrained(tmp_path / str(merged))
        again = type(base).from_pretrained(tmp_path / str(merged)).eval()
        assert torch.allclose(logits(again, text), logits(plain, text), atol=1e-5)
    adapters.unmerge()
    assert torch.equal(logits(adapters.model, text), before)  # the set itself is as it was
    adapters.set(None)
    assert torch.equal(logits(adapters.merged_copy(), text), logits(base, text))


def test_delete_and_remove(adapters: AdapterSet, base: Any, two: Any, text: torch.Tensor) -> None:
    adapters.set_weights({"one": 0.5, "two": 2.0})
    adapters.delete("one")
    assert adapters.names == ("two",)
    assert adapters.weights == {"two": 2.0}
    alone = AdapterSet(copy.deepcopy(base))
    alone.add("only", two[1])
    alone.set_weights({"only": 2.0})
    assert torch.equal(logits(adapters.model, text), logits(alone.model, text))
    adapters.add("one", two[0])
    adapters.merge()
    plain = adapters.remove()
    assert adapters.names == ()
    assert not hasattr(plain, "peft_config")
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in base.named_parameters()]
    for (name, found), expected in zip(plain.named_parameters(), base.parameters(), strict=True):
        assert torch.equal(found, expected), name
        assert found.requires_grad == expected.requires_grad
    assert torch.equal(logits(plain, text), logits(base, text))
    adapters.add("again", two[0])  # and it can start over
    adapters.set("again")
    assert not torch.equal(logits(adapters.model, text), logits(base, text))


def test_a_trained_peft_model_becomes_a_set(base: Any, two: Any, text: torch.Tensor) -> None:
    from peft import get_peft_model

    model = get_peft_model(copy.deepcopy(base), copy.deepcopy(two[0].config))
    state = {key.replace(".weight", ".default.weight"): t for key, t in two[0].weights.items()}
    model.load_state_dict(state, strict=False)
    model.eval()
    before = logits(model, text)
    adapters = AdapterSet(model)
    assert adapters.weights == {"default": 1.0}
    assert torch.equal(logits(adapters.model, text), before)
    assert not any(p.requires_grad for p in adapters.model.parameters())
    adapters.add("two", two[1])  # the same base, seen through the LoRA layers
    assert torch.equal(logits(adapters.model, text), before)


def test_adapters_on_different_modules(base: Any, text: torch.Tensor, tools: Any) -> None:
    names = (
        (["c_attn"], ["mlp.c_fc"])
        if base.config.model_type == "gpt2"
        else (["q_proj"], ["up_proj", "o_proj"])
    )
    parts = [tools.adapter(base, n, target_modules=t) for n, t in enumerate(names)]
    adapters = AdapterSet(copy.deepcopy(base))
    for name, part in zip(("a", "b"), parts, strict=True):
        adapters.add(name, part)
        assert torch.equal(logits(adapters.model, text), logits(base, text))
    adapters.set_weights({"a": 1.0, "b": 1.0})
    expected = tools.plain_with(base, lambda m: sum(tools.update(part, m) for part in parts))
    assert torch.allclose(logits(adapters.model, text), logits(expected, text), atol=2e-4)
    adapters.combine("both", {"a": 1.0, "b": 1.0})
    adapters.set("both")
    assert torch.allclose(logits(adapters.model, text), logits(expected, text), atol=2e-4)


# ---- files -------------------------------------------------------------------------------------


def test_saved_adapters_come_back_and_peft_reads_them(
    base: Any, two: Any, text: torch.Tensor, tmp_path: Any
) -> None:
    from peft import PeftModel

    two[1].save(tmp_path / "two")
    adapters = AdapterSet(copy.deepcopy(base))
    adapters.add("two", tmp_path / "two")
    adapters.set("two")
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "two")).eval()
    assert torch.equal(logits(adapters.model, text), logits(theirs, text))
    taken = adapters.take("two")
    assert taken.base == two[1].base
    assert all(torch.equal(t, two[1].weights[key]) for key, t in taken.weights.items())
    theirs.save_pretrained(tmp_path / "peft")  # PEFT's own file says nothing of the base
    adapters = AdapterSet(copy.deepcopy(base))
    with pytest.raises(CourseError, match="any_base=True"):
        adapters.add("x", tmp_path / "peft")
    adapters.add("x", tmp_path / "peft", any_base=True)
    adapters.set("x")
    assert torch.equal(logits(adapters.model, text), logits(theirs, text))


def test_broken_files(two: Any, base: Any, tmp_path: Any) -> None:
    adapters = AdapterSet(base)
    with pytest.raises(CourseError, match=r"adapter_model\.safetensors missing"):
        adapters.add("x", tmp_path)
    folder = two[0].save(tmp_path / "one")
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(CourseError, match="cannot be read"):
        adapters.add("x", folder)


# ---- what is refused ---------------------------------------------------------------------------


def test_another_base_is_refused(tools: Any, text: torch.Tensor) -> None:
    base, other = tools.build(seed=0), tools.build(seed=1)
    foreign = tools.adapter(other, 1)
    adapters = AdapterSet(base)
    with pytest.raises(CourseError, match=r"another base.*float32, fingerprint"):
        adapters.add("x", foreign)
    half = tools.build(seed=0).bfloat16()
    with pytest.raises(CourseError, match="bfloat16"):
        adapters.add("x", tools.adapter(half, 1))
    before = logits(base, text)
    adapters.add("x", foreign, any_base=True)
    assert torch.equal(logits(adapters.model, text), before)
    wide = tools.adapter(tools.build(hidden_size=32), 1)
    with pytest.raises(CourseError, match="another size"):
        adapters.add("y", wide, any_base=True)
    assert adapters.names == ("x",)
    gpt2 = tools.adapter(tools.build("gpt2"), 1)
    with pytest.raises(CourseError, match="cannot be put on this model"):
        adapters.add("y", gpt2, any_base=True)
    assert adapters.names == ("x",)
    fresh = AdapterSet(tools.build(seed=0))
    for bad in (gpt2, wide):
        with pytest.raises(CourseError):
            fresh.add("y", bad, any_base=True)
        assert fresh.names == ()
        assert not hasattr(fresh.model, "peft_config")
        assert torch.equal(logits(fresh.model, text), before)
    fresh.add("x", tools.adapter(tools.build(seed=0), 1))  # and it still works


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 1e9, "1", None, True])
def test_weights_that_are_not_numbers(
    adapters: AdapterSet, text: torch.Tensor, weight: Any
) -> None:
    adapters.set("one")
    before = logits(adapters.model, text)
    with pytest.raises(CourseError, match="weight of two"):
        adapters.set_weights({"one": 0.5, "two": weight})
    with pytest.raises(CourseError, match="weight of two"):
        adapters.combine("x", {"one": 0.5, "two": weight})
    assert torch.equal(logits(adapters.model, text), before)
    assert adapters.names == ("one", "two")


def test_names(adapters: AdapterSet, two: Any) -> None:
    with pytest.raises(CourseError, match="did you mean one"):
        adapters.set("onne")
    for use in (adapters.delete, adapters.take, adapters.rank):
        with pytest.raises(CourseError, match="there are one, two"):
            use("zzz")
    with pytest.raises(CourseError, match="there is an adapter 'one' already"):
        adapters.add("one", two[0])
    for bad in ("a.b", "", "a b", 3, "keys", "train"):
        with pytest.raises(CourseError, match="name"):
            adapters.add(bad, two[0])  # type: ignore[arg-type]
    rows = [line.split() for line in str(adapters).splitlines()[1:]]
    assert [(row[0], row[1], row[3]) for row in rows] == [("one", "4", "0"), ("two", "2", "0")]


def test_adapters_that_are_more_than_lora(tools: Any) -> None:
    base = tools.build()
    with pytest.raises(CourseError, match="use_dora"):
        AdapterSet(base).add("x", tools.adapter(base, 1, use_dora=True))
    plain = tools.adapter(base, 1)
    bad = {key: torch.full_like(t, math.nan) for key, t in plain.weights.items()}
    with pytest.raises(CourseError, match="nan or inf"):
        AdapterSet(base).add("x", Adapter(plain.config, bad, plain.base))
    plain.config.r = 0
    with pytest.raises(CourseError, match="rank of x must be a whole number of at least 1"):
        AdapterSet(base).add("x", plain)


def test_models_that_cannot_be_a_set(tools: Any) -> None:
    from peft import PromptTuningConfig, get_peft_model

    from course_utils.adapters import apply_bitfit

    with pytest.raises(CourseError, match="take it off"):
        AdapterSet(apply_bitfit(tools.build("gpt2")))
    prompt = get_peft_model(tools.build(), PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(CourseError, match="only LoRA"):
        AdapterSet(prompt)


def test_merging_into_shared_weights_is_refused(tools: Any) -> None:
    tied = tools.build(tie_word_embeddings=True)
    adapters = AdapterSet(tied)
    adapters.add("x", tools.adapter(tied, 1, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(CourseError, match="nothing to merge"):
        adapters.merge()
    adapters.set("x")
    with pytest.raises(CourseError, match="shares its weight"):
        adapters.merge()
    with pytest.raises(CourseError, match="shares its weight"):
        adapters.merged_copy()
    assert not adapters.merged
