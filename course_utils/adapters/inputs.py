"""What prompt and prefix tuning share: a decoder's inputs by name, positions, masks, hooks.

Both put N made-up places before the text. The text's positions then start at N, as PEFT's do.
With left padding and no `position_ids`, Transformers counts the padding of Llama and GPT-2 too;
here positions are counted from the mask, so that padding changes nothing.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError

__all__ = ["check_token_ids", "inputs_by_name", "remove_hooks", "text_positions", "wider_mask"]


def inputs_by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A forward's arguments as one dict: GPT-2 passes some by place, Llama all by name."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]  # without self
    return {**dict(zip(names, args, strict=False)), **kwargs}


def text_positions(
    decoder: Any, inputs: dict[str, Any], batch: int, tokens: int, past: int, virtual: int
) -> Tensor:
    """(B, T) positions of the text's tokens, counted from `virtual` = N.

    Args:
        inputs: the decoder's; `position_ids` are those the text would have without the N places.
        past: text tokens in the cache already, padding included.
    Raises: CourseError when text and virtual tokens exceed the model's context.
    """
    context = getattr(decoder.config, "max_position_embeddings", None)
    if context is not None and virtual + past + tokens > context:
        raise CourseError(
            f"{past + tokens} tokens of text and {virtual} virtual ones do not fit the model's "
            f"context of {context}; shorten the text to {max(context - virtual, 0)}"
        )
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if positions is None and isinstance(mask, Tensor) and mask.dim() == 2:
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -tokens:]  # (B, T)
    elif positions is None:
        positions = torch.arange(past, past + tokens, device=decoder.device).unsqueeze(0)  # (1, T)
    return (positions + virtual).expand(batch, -1)


def wider_mask(mask: Tensor, virtual: int) -> Tensor:
    """(B, T) -> (B, N + T): the virtual places are never padding."""
    return torch.cat([mask.new_ones(mask.shape[0], virtual), mask], dim=1)


def remove_hooks(module: nn.Module, owner: nn.Module) -> None:
    """Takes off the forward hooks that are methods of `owner` (also in a deep copy of a model)."""
    for name in ("_forward_pre_hooks", "_forward_hooks"):
        hooks = getattr(module, name)
        for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is owner]:
            del hooks[key]
            getattr(module, f"{name}_with_kwargs").pop(key, None)


def check_token_ids(model: Any, token_ids: Any, length: int | None) -> Tensor:
    """(N,) token ids on the model's device. Raises: CourseError when they are not that."""
    embedding = model.get_input_embeddings()
    ids = torch.as_tensor(token_ids, device=embedding.weight.device)
    if ids.dim() != 1 or ids.numel() == 0 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise CourseError(
            f"token_ids must be a list of whole numbers, got shape {tuple(ids.shape)}, {ids.dtype}"
        )
    size = embedding.weight.shape[0]
    if int(ids.min()) < 0 or int(ids.max()) >= size:
        raise CourseError(
            f"token_ids must be in [0, {size - 1}], the model's vocabulary; got {int(ids.min())} "
            f"to {int(ids.max())}"
        )
    if length is not None and length != len(ids):
        raise CourseError(
            f"length is {length} but there are {len(ids)} token_ids; give one of them, or as many"
        )
    return ids.long()
