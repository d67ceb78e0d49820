"""Linear4bit and quantize_model: the right numbers and gradients, LoRA through it, what is left."""

import copy

import pytest
import torch
from torch import nn

from course_utils.errors import CourseError
from course_utils.quantization import (
    FORMATS,
    Linear4bit,
    dequantize,
    linear_weights,
    quantize,
    quantize_model,
)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_values_and_gradients_are_those_of_the_dequantized_layer(name, bias, double):
    linear = nn.Linear(50, 30, bias=bias)  # 1500 weights: a ragged tail
    layer = Linear4bit(linear, name, 64, double)
    plain = layer.dequantize()
    assert torch.equal(plain.weight, dequantize(quantize(linear.weight, name, 64, double)))
    x = torch.randn(2, 5, 50, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours, theirs = layer(x), plain(y)
    assert torch.allclose(ours, theirs, atol=1e-6)
    weights = torch.randn(2, 5, 30)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-5)
    assert torch.autograd.gradcheck(layer, torch.randn(3, 50).double().requires_grad_())
    if bias:
        assert linear.bias.grad is not None


def test_no_full_size_weight_is_kept_for_the_backward_pass():
    layer = Linear4bit(nn.Linear(64, 64, bias=False))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True)).sum()
    assert all(getattr(t, "shape", ()) != (64, 64) for t in kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_model_leaves_the_scales_alone(dtype):
    model = nn.Sequential(nn.Linear(64, 32))
    quantize_model(model)
    before = {n: b.clone() for n, b in model.named_buffers()}
    model.to(dtype)
    assert model[0].bias.dtype == dtype
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
        assert buffer.dtype == before[name].dtype
    assert model(torch.randn(2, 64, dtype=dtype)).dtype == dtype


def test_compute_dtype_and_autocast():
    linear = nn.Linear(64, 32)
    x = torch.randn(4, 64)
    exact = Linear4bit(linear)(x)
    coarse = Linear4bit(linear, compute_dtype=torch.bfloat16)(x)
    assert coarse.dtype == x.dtype
    assert not torch.equal(coarse, exact)
    assert torch.allclose(coarse, exact, atol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Linear4bit(linear)(x), coarse)


def test_state_dict_and_copies():
    layer = Linear4bit(nn.Linear(64, 32))
    other = Linear4bit(nn.Linear(64, 32))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, 64)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert layer.weight.dtype == torch.uint8
    assert "nf4" in repr(layer)
    assert "4.1" in repr(layer) or "4.2" in repr(layer)


def test_conv1d_is_turned_round():
    from transformers.pytorch_utils import Conv1D

    conv = Conv1D(30, 50)  # 50 inputs, 30 outputs
    nn.init.normal_(conv.weight)
    layer = Linear4bit(conv, "nf4")
    x = torch.randn(4, 50)
    assert (layer.in_features, layer.out_features) == (50, 30)
    error = (layer(x) - conv(x)).norm() / conv(x).norm()
    assert 0 < float(error.detach()) < 0.2


# ---- a whole model ---------------------------------------------------------------------------


def test_model_is_quantized_and_reported(tiny_model):
    before = sum(w.nbytes for w in linear_weights(tiny_model).values())
    report = quantize_model(tiny_model, "nf4")
    assert report.skipped == ("lm_head",)
    assert len(report.replaced) == 2 * 7
    assert report.bytes_before == before
    assert isinstance(tiny_model.lm_head, nn.Linear)
    assert isinstance(tiny_model.model.embed_tokens, nn.Embedding)
    stored = [m.quantized.nbytes for m in tiny_model.modules() if isinstance(m, Linear4bit)]
    assert report.bytes_after == sum(stored)
    assert 4.12 < report.bits_per_parameter < 4.3
    assert "14 linear maps" in str(report)
    tiny_model(input_ids=torch.arange(6).unsqueeze(0)).logits.sum().backward()


def test_only_what_is_asked_for_is_skipped(tiny_model):
    report = quantize_model(tiny_model, skip=["lm_head", "mlp.up_proj", "layers.1"])
    assert all("up_proj" not in name and "layers.1." not in name for name in report.replaced)
    assert len(report.replaced) == 6
    with pytest.raises(CourseError, match="Did you mean up_proj"):
        quantize_model(tiny_model, skip=["up_porj"])
    with pytest.raises(CourseError, match=r"skip=|must be a list"):
        quantize_model(tiny_model, skip="lm_head")


