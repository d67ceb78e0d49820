"""The lines of a text file, in bounded memory: what the JSON and CSV readers share."""

from typing import Any, BinaryIO, NamedTuple

from course_utils.data.report import RowFault
from course_utils.errors import DataError

CHUNK = 1 << 20  # bytes read at a time
BOM = b"\xef\xbb\xbf"


class Raw(NamedTuple):
    """One row as the file has it."""

    row: int  # 1-based; a header does not count
    line: int | None  # 1-based line of the file where the row begins; None: not a text file
    value: Any  # a dict (or any other JSON value), or the RowFault that stands in its place


class LineReader:
    """Lines of a binary file, none longer than a limit; knows its line number and byte offset."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._limit = file, limit
        self._next = 0  # byte at which the next line begins
        self.line = 0  # 1-based number of the line read last
        self.offset = 0  # byte at which it begins
        self.quotes = 0  # double quotes in the last line that was too long

    def read(self) -> tuple[bytes, int]:
        """(line, its size in bytes); (b"", size) for a line too long, (b"", 0) at the end."""
        raw = self._file.readline(self._limit + 2)  # with its line end
        if not raw:
            return b"", 0
        self.line, self.offset = self.line + 1, self._next
        self._next += len(raw)
        if self.offset == 0 and raw.startswith(BOM):
            raw, self.offset = raw.removeprefix(BOM), len(BOM)
        size = len(raw)
        if len(raw.rstrip(b"\r\n")) <= self._limit and (
            raw.endswith(b"\n") or size < self._limit + 2
        ):
            return raw, size
        self.quotes = raw.count(b'"')
        while not raw.endswith(b"\n") and (raw := self._file.readline(CHUNK)):
            size += len(raw)
            self._next += len(raw)
            self.quotes += raw.count(b'"')
        return b"", size


def decode(raw: bytes, place: str, offset: int) -> str:
    """UTF-8 bytes that stand at `offset` of the file -> text; `place` is e.g. "a.jsonl row 3".

    Raises:
        DataError: names the row, the byte offset in the file, the byte and the fix.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise DataError(
            f"{place}, byte offset {offset + error.start}: not UTF-8 (byte 0x{byte:02x}, "
            'often Windows-1252 or Latin-1); save as UTF-8 ("Save with encoding" in an editor, or '
            "iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW)"
        ) from None


def too_large(size: int, limit: int) -> RowFault:
    """The fault of a row of `size` bytes where `limit` are allowed."""
    seen = f"the row has {_mib(size)}, the limit is {_mib(limit)}"
    return RowFault("too large", seen, "shorten it, or raise max_row_bytes")


def blank_line() -> RowFault:
    return RowFault("empty row", "the line is blank", "remove the line")


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size} bytes"
