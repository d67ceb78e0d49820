"""Houlsby adapters against the paper's equations in plain tensor operations, forward and gradients.

The references compute a whole GPT-2 and a whole Llama from their weights, head by head and
position by position, with no module of Transformers or of ours; they read weights by name.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from course_utils.adapters import (
    AdaptedOutput,
    Bottleneck,
    adapter_state,
    applied,
    apply_houlsby,
    houlsby_parameters,
    trainable_report,
)
from course_utils.errors import CourseError

GPT2_SITES = ("attn.c_proj", "mlp.c_proj")
LLAMA_SITES = ("self_attn.o_proj", "mlp.down_proj")


class Weights:
    """The model's parameters by name, adapters' among them; `base.` is left out of names."""

    def __init__(self, model: Any, prefix: str) -> None:
        self.values = {name.replace(".base.", "."): p for name, p in model.named_parameters()}
        self.prefix = prefix

    def __call__(self, name: str) -> Tensor:
        return self.values[self.prefix + name]

    def adapter(self, site: str, h: Tensor) -> Tensor:
        """h + W_up gelu(W_down h + b_down) + b_up, row by row (Houlsby et al., section 2)."""
        rows = []
        for row in h:
            inner = self(site + ".adapter.down.weight") @ row + self(site + ".adapter.down.bias")
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
            outer = self(site + ".adapter.up.weight") @ inner + self(site + ".adapter.up.bias")
            rows.append(row + outer)
        return torch.stack(rows)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One head, (T, d_h) each: every query sees the keys up to its own position."""
    rows = []
    for t in range(len(query)):
        scores = key[: t + 1] @ query[t] / math.sqrt(query.shape[1])
        rows.append(torch.softmax(scores, dim=0) @ value[: t + 1])
    return torch.stack(rows)


def gpt2_logits(model: Any, ids: Tensor) -> Tensor:
    """(T,) -> (T, V)."""
    w = Weights(model, "transformer.")
    config = model.config

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / (x.pow(2).mean(dim=-1, keepdim=True) + config.layer_norm_epsilon).sqrt()
        return x * w(name + ".weight") + w(name + ".bias")

    def linear(name: str, x: Tensor) -> Tensor:  # Conv1D: weight (k, d)
        return x @ w(name + ".weight") + w(name + ".bias")

    h = w("wte.weight")[ids] + w("wpe.weight")[: len(ids)]  # (T, D)
    for i in range(config.num_hidden_layers):
        at = f"h.{i}."
        query, key, value = linear(at + "attn.c_attn", norm(at + "ln_1", h)).chunk(3, dim=1)
        width = h.shape[1] // config.num_attention_heads
        parts = zip(query.split(width, 1), key.split(width, 1), value.split(width, 1), strict=True)
        out = linear(at + "attn.c_proj", torch.cat([attend(*part) for part in parts], dim=1))
        h = h + w.adapter(at + "attn.c_proj", out)
        inner = linear(at + "mlp.c_fc", norm(at + "ln_2", h))
        bend = torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3))
        out = linear(at + "mlp.c_proj", 0.5 * inner * (1 + bend))
        h = h + w.adapter(at + "mlp.c_proj", out)
    return norm("ln_f", h) @ w("wte.weight").T


def llama_logits(model: Any, ids: Tensor) -> Tensor:
    """(T,) -> (T, V), with two key-value heads shared by four query heads."""
    w = Weights(model, "model.")
    config = model.config
    width = config.hidden_size // config.num_attention_heads

    def norm(name: str, x: Tensor) -> Tensor:
        scale = (x.pow(2).mean(dim=-1, keepdim=True) + config.rms_norm_eps).sqrt()
        return x / scale * w(name + ".weight")

    def rotate(x: Tensor) -> Tensor:  # (T, d_h): features j and j + d_h/2 turn together
        half = width // 2
        turned = []
        for t, row in enumerate(x):
            angle = t * 10000.0 ** (-torch.arange(half) / half)
            cos, sin = angle.cos(), angle.sin()
            first, second = row[:half], row[half:]
            turned.append(torch.cat([first * cos - second * sin, second * cos + first * sin]))
        return torch.stack(turned)

    h = w("embed_tokens.weight")[ids]
    for i in range(config.num_hidden_layers):
        at = f"layers.{i}."
        x = norm(at + "input_layernorm", h)
        query, key, value = (x @ w(f"{at}self_attn.{n}_proj.weight").T for n in "qkv")
        heads = []
        for number, q in enumerate(query.split(width, 1)):
            kv = number * config.num_key_value_heads // config.num_attention_heads
            k, v = key.split(width, 1)[kv], value.split(width, 1)[kv]
            heads.append(attend(rotate(q), rotate(k), v))
        out = torch.cat(heads, dim=1) @ w(at + "self_attn.o_proj.weight").T
        h = h + w.adapter(at + "self_attn.o_proj", out)
        x = norm(at + "post_attention_layernorm", h)
        gate, up = (x @ w(f"{at}mlp.{n}_proj.weight").T for n in ("gate", "up"))
        out = gate * torch.sigmoid(gate) * up @ w(at + "mlp.down_proj.weight").T
        h = h + w.adapter(at + "mlp.down_proj", out)
    return norm("norm", h) @ model.lm_head.weight.T


