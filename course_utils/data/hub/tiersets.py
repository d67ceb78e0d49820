"""What a lab hands out where its tier's data is a public dataset: prompts, demonstrations, pairs.

Train and held-out are the dataset's own splits; no model answers and nobody judges here.
"""

from typing import TYPE_CHECKING, Any

from course_utils.data.hub.load import load_public, prompt_key
from course_utils.data.report import LoadReport

if TYPE_CHECKING:
    from datasets import Dataset


def prompts(id: str, split: str, n: int | None, seed: int) -> list[str]:
    """Texts of `n` prompts at most, each of one user turn, so that a string holds all of it."""
    rows, report = load_public(id, kind="prompt-only", split=split, n=n, seed=seed, one_turn=True)
    _show(report)
    return [row["prompt"][-1]["content"] for row in rows]


def demonstrations(id: str, split: str, n: int | None, seed: int) -> "Dataset":
    """{prompt, completion}, conversational, of one or more turns."""
    rows, report = load_public(id, kind="prompt-completion", split=split, n=n, seed=seed)
    _show(report)
    return rows


def preferences(id: str, split: str, n: int | None, seed: int, **length: Any) -> "Dataset":
    """{prompt, chosen, rejected}, conversational, prompts of one user turn.

    One turn, because a reward is asked as (prompt, answer) of texts: of a longer conversation it
    would see the last question only.

    Args:
        length: tokenizer= and max_length= of `load_public`.
    """
    options = {"seed": seed, "one_turn": True, **length}
    rows, report = load_public(id, kind="preference", split=split, n=n, **options)
    _show(report)
    return rows


def pairs(id: str, n: int, n_heldout: int, seed: int, **length: Any) -> "tuple[Dataset, Dataset]":
    """(train, held-out) pairs; a prompt that is in both by the dataset's making stays held out."""
    held = preferences(id, "heldout", n_heldout, seed, **length)
    train = preferences(id, "train", n, seed, **length)
    measured = {prompt_key(row) for row in held}
    apart = [i for i, row in enumerate(train) if prompt_key(row) not in measured]
    if len(apart) < len(train):
        print(f"{len(train) - len(apart)} training pairs left out: their prompts are held out")
        train = train.select(apart)
    return train, held


def _show(report: LoadReport) -> None:
    print(report.text())
