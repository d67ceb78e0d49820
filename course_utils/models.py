"""Models: load a policy, copy it, freeze a reference, score tokens, put a value head on the trunk.

A causal language model is used here as two pieces, `trunk` (tokens -> hidden states) and `head`
(hidden state -> logits), so that logits are computed only where a completion needs them: the
(B, T, V) tensor of a whole batch never exists.
"""

import contextlib
import copy
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from course_utils.errors import CourseError
from course_utils.loading import add_chat_template, disable_dropout, load_policy
from course_utils.modes import evaluating
from course_utils.objectives.likelihood import entropy_from_logits
from course_utils.objectives.likelihood import token_logprobs as logprobs_of

__all__ = [
    "LanguageParts",
    "PolicyWithValue",
    "Reference",
    "Scored",
    "add_chat_template",
    "copy_model",
    "count_parameters",
    "disable_dropout",
    "evaluating",
    "freeze",
    "fuse_activations",
    "is_peft",
    "load_policy",
    "parts_of",
    "positions_of",
    "reference_of",
    "token_logprobs",
    "unwrapped",
    "with_value",
]

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
        self.trunk: Any = model.base_model
        self.head: Any = head
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


class Scored(NamedTuple):
    """What `PolicyWithValue` says about N chosen tokens; float32."""

    logprobs: Tensor  # (N,) log π(y_t | ...) at the given temperature
    values: Tensor | None  # (N,) V(s_t), s_t being what precedes y_t
    entropy: Tensor | None  # (N,) of π(. | s_t), nats


class PolicyWithValue(nn.Module):
    """A causal language model and a value head: V(s_t) = w·h_t + b, zero at the start.

    By default h_t is the policy's own last hidden state: one trunk serves both, and the critic
    costs D + 1 parameters instead of a second model. With `critic` (any decoder without its head)
    the values have a trunk of their own.
    """

    def __init__(self, policy: Any, critic: nn.Module | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        config: Any = parts_of(policy).config if critic is None else critic.config
        size, device = config.hidden_size, policy.device
        # skip_init: nn.Linear would draw from the global random numbers, only to be zeroed
        self.value_head: nn.Linear = torch.nn.utils.skip_init(nn.Linear, size, 1, device=device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        ids: Tensor,
        where: Tensor,
        temperature: float = 1.0,
        values: bool = True,
        entropy: bool = False,
    ) -> Scored:
        """Scores chosen tokens of right-padded rows.

        Rows start at column 0, so that causal attention needs no mask and positions count up by
        themselves: padding on the right cannot reach what stands before it.

        Args:
            ids: (B, T). where: (N,) flat indices b * T + t of the *predicting* positions: the token
                scored is the one at t + 1.
        """
        hidden = chosen_hidden(parts_of(self.policy).trunk, ids, where)  # (N, D)
        logits = parts_of(self.policy).logits(hidden)  # (N, V)
        tokens = ids.flatten()[where + 1]
        found_values = None
        if values:
            state = hidden if self.critic is None else chosen_hidden(self.critic, ids, where)
            found_values = self.values(state)
        return Scored(
            logprobs_of(logits, tokens, temperature),
            found_values,
            entropy_from_logits(logits, temperature) if entropy else None,
        )

    def values(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states -> (...) values, in float32 also under autocast."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.float()).squeeze(-1)


def chosen_hidden(trunk: nn.Module, ids: Tensor, where: Tensor) -> Tensor:
    """Last hidden states (N, D) at flat positions `where` of right-padded rows `ids` (B, T)."""
    hidden = trunk(input_ids=ids, use_cache=False).last_hidden_state  # (B, T, D)
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, where)


def with_value(policy: Any, critic: nn.Module | None = None) -> PolicyWithValue:
    """Puts a zero-initialised value head on a policy's trunk; the policy itself is not changed."""
    return PolicyWithValue(policy, critic)


# ---- copies and references ---------------------------------------------------------------------


def copy_model(model: Any) -> Any:
    """An independent copy: same weights and mode, nothing shared."""
    return copy.deepcopy(model)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters; tied ones count once."""
    known = {id(p): p for p in model.parameters()}.values()
    return sum(p.numel() for p in known), sum(p.numel() for p in known if p.requires_grad)


def freeze(model: Any) -> Any:
    """Evaluation mode and no gradients, in place; returns the model."""
    return model.eval().requires_grad_(False)


def reference_of(model: Any) -> Any:
    """A frozen copy of the model as it is now: evaluation mode, no gradients, nothing shared."""
    return freeze(copy_model(model))


def fuse_activations(model: nn.Module) -> int:
    """Writes GPT-2's GELU as one kernel instead of eight, in place; returns how many were found.

    The same function (tanh approximation) to rounding, and a good part of a small GPT-2's time.
    """
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, NewGELUActivation | FastGELUActivation)
    ]
    for parent, name in found:
        setattr(parent, name, nn.GELU(approximate="tanh"))
    return len(found)


def is_peft(model: Any) -> bool:
    """Whether the model carries PEFT adapters (LoRA and the like)."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


class Reference:
    """The policy as it was at the start, from which the KL is measured; see `kind`.

    - "given": the model that the caller passed;
    - "copy": a frozen copy of the whole policy (full fine-tuning);
    - "adapter off": the policy itself without its adapter, which costs no memory; only right as
      long as a *fresh* adapter (B = 0) is trained, which is checked here;
    - "adapter as it was": the policy with a saved copy of its adapter's weights, when training
      continues an adapter that already changes the model.
    """

    def __init__(self, policy: Any, reference: Any = None) -> None:
        self.policy = policy
        self._start: list[tuple[nn.Parameter, Tensor]] = []
        if reference is not None:
            self.kind, self._model = "given", reference
            self._check_apart()
        elif not is_peft(policy):
            self.kind, self._model = "copy", reference_of(policy)
        else:
            self._model = policy
            self.kind = "adapter off" if _adapter_is_fresh(policy) else "adapter as it was"
            if self.kind == "adapter as it was":
                trained = [p for p in policy.parameters() if p.requires_grad]
                self._start = [(p, p.detach().clone()) for p in trained]

    def _check_apart(self) -> None:
        theirs = {p.data_ptr() for p in self._model.parameters()}
        shared = [
            name
            for name, p in self.policy.named_parameters()
            if p.requires_grad and p.data_ptr() in theirs
        ]
        if shared:
            raise CourseError(
                f"the reference shares {len(shared)} trained parameters with the policy (first: "
                f"{shared[0]}), so it would move too; pass reference_of(policy), or leave it out"
            )
        ours, other = (parts_of(m).head.weight.shape[0] for m in (self.policy, self._model))
        if ours != other:
            raise CourseError(
                f"the reference has {other} tokens and the policy {ours}: they need one vocabulary"
            )

    @contextlib.contextmanager
    def model(self) -> Iterator[Any]:
        """Yields a model that computes as the reference does; inside the block, no gradients."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(evaluating(self._model))
            if self.kind == "adapter off":
                stack.enter_context(self._model.disable_adapter())
            for parameter, start in self._start:
                now, parameter.data = parameter.data, start
                stack.callback(setattr, parameter, "data", now)
            yield self._model


def _adapter_is_fresh(model: Any) -> bool:
    """Whether switching the adapter off changes nothing: eight tokens' logits, on and off."""
    ids = torch.arange(1, 9, device=model.device).unsqueeze(0)
    with torch.no_grad(), evaluating(model):
        on = model(input_ids=ids, use_cache=False).logits
        with model.disable_adapter():
            off = model(input_ids=ids, use_cache=False).logits
    return bool(torch.equal(on, off))
