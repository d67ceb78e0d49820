"""Sampling completions in batches: prompts in, completions with log-probabilities and values out.

The decode loop is written out, so that a lesson can read it: left-padded prompts, explicit
positions, a preallocated key-value cache, one uniform number per row and step, rows that have ended
leave the batch. It samples from the model's whole distribution (no top-k, no top-p, no repetition
penalty): the log-probability that PPO stores is then that of the distribution it sampled from.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from course_utils.encoding import (
    Encoded,
    Prompt,
    encode_prompts,
    pad_left,
    padding_id,
    prompt_texts,
    prompt_tokens,
    stop_ids,
)
from course_utils.errors import CourseError
from course_utils.models import LanguageParts, evaluating, parts_of, positions_of
from course_utils.objectives.masking import completion_mask_from_eos

__all__ = [
    "Encoded",
    "Prompt",
    "Sampled",
    "completion_texts",
    "encode_prompts",
    "generate_texts",
    "pad_left",
    "padding_id",
    "prompt_texts",
    "prompt_tokens",
    "sample",
    "stop_ids",
]

LEAVE_WHEN = 1 / 8  # finished rows are cut out of the batch once they are this share of it

# ---- the decode loop ---------------------------------------------------------------------------


@dataclasses.dataclass
class Sampled:
    """A batch of completions. Entries of `completion_ids` after the end are padding, masked out."""

    prompt_ids: Tensor  # (B, P) left-padded
    prompt_mask: Tensor  # (B, P)
    completion_ids: Tensor  # (B, C) right-padded
    completion_mask: Tensor  # (B, C) bool, True up to and including EOS
    logprobs: Tensor  # (B, C) float32, log π(y_t | ...) at the sampling temperature; 0 if masked
    values: Tensor | None  # (B, C) float32, V(s_t) before y_t was chosen; 0 if masked
    ended: Tensor  # (B,) bool, the model wrote EOS itself (False: cut at max_new_tokens)
    entropy: Tensor | None = None  # (B, C) float32, of the distribution y_t was drawn from, nats

    @property
    def input_ids(self) -> Tensor:  # (B, P + C)
        return torch.cat([self.prompt_ids, self.completion_ids], dim=1)

    @property
    def attention_mask(self) -> Tensor:  # (B, P + C)
        return torch.cat([self.prompt_mask, self.completion_mask.to(self.prompt_mask.dtype)], dim=1)

    @property
    def lengths(self) -> Tensor:  # (B,) tokens of each completion, EOS included
        return self.completion_mask.sum(dim=1)


class _Preallocated(DynamicLayer):
    """One layer's keys and values in a buffer made once; appending copies the new token only.

    DynamicLayer concatenates, which copies the whole cache at every step: half of the CPU time of
    decoding a small model.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys = key_states.new_empty(
                *key_states.shape[:2], self.length, key_states.shape[3]
            )
            self._values = value_states.new_empty(
                *value_states.shape[:2], self.length, value_states.shape[3]
            )
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        end = self.get_seq_length()
        for name in ("_keys", "_values"):
            buffer = getattr(self, name)
            buffer[: len(indices), :, :end] = buffer[indices, :, :end]  # the right side is a copy
            setattr(self, name, buffer[: len(indices)])
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]


def _new_cache(config: Any, length: int) -> DynamicCache:
    """A cache for `length` tokens; sliding windows and the like keep their own kind of layers."""
    cache = DynamicCache(config=config)
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        cache.layers = [_Preallocated(length) for _ in cache.layers]
    return cache


def _choose(
    logits: Tensor, temperature: float, uniform: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Next tokens (n,) from logits (n, V), their log-probabilities (n,), and all of them (n, V).

    Samples by inverting the cumulative distribution at one uniform number per row: a row's token
    depends on its own number only, so batching and leaving rows do not change it.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # (n, V)
    if uniform is None:
        tokens = logprobs.argmax(dim=-1)
    else:
        exact = torch.float32 if logits.device.type == "mps" else torch.float64
        cumulative = logprobs.exp().cumsum(dim=-1, dtype=exact)  # (n, V)
        target = uniform.to(exact).unsqueeze(1) * cumulative[:, -1:]  # the sum is not exactly 1
        tokens = torch.searchsorted(cumulative, target, right=True).squeeze(1)
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1), logprobs


def _check_room(parts: LanguageParts, prompt: int, new: int, temperature: float) -> None:
    if new < 1:
        raise CourseError(f"max_new_tokens must be at least 1, got {new}")
    if not temperature >= 0:
        raise CourseError(
            f"temperature must be >= 0 (0 takes the likeliest token), got {temperature}"
        )
    context = getattr(parts.config, "max_position_embeddings", None)
    if context is not None and prompt + new > context:
        raise CourseError(
            f"prompts of {prompt} tokens and {new} new ones do not fit the model's context of "
            f"{context}; shorten the prompts, or lower max_new_tokens to {max(context - prompt, 0)}"
        )


