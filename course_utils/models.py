"""Models: load a policy, copy it, freeze a reference, score tokens, put a value head on the trunk.

A causal language model is used here as two pieces, `trunk` (tokens -> hidden states) and `head`
(hidden state -> logits), so that logits are computed only where a completion needs them: the
(B, T, V) tensor of a whole batch never exists.
"""

import contextlib
import copy
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError
from course_utils.objectives.likelihood import token_logprobs as logprobs_of

# ---- the two pieces of a causal language model -------------------------------------------------


def unwrapped(model: Any) -> Any:
    """The Transformers model inside a PEFT or distributed wrapper (its LoRA layers stay active)."""
    while isinstance(getattr(model, "module", None), nn.Module):  # DistributedDataParallel
        model = model.module
    if isinstance(model, PolicyWithValue):
        return unwrapped(model.policy)
    if hasattr(model, "peft_config"):
        if any(config.is_prompt_learning for config in model.peft_config.values()):
            raise CourseError(
                "prompt, prefix and P-tuning adapters live outside the model's layers, where our "
                "sampler and PPO cannot see them; use LoRA here"
            )
        return model.get_base_model()
    return model


class LanguageParts:
    """The model's own `trunk` (tokens -> hidden states) and `head`; made by `parts_of(model)`."""

    def __init__(self, model: Any) -> None:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is None or model.base_model is model:
            raise CourseError(
                f"{type(model).__name__} is not a decoder with a language-model head; use a causal "
                "language model (AutoModelForCausalLM)"
            )
        self.trunk: nn.Module = model.base_model
        self.head: nn.Module = head
        config = model.config.get_text_config(decoder=True)
        self.config = config
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma
        scale = getattr(config, "logit_scale", None)  # Cohere multiplies
        divide = getattr(config, "logits_scaling", None)  # Granite divides
        self._scale = 1.0 if scale is None else float(scale)
        self._scale /= 1.0 if divide is None else float(divide)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), what the model's own forward would give."""
        logits = self.head(hidden)
        logits = logits * self._scale if self._scale != 1.0 else logits
        if self._softcap is not None:
            logits = self._softcap * torch.tanh(logits / self._softcap)
        return logits

    def hidden(self, input_ids: Tensor, attention_mask: Tensor, **cache: Any) -> Tensor:
        """Last hidden states (B, T, D) of a left-padded batch, with explicit positions."""
        return self.trunk(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions_of(attention_mask),
            use_cache=False,
            **cache,
        ).last_hidden_state


_PARTS: "weakref.WeakKeyDictionary[Any, LanguageParts]" = weakref.WeakKeyDictionary()


def parts_of(model: Any) -> LanguageParts:
    """Trunk and head of a causal language model, checked once against the model's own logits.

    Raises: CourseError when the model computes its logits in a way we do not know.
    """
    inner = unwrapped(model)
    parts = _PARTS.get(inner)
    if parts is not None and parts.head is inner.get_output_embeddings():  # not resized since
        return parts
    parts = LanguageParts(inner)
    ids = torch.tensor([[1, 2]], device=inner.device)
    with torch.no_grad(), evaluating(inner):
        own = inner(input_ids=ids, use_cache=False).logits
        ours = parts.logits(parts.hidden(ids, torch.ones_like(ids)))
    if not torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-2):
        raise CourseError(
            f"{type(inner).__name__} does more to its logits than its head says (they differ by up "
            f"to {(own - ours).abs().max():.2g}); this model is not supported"
        )
    _PARTS[inner] = parts
    return parts


def positions_of(attention_mask: Tensor) -> Tensor:
    """(B, T) mask -> (B, T) positions cumsum(mask) - 1: the first real token is at 0."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside, every module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# ---- scoring -----------------------------------------------------------------------------------


def token_logprobs(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_start: int,
    temperature: float = 1.0,
) -> Tensor:
    """log π(y_t | y_<t, x) of the completion's tokens; logits are computed at those positions only.

    Args:
        model: causal language model, used in its present mode (dropout!) and with its gradients.
        input_ids, attention_mask: (B, T) left-padded prompts followed by right-padded completions.
        completion_start: first column of the completions, P >= 1.
        temperature: the sampling temperature; divides the logits, for policy and reference alike.
    Returns: (B, T - P) float32, 0 where the mask is 0.
    """
    if not 1 <= completion_start < input_ids.shape[1]:
        raise ValueError(
            f"completion_start must be in [1, {input_ids.shape[1] - 1}] for (B, T) = "
            f"{tuple(input_ids.shape)}, got {completion_start}"
        )
    parts = parts_of(model)
    hidden = parts.hidden(input_ids, attention_mask)  # (B, T, D)
    real = attention_mask[:, completion_start:].bool()  # (B, C)
    # the logits that predict token t are at t - 1; one row per real token: (N, D) -> (N, V)
    logits = parts.logits(hidden[:, completion_start - 1 : -1][real])
    chosen = logprobs_of(logits, input_ids[:, completion_start:][real], temperature)  # (N,)
    return torch.zeros(real.shape, dtype=chosen.dtype, device=chosen.device).masked_scatter(
        real, chosen
    )


# ---- the value head ----------------------------------------------------------------------------


class PolicyWithValue(nn.Module):
    """A causal language model and a value head on its trunk: V(s_t) = w·h_t + b, zero at the start.

    One trunk serves both, so the critic costs D + 1 parameters instead of a second model.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy
        parts = parts_of(policy)
        size = parts.config.hidden_size
        self.value_head = nn.Linear(size, 1, dtype=torch.float32, device=policy.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)


def with_value(policy: Any) -> PolicyWithValue:
    """Puts a zero-initialised value head on a policy's trunk; the policy itself is not changed."""
    return PolicyWithValue(policy)


def copy_model(model: Any) -> Any:
    """An independent copy: same weights and mode, nothing shared."""
    return copy.deepcopy(model)
