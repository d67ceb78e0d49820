"""Prompt tuning (Lester et al. 2021): N trained vectors stand before the text's embeddings.

    [P; X] ∈ R^{(N + T) × D},  P trained, everything else frozen (section 2)

The virtual tokens run through all layers like words do. Their outputs are dropped again, so the
adapted model gives logits for the text only: labels, losses and samplers need not know of them.
(PEFT's keeps them: its logits[:, N:] are ours.)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.adapters.inputs import (
    check_token_ids,
    inputs_by_name,
    remove_hooks,
    text_positions,
    wider_mask,
)
from course_utils.adapters.record import check_free, finish, require, restore, start
from course_utils.adapters.sites import check_finite, check_whole_number, decoder_of
from course_utils.errors import CourseError

__all__ = ["SoftPrompt", "apply_prompt_tuning", "remove_prompt_tuning"]

KIND = "prompt tuning"
ATTRIBUTE = "soft_prompt"  # the module's place in the decoder


class SoftPrompt(nn.Module):
    """The trained vectors (N, D), and the two hooks that bring them into a decoder."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)  # (N, D)
        self.tokens = 0  # T of the present forward: how many outputs belong to the text

    def enter(self, decoder: Any, args: Any, kwargs: Any) -> tuple[tuple[()], dict[str, Any]]:
        """Before the decoder runs: put the virtual tokens first, unless the cache has them."""
        inputs = inputs_by_name(decoder, args, kwargs)
        length = len(self.vectors)  # N
        ids, embeds = inputs.pop("input_ids", None), inputs.pop("inputs_embeds", None)
        if embeds is None:
            embeds = decoder.get_input_embeddings()(ids)  # (B, T, D)
        batch, self.tokens = embeds.shape[:2]
        mask, cache = inputs.get("attention_mask"), inputs.get("past_key_values")
        _check_plain(inputs)
        cached = 0 if cache is None else cache.get_seq_length()  # N + text, or 0 at the start
        past = max(cached - length, 0)
        positions = text_positions(decoder, inputs, batch, self.tokens, past, length)
        if cached == 0:
            vectors = self.vectors.to(embeds.dtype).expand(batch, -1, -1)
            embeds = torch.cat([vectors, embeds], dim=1)  # (B, N + T, D)
            first = torch.arange(length, device=positions.device).expand(batch, -1)
            positions = torch.cat([first, positions], dim=1)  # (B, N + T)
            if cache is not None:
                _make_room(cache, length)
        if mask is not None:
            inputs["attention_mask"] = wider_mask(mask, length)
        return (), {**inputs, "inputs_embeds": embeds, "position_ids": positions}

    def leave(self, decoder: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """After it: keep the text's hidden states, the last T."""
        if isinstance(output, tuple):
            return (output[0][:, -self.tokens :], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, -self.tokens :]
        if output.hidden_states is not None:
            output.hidden_states = tuple(h[:, -self.tokens :] for h in output.hidden_states)
        return output


def apply_prompt_tuning(
    model: Any,
    length: int | None = None,
    *,
    token_ids: Sequence[int] | Tensor | None = None,
) -> Any:
    """Puts N trained vectors before every text, freezes the model, and returns it (in place).

    Args:
        length: N >= 1; 20 unless `token_ids` say otherwise.
        token_ids: start from these tokens' embeddings (the model then starts as if the text were
            preceded by them); None starts from random vectors as long as the embeddings are.
    Raises: CourseError for bad lengths or ids, embeddings that are not finite, or a model that
        carries an adapter; the model is then unchanged.
    """
    check_free(model, KIND)
    decoder = decoder_of(model)
    embedding = decoder.get_input_embeddings()
    check_finite(embedding.weight, "the embedding matrix")
    dtype = torch.float64 if embedding.weight.dtype == torch.float64 else torch.float32
    if token_ids is None:
        length = 20 if length is None else length
        check_whole_number(length, 1, "length")
        size, device = embedding.weight.shape[1], embedding.weight.device
        spread = embedding.weight.detach().to(dtype).std()
        vectors = spread * torch.randn(length, size, dtype=dtype, device=device)
    else:
        with torch.no_grad():
            vectors = embedding(check_token_ids(model, token_ids, length)).to(dtype, copy=True)
    record = start(model, KIND, "remove_prompt_tuning")
    prompt = SoftPrompt(vectors)
    decoder.add_module(ATTRIBUTE, prompt)
    decoder.register_forward_pre_hook(prompt.enter, with_kwargs=True)
    decoder.register_forward_hook(prompt.leave, with_kwargs=True)
    finish(model, record)
    return model


def remove_prompt_tuning(model: Any) -> Any:
    """Takes the prompt off: the model and its flags are as before."""
    record = require(model, KIND)
    decoder = decoder_of(model)
    remove_hooks(decoder, getattr(decoder, ATTRIBUTE))
    delattr(decoder, ATTRIBUTE)
    restore(model, record)
    return model


def _make_room(cache: Any, length: int) -> None:
    """The virtual tokens' keys and values go into the cache: a buffer of fixed size needs N more.

    Our sampler's layers (course_utils.generation) make their buffer of `length` places when the
    first tokens come, which is after this.
    """
    for layer in getattr(cache, "layers", []):
        if hasattr(layer, "max_cache_len"):
            raise CourseError(
                "a static cache has no room for the virtual tokens; use the default cache"
            )
        if hasattr(layer, "length"):
            layer.length += length


def _check_plain(inputs: dict[str, Any]) -> None:
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
        raise CourseError("prompt tuning needs a (B, T) attention mask of ones and zeros, or none")
    if inputs.get("token_type_ids") is not None:
        raise CourseError("prompt tuning does not support token_type_ids; leave them out")
    if mask is None and positions is not None and bool((positions.diff(dim=-1) < 0).any()):
        raise CourseError(
            "several texts are packed into a row (the positions start again): all but the first "
            "could not see the soft prompt; turn packing off, or use prefix tuning"
        )
