"""Tiny random decoders of four families, text with left padding, and what every test asks of them.

Weights are larger than a fresh model's, so that every part of the network matters to the output.
"""

import copy
from typing import Any

import pytest
import torch

VOCAB = 61
FAMILIES = ("llama", "gpt2", "opt", "qwen2")


def build(family: str, seed: int = 0, **more: Any) -> Any:
    """Llama and Qwen share two key-value heads among four; eval mode, no dropout at work."""
    import transformers as hf

    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    small = {"vocab_size": VOCAB, "num_hidden_layers": 2, "hidden_size": 16, **ids}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64}
    gated = {"intermediate_size": 24, "num_key_value_heads": 2}
    kinds = {
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, {**small, **heads, **gated}),
        "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, {**small, **heads}),
        "opt": (
            hf.OPTForCausalLM,
            hf.OPTConfig,
            {**small, **heads, "ffn_dim": 24, "word_embed_proj_dim": 16},
        ),
        "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, {**small, **heads, **gated}),
    }
    model_class, config_class, settings = kinds[family]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**settings, **more})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    return model


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randint(3, VOCAB, (3, 7), generator=torch.Generator().manual_seed(5))  # (B, T)


def randomize(model: Any, scale: float = 0.3) -> Any:
    """Every trained parameter random: an adapter in the middle of its training."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def snapshot(model: Any) -> dict[str, Any]:
    """All there is to restore: modules by identity, values, flags, hooks."""
    return {
        "modules": {name: id(module) for name, module in model.named_modules()},
        "values": {name: p.detach().clone() for name, p in model.named_parameters()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
    }


def assert_restored(model: Any, before: dict[str, Any]) -> None:
    after = snapshot(model)
    for part in ("modules", "flags", "hooks"):
        assert after[part] == before[part], part
    assert list(after["values"]) == list(before["values"])
    for name, value in after["values"].items():
        assert torch.equal(value, before["values"][name]), name


def padded(text: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same texts behind `width` places of padding, and the mask."""
    pad = torch.full((len(text), width), 2)
    mask = torch.cat([torch.zeros_like(pad), torch.ones_like(text)], dim=1)
    return torch.cat([pad, text], dim=1), mask


def greedy_without_cache(model: Any, ids: torch.Tensor, mask: torch.Tensor, new: int) -> Any:
    """The slow way: the whole text again for every token. (B, new)."""
    with torch.no_grad():
        for _ in range(new):
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return ids[:, -new:]


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def tools() -> Any:
    """The functions above (tests are imported by path, so they cannot import one another)."""
    import types

    names = (build, randomize, snapshot, assert_restored, padded, greedy_without_cache, gradients)
    return types.SimpleNamespace(**{f.__name__: f for f in names}, copy=copy.deepcopy)