def sample(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    value_head: Callable[[Tensor], Tensor] | None = None,
    with_entropy: bool = False,
) -> Sampled:
    """Writes a completion for each prompt, token by token, until EOS or `max_new_tokens`.

    Without gradients; in the model's present mode (put it in eval mode: dropout makes the captured
    log-probabilities those of another model).

    Args:
        input_ids, attention_mask: (B, P) left-padded prompts.
        eos_token_ids: an answer ends with any of these, which is kept and counts as its last one.
        pad_token_id: fills the entries after the end; may equal EOS, the mask says what is real.
        temperature: the logits are divided by it; 0 takes the likeliest token (log-probabilities
            are then those at temperature 1).
        generator: a CPU generator; the same state gives the same completions.
        uniforms: (B, max_new_tokens) numbers in [0, 1) to use instead of drawing them.
        value_head: hidden states (n, D) -> (n,) or (n, 1); fills `values`.
        with_entropy: fill `entropy`.
    """
    parts = parts_of(model)
    batch, width = input_ids.shape
    _check_room(parts, width, max_new_tokens, temperature)
    device = input_ids.device
    if temperature > 0 and uniforms is None:
        uniforms = torch.rand(batch, max_new_tokens, generator=generator, dtype=torch.float64)
    noise = None if temperature == 0 or uniforms is None else uniforms.to(device)
    ids = torch.full((batch, max_new_tokens), pad_token_id, dtype=torch.long, device=device)
    logprobs = torch.zeros(batch, max_new_tokens, device=device)
    values = torch.zeros_like(logprobs) if value_head is not None else None
    entropy = torch.zeros_like(logprobs) if with_entropy else None
    stops = torch.tensor(list(eos_token_ids), device=device)

    with torch.inference_mode():
        rows = torch.arange(batch, device=device)  # (n,) rows of the batch that are still written
        done = torch.zeros(batch, dtype=torch.bool, device=device)  # (n,) ended, not yet cut out
        cache = _new_cache(parts.config, width + max_new_tokens)
        mask = torch.cat([attention_mask.long(), ids.new_ones(batch, max_new_tokens)], dim=1)
        positions = positions_of(mask)  # (n, P + C)
        step_ids, step_positions = input_ids, positions[:, :width]
        for t in range(max_new_tokens):
            hidden = parts.trunk(
                input_ids=step_ids,
                attention_mask=mask[:, : width + t],
                position_ids=step_positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]  # (n, D)
            tokens, chosen, every = _choose(
                parts.logits(hidden), temperature, None if noise is None else noise[rows, t]
            )
            ids[rows, t], logprobs[rows, t] = tokens, chosen
            if value_head is not None and values is not None:
                values[rows, t] = value_head(hidden).reshape(-1).float()
            if entropy is not None:  # a forbidden token has p = 0 and log p = -inf
                entropy[rows, t] = -(every.exp() * every.clamp(min=-1e9)).sum(dim=-1)
            done |= torch.isin(tokens, stops)
            finished = int(done.sum())
            if finished == len(rows):
                break
            if finished >= LEAVE_WHEN * len(rows):
                stay = (~done).nonzero().squeeze(1)
                cache.batch_select_indices(stay)
                rows, done, tokens = rows[stay], done[stay], tokens[stay]
                mask, positions = mask[stay], positions[stay]
            step_ids = tokens.unsqueeze(1)
            step_positions = positions[:, width + t : width + t + 1]

    longest = t + 1
    ids, logprobs = ids[:, :longest], logprobs[:, :longest]
    # rows that had ended wrote on until they left: what follows their EOS is not theirs
    real = completion_mask_from_eos(ids, eos_token_ids)
    return Sampled(
        prompt_ids=input_ids,
        prompt_mask=attention_mask,
        completion_ids=ids.masked_fill(~real, pad_token_id),
        completion_mask=real,
        logprobs=logprobs.masked_fill(~real, 0.0),
        values=None if values is None else values[:, :longest].masked_fill(~real, 0.0),
        ended=(torch.isin(ids, stops) & real).any(dim=1),
        entropy=None if entropy is None else entropy[:, :longest].masked_fill(~real, 0.0),
    )


# ---- tokens to text ----------------------------------------------------------------------------


def completion_texts(tokenizer: Any, completion_ids: Tensor, completion_mask: Tensor) -> list[str]:
    """Text of each completion (B, C), without special tokens and blanks around it."""
    rows = completion_ids.cpu().tolist()
    lengths = completion_mask.sum(dim=1).tolist()
    kept = [row[:length] for row, length in zip(rows, lengths, strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(kept, skip_special_tokens=True)]


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
    overlong: Literal["error", "truncate"] = "error",
) -> list[str]:
    """The model's answers to prompts, in their order, special tokens stripped.

    The same seed gives the same answers: prompt i draws its own random numbers, whatever the batch
    size. The model's train/eval mode is as before afterwards.

    Args:
        prompts: strings (one user turn each) or message lists.
        max_new_tokens: tokens at most per answer. temperature: 0 takes the likeliest token.
        batch_size: prompts at a time; they are sorted by length first, so that little is padded.
        overlong: what to do with prompts that leave no room: "error", or "truncate" from the left.
    Raises: CourseError for overlong prompts, a missing chat template or EOS, nonsensical settings.
    """
    if len(prompts) == 0:
        return []
    if batch_size < 1:
        raise CourseError(f"batch_size must be at least 1, got {batch_size}")
    parts = parts_of(model)
    _check_room(parts, 1, max_new_tokens, temperature)
    context = getattr(parts.config, "max_position_embeddings", None)
    room = None if context is None else context - max_new_tokens
    rows = prompt_tokens(tokenizer, prompts, room, overlong)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(len(rows), max_new_tokens, generator=generator, dtype=torch.float64)
    device = next(parts.trunk.parameters()).device
    answers = [""] * len(rows)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = pad_left([rows[i] for i in chosen], padding_id(tokenizer)).to(device)
            sampled = sample(
                model,
                batch.input_ids,
                batch.attention_mask,
                max_new_tokens=max_new_tokens,
                eos_token_ids=stop_ids(tokenizer, model),
                pad_token_id=padding_id(tokenizer),
                temperature=temperature,
                uniforms=uniforms[chosen],
            )
            texts = completion_texts(tokenizer, sampled.completion_ids, sampled.completion_mask)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text
    return answers
