"""LoRA against PEFT with copied weights, and LoRA's own promises: merging, scaling, refusals."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils.adapters import (
    LoRALinear,
    adapter_state,
    apply_lora,
    load_adapter_state,
    lora_layers,
    lora_parameters,
    lora_scaling,
    merge_and_remove_lora,
    merge_lora,
    remove_lora,
    trainable_report,
    unmerge_lora,
)
from course_utils.errors import CourseError

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "mlp.c_proj"],
    "opt": ["q_proj", "v_proj", "fc2"],
}


def peft_twin(model: Any, targets: list[str], rslora: bool, dropout: float = 0.0) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=targets,
        use_rslora=rslora,
        lora_dropout=dropout,
        fan_in_fan_out=type(model).__name__.startswith("GPT2"),
    )
    return get_peft_model(copy.deepcopy(model), config)


def copy_into_peft(ours: Any, theirs: Any) -> None:
    modules = dict(theirs.get_base_model().named_modules())
    with torch.no_grad():
        for name, layer in lora_layers(ours).items():
            modules[name].lora_A["default"].weight.copy_(layer.A)
            modules[name].lora_B["default"].weight.copy_(layer.B)


@pytest.mark.parametrize("rslora", [False, True])
def test_equals_peft_forward_gradients_and_merged(
    model: Any, text: Any, tools: Any, rslora: bool
) -> None:
    targets = TARGETS[model.config.model_type]
    theirs = peft_twin(model, targets, rslora)
    ours = tools.randomize(apply_lora(model, 3, 5, targets=targets, rslora=rslora))
    copy_into_peft(ours, theirs)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0] * 4 + [1] * 3])
    out, expected = (m(text, attention_mask=mask, labels=text) for m in (ours, theirs))
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.loss, expected.loss)
    got, wanted = tools.gradients(ours, out.loss), tools.gradients(theirs, expected.loss)
    assert len(got) == len(wanted) == 2 * 2 * len(targets)
    for name, grad in got.items():
        module, letter = name.rsplit(".", 1)
        other = wanted[f"base_model.model.{module}.lora_{letter}.default.weight"]
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-7)
    merged, reference = merge_and_remove_lora(ours), theirs.merge_and_unload()
    values = dict(merged.named_parameters())
    for name, value in reference.named_parameters():
        torch.testing.assert_close(values[name], value, rtol=1e-6, atol=1e-7)


def test_equals_peft_with_dropout(model: Any, text: Any, tools: Any) -> None:
    """The same random numbers drop the same inputs: dropout is on the input, before A."""
    targets = TARGETS[model.config.model_type]
    theirs = peft_twin(model, targets, False, dropout=0.4)
    ours = tools.randomize(apply_lora(model, 3, 5, targets=targets, dropout=0.4))
    copy_into_peft(ours, theirs)
    logits = []
    for one in (ours, theirs):
        torch.manual_seed(3)
        logits.append(one.train()(text).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-6)
    assert not torch.equal(logits[0], ours(text).logits)
    torch.testing.assert_close(ours.eval()(text).logits, theirs.eval()(text).logits)


def test_the_start() -> None:
    """B is zero; A is uniform within ±1/√k as Kaiming's rule with a = √5 gives (and PEFT)."""
    layer = LoRALinear(nn.Linear(400, 300), rank=64)
    assert not layer.B.any()
    assert layer.A.abs().max() <= 1 / math.sqrt(400)
    torch.testing.assert_close(layer.A.std().item(), 1 / math.sqrt(3 * 400), rtol=0.02, atol=0)


@pytest.mark.parametrize("base", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), Conv1D(4, 6)])
def test_one_layer_by_hand(base: nn.Module) -> None:
    """y = W x + b + (α/r)·B(A x), written out with plain sums; delta is (d, k) either way."""
    layer = LoRALinear(base, rank=2, alpha=3.0)
    with torch.no_grad():
        layer.B.normal_()
    x = torch.randn(6)
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight  # (d, k)
    bias = torch.zeros(4) if base.bias is None else base.bias
    by_hand = torch.zeros(4)
    for i in range(4):
        by_hand[i] = bias[i]
        for j in range(6):
            change = sum(layer.B[i, r] * layer.A[r, j] for r in range(2))
            by_hand[i] += (weight[i, j] + 3.0 / 2 * change) * x[j]
    torch.testing.assert_close(layer(x), by_hand)
    assert layer.delta().shape == (4, 6)
    torch.testing.assert_close(x @ (weight + layer.delta()).T + bias, by_hand)


