"""Where adapters go: finding a decoder's layers and modules by name, and saying what is there.

The families differ in names only: Llama and Qwen call a layer's parts `self_attn.o_proj` and
`mlp.down_proj`, GPT-2 `attn.c_proj` and `mlp.c_proj`, OPT `self_attn.out_proj` and `fc2`.
"""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from course_utils.errors import CourseError

__all__ = [
    "attention_modules",
    "check_finite",
    "check_whole_number",
    "decoder_layers",
    "decoder_of",
    "find_linears",
    "is_linear",
    "linear_shape",
    "parent_of",
    "replace_module",
]

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")

# ---- linear maps -------------------------------------------------------------------------------


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, GPT-2's Conv1D, or a quantized layer that tells its in_features, out_features."""
    sizes = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return isinstance(module, (nn.Linear, Conv1D)) or all(isinstance(size, int) for size in sizes)


def linear_shape(module: Any) -> tuple[int, int]:
    """(d, k) = (outputs, inputs). Not read off the weight: a 4-bit one is stored packed and flat,
    and Conv1D keeps its weight as (k, d)."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    return module.out_features, module.in_features


def find_linears(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The linear maps that `names` mean, by their full name, in the model's order.

    Args:
        names: "q_proj" means every module of that name, "mlp.c_proj" only those within an `mlp`,
            a full name just the one. None: every linear map in the decoder's layers (so not the
            language-model head).
    Raises: CourseError when a name finds nothing (near names and all that exist are listed), or
        finds a module that is no linear map.
    """
    if isinstance(names, str):
        raise CourseError(f"module names must be a list, got the string {names!r}; use [{names!r}]")
    if names is None:
        inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
        every = model.named_modules()
        return {name: m for name, m in every if id(m) in inside and is_linear(m)}
    if not names:
        raise CourseError("the list of module names is empty; leave it out to take all of them")
    found: dict[str, nn.Module] = {}
    for wanted in names:
        matches = {
            name: module
            for name, module in model.named_modules()
            if name and (name == wanted or name.endswith("." + wanted))
        }
        if not matches:
            raise CourseError(_not_found(model, wanted))
        for name, module in matches.items():
            if not is_linear(module):
                raise CourseError(
                    f"{name} is a {type(module).__name__}, not a linear map; choose from "
                    f"{', '.join(_linear_names(model))}"
                )
        found |= matches
    return {name: module for name, module in model.named_modules() if name in found}


def _linear_names(model: nn.Module) -> list[str]:
    """Last names of all linear maps, each once, in the model's order."""
    last = [name.rsplit(".", 1)[-1] for name, module in model.named_modules() if is_linear(module)]
    return list(dict.fromkeys(last))


def _not_found(model: nn.Module, wanted: str) -> str:
    known = _linear_names(model)
    near = difflib.get_close_matches(wanted.rsplit(".", 1)[-1], known, n=3, cutoff=0.4)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return (
        f"{type(model).__name__} has no module named {wanted!r}.{meant} Its linear maps are: "
        f"{', '.join(known) or 'none'}"
    )


# ---- the decoder -------------------------------------------------------------------------------


def decoder_of(model: Any) -> Any:
    """The module that turns tokens into hidden states and holds the list of layers.

    Hooks on it act in `model(...)`, in `model.generate(...)` and in our own sampler alike, which
    calls the trunk without the language-model head.
    """
    get = getattr(model, "get_decoder", None)
    decoder = None if get is None else get()
    if decoder is None or not any(isinstance(m, nn.ModuleList) for m in decoder.children()):
        raise CourseError(
            f"{type(model).__name__} is not a Transformers decoder; this needs a causal language "
            "model of the Llama, Qwen, GPT-2 or OPT kind (AutoModelForCausalLM)"
        )
    return decoder


def decoder_layers(model: Any) -> list[nn.Module]:
    """The decoder's layers, first to last."""
    decoder = decoder_of(model)
    depth = decoder.config.num_hidden_layers
    for child in decoder.children():
        if isinstance(child, nn.ModuleList) and len(child) == depth:
            return list(child)
    raise CourseError(f"{type(decoder).__name__} has no list of {depth} layers that we can find")


def attention_modules(model: Any) -> list[Any]:
    """Each layer's attention module, which must take `attention_mask` and `past_key_values`."""
    found = []
    for number, layer in enumerate(decoder_layers(model)):
        named = dict(layer.named_children())
        module = next((named[name] for name in ATTENTION_NAMES if name in named), None)
        takes = () if module is None else inspect.signature(type(module).forward).parameters
        if module is None or not {"attention_mask", "past_key_values"} <= set(takes):
            raise CourseError(
                f"layer {number} ({type(layer).__name__}) has no attention module that takes "
                "attention_mask and past_key_values; Llama, Qwen, GPT-2 and OPT do"
            )
        found.append(module)
    return found


# ---- small tools -------------------------------------------------------------------------------


def parent_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """(module that holds `name`, its attribute there)."""
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, last = parent_of(model, name)
    setattr(parent, last, module)


def check_whole_number(value: Any, least: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CourseError(f"{what} must be a whole number of at least {least}, got {value!r}")


def check_finite(tensor: Tensor, what: str) -> None:
    """Raises a CourseError naming `what` for nan or inf; meta tensors have no values to check."""
    if tensor.device.type == "meta" or not tensor.is_floating_point():
        return
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise CourseError(
            f"{what} has {bad} values of {tensor.numel()} that are nan or inf; reload the model, "
            "and if they came from training, lower the learning rate"
        )