@pytest.mark.parametrize("train_norms", [False, True])
@pytest.mark.parametrize(("family", "reference"), [("gpt2", gpt2_logits), ("llama", llama_logits)])
def test_equals_the_papers_equations(
    tools: Any, text: Tensor, family: str, reference: Any, train_norms: bool
) -> None:
    model = tools.build(family)
    tools.randomize(apply_houlsby(model, 5, train_norms=train_norms))
    logits = model(text).logits
    wanted = torch.stack([reference(model, row) for row in text])
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
    weights = torch.randn(logits.shape)
    got = tools.gradients(model, (weights * logits).sum())
    expected = tools.gradients(model, (weights * wanted).sum())
    assert set(got) == set(expected) == set(applied(model).names)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)


def test_two_adapters_a_layer_in_the_right_places(model: Any) -> None:
    sites = {
        "llama": LLAMA_SITES,
        "qwen2": LLAMA_SITES,
        "gpt2": GPT2_SITES,
        "opt": ("self_attn.out_proj", "fc2"),
    }[model.config.model_type]
    apply_houlsby(model, 5)
    found = [n for n, m in model.named_modules() if isinstance(m, AdaptedOutput)]
    assert [name.split(".", 3 if "decoder" not in name else 4)[-1] for name in found] == [
        *sites
    ] * 2
    report = trainable_report(model)
    assert report.trainable == 4 * houlsby_parameters(16, 5) == 4 * (2 * 16 * 5 + 16 + 5)


def test_the_start() -> None:
    """Exactly the identity by default; with the paper's 0.01 nearly so, cut off at 2 std."""
    h = torch.randn(50, 64)
    assert torch.equal(Bottleneck(64, 8)(h), h)
    paper = Bottleneck(64, 32, std=0.01)
    for layer in (paper.down, paper.up):
        assert layer.weight.abs().max() <= 0.02
        assert 0.008 < layer.weight.std() < 0.01  # cutting off takes 12% of the spread
        assert not layer.bias.any()
    assert 0 < (paper(h) - h).abs().max() < 0.02
    torch.nn.init.ones_(paper.up.bias)
    assert not torch.equal(paper(h), h)


def test_a_fresh_adapter_can_learn(tools: Any, text: Tensor) -> None:
    """`up` is zero but `down` is not: the first gradient of `up` is not zero."""
    model = apply_houlsby(tools.build("gpt2"), 5)
    grads = tools.gradients(model, model(text, labels=text).loss)
    assert all(grad.any() for name, grad in grads.items() if ".up." in name)


def test_another_nonlinearity(tools: Any, text: Tensor) -> None:
    gelu = tools.randomize(apply_houlsby(tools.build("gpt2"), 5))
    relu = apply_houlsby(tools.build("gpt2"), 5, nonlinearity=nn.ReLU())
    values = dict(relu.named_parameters())
    with torch.no_grad():
        for name, value in adapter_state(gelu).items():
            values[name].copy_(value)
    assert not torch.allclose(relu(text).logits, gelu(text).logits, atol=1e-3)
    row = torch.randn(16)
    layer = relu.transformer.h[0].attn.c_proj.adapter
    inner = (layer.down.weight @ row + layer.down.bias).clamp(min=0)
    torch.testing.assert_close(layer(row), row + layer.up.weight @ inner + layer.up.bias)


def test_norms_of_the_paper(model: Any) -> None:
    before = trainable_report(apply_houlsby(model, 5, train_norms=True))
    norm = next(row for row in before if row.kind == "norm")
    assert norm.trainable == norm.parameters > 0


def test_chosen_sites(tools: Any) -> None:
    """Pfeiffer's variant: after the feed-forward only."""
    model = apply_houlsby(tools.build("llama"), 5, targets=["down_proj"])
    assert sum(isinstance(m, AdaptedOutput) for m in model.modules()) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": 0}, "bottleneck must be a whole number of at least 1"),
        ({"bottleneck": 17}, "bottleneck 17 is wider than .* has 16"),
        ({"targets": ["o_prj"]}, "Did you mean o_proj"),
    ],
)
def test_bad_settings_change_nothing(tools: Any, settings: dict[str, Any], message: str) -> None:
    model = tools.build("llama")
    before = tools.snapshot(model)
    with pytest.raises(CourseError, match=message):
        apply_houlsby(model, **settings)
    tools.assert_restored(model, before)


def test_a_layer_with_other_names_says_what_it_has(tools: Any) -> None:
    model = tools.build("llama")
    layer = model.model.layers[1]
    layer.mlp.squeeze = layer.mlp.down_proj
    del layer.mlp.down_proj
    with pytest.raises(
        CourseError, match=r"layer 1 .*found \['self_attn.o_proj'\] and \[\].*targets"
    ):
        apply_houlsby(model, 4)
