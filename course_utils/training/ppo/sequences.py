"""Prompt and answer as one row of tokens, and scoring such rows with as little padding as possible.

The sampler pads prompts on the left. For scoring and updating, each row is shifted to start at
column 0 and padded on the right: causal attention then needs no mask, positions count up by
themselves, and a group of rows of similar length is no wider than its longest row.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from course_utils.generation import Sampled


@dataclasses.dataclass(frozen=True)
class Sequences:
    """B rows `prompt answer padding`, right-padded."""

    ids: Tensor  # (B, T) int64
    prompt_lengths: Tensor  # (B,) tokens
    completion_lengths: Tensor  # (B,) tokens, EOS included, >= 1

    @classmethod
    def of(cls, sampled: Sampled) -> "Sequences":
        """Shifts the sampler's rows to the left edge."""
        both, mask = sampled.input_ids, sampled.attention_mask.bool()  # (B, P + C)
        prompts = sampled.prompt_mask.sum(dim=1)
        padding = sampled.prompt_ids.shape[1] - prompts  # (B,)
        columns = torch.arange(both.shape[1], device=both.device)  # (P + C,)
        shifted = both.gather(1, (columns + padding.unsqueeze(1)).clamp(max=both.shape[1] - 1))
        lengths = mask.sum(dim=1)
        real = columns < lengths.unsqueeze(1)
        ids = shifted.masked_fill(~real, int(both[0, 0]))  # any id: nothing real can see it
        return cls(ids[:, : int(lengths.max())], prompts, sampled.lengths)

    @property
    def lengths(self) -> Tensor:  # (B,)
        return self.prompt_lengths + self.completion_lengths

    @property
    def mask(self) -> Tensor:
        """(B, C) bool: True on the answer's tokens; C is the longest answer among these rows."""
        columns = torch.arange(int(self.completion_lengths.max()), device=self.ids.device)
        return columns < self.completion_lengths.unsqueeze(1)

    @property
    def where(self) -> Tensor:
        """(N,) flat indices b * T + t of the positions that predict the answers' tokens.

        The token at t + 1 is predicted at t, so the first is the prompt's last position. The order
        is that of `mask`'s True entries, row by row.
        """
        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        first = (self.prompt_lengths - 1).unsqueeze(1)
        predicting = (columns >= first) & (columns < first + self.completion_lengths.unsqueeze(1))
        return predicting.flatten().nonzero().squeeze(1)

    def rows(self, index: Tensor) -> "Sequences":
        """Those rows, cut to the longest among them."""
        prompts, completions = self.prompt_lengths[index], self.completion_lengths[index]
        width = int((prompts + completions).max())
        return Sequences(self.ids[index, :width], prompts, completions)

    def __len__(self) -> int:
        return self.ids.shape[0]


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """(N,) values of the answers' tokens -> (B, C), 0 where there is no token."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)


def by_length(sequences: Sequences, rows: int) -> Iterator[Tensor]:
    """Row indices in groups of at most `rows`, similar lengths together: little is padded."""
    yield from sequences.lengths.argsort(descending=True, stable=True).split(rows)


def micro_batches(sequences: Sequences, rows: Tensor, size: int) -> Iterator[Tensor]:
    """The row numbers `rows` (a minibatch) in groups of at most `size`, of similar length."""
    for part in by_length(sequences.rows(rows), size):
        yield rows[part]


def in_groups(
    sequences: Sequences, groups: Iterable[Tensor], score: Callable[[Sequences], Tensor]
) -> Tensor:
    """Applies `score: rows -> (N, K) per token` to groups of rows; returns (B, C, K)."""
    mask = sequences.mask
    result: Tensor | None = None
    for index in groups:
        group = sequences.rows(index)
        found = score(group)  # (n tokens, K)
        if result is None:
            result = found.new_zeros(*mask.shape, found.shape[-1])
        group_mask = group.mask
        padded = found.new_zeros(*group_mask.shape, found.shape[-1])
        padded[group_mask] = found
        result[index, : group_mask.shape[1]] = padded
    assert result is not None  # there is at least one row
    return result


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The autocast of a precision: none for "fp32", else bf16 or fp16 over the fp32 weights."""
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)
