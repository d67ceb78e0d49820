"""What others say of pairs of answers: a gold reward, an annotator, somebody else's labels."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course_utils.data.labels import Labels, Record, read_labels
from course_utils.data.pairs import Pair
from course_utils.errors import CourseError, DataError

DECIDED = ("left", "right")
TIE = 1e-9  # scores closer than this tie

# Something with compare(prompt, a, b) -> 0 | 1; a score (prompt, answer) -> number, or an object
# with `.total`; somebody else's Labels, or the path of their file; None for the rows' own chosen.
Judge = Any


def as_shown(record: Record, pair: Pair) -> str:
    """The choice with the pair's left and right: another seed may have turned them round."""
    choice: str = record["choice"]
    if choice in DECIDED and record["left"] != pair.left:
        return "left" if choice == "right" else "right"
    return choice


def verdicts(judge: Judge, pairs: list[Pair]) -> list[str | None]:
    """What a judge says of each pair: "left", "right", "tie", "skip", or None where unknown."""
    if judge is None:
        return [pair.given for pair in pairs]
    if isinstance(judge, str | Path):
        judge = read_labels(judge)
    if isinstance(judge, Labels):
        found = {r["pair"]: r for r in judge.standing()}
        return [as_shown(found[p.id], p) if p.id in found else None for p in pairs]
    if hasattr(judge, "compare"):
        return [
            DECIDED[judge.compare(_words(p.prompt, "user"), *map(_words, (p.left, p.right)))]
            for p in pairs
        ]
    if callable(judge):
        return [_by_score(judge, pair) for pair in pairs]
    raise CourseError(
        f"cannot compare with {judge!r}: give a gold reward (prompt, answer) -> score, an "
        "annotator with compare(prompt, a, b), or the path of somebody's labels"
    )


def _by_score(score: Callable[..., Any], pair: Pair) -> str | None:
    prompt = _words(pair.prompt, "user")
    try:
        found = [score(prompt, _words(answer)) for answer in (pair.left, pair.right)]
    except DataError:  # a prompt whose true quality is not known
        return None
    left, right = (float(getattr(s, "total", s)) for s in found)
    if not math.isfinite(left - right):
        return None
    if abs(left - right) <= TIE:
        return "tie"
    return "left" if left > right else "right"


def _words(cell: Any, role: str = "assistant") -> str:
    """A text as it is; of messages, the last one of `role`."""
    if isinstance(cell, str):
        return cell
    said = [m["content"] for m in cell if m["role"] == role]
    return str(said[-1]) if said else ""