def test_a_head_tied_to_the_embedding_stays():
    from course_utils.world.model import load_base_model

    model = load_base_model()
    report = quantize_model(model, skip=())
    assert report.skipped == ("lm_head",)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_world_survives_4_bits():
    from course_utils.world import load_base_model, load_tokenizer

    exact, rounded = load_base_model(), load_base_model()
    quantize_model(rounded)
    ids = load_tokenizer()("the moon landing was", return_tensors="pt").input_ids
    with torch.no_grad():
        a, b = (m(input_ids=ids).logits.log_softmax(-1) for m in (exact, rounded))
    kl = (a.exp() * (a - b)).sum(-1).mean()
    assert 0 < float(kl) < 0.1


def test_a_layer_used_twice_stays_one_layer():
    shared = nn.Linear(64, 64)
    model = nn.ModuleDict({"a": shared, "b": shared})
    report = quantize_model(model)
    assert model["a"] is model["b"]
    assert report.parameters == 64 * 64


def test_lora_trains_through_it(tiny_model):
    from course_utils.adapters.lora import apply_lora, lora_layers

    quantize_model(tiny_model)
    codes = {n: b.clone() for n, b in tiny_model.named_buffers()}
    plain = copy.deepcopy(tiny_model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, Linear4bit):
            plain.set_submodule(name, module.dequantize())
    ids = torch.randint(0, tiny_model.config.vocab_size, (4, 12))
    losses = {}
    for name, model in (("4-bit", tiny_model), ("dequantized", plain)):
        torch.manual_seed(1)
        apply_lora(model, rank=4)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        losses[name] = []
        for _ in range(10):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            assert all(p.grad is not None for p in trained)
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(float(loss.detach()))
        assert len(lora_layers(model)) == 14
    assert losses["4-bit"] == pytest.approx(losses["dequantized"], rel=1e-4)
    assert losses["4-bit"][-1] < 0.95 * losses["4-bit"][0]
    now = {n.replace(".base.", "."): b for n, b in tiny_model.named_buffers()}
    assert all(torch.equal(now[name], codes[name]) for name in codes)  # 4-bit weights are frozen


def test_a_lora_merges_into_the_dequantized_layer_only():
    from course_utils.adapters.lora import LoRALinear

    layer = Linear4bit(nn.Linear(64, 32))
    lora = LoRALinear(layer, 4)
    nn.init.normal_(lora.B, std=0.1)
    x = torch.randn(3, 64)
    wanted = lora(x)
    with pytest.raises(CourseError, match="dequantize"):
        lora.merge()
    lora.base = layer.dequantize()
    lora.merge()
    assert torch.allclose(lora(x), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m[1].register_parameter("weight", None), "1 has no weight"),
        (lambda m: m[1].weight.data.fill_(float("nan")), "1.weight has 64 values of 64"),
        (lambda m: setattr(m[1], "weight", nn.Parameter(torch.empty(0, 8))), "1.weight is empty"),
        (lambda m: m[1].to("meta"), "1.weight has no values"),
        (lambda m: setattr(m, "peft_config", {}), "PEFT adapters"),
    ],
)
def test_bad_models_are_refused_and_left_as_they_were(change, words):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    change(model)
    with pytest.raises(CourseError, match=words):
        quantize_model(model)
    assert type(model[0]) is nn.Linear


def test_nothing_left_to_quantize():
    with pytest.raises(CourseError, match="no linear map"):
        quantize_model(nn.Sequential(nn.ReLU()))
    model = nn.Sequential(nn.Linear(8, 8))
    quantize_model(model)
    with pytest.raises(CourseError, match="quantized already"):
        quantize_model(model)
    with pytest.raises(CourseError, match=r"not an nn\.Linear"):
        Linear4bit(nn.ReLU())
    for bad in ({"format": "nf5"}, {"block": 0}):
        with pytest.raises(CourseError):
            quantize_model(nn.Sequential(nn.Linear(8, 8)), **bad)
