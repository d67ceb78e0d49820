"""Opens a file of rows by its suffix: the one door to the JSON, CSV and Parquet readers.

Every reader holds one row at a time (Parquet: a small batch). Faults of one row are yielded in its
place; faults of the whole file are raised as DataError.
"""

import difflib
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from pathlib import Path

from course_utils.data.jsonrows import read_json
from course_utils.data.lines import BOM, Raw
from course_utils.data.tables import CsvTable, ParquetTable
from course_utils.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_HEAD = 1 << 16  # bytes looked at to tell what a file is


@dataclass(frozen=True)
class Table:
    """An opened file: its columns, if it names them once for all, and its rows."""

    columns: tuple[str, ...] | None  # None: every row names its own (JSON)
    rows: Callable[
        [Collection[str] | None], Generator[Raw, None, None]
    ]  # of the columns wanted (None: all)


def open_table(path: Path, source: str, limit: int, notice: Callable[[str], None]) -> Table:
    """Opens a file.

    Args:
        path: the file.
        source: its name in messages.
        limit: the size in bytes above which a row is refused.
        notice: called with every decision the user should know of.

    Raises:
        DataError: there is no such file, its suffix is unknown, it is empty, its text is not UTF-8.
    """
    require_file(path, source)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        found = f'the suffix "{path.suffix}"' if path.suffix else "a name without suffix"
        raise DataError(
            f"{source}: {found} does not tell the format; save it as {', '.join(SUFFIXES)}"
        )
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head.removeprefix(BOM).strip() and len(head) < _HEAD:
        raise DataError(f"{source}: the file is empty; add at least one row")
    if suffix == ".parquet":
        parquet = ParquetTable.open(path, source, limit)
        return Table(parquet.columns, parquet.rows)
    check_encoding(head, source)
    if suffix in (".csv", ".tsv"):
        expected = "\t" if suffix == ".tsv" else ","
        table = CsvTable.open(path, source, limit, expected)
        if table.delimiter != expected:
            shown = "tab" if table.delimiter == "\t" else f'"{table.delimiter}"'
            notice(f"the fields are separated by {shown}")
        return Table(table.columns, table.rows)
    return Table(None, lambda _: read_json(path, source, limit, notice))


def require_file(path: Path, source: str) -> None:
    """Raises DataError unless `path` is a file; suggests files with nearly that name."""
    if path.is_file():
        return
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)[:5]
        hint = f"name one file in it: {', '.join(inside)}" if inside else "it holds no data files"
        raise DataError(f"{source}: this is a directory, not a file; {hint}")
    if path.exists():
        raise DataError(f"{source}: not a regular file; save the data to a file first")
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"{source}: no such file, and no folder {folder}; check the path")
    names = [p.name for p in folder.iterdir() if p.is_file()]
    near = difflib.get_close_matches(path.name, names, 3, 0.6)
    near += sorted(n for n in names if Path(n).stem == path.stem and n not in near)
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"check the path (folder {folder})"
    raise DataError(f"{source}: no such file; {hint}")


def check_encoding(head: bytes, source: str) -> None:
    """Raises DataError when a text file begins like UTF-16, a zip archive or another binary."""
    resave = 'open it in the program that wrote it and save as "UTF-8"'
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{source}, byte offset 0: the file is UTF-16 (byte order mark); {resave}")
    if head.startswith(b"PK\x03\x04"):
        raise DataError(
            f'{source}: this is an Excel workbook or a zip archive; export it as "CSV UTF-8"'
        )
    if head.startswith(b"\x1f\x8b"):
        raise DataError(f"{source}: this is a gzip archive; unpack it first (gunzip)")
    if head.startswith(b"PAR1"):
        raise DataError(f"{source}: this is a Parquet file; give it the suffix .parquet")
    if head.count(0) * 4 > len(head):
        first = head.index(0)
        raise DataError(
            f"{source}, byte offset {first}: a NUL byte; the file is UTF-16 or binary; {resave}"
        )
