"""Summaries of Reddit posts, TL;DR, and which of two people preferred.

Source: Stiennon et al. 2020, "Learning to summarize from human feedback", as prepared for TRL (the
original is a program, which the datasets library no longer runs).
"""

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source
from course_utils.data.shapes import check_text

_NAMES = ("prompt", "chosen", "rejected")


def summary(row: Row) -> Row:
    """{prompt, completion}; the completion begins with a space, which a chat template has none."""
    check_text(row["completion"], "completion")
    return {
        "prompt": turns.as_prompt(row["prompt"], "prompt"),
        "completion": turns.as_answer(row["completion"].strip(), "completion"),
    }


def preferred(row: Row) -> Row:
    for name in _NAMES[1:]:
        check_text(row[name], name)
    chosen, rejected = row["chosen"].strip(), row["rejected"].strip()
    return turns.split_pair(row["prompt"], chosen, rejected, _NAMES)


SOURCES = (
    Source(
        id="trl-lib/tldr",
        kind="prompt-completion",
        licence="none stated",
        rows="about 117k + 6k",
        note="posts of Reddit, each with its writer's summary",
        columns=("prompt", "completion"),
        row=summary,
        heldout="validation",
        large=True,
    ),
    Source(
        id="trl-lib/tldr-preference",
        kind="preference",
        licence="none stated",
        rows="92.9k + 83.8k",
        note="many pairs a post; one is kept",
        columns=("prompt", "chosen", "rejected"),
        row=preferred,
        heldout="validation",
    ),
)