def test_scaling_and_counts() -> None:
    assert lora_scaling(8, 16) == 2.0
    assert lora_scaling(16, 16, rslora=True) == 4.0
    layer = LoRALinear(nn.Linear(48, 32), rank=8)
    assert lora_parameters(32, 48, 8) == layer.A.numel() + layer.B.numel() == 640


def test_merged_equals_unmerged_and_unmerge_restores(model: Any, text: Any, tools: Any) -> None:
    tools.randomize(apply_lora(model, rank=3))
    before, apart = tools.snapshot(model), model(text).logits
    assert merge_lora(model) is model
    assert all(layer.merged for layer in lora_layers(model).values())
    assert (model(text).logits - apart).abs().max() <= 1e-5
    with pytest.raises(CourseError, match="merged already"):
        merge_lora(model)
    with pytest.raises(CourseError, match="unmerge_lora"):
        load_adapter_state(model, adapter_state(model))
    unmerge_lora(model)
    tools.assert_restored(model, before)
    assert torch.equal(model(text).logits, apart)
    with pytest.raises(CourseError, match="not merged"):
        unmerge_lora(model)


def test_merging_in_half_precision_rounds_once(model: Any, tools: Any) -> None:
    """The sum is formed in float32; only the stored weight is bfloat16. Unmerging is exact."""
    tools.randomize(apply_lora(model.bfloat16(), rank=3))
    before = tools.snapshot(model)
    layers = lora_layers(model)
    wanted = {}
    for name, layer in layers.items():
        delta = layer.delta().T if isinstance(layer.base, Conv1D) else layer.delta()
        assert delta.dtype == torch.float32
        wanted[name] = (layer.base.weight.float() + delta).bfloat16()
    merge_lora(model)
    for name, layer in layers.items():
        assert torch.equal(layer.base.weight, wanted[name])
    tools.assert_restored(unmerge_lora(model), before)


def test_remove_while_merged_restores_bitwise(model: Any, tools: Any) -> None:
    before = tools.snapshot(model)
    tools.randomize(apply_lora(model, rank=3))
    remove_lora(merge_lora(model))
    tools.assert_restored(model, before)


def test_merged_then_saved_loads_as_a_plain_model(
    model: Any, text: Any, tools: Any, tmp_path: Any
) -> None:
    tools.randomize(apply_lora(model, rank=3))
    apart = model(text).logits
    plain = merge_and_remove_lora(model)
    assert not lora_layers(plain)
    assert all(p.requires_grad for p in plain.parameters())
    plain.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded(text).logits, plain(text).logits)
    torch.testing.assert_close(loaded(text).logits, apart, rtol=1e-5, atol=1e-5)


def test_merging_a_merged_model_for_good_does_not_add_twice(
    model: Any, text: Any, tools: Any
) -> None:
    tools.randomize(apply_lora(model, rank=3))
    merged = merge_lora(model)(text).logits
    assert torch.equal(merge_and_remove_lora(model)(text).logits, merged)


def test_a_half_merged_model_is_refused(model: Any) -> None:
    apply_lora(model, rank=2)
    next(iter(lora_layers(model).values())).merge()
    with pytest.raises(CourseError, match="merged already"):
        merge_and_remove_lora(model)


