"""Our LoRA in PEFT's file format, so that PEFT, vLLM and the Hub read what was trained here.

    apply_lora(model, rank=8);  ...train...;  save_as_peft(model, "runs/pirate", base="runs/base")
    peft.PeftModel.from_pretrained(plain_model, "runs/pirate")   # the same logits

Both store A as (R, k) and B as (d, R); PEFT calls them lora_A.weight and lora_B.weight.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from course_utils.adapters.lora import KIND, LoRALinear, lora_layers
from course_utils.adapters.record import require
from course_utils.adapters.sites import check_finite, is_linear
from course_utils.errors import CourseError

__all__ = ["save_as_peft"]


def save_as_peft(model: Any, directory: Path | str, base: Path | str = "") -> Path:
    """Writes the LoRA that `apply_lora` put on a model as a PEFT adapter: two files and ours.

    adapter_config.json and adapter_model.safetensors are PEFT's; course_base.json tells which base
    it was trained on (`course_utils.composition` checks it). The model is not changed.

    Args:
        base: directory or Hub id of the base, for AutoPeftModelForCausalLM; "" takes the name that
            the model was loaded by (PeftModel.from_pretrained(base, directory) needs none).
    Raises: CourseError for a model without our LoRA, a merged one, weights that are not finite, or
        layers of different rank or scaling.
    """
    from course_utils.composition.files import PREFIX, Adapter

    require(model, KIND)
    layers = lora_layers(model)
    config = _config(model, layers, str(base or getattr(model, "name_or_path", "") or ""))
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        for part, value in (("lora_A", layer.A), ("lora_B", layer.B)):
            check_finite(value, f"{name}.{part}")
            weights[f"{PREFIX}{name}.{part}.weight"] = value.detach().cpu().clone()
    return Adapter(config, weights, _describe(model, config)).save(directory)


def _config(model: Any, layers: dict[str, LoRALinear], base: str) -> Any:
    """peft.LoraConfig of these layers; α is given back from the scaling, α = scaling · R."""
    from peft import LoraConfig

    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise CourseError(f"{merged[0]} is merged into its weight; call unmerge_lora(model) first")
    kinds = {(len(layer.A), layer.scaling, layer.dropout.p) for layer in layers.values()}
    if len(kinds) > 1:
        raise CourseError(
            "the layers differ in rank, scaling or dropout, and one adapter_config.json holds one "
            "of each; apply_lora puts the same on all"
        )
    ((rank, scaling, dropout),) = kinds
    alpha = scaling * rank
    config = LoraConfig(
        r=rank,
        lora_alpha=round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha,
        lora_dropout=dropout,
        target_modules=_targets(model, layers),
        fan_in_fan_out=any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    return config


def _targets(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Module names for PEFT: the short ones ("q_proj") where they mean these layers and no other,
    else the full ones."""
    sites = set(layers)
    short = {name.rsplit(".", 1)[-1] for name in sites}
    every = {name for name, module in _plain_modules(model) if is_linear(module)}
    meant = {name for name in every if name.rsplit(".", 1)[-1] in short}
    return sorted(short if meant == sites else sites)


def _plain_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules under the names they had before the LoRA: its base stands for the layer."""
    sites = lora_layers(model)
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        if name in sites:
            continue
        yield (parent if parent in sites and last == "base" else name), module


def _describe(model: Any, config: Any) -> dict[str, Any]:
    """`composition.describe_base` of the model without its LoRA."""
    from course_utils.training.trl_common import fingerprint

    sites = set(lora_layers(model))
    named = []
    for name, parameter in model.named_parameters():
        holder, _, last = name.rpartition(".")
        if holder in sites and last in ("A", "B"):
            continue
        site = holder.removesuffix(".base")
        named.append((f"{site}.{last}" if site in sites else name, parameter))
    return {
        "fingerprint": fingerprint(named),
        "parameters": sum(parameter.numel() for _, parameter in named),
        "dtype": " ".join(sorted({str(p.dtype).removeprefix("torch.") for _, p in named})),
        "name": config.base_model_name_or_path,
    }
