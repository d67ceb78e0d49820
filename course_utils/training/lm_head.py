"""TRL's fused language-model head, for the CPU: logits only where there is something to learn.

TRL scores every position of a batch in tiles and computes the logits a second time in the backward
pass, which saves memory on a GPU with Triton. On a CPU with a small vocabulary that is most of a
step: here the logits of the answer's tokens alone are computed, once, by ordinary autograd.
"""

import functools
import types
from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.models import LanguageParts, parts_of

MAX_LOGITS = 2**25  # answer tokens x vocabulary; 128 MiB in fp32, above it TRL's tiles are used


def use_compact_head(model: Any) -> bool:
    """Gives a model that TRL has patched (`model(..., labels=, fused_lm_head=True)`) our forward.

    A PEFT model's inner model is the one that TRL patches, and we too.

    Off the CPU, for large batches and for mixtures of experts TRL's own head stays in use.
    Returns whether the model's logits are of a kind that we can compute; if not nothing is changed.
    """
    try:
        parts = parts_of(model)
    except CourseError:
        return False
    model = inner_model(model)
    theirs = model.forward

    @functools.wraps(type(model).forward)  # `generate` reads the signature
    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any
    ) -> Any:
        if fused_lm_head and _suits(parts, labels, kwargs):
            kwargs.pop("num_items_in_batch", None)
            return _compact(parts, labels, *args, **kwargs)
        if fused_lm_head:
            kwargs["fused_lm_head"] = True
        if labels is not None:
            kwargs["labels"] = labels
        return theirs(*args, **kwargs)

    model.forward = types.MethodType(forward, model)
    return True


def inner_model(model: Any) -> Any:
    """The Transformers model inside a PEFT wrapper; its adapters' layers stay active."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _suits(parts: LanguageParts, labels: Any, kwargs: dict[str, Any]) -> bool:
    if labels is None or labels.device.type != "cpu" or kwargs.get("shift_labels") is not None:
        return False
    if kwargs.get("output_router_logits") or getattr(parts.config, "output_router_logits", False):
        return False
    wanted = int((labels[:, 1:] != -100).sum())
    return 0 < wanted <= MAX_LOGITS // parts.config.vocab_size


def _compact(parts: LanguageParts, labels: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Quantities (B, T - 1) of the labelled tokens, 0 elsewhere, in TRL's output class."""
    from trl.trainer.utils import FusedCausalLMOutput

    kwargs["use_cache"] = False
    hidden = parts.trunk(*args, **kwargs).last_hidden_state[:, :-1]  # (B, T - 1, D)
    targets = labels[:, 1:]
    mask = targets != -100
    where = mask.flatten().nonzero().squeeze(1)  # (N,) positions that predict a labelled token
    rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, where)  # (N, D)
    logits = parts.logits(rows).float()  # (N, V)
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(1, targets.flatten()[where][:, None]).squeeze(1)  # (N,)

    def spread(values: Tensor) -> Tensor:
        whole = torch.zeros(mask.numel(), dtype=values.dtype)
        return whole.index_copy(0, where, values).view(mask.shape)

    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
        is_top1 = logits.argmax(dim=-1) == targets.flatten()[where]
        mean_logits = logits.mean(dim=-1)
    log_probs = spread(chosen)
    return FusedCausalLMOutput(
        loss=-log_probs.sum() / mask.sum(),
        log_probs=log_probs,
        entropy=spread(entropy),
        mean_logits=spread(mean_logits),
        is_top1=spread(is_top1),
        label_mask=mask,
    )