def test_a_change_that_is_not_finite_is_not_merged(model: Any, tools: Any) -> None:
    apply_lora(model, rank=2)
    with torch.no_grad():
        list(lora_layers(model).values())[-1].B[0, 0] = float("inf")
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(CourseError, match="nan or inf"):
        merge_lora(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_tied_weights_are_adapted_but_not_merged(text: Any, tools: Any) -> None:
    """GPT-2's head is its embedding matrix: merging into it would change the input side too."""
    model = tools.build("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    tools.randomize(apply_lora(model, rank=2, targets=["lm_head"]))
    assert model(text).logits.shape[-1] == 61
    with pytest.raises(CourseError, match=r"shares its weight with .*wte"):
        merge_lora(model)


def test_a_quantized_base_is_trained_but_not_merged(text: Any) -> None:
    """Any layer with in_features and out_features will do; its packed weight has no use here."""

    class Packed(nn.Module):
        in_features, out_features, bias = 6, 4, None

        def __init__(self) -> None:
            super().__init__()
            codes = torch.randint(0, 255, (12, 1), dtype=torch.uint8)  # two weights to a byte
            self.weight = nn.Parameter(codes, requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.weight.flatten().repeat(2).float() / 255).view(4, 6).T

    model = nn.Sequential(nn.Linear(6, 6), Packed())
    apply_lora(model, rank=2, targets=["1"])
    layer = model[1]
    assert (layer.A.shape, layer.B.shape, layer.A.dtype) == ((2, 6), (4, 2), torch.float32)
    model(torch.randn(3, 6)).sum().backward()
    assert layer.B.grad.any()
    assert trainable_report(model).parameters == 42 + 24 + 2 * (6 + 4)
    with pytest.raises(CourseError, match="dequantize"):
        layer.merge()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["q_porj"]}, r"no module named 'q_porj'. Did you mean q_proj.* down_proj"),
        ({"targets": ["q_proj", "nothing_like_it"]}, "no module named 'nothing_like_it'"),
        ({"targets": ["embed_tokens"]}, "Embedding, not a linear map; choose from q_proj"),
        ({"targets": "q_proj"}, r"must be a list, .* use \['q_proj'\]"),
        ({"targets": []}, "is empty"),
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 2.0}, "whole number"),
        ({"rank": True}, "whole number"),
        ({"rank": 9, "targets": ["k_proj"]}, r"rank 9 is more than min\(d, k\) = 8 of .*k_proj"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"alpha": float("nan")}, "alpha must be above 0"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_bad_settings_change_nothing(tools: Any, settings: dict[str, Any], message: str) -> None:
    model = tools.build("llama")
    before = tools.snapshot(model)
    with pytest.raises(CourseError, match=message):
        apply_lora(model, **settings)
    tools.assert_restored(model, before)


def test_names_mean_what_they_say(tools: Any) -> None:
    model = tools.build("gpt2")
    assert set(lora_layers(apply_lora(model, 2, targets=["mlp.c_proj"]))) == {
        "transformer.h.0.mlp.c_proj",
        "transformer.h.1.mlp.c_proj",
    }
    remove_lora(model)
    assert len(lora_layers(apply_lora(model, 2, targets=["c_proj"]))) == 4
    remove_lora(model)
    one = "transformer.h.1.attn.c_attn"
    assert set(lora_layers(apply_lora(model, 2, targets=[one]))) == {one}
    remove_lora(model)
    assert len(lora_layers(apply_lora(model, 2))) == 8  # all but the head


def test_another_scaling_is_another_adapter(tools: Any) -> None:
    model = tools.build("llama")
    state = adapter_state(apply_lora(model, 4, 16))
    apply_lora(remove_lora(model), 4, 32)
    with pytest.raises(CourseError, match="scaling = 4, the model's adapter has 8"):
        load_adapter_state(model, state)
    apply_lora(remove_lora(model), 2, 8)
    with pytest.raises(CourseError, match=r"is \(2, 16\) here and \(4, 16\)"):
        load_adapter_state(model, state)


def test_a_layer_in_eval_mode_stays_in_eval_mode() -> None:
    layer = LoRALinear(nn.Linear(4, 4).eval(), rank=2, dropout=0.5)
    assert not layer.dropout.training
    with pytest.raises(CourseError, match="not a linear map"):
        LoRALinear(nn.LayerNorm(4), rank=2)
