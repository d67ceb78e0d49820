"""Texts to continue and sums to solve: IMDB, TinyStories, GSM8K.

A text becomes its beginning, as the prompt, and the rest. Sources: Maas et al. 2011 (IMDB);
Eldan & Li 2023 (TinyStories); Cobbe et al. 2021 (GSM8K).
"""

import re

from course_utils.data import turns
from course_utils.data.hub.sources import Row, Source
from course_utils.data.report import RowFault
from course_utils.data.shapes import check_text

OPENING = 8  # words of a review that are the prompt, as in the classic sentiment experiments


def review(row: Row) -> Row:
    """{text, label 0 | 1 | -1} -> the first words, the rest, and whether it is positive."""
    check_text(row["text"], "text")
    if row["label"] not in (0, 1):  # the split "unsupervised" has -1
        raise RowFault("no label", f"label is {row['label']}", "use the labelled splits")
    words = row["text"].replace("<br />", " ").split()
    if len(words) <= OPENING:
        raise RowFault("too short", f"the review has {len(words)} words", "drop the row")
    return {
        "prompt": turns.user_turn(" ".join(words[:OPENING])),
        "completion": turns.assistant_turn(" ".join(words[OPENING:])),
        "label": row["label"] == 1,
    }


def story(row: Row) -> Row:
    """{text} -> its first sentence and the rest."""
    check_text(row["text"], "text")
    parts = re.split(r"(?<=[.!?])\s+", row["text"].strip(), maxsplit=1)
    if len(parts) < 2:
        raise RowFault("too short", "the story has one sentence", "drop the row")
    return {"prompt": turns.user_turn(parts[0]), "completion": turns.assistant_turn(parts[1])}


def problem(row: Row) -> Row:
    """{question, answer}; an answer ends "#### 42", which a program can check."""
    check_text(row["answer"], "answer")
    if "####" not in row["answer"]:
        raise RowFault("no result", 'the answer has no line "#### number"', "drop the row")
    return {
        "prompt": turns.as_prompt(row["question"], "question"),
        "completion": turns.as_answer(row["answer"], "answer"),
    }


SOURCES = (
    Source(
        id="stanfordnlp/imdb",
        kind="unpaired",
        licence="other",
        rows="25,000 + 25,000",
        note="film reviews; prompt: the first 8 words, label: positive",
        columns=("text", "label"),
        row=review,
        heldout="test",
    ),
    Source(
        id="roneneldan/TinyStories",
        kind="prompt-completion",
        licence="cdla-sharing-1.0",
        rows="2.12M + 22k",
        note="prompt: the first sentence of a story",
        columns=("text",),
        row=story,
        heldout="validation",
        large=True,
    ),
    Source(
        id="openai/gsm8k",
        kind="prompt-completion",
        licence="mit",
        rows="7,473 + 1,319",
        note='every answer ends "#### number": a reward that can be checked',
        columns=("question", "answer"),
        row=problem,
        heldout="test",
        config="main",
        configs=("main", "socratic"),
    ),
)
