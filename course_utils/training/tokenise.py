"""From rows of text to rows of token ids, and the order in which training sees them.

The ids are those TRL's own preparation makes (a test compares them); here whole batches are
rendered and tokenised at once, what is cut or dropped is counted and said, and the reward model
reads its answers at inference through the very function that made its training data.
"""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from course_utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Cells = Sequence[Any]  # all strings (standard) or all message lists (conversational)
Row = dict[str, list[int]]
_CHUNK = 1000  # rows rendered and tokenised at once


def whole_ids(tokenizer: Any, prompts: Cells, answers: Cells) -> list[list[int]]:
    """Token ids of each prompt with its answer, ended as the model is trained to end it.

    Conversational rows go through the chat template, which ends the last turn; standard ones are
    joined as they are and get the EOS token, unless they end with it.
    """
    _require_template(tokenizer, prompts)
    if not prompts:
        return []
    if isinstance(prompts[0], str):
        end = tokenizer.eos_token
        ended = [answer if answer.endswith(end) else answer + end for answer in answers]
        return tokenizer([p + a for p, a in zip(prompts, ended, strict=True)])["input_ids"]
    chats = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def prompt_ids(tokenizer: Any, prompts: Cells) -> list[list[int]]:
    """Token ids of each prompt alone, up to where the answer begins."""
    _require_template(tokenizer, prompts)
    if not prompts:
        return []
    if isinstance(prompts[0], str):
        return tokenizer(list(prompts))["input_ids"]
    texts = tokenizer.apply_chat_template(list(prompts), tokenize=False, add_generation_prompt=True)
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _require_template(tokenizer: Any, prompts: Cells) -> None:
    if prompts and isinstance(prompts[0], list) and not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the rows are conversations and the tokenizer has no chat template (a base model's?); "
            "set tokenizer.chat_template, or make the rows plain strings with "
            "course_utils.data.shapes.to_standard"
        )


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    length = min(len(a), len(b))
    return next((i for i in range(length) if a[i] != b[i]), length)


@dataclass
class Counts:
    """What did not go into training as it was."""

    source: str  # name of the data in the message
    rows: int = 0  # looked at
    cut: int = 0  # answers cut at max_length tokens
    long: int = 0  # dropped: no room for an answer within max_length tokens
    same: int = 0  # dropped: chosen and rejected are the same tokens

    def report(self, max_length: int) -> None:
        """Says what was cut or dropped. Raises DataError when nothing is left."""
        kept = self.rows - self.long - self.same
        said = [
            (self.cut, f"answers cut at {max_length} tokens"),
            (self.long, f"dropped, longer than {max_length} tokens"),
            (self.same, "dropped, chosen and rejected are the same tokens"),
        ]
        text = "; ".join(f"{count} {what}" for count, what in said if count)
        if kept == 0:
            raise DataError(
                f"{self.source}: none of {self.rows} rows can be used ({text}); raise max_length"
            )
        if text:
            logger.warning("%s: of %d rows %s", self.source, self.rows, text)


def _chunks(dataset: "Dataset", names: Sequence[str]) -> Any:
    plain = dataset.select_columns(list(names)).with_format(None)
    for batch in plain.iter(_CHUNK):
        yield tuple(batch[name] for name in names)


def demonstration_rows(
    dataset: "Dataset", tokenizer: Any, max_length: int, source: str
) -> list[Row]:
    """{input_ids, labels}: labels are -100 on the prompt, so only the answer is learned.

    Longer rows are cut at the end; those whose prompt alone fills max_length are dropped.
    """
    rows: list[Row] = []
    counts = Counts(source)
    for prompts, completions in _chunks(dataset, ("prompt", "completion")):
        wholes = whole_ids(tokenizer, prompts, completions)
        for prompt, whole in zip(prompt_ids(tokenizer, prompts), wholes, strict=True):
            counts.rows += 1
            start = _common(prompt, whole)
            if start >= min(len(whole), max_length):
                counts.long += 1
                continue
            counts.cut += len(whole) > max_length
            ids = whole[:max_length]
            rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    counts.report(max_length)
    return rows


def comparison_rows(dataset: "Dataset", tokenizer: Any, max_length: int, source: str) -> list[Row]:
    """{chosen_ids, rejected_ids}, prompt and answer in one, for a reward model.

    A pair with a longer side is dropped: cut, it would lose its last token, the one scored.
    """
    rows: list[Row] = []
    counts = Counts(source)
    for prompts, chosen, rejected in _chunks(dataset, ("prompt", "chosen", "rejected")):
        sides = whole_ids(tokenizer, prompts, chosen), whole_ids(tokenizer, prompts, rejected)
        for a, b in zip(*sides, strict=True):
            counts.rows += 1
            counts.same += a == b
            counts.long += a != b and max(len(a), len(b)) > max_length
            if a != b and max(len(a), len(b)) <= max_length:
                rows.append({"chosen_ids": a, "rejected_ids": b})
    counts.report(max_length)
    return rows


def preference_rows(dataset: "Dataset", tokenizer: Any, max_length: int, source: str) -> list[Row]:
    """{prompt_ids, chosen_ids, rejected_ids}, the answers without the prompt, for DPO.

    Longer answers are cut at the end; dropped are pairs whose prompt alone fills max_length, or
    whose answers are then the same.
    """
    rows: list[Row] = []
    counts = Counts(source)
    for prompts, chosen, rejected in _chunks(dataset, ("prompt", "chosen", "rejected")):
        sides = whole_ids(tokenizer, prompts, chosen), whole_ids(tokenizer, prompts, rejected)
        for prompt, a, b in zip(prompt_ids(tokenizer, prompts), *sides, strict=True):
            counts.rows += 1
            start = min(_common(prompt, a), _common(prompt, b))
            first, second = a[start:max_length], b[start:max_length]
            if start >= max_length:
                counts.long += 1
            elif first == second:
                counts.same += 1
            else:
                counts.cut += max(len(a), len(b)) > max_length
                rows.append(
                    {"prompt_ids": prompt[:start], "chosen_ids": first, "rejected_ids": second}
                )
    counts.report(max_length)
    return rows


# ---- the order -------------------------------------------------------------------------------


def data_order(
    lengths: Sequence[int], total: int, batch_size: int, seed: int, group_by_length: bool
) -> list[int]:
    """Which row comes when, for the whole training: `total` indices into `lengths`.

    Each pass over the data is a fresh permutation. With `group_by_length`, windows of 16 batches
    are sorted by length, cut into batches, and the batches shuffled. It depends on nothing but the
    arguments, so a resumed run sees the same rows.
    """
    rng = random.Random(seed)
    order: list[int] = []
    while len(order) < total:
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        order += epoch
    order = order[:total]
    if not group_by_length:
        return order
    grouped: list[int] = []
    window = 16 * batch_size
    for start in range(0, total, window):
        part = sorted(order[start : start + window], key=lambda index: lengths[index])
        batches = [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
        rng.shuffle(batches)
        grouped += [index for batch in batches for index in batch]
    return grouped
