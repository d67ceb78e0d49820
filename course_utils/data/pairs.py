"""Two answers to one prompt, before anybody has said which is better.

`read_pairs` takes what a lesson has (a preference Dataset, plain rows, tuples) and gives `Pair`s
with an order of left and right that no label can have leaked into.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from course_utils.data.report import RowFault
from course_utils.data.shapes import check_messages, check_text, describe, missing_column, same

COLUMNS = (("chosen", "rejected"), ("a", "b"))  # what the two answers' columns may be called

Cell = Any  # a text, or a list of {role, content} messages


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt and two different answers, in the order in which they are shown."""

    id: str  # from the texts alone: the same pair has the same id in any order, file or process
    prompt: Cell
    left: Cell
    right: Cell
    row: int  # 1-based, of the rows it came from
    given: str | None = None  # "left" or "right" where the rows say which was chosen

    def shown(self) -> dict[str, Any]:
        """What a reader gets to see: nothing about which was chosen."""
        return {"id": self.id, "prompt": self.prompt, "left": self.left, "right": self.right}


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs that can be labelled, and the rows that were left out."""

    kept: list[Pair]
    equal: list[int]  # 1-based rows whose two answers say the same
    repeated: list[int]  # 1-based rows that an earlier row says already
    conversational: bool  # cells are message lists

    def notes(self) -> list[str]:
        """What was left out, in words."""
        reasons = ((self.equal, "its answers are equal"), (self.repeated, "it is there already"))
        return [
            f"{len(rows)} of the rows left out ({why}): row "
            + ", ".join(map(str, rows[:5]))
            + (", …" if len(rows) > 5 else "")
            for rows, why in reasons
            if rows
        ]


def pair_id(prompt: Cell, one: Cell, other: Cell) -> str:
    """16 hex digits of the three texts; one and other may change places."""
    texts = [json.dumps(cell, sort_keys=True) for cell in (prompt, one, other)]
    return _hash(json.dumps([texts[0], *sorted(texts[1:])]))[:16]


def read_pairs(rows: Iterable[Any], seed: int = 0, source: str = "pairs") -> Pairs:
    """Pairs to label from a `datasets.Dataset` or any rows.

    Which answer stands left is a coin thrown by SHA-256 of (seed, the pair's texts): it depends on
    neither the row's place, nor the column, nor the process.

    Args:
        rows: each {prompt, chosen, rejected}, {prompt, a, b} or (prompt, answer, answer); cells are
            texts, or message lists in all rows. Further columns are ignored.
        source: the name of `rows` in messages.
    Raises:
        DataError: names source, 1-based row, column, what was seen and the fix. Rows with equal
            answers, and repeated ones, are no error: they are left out and counted.
    """
    kept: dict[str, Pair] = {}
    equal: list[int] = []
    repeated: list[int] = []
    conversational: bool | None = None
    for number, row in enumerate(rows, 1):
        try:
            prompt, answers, names = _cells(row)
            if conversational is None:
                conversational = isinstance(prompt, list)
            for value, name in zip((prompt, *answers), ("prompt", *names), strict=True):
                _check(value, name, conversational)
        except RowFault as fault:
            raise fault.at(f"{source} row {number}") from None
        key = pair_id(prompt, *answers)
        if same(*answers):
            equal.append(number)
        elif key in kept:
            repeated.append(number)
        else:
            kept[key] = _placed(key, prompt, answers, names, number, seed)
    return Pairs(list(kept.values()), equal, repeated, bool(conversational))


def _placed(
    key: str, prompt: Cell, answers: list[Cell], names: tuple[str, str], row: int, seed: int
) -> Pair:
    first = min(answers, key=lambda cell: json.dumps(cell, sort_keys=True))
    heads = int(_hash(f"order:{seed}:{key}")[:8], 16) % 2 == 0
    left, right = answers if (answers[0] == first) == heads else answers[::-1]
    given = None
    if names == COLUMNS[0]:
        given = "left" if left == answers[0] else "right"
    return Pair(key, prompt, left, right, row, given)


def _cells(row: Any) -> tuple[Cell, list[Cell], tuple[str, str]]:
    """(prompt, both answers, the names of their columns) of a row of any of the three kinds."""
    if isinstance(row, Mapping):
        columns = [str(name) for name in row]
        names = next((n for n in COLUMNS if set(n) <= set(columns)), None)
        if names is None:
            best = max(COLUMNS, key=lambda n: len(set(n) & set(columns)))
            lacking = next(name for name in best if name not in columns)
            raise missing_column(lacking, columns)
        if "prompt" not in columns:
            raise missing_column("prompt", columns)
        return _plain(row["prompt"]), [_plain(row[name]) for name in names], names
    if isinstance(row, tuple | list) and len(row) == 3:
        text = getattr(row[0], "text", row[0])  # a world Prompt
        return _plain(text), [_plain(row[1]), _plain(row[2])], COLUMNS[1]
    fix = 'write each row as {"prompt": ..., "a": ..., "b": ...} or (prompt, answer, answer)'
    raise RowFault("wrong type", f"the row is {describe(row)}", fix)


def _plain(value: Any) -> Cell:
    """Messages keep role and content only, so that a pair's id does not hang on other fields."""
    if not isinstance(value, list):
        return value
    return [
        {"role": m["role"], "content": m["content"]}
        if isinstance(m, dict) and {"role", "content"} <= set(m)
        else m
        for m in value
    ]


def _check(value: Any, name: str, conversational: bool) -> None:
    if conversational != isinstance(value, list):
        seen = f'column "{name}" is {describe(value)}'
        other = "message lists" if conversational else "texts"
        raise RowFault("wrong type", seen, f"the cells before it are {other}: use one kind for all")
    if conversational:
        check_messages(value, name)
    else:
        check_text(value, name)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("ascii", "backslashreplace")).hexdigest()
