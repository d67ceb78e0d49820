"""Prompts to tokens: chat template, padding on the left, and the ids that pad and stop."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.models import unwrapped

logger = logging.getLogger(__name__)

Prompt = str | list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Prompts as tokens, padded on the left."""

    input_ids: Tensor  # (B, P) int64
    attention_mask: Tensor  # (B, P) int64, 1 on real tokens

    def to(self, device: Any) -> "Encoded":
        return Encoded(self.input_ids.to(device), self.attention_mask.to(device))


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int) -> Encoded:
    """Token lists of different lengths -> (B, P) with the padding on the left."""
    width = max(len(row) for row in rows)
    ids = [[pad_token_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return Encoded(torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long))


def padding_id(tokenizer: Any) -> int:
    """The id that fills padding: pad if there is one, else EOS (lengths are kept explicitly)."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return stop_ids(tokenizer)[0]


def stop_ids(tokenizer: Any, model: Any = None) -> list[int]:
    """Ids that end an answer: the tokenizer's EOS, and those of the model's generation config.

    Raises: CourseError when there is none.
    """
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    more = getattr(getattr(unwrapped(model), "generation_config", None), "eos_token_id", None)
    for extra in [more] if isinstance(more, int) else more or []:
        if extra not in found and extra < len(tokenizer):
            found.append(int(extra))
    if not found:
        raise CourseError(
            "the tokenizer has no EOS token, so no answer could ever end; set it, for example "
            'tokenizer.eos_token = "</s>" (a token that the model was trained to end with)'
        )
    return found


def prompt_texts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[str]:
    """Each prompt as the chat template writes it, up to where the answer begins.

    A string is one user turn.
    Raises: CourseError when the tokenizer has no chat template or a prompt is not text or messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise CourseError(
            f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat template, as is "
            "usual for base models; set tokenizer.chat_template, or load an instruction-tuned one"
        )
    chats = []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(prompt, list) or not prompt:
            raise CourseError(
                f"prompt {number} is {prompt!r}; a prompt is a string or a list of "
                '{"role": ..., "content": ...} messages'
            )
        chats.append(prompt)
    return tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)


def prompt_tokens(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_length: int | None = None,
    overlong: Literal["error", "truncate"] = "error",
) -> list[list[int]]:
    """Token ids of each prompt (not padded). See `encode_prompts`."""
    if len(prompts) == 0:
        return []
    texts = prompt_texts(tokenizer, prompts)
    # the template writes the special tokens, so the tokenizer must not add them again
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    empty = [number for number, row in enumerate(rows) if not row]
    if empty:
        raise CourseError(f"prompt {empty[0]} has no tokens at all; drop it")
    if max_length is None:
        return rows
    long = [number for number, row in enumerate(rows) if len(row) > max_length]
    if long and overlong == "error":
        raise CourseError(
            f"prompt {long[0]} has {len(rows[long[0]])} tokens and only {max_length} fit before "
            f"the answer ({len(long)} of {len(rows)} prompts are too long); shorten it, lower "
            'max_new_tokens, or pass overlong="truncate" to cut from the left'
        )
    if long:
        logger.warning(
            "%d of %d prompts are longer than %d tokens and were cut from the left (first: %d)",
            *(len(long), len(rows), max_length, long[0]),
        )
    return [row[-max_length:] for row in rows]


def encode_prompts(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_length: int | None = None,
    overlong: Literal["error", "truncate"] = "error",
) -> Encoded:
    """Prompts through the chat template, padded on the left.

    Args:
        prompts: strings (each becomes one user turn) or message lists.
        max_length: tokens that a prompt may have; None does not check.
        overlong: "error", or "truncate" (from the left, with a logged warning).
    Raises: CourseError for no prompts, a missing template, an overlong prompt.
    """
    if len(prompts) == 0:
        raise CourseError("there are no prompts: the list is empty")
    return pad_left(prompt_tokens(tokenizer, prompts, max_length, overlong), padding_id(tokenizer))
