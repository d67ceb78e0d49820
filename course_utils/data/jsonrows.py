"""Rows of a JSON file, one at a time: JSON lines, one long list, or a single object."""

import json
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from course_utils.data.lines import BOM, CHUNK, LineReader, Raw, blank_line, decode, too_large
from course_utils.data.report import RowFault
from course_utils.errors import DataError

WRAPPERS = ("data", "rows", "examples", "instances", "train")  # {"data": [row, row, ...]}


def read_json(
    path: Path, source: str, limit: int, notice: Callable[[str], None]
) -> Generator[Raw, None, None]:
    """Rows of a .json or .jsonl file: what it really holds is told from its first bytes."""
    with open(path, "rb") as file:
        start = file.read(CHUNK).removeprefix(BOM).lstrip()[:1]
        file.seek(0)
        if start == b"[":
            yield from json_list(file, source, limit)
            return
        whole = _lone_object(file, limit) if start == b"{" else None
        file.seek(0)
        if whole is None:
            yield from json_lines(file, source, limit)
            return
        for key in WRAPPERS:
            if isinstance(whole.get(key), list):
                notice(f'the rows were found under "{key}"')
                yield from (Raw(i, None, value) for i, value in enumerate(whole[key], 1))
                return
        yield Raw(1, 1, whole)


def _lone_object(file: BinaryIO, limit: int) -> dict[str, Any] | None:
    """The one object a small file consists of; None for a file of JSON lines (or a broken one)."""
    raw = file.read(limit + 1)
    if len(raw) > limit:
        return None
    try:
        value = json.loads(raw.removeprefix(BOM).decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def json_lines(file: BinaryIO, source: str, limit: int) -> Iterator[Raw]:
    """One JSON value a line; the row is the line number. Blank lines at the end do not count."""
    reader = LineReader(file, limit)
    blank_from = 0  # first of the blank lines not yet reported; 0: none
    while True:
        raw, size = reader.read()
        if size == 0:
            return
        row = reader.line
        if raw and not raw.strip():
            blank_from = blank_from or row
            continue
        for blank in range(blank_from or row, row):
            yield Raw(blank, blank, blank_line())
        blank_from = 0
        if raw:
            yield Raw(row, row, parse(decode(raw, f"{source} row {row}", reader.offset), row))
        else:
            yield Raw(row, row, too_large(size, limit))


def parse(text: str, line: int) -> Any:
    """The JSON value of a text that begins at `line`, or the RowFault that stands in its place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        seen = f"invalid JSON at line {line + error.lineno - 1}, column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:  # a number of > 4300 digits; nested too deep
        seen = f"invalid JSON at line {line}: {str(error)[:80]}"
    fix = "write keys and texts in double quotes and close every row"
    return RowFault("invalid JSON", seen, fix)


_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'["\[\]{},]')


class _Scanner:
    """Finds the commas and the closing bracket of a JSON list; knows strings and depth only."""

    def __init__(self) -> None:
        self.depth = 1  # inside the list
        self.in_string = self.escaped = False

    def cuts(self, chunk: bytes, start: int) -> Iterator[int]:
        """Positions of the list's own commas and, if it is in the chunk, of its closing bracket."""
        at, end = start, len(chunk)
        while at < end and self.depth:
            if self.escaped:
                self.escaped, at = False, at + 1
            elif self.in_string:
                at = _IN_STRING.match(chunk, at).end()  # type: ignore[union-attr]
                if at < end:  # at a quote, or at a backslash that ends the chunk
                    self.escaped = chunk[at] == 0x5C
                    self.in_string, at = self.escaped, at + 1
            elif (match := _STRUCTURE.search(chunk, at)) is None:
                return
            else:
                at, mark = match.end(), match[0]
                self.in_string = mark == b'"'
                self.depth += (mark in b"[{") - (mark in b"]}")
                if (mark == b"," and self.depth == 1) or self.depth == 0:
                    yield at - 1


class _Element:
    """One piece of a JSON list, between two of its commas; its bytes are kept up to the limit."""

    def __init__(self, offset: int, line: int, limit: int) -> None:
        self.offset, self.line, self.limit = offset, line, limit  # where it begins in the file
        self.size = self.newlines = 0
        self._parts: list[bytes] = []

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self.newlines += piece.count(b"\n")
        self._parts.append(piece)
        if self.size > self.limit:
            self._parts.clear()

    def raw(self) -> bytes:
        return b"".join(self._parts)


def json_list(file: BinaryIO, source: str, limit: int) -> Iterator[Raw]:
    """The elements of the JSON list that a file consists of, without reading it whole."""
    chunk = file.read(CHUNK)
    start = chunk.index(b"[") + 1
    element = _Element(start, 1 + chunk.count(b"\n", 0, start), limit)
    scanner, row = _Scanner(), 1
    while chunk:
        for cut in scanner.cuts(chunk, start):
            element.add(chunk[start:cut])
            start = cut + 1
            closing = chunk[cut] != ord(",")
            yield from _element_row(element, row, source, closing)
            if closing:
                _require_blank(chunk[start:], file, source)
                return
            row += 1
            line = element.line + element.newlines
            element = _Element(element.offset + element.size + 1, line, limit)
        element.add(chunk[start:])
        chunk, start = file.read(CHUNK), 0
    raise DataError(
        f"{source}: the list ends inside row {row} (begun at line {element.line}): the file is cut "
        "short, or a quote or bracket is not closed; mend it, or save the data as JSON lines"
    )


def _element_row(element: _Element, row: int, source: str, closing: bool) -> Iterator[Raw]:
    if element.size > element.limit:
        yield Raw(row, element.line, too_large(element.size, element.limit))
        return
    raw = element.raw()
    text = decode(raw, f"{source} row {row}", element.offset)
    if closing and not raw.strip():
        return  # an empty list, or a comma before its closing bracket
    body = text.lstrip()
    line = element.line + text.count("\n", 0, len(text) - len(body))
    yield Raw(row, line, parse(body, line))


def _require_blank(rest: bytes, file: BinaryIO, source: str) -> None:
    """Raises DataError when something follows the list."""
    while rest:
        if rest.strip():
            raise DataError(f"{source}: text follows the closing ] of the list; remove it")
        rest = file.read(CHUNK)
