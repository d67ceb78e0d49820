"""Prefix tuning (Li and Liang 2021): in every layer, N trained keys and values before the text's.

    head = Attention(q, [P_K; K], [P_V; V])        (He et al. 2022, equation 7)

How the prefix enters: a hook before each attention module hands it a small cache that puts the
prefix in front of whatever keys and values the real one returns, and widens the mask by N columns.
The real cache holds the text only. So nothing changes for whoever calls the model: our sampler's
preallocated cache, `generate`, no cache at all, and gradient checkpointing (which takes caches
away, and where PEFT's prefix tuning therefore refuses to run).

The text's positions start at N, as PEFT's do. The prefix itself is not rotated: on Llama its keys
stand for keys after the rotary embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from course_utils.adapters.inputs import (
    check_token_ids,
    inputs_by_name,
    remove_hooks,
    text_positions,
)
from course_utils.adapters.record import check_free, finish, require, restore, start
from course_utils.adapters.sites import (
    attention_modules,
    check_finite,
    check_whole_number,
    decoder_of,
)
from course_utils.errors import CourseError
from course_utils.modes import evaluating

__all__ = ["Prefix", "apply_prefix_tuning", "fold_prefix", "remove_prefix_tuning"]

KIND = "prefix tuning"
ATTRIBUTE = "prefix"  # the module's place in the decoder


class _WithPrefix:
    """A cache as one attention module sees it: the prefix, then the text."""

    def __init__(self, cache: Any, keys: Tensor, values: Tensor) -> None:
        self.cache, self.prefix = cache, (keys, values)  # (H, N, d_h) each

    def update(self, keys: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if self.cache is not None:
            keys, values = self.cache.update(keys, values, *rest)  # (B, H, K, d_h)
        joined = [
            torch.cat([before.to(text).expand(len(text), -1, -1, -1), text], dim=2)
            for before, text in zip(self.prefix, (keys, values), strict=True)
        ]
        return joined[0], joined[1]  # (B, H, N + K, d_h)


class Prefix(nn.Module):
    """The trained keys and values of every layer, and the hooks that bring them in.

    Without `hidden`: two tensors (L, H, N, d_h). With `hidden`, the paper's reparametrisation
    (section 4.3): P[i] = MLP(E[i]), an embedding per place and a two-layer tanh network whose
    output is cut into all layers' keys and values; it trains more steadily and is folded away
    afterwards (`fold_prefix`).

    Args:
        shape: (L, H, N, d_h): layers, key-value heads, virtual tokens, features per head.
        hidden: width of the network in the middle; its input is H·d_h wide (as PEFT's).
    """

    def __init__(self, shape: tuple[int, int, int, int], hidden: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.hidden = hidden
        layers, heads, length, width = shape
        if hidden is None:
            self.keys = nn.Parameter(0.02 * torch.randn(shape))
            self.values = nn.Parameter(0.02 * torch.randn(shape))
        else:
            self.embedding = nn.Parameter(torch.randn(length, heads * width))  # (N, H·d_h)
            self.inner = nn.Linear(heads * width, hidden)
            self.outer = nn.Linear(hidden, layers * 2 * heads * width)

    @property
    def length(self) -> int:  # N
        return self.shape[2]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, (H, N, d_h) each."""
        if self.hidden is None:
            return self.keys[index], self.values[index]
        layers, heads, length, width = self.shape
        middle = torch.tanh(self.inner(self.embedding))  # (N, hidden)
        weight = self.outer.weight.view(layers, 2 * heads * width, self.hidden)[index]
        bias = self.outer.bias.view(layers, 2 * heads * width)[index]
        both = F.linear(middle, weight, bias)  # (N, 2·H·d_h): this layer's share of the output
        keys, values = both.view(length, 2, heads, width).permute(1, 2, 0, 3)
        return keys, values

    def shift(self, decoder: Any, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
        """Before the decoder runs: the text's positions start at N."""
        inputs = inputs_by_name(decoder, args, kwargs)
        text = inputs.get("inputs_embeds")
        text = inputs["input_ids"] if text is None else text
        cache = inputs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        batch, tokens = text.shape[:2]
        positions = text_positions(decoder, inputs, batch, tokens, past, self.length)
        return (), {**inputs, "position_ids": positions}

    def attend(self, attention: Any, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Before an attention module runs: the prefix in front, and a mask that shows it."""
        inputs = inputs_by_name(attention, args, kwargs)
        cache, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
        hidden, index = inputs["hidden_states"], attention.layer_idx  # (B, T, D)
        tokens = hidden.shape[1]
        in_sight = tokens if cache is None else cache.get_mask_sizes(tokens, index)[0]  # K
        inputs["past_key_values"] = _WithPrefix(cache, *self.layer(index))
        inputs["attention_mask"] = _widened(mask, tokens, in_sight, self.length, hidden.device)
        return (), inputs


def _widened(
    mask: Tensor | None, tokens: int, in_sight: int, length: int, device: torch.device
) -> Tensor | None:
    """A layer's mask with N more columns, all visible: (B, 1, T, N + K); None stays so for T = 1.

    None means plain causal attention, which Transformers leaves to the kernel. The kernel would
    then take the prefix for the beginning of the text, so it is written out here.
    """
    if mask is None:
        if tokens == 1:
            return None
        mask = torch.ones(1, 1, tokens, in_sight, dtype=torch.bool, device=device).tril()
    visible = mask.new_ones if mask.dtype == torch.bool else mask.new_zeros  # else added to scores
    return torch.cat([visible(*mask.shape[:3], length), mask], dim=3)


# ---- a whole model -----------------------------------------------------------------------------


def apply_prefix_tuning(
    model: Any,
    length: int | None = None,
    *,
    token_ids: Sequence[int] | Tensor | None = None,
    hidden: int | None = None,
) -> Any:
    """Gives every attention N trained keys and values, freezes the model, returns it (in place).

    Args:
        length: N >= 1; 20 unless `token_ids` say otherwise.
        token_ids: start from the keys and values that the frozen model computes for these tokens
            (section 7.4: "activations of real words"); the model then starts exactly as if the
            text were preceded by them. None starts from small random numbers.
        hidden: width of the reparametrisation network; None trains keys and values directly.
    Raises: CourseError for bad lengths or ids, token_ids together with `hidden`, an attention
        implementation other than eager and sdpa, or a model that carries an adapter; the model is
        then unchanged.
    """
    check_free(model, KIND)
    decoder, attentions = decoder_of(model), attention_modules(model)
    config = decoder.config
    kind = config._attn_implementation
    if kind not in ("eager", "sdpa"):
        raise CourseError(
            f"prefix tuning widens the attention mask, which {kind} does not take; call "
            'model.set_attn_implementation("sdpa") first'
        )
    embedding = decoder.get_input_embeddings().weight
    check_finite(embedding, "the embedding matrix")
    if hidden is not None:
        check_whole_number(hidden, 1, "hidden")
    start_from = None
    if token_ids is not None:
        if hidden is not None:
            raise CourseError("token_ids start keys and values themselves; leave `hidden` out")
        ids = check_token_ids(model, token_ids, length)
        start_from, length = _activations(decoder, ids), len(ids)
    length = 20 if length is None else length
    check_whole_number(length, 1, "length")
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shape = (len(attentions), heads, length, attentions[0].head_dim)
    dtype = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    prefix = Prefix(shape, hidden).to(embedding.device, dtype)
    if start_from is not None:
        with torch.no_grad():
            prefix.keys.copy_(start_from[0])
            prefix.values.copy_(start_from[1])
    record = start(model, KIND, "remove_prefix_tuning")
    decoder.add_module(ATTRIBUTE, prefix)
    decoder.register_forward_pre_hook(prefix.shift, with_kwargs=True)
    for attention in attentions:
        attention.register_forward_pre_hook(prefix.attend, with_kwargs=True)
    finish(model, record)
    return model


def remove_prefix_tuning(model: Any) -> Any:
    """Takes the prefix off: the model and its flags are as before."""
    record = require(model, KIND)
    decoder = decoder_of(model)
    for module in (decoder, *attention_modules(model)):
        remove_hooks(module, getattr(decoder, ATTRIBUTE))
    delattr(decoder, ATTRIBUTE)
    restore(model, record)
    return model


def fold_prefix(model: Any) -> Any:
    """Replaces the reparametrisation network by the keys and values that it gives (section 4.3).

    The model computes the same, with fewer numbers to keep; training goes on with the keys and
    values themselves. Raises: CourseError when there is no network.
    """
    record = require(model, KIND)
    prefix: Prefix = getattr(decoder_of(model), ATTRIBUTE)
    if prefix.hidden is None:
        raise CourseError("this prefix has no reparametrisation network to fold away")
    with torch.no_grad():
        pairs = [prefix.layer(index) for index in range(prefix.shape[0])]
    prefix.keys = nn.Parameter(torch.stack([keys for keys, _ in pairs]).contiguous())
    prefix.values = nn.Parameter(torch.stack([values for _, values in pairs]).contiguous())
    prefix.hidden = None
    del prefix.embedding, prefix.inner, prefix.outer
    finish(model, record)
    return model


@torch.no_grad()
def _activations(decoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (L, H, N, d_h) that the frozen model computes for a text of N tokens."""
    cache = DynamicCache()
    with evaluating(decoder):
        decoder(input_ids=ids.unsqueeze(0), past_key_values=cache, use_cache=True)
    keys = torch.stack([layer.keys[0] for layer in cache.layers])
    return keys, torch.stack([layer.values[0] for layer in cache.layers])
