"""Tiny decoders, LoRA adapters with random weights, and the update ΔW written out by hand."""

import copy
import math
import types
from typing import Any

import pytest
import torch

VOCAB = 61


def build(family: str = "llama", seed: int = 0, **more: Any) -> Any:
    import transformers as hf

    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": VOCAB}
    small = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, **ids}
    small["max_position_embeddings"] = 64
    torch.manual_seed(seed)
    if family == "gpt2":
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**{**small, **more}))
    else:
        more = {"intermediate_size": 24, "num_key_value_heads": 2, **more}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**small, **more}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return model.eval()


def adapter(base: Any, seed: int, **config: Any) -> Any:
    """A LoRA "in the middle of its training", on a copy of the base."""
    from peft import LoraConfig, get_peft_model

    from course_utils.composition import Adapter

    family = base.config.model_type
    default = ["c_attn", "mlp.c_proj"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    settings = {"r": 4, "lora_alpha": 6, "target_modules": default, **config}
    model = get_peft_model(copy.deepcopy(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return Adapter.of(model)


def update(one: Any, module: str) -> torch.Tensor:
    """ΔW (d, k) = (α/r) B A, or α/√r, straight from the saved tensors; 0 where there is none."""
    key = f"base_model.model.{module}.lora_"
    if f"{key}A.weight" not in one.weights:
        return torch.zeros(())
    a, b = one.weights[f"{key}A.weight"], one.weights[f"{key}B.weight"]
    r = len(a)
    config = one.config
    return config.lora_alpha / (math.sqrt(r) if config.use_rslora else r) * b @ a


def plain_with(base: Any, updates: Any) -> Any:
    """A plain model whose weights are W + updates(module name), written by hand."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if weight is not None and weight.dim() == 2 and "layers" in name + ".h.layers":
                change = updates(name)
                turned = type(module).__name__ == "Conv1D" and change.dim() == 2
                change = change.T if turned else change
                weight.add_(change)
    return model


@pytest.fixture
def tools() -> Any:
    return types.SimpleNamespace(
        build=build, adapter=adapter, update=update, plain_with=plain_with, copy=copy.deepcopy
    )


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randint(3, VOCAB, (3, 7), generator=torch.Generator().manual_seed(5))  # (B, T)
