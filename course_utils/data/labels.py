"""Preference labels that people make: a file that is only ever added to, and what it says.

    labels = read_labels("labels.jsonl")
    labels.counts()          # {"pairs": 31, "preferred": 28, "ties": 2, "skips": 1, "undone": 1}
    labels.preferences()     # a Dataset {prompt, chosen, rejected}: trains a reward model, or DPO

One JSON object a line. The first is a header {kind: "labels", version, id}; then, as made,

* {kind: "label", id, pair, prompt, left, right, choice, annotator, seconds, at, peeked}: `left` and
  `right` as they were shown, `choice` one of CHOICES, `seconds` that the pair was looked at,
  `peeked` whether the agreement with somebody else had been looked at before.
* {kind: "undo", id, of, annotator, at}: the label with the id `of` does not count.

Ids make it safe to add a record twice, and the order between a label and its undo does not matter:
so whoever is not sure that a record arrived may send it again.
"""

import dataclasses
import datetime
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

CHOICES = ("left", "right", "tie", "skip")
VERSION = 1
_NEEDED = {
    "label": {"id": str, "pair": str, "choice": str, "annotator": str},
    "undo": {"id": str, "of": str, "annotator": str},
}

Record = dict[str, Any]


def now() -> str:
    """UTC, to the millisecond, as a browser's toISOString() writes it."""
    stamp = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


def new_id() -> str:
    return uuid.uuid4().hex


# ---- what the records say ------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Labels:
    """Records in the order made. Of several labels of one pair by one annotator the last counts."""

    records: Sequence[Record]
    source: str = "labels"

    def by(self, annotator: str) -> "Labels":
        """Those of one annotator."""
        mine = [r for r in self.records if r["annotator"] == annotator]
        return Labels(mine, f"{self.source} by {annotator}")

    @property
    def annotators(self) -> list[str]:
        return list(dict.fromkeys(r["annotator"] for r in self.records))

    def standing(self) -> list[Record]:
        """The labels that count, in the order made."""
        undone = {r["of"] for r in self.records if r["kind"] == "undo"}
        found: dict[tuple[str, str], Record] = {}
        for record in self.records:
            if record["kind"] == "label" and record["id"] not in undone:
                key = (record["annotator"], record["pair"])
                found.pop(key, None)
                found[key] = record
        return list(found.values())

    def counts(self) -> dict[str, int]:
        """pairs = preferred + ties + skips that count; undone: labels taken back."""
        standing = self.standing()
        of = {choice: sum(r["choice"] == choice for r in standing) for choice in CHOICES}
        undone = {r["of"] for r in self.records if r["kind"] == "undo"}
        return {
            "pairs": len(standing),
            "preferred": of["left"] + of["right"],
            "ties": of["tie"],
            "skips": of["skip"],
            "undone": sum(r["kind"] == "label" and r["id"] in undone for r in self.records),
        }

    def rows(self) -> list[dict[str, Any]]:
        """{prompt, chosen, rejected} of every label that prefers one side, in the order made."""
        sides = {"left": ("left", "right"), "right": ("right", "left")}
        return [
            {"prompt": r["prompt"], "chosen": r[chosen], "rejected": r[rejected]}
            for r in self.standing()
            if r["choice"] in sides
            for chosen, rejected in [sides[r["choice"]]]
        ]

    def preferences(self, conversational: bool | None = None) -> "Dataset":
        """TRL's preference format; ties and skips are dropped (`counts` says how many).

        Args:
            conversational: True for message lists, False for plain strings, None as labelled.
        Raises:
            DataError: no label prefers a side, labels of both kinds are mixed while
                `conversational` is None, or messages do not fit in a string.
        """
        from datasets import Dataset, Features, Value

        from course_utils.data.shapes import features

        rows = self.rows()
        if not rows:
            counts = self.counts()
            raise DataError(
                f"{self.source} has no pair with a preferred answer yet ({counts['ties']} ties, "
                f"{counts['skips']} skips): label some pairs first"
            )
        kinds = {isinstance(cell, list) for row in rows for cell in row.values()}
        if conversational is None:
            if len(kinds) > 1:
                raise DataError(
                    f"{self.source} has labels of plain texts and of message lists: choose one "
                    "with preferences(conversational=True)"
                )
            conversational = kinds.pop()
        made = [
            {name: _as(cell, name, conversational, i) for name, cell in row.items()}
            for i, row in enumerate(rows, 1)
        ]
        text = Value("string")
        plain = Features({"prompt": text, "chosen": text, "rejected": text})
        return Dataset.from_list(made, features("preference") if conversational else plain)

    def __repr__(self) -> str:
        said = ", ".join(f"{n} {name}" for name, n in self.counts().items())
        return f"Labels({self.source}: {said})"


