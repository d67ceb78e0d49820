"""What went wrong in a file of data: one row's fault, and the account of all of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from course_utils.errors import DataError

SHOWN_ROWS = 3  # row numbers and examples kept for each reason


class RowFault(Exception):
    """One row that cannot be used. The file around it may be fine.

    Attributes:
        reason: the short name under which a report counts it, e.g. "empty value".
        seen: what was seen, e.g. 'column "chosen" is empty'.
        fix: what the user can do.
    """

    def __init__(self, reason: str, seen: str, fix: str) -> None:
        super().__init__(f"{seen}; {fix}")
        self.reason, self.seen, self.fix = reason, seen, fix

    def at(self, place: str) -> DataError:
        """The fault as an error for the user; `place` is e.g. "prefs.jsonl row 17"."""
        return DataError(f"{place}: {self.seen}; {self.fix}")


@dataclass
class Drops:
    """The rows dropped for one reason: all are counted, the first three are remembered."""

    fix: str
    count: int = 0
    rows: list[int] = field(default_factory=list)  # 1-based, at most SHOWN_ROWS
    examples: list[str] = field(default_factory=list)  # what was seen in these rows


@dataclass
class LoadReport:
    """What a file gave: rows read and kept, rows dropped by reason, columns taken for others."""

    source: str
    kind: str  # one of course_utils.data.shapes.KINDS
    rows: int = 0  # rows of the file, good and bad
    kept: int = 0
    drops: dict[str, Drops] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def dropped(self) -> int:
        return sum(drops.count for drops in self.drops.values())

    def drop(self, row: int, fault: RowFault) -> None:
        """Counts one bad row."""
        drops = self.drops.setdefault(fault.reason, Drops(fault.fix))
        drops.count += 1
        if len(drops.rows) < SHOWN_ROWS:
            drops.rows.append(row)
            drops.examples.append(fault.seen)

    def notice(self, text: str) -> None:
        """Remembers a decision the user should know of, once."""
        if text not in self.notices:
            self.notices.append(text)

    def text(self) -> str:
        """A compact table for the terminal; one line when nothing was dropped."""
        lines = [f"{self.source}: {self.kept} of {self.rows} rows kept ({self.kind})"]
        lines += [f"  note: {notice}" for notice in self.notices]
        if self.drops:
            by_count = sorted(self.drops.items(), key=lambda item: -item[1].count)
            table = [("dropped", "reason", "rows", "first of them")]
            for reason, drops in by_count:
                more = ", …" if drops.count > len(drops.rows) else ""
                rows = ", ".join(map(str, drops.rows)) + more
                table.append((str(drops.count), reason, rows, shorten(drops.examples[0], 60)))
            lines += ["  " + line for line in _columns(table)]
        return "\n".join(lines)

    def hopeless(self) -> DataError:
        """The error for a file without a single usable row; leads with the commonest reason."""
        if not self.drops:
            return DataError(f"{self.source}: the file holds no rows; add at least one")
        drops = max(self.drops.values(), key=lambda d: d.count)
        return DataError(
            f"{self.source}: none of its {self.rows} rows can be used as {self.kind} data; "
            f"row {drops.rows[0]}: {drops.examples[0]}; {drops.fix}\n{self.text()}"
        )


def shorten(text: str, width: int) -> str:
    """At most `width` characters on one line."""
    text = " ".join(text[: 4 * width].split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _columns(table: Iterable[tuple[str, ...]]) -> list[str]:
    table = list(table)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table)
    return [line.rstrip() for line in padded]
