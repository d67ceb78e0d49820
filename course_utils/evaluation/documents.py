"""How well a model still predicts given texts: loss per token, perplexity, forgetting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from course_utils.errors import CourseError
from course_utils.evaluation.statistics import LEVEL, Array, Estimate, finite, resampled
from course_utils.generation import padding_id
from course_utils.models import evaluating, parts_of
from course_utils.objectives.likelihood import token_logprobs

_LOGITS = 1 << 24  # logits held at once (64 MB in float32)


@dataclass(frozen=True)
class DocumentLoss:
    """The loss of a model on N documents. `sums` (N,) nats, `counts` (N,) scored tokens of each."""

    loss: Estimate  # mean over all tokens, nats; interval over documents
    sums: Array
    counts: Array

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many equally likely words the model hesitates."""
        return math.exp(min(self.loss.mean, 700.0))

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def to_json(self) -> dict[str, Any]:
        return {
            "loss": self.loss.to_json(),
            "perplexity": finite(self.perplexity),
            "tokens": self.tokens,
        }


def document_tokens(tokenizer: Any, text: str, max_length: int | None = None) -> list[int]:
    """Ids of a document as a base model reads it: between BOS and EOS.

    A text that starts with a special token (a chat written out) is taken as it is. The ids are cut
    to `max_length`.
    """
    framed = any(text.startswith(token) for token in tokenizer.all_special_tokens)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not framed:
        before, after = tokenizer.bos_token_id, tokenizer.eos_token_id
        ids = [*([] if before is None else [before]), *ids, *([] if after is None else [after])]
    return ids[:max_length]


def _token_mean(sums: Array, counts: Array, seed: int) -> Estimate:
    """Σ sums / Σ counts with an interval that resamples documents."""
    draws = resampled(np.stack([sums, counts], axis=1), n=2000, seed=seed)  # (n, 2)
    with np.errstate(invalid="ignore"):
        ratios = draws[:, 0] / draws[:, 1]
    low, high = np.nanquantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), len(sums))


def perplexity(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int = 0,
) -> DocumentLoss:
    """Loss per token on documents; each token counts once, whatever the document's length.

    Args:
        documents: texts; the first token of each is only context (see `document_tokens`).
        max_length: tokens read of each, at most the model's context (also the default).
        seed: of the bootstrap.
    Raises: CourseError if no document has a token to predict.
    """
    parts = parts_of(model)
    context = getattr(parts.config, "max_position_embeddings", None)
    limit = min((x for x in (context, max_length) if x is not None), default=None)
    rows = [document_tokens(tokenizer, text, limit) for text in documents]
    counts = np.array([max(0, len(row) - 1) for row in rows], dtype=np.float64)
    if not counts.sum() or batch_size < 1:
        raise CourseError(
            f"cannot measure a loss on {len(rows)} documents in batches of {batch_size}: no "
            "document has two tokens"
        )
    sums = np.zeros(len(rows))
    order = [i for i in sorted(range(len(rows)), key=lambda i: len(rows[i])) if counts[i]]
    device = next(parts.trunk.parameters()).device
    pieces = max(1, _LOGITS // parts.config.vocab_size)
    with evaluating(model), torch.inference_mode():
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            width = max(len(rows[i]) for i in chosen)
            ids = torch.full((len(chosen), width), padding_id(tokenizer), device=device)  # (B, T)
            mask = torch.zeros_like(ids)
            for k, i in enumerate(chosen):
                ids[k, : len(rows[i])] = torch.tensor(rows[i], device=device)
                mask[k, : len(rows[i])] = 1
            real = mask[:, 1:].bool()  # (B, T - 1)
            hidden = parts.hidden(ids, mask)[:, :-1][real]  # (N, D)
            split = zip(hidden.split(pieces), ids[:, 1:][real].split(pieces), strict=True)
            scored = torch.cat([token_logprobs(parts.logits(h), t) for h, t in split])  # (N,)
            full = torch.zeros(real.shape, device=device).masked_scatter(real, scored.float())
            sums[chosen] = -full.double().sum(dim=1).cpu().numpy()
    return DocumentLoss(_token_mean(sums, counts, seed), sums, counts)


def forgetting(before: DocumentLoss, after: DocumentLoss, seed: int = 0) -> Estimate:
    """Rise in loss per token, nats, from `before` to `after` training, on the same documents.

    The interval is paired: both losses are resampled together, so what makes a document hard for
    both cancels.
    """
    if not np.array_equal(before.counts, after.counts):
        raise ValueError("forgetting compares two models on the same documents and tokenizer")
    return _token_mean(after.sums - before.sums, before.counts, seed)