def _as(cell: Any, name: str, conversational: bool, row: int) -> Any:
    role = "user" if name == "prompt" else "assistant"
    if conversational == isinstance(cell, list):
        return cell
    if conversational:
        return [{"role": role, "content": cell}]
    if [m["role"] for m in cell] != [role]:
        raise DataError(
            f'label {row}: "{name}" is not one single {role} turn, so it does not fit in a string; '
            "use preferences(conversational=True)"
        )
    return cell[0]["content"]


# ---- lines ---------------------------------------------------------------------------------------


def encode(record: Record) -> bytes:
    """One line. A lone surrogate, which UTF-8 lacks, makes the line ASCII with escapes."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False).encode() + b"\n"


def _decode(line: bytes) -> Record | None:
    """The record of a line, None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    needed = _NEEDED.get(record.get("kind", ""))
    if needed is None or any(not isinstance(record.get(k), t) for k, t in needed.items()):
        return None
    if record["kind"] == "label" and (
        record["choice"] not in CHOICES or not {"prompt", "left", "right"} <= set(record)
    ):
        return None
    return record


def header_of(path: Path, line: bytes) -> Record:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("kind") != "labels" or "id" not in header:
        raise DataError(
            f"{path} is not a file of labels: its first line is {line[:60]!r}, not a header "
            '{"kind": "labels", ...}; give the labels a file of their own'
        )
    if header.get("version") != VERSION:
        raise DataError(
            f"{path} has labels of version {header.get('version')!r}; this course reads "
            f"{VERSION}: update the course"
        )
    return header


def parse(path: Path, data: bytes, first: int) -> tuple[list[Record], int]:
    """(records, bytes that they take) of the lines in `data`, the first of which has this number.

    A last line without its end is taken if it is whole, and otherwise left: a process may have been
    killed, or may still be, writing it. Raises DataError naming any other line that is no record.
    """
    records: list[Record] = []
    taken = 0
    for number, line in enumerate(data.split(b"\n"), first):
        ended = taken + len(line) < len(data)
        record = _decode(line) if line.strip() else None
        if record is not None:
            records.append(record)
        elif line.strip() and not ended:
            break
        elif line.strip():
            raise DataError(
                f"{path} line {number} is not a label ({line[:60]!r}): the file was changed or "
                "damaged; delete that line, or restore the file"
            )
        taken += len(line) + ended
    return records, taken


def read_labels(path: Path | str) -> Labels:
    """All labels of a file, also while somebody labels.

    Raises: DataError if there is no such file, it is none of ours, or a line is damaged.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"there is no file {path}: make labels with PreferenceLabeller") from None
    head, end, rest = data.partition(b"\n")
    header_of(path, head)
    records, _ = parse(path, rest, 2) if end else ([], 0)
    return Labels(list(once(records)), path.name)


def once(records: Iterable[Record]) -> Iterator[Record]:
    seen: set[str] = set()
    for record in records:
        if record["id"] not in seen:
            seen.add(record["id"])
            yield record
