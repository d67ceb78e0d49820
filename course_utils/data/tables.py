"""Rows of CSV, TSV and Parquet files, one at a time, in bounded memory."""

import contextlib
import csv
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from course_utils.data.lines import LineReader, Raw, blank_line, decode, too_large
from course_utils.data.report import RowFault
from course_utils.errors import DataError

_PARQUET_BATCH = 8  # rows decoded at a time; a few, as a cell may be far larger than in the file


# --- CSV --------------------------------------------------------------------------------------


class _TooLong(Exception):
    """A record above the limit; the lines it takes up have been read."""

    def __init__(self, size: int) -> None:
        self.size = size  # bytes


class _Lines:
    """The lines of a CSV file as text for csv.reader, which asks for more inside a quoted field."""

    def __init__(self, file: BinaryIO, source: str, limit: int) -> None:
        self._reader, self._source, self._limit = LineReader(file, limit), source, limit
        self.row = 0  # of the record being read; 0: the header
        self.begin = 1  # line where it begins
        self.ended = False  # no line is left
        self._size = 0  # bytes of the record so far

    def next_record(self) -> None:
        self.row, self.begin, self._size = self.row + 1, self._reader.line + 1, 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        raw, size = self._reader.read()
        if size == 0:
            self.ended = True
            raise StopIteration
        inside_quotes = self._size > 0
        self._size += size
        if raw and self._size <= self._limit:
            place = f"{self._source} row {self.row}" if self.row else f"{self._source} header"
            return decode(raw, place, self._reader.offset)
        if inside_quotes or (not raw and self._reader.quotes % 2):
            raise DataError(
                f"{self._source} row {self.row} (line {self.begin}): a quoted field is not closed "
                f"within {self._limit / 2**20:.3g} MiB; close its quote, or raise max_row_bytes"
            )
        raise _TooLong(size)


@dataclass(frozen=True)
class CsvTable:
    """A CSV file whose header has been read."""

    path: Path
    source: str
    limit: int  # bytes a row may have
    delimiter: str
    columns: tuple[str, ...]

    @staticmethod
    def open(path: Path, source: str, limit: int, delimiter: str) -> "CsvTable":
        """Reads the header; a "," file whose header is all in one field is tried with ";" and tab.

        Raises:
            DataError: the header cannot be read, or names a column twice.
        """
        header = _header(path, source, limit, delimiter)
        for other in ";\t" if len(header) == 1 and delimiter == "," else "":
            if len(again := _header(path, source, limit, other)) > 1:
                delimiter, header = other, again
        twice = [name for i, name in enumerate(header) if name and name in header[:i]]
        if twice:
            raise DataError(f'{source}: the header names the column "{twice[0]}" twice; rename one')
        return CsvTable(path, source, limit, delimiter, tuple(header))

    def rows(self, wanted: Collection[str] | None = None) -> Generator[Raw, None, None]:
        """Yields every record below the header as a dict; every column is read, `wanted` or not."""
        with open(self.path, "rb") as file, _field_limit(self.limit):
            lines = _Lines(file, self.source, self.limit)
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            next(reader)  # the header
            blank_from = 0  # first of the blank records not yet reported; 0: none
            while (value := self._record(reader, lines)) is not None:
                row = lines.row
                if value == {}:
                    blank_from = blank_from or row
                    continue
                for blank in range(blank_from or row, row):  # those at the end do not count
                    yield Raw(blank, None, blank_line())
                blank_from = 0
                yield Raw(row, lines.begin, value)

    def _record(
        self, reader: Iterator[list[str]], lines: _Lines
    ) -> dict[str, str] | RowFault | None:
        """The next record; {} when all its fields are blank, None at the end of the file."""
        lines.next_record()
        try:
            fields = next(reader)
        except StopIteration:
            return None
        except _TooLong as error:
            return too_large(error.size, self.limit)
        except csv.Error as error:
            if lines.ended:
                raise DataError(
                    f"{self.source} row {lines.row} (line {lines.begin}): a quote opened here is "
                    "never closed, so the rest of the file cannot be told apart; close it"
                ) from None
            fix = (
                'put the whole field in double quotes and double the quotes inside it: "a ""b"" c"'
            )
            return RowFault("broken quotes", f"the quotes are broken ({error})", fix)
        if not any(field.strip() for field in fields):
            return {}
        if len(fields) != len(self.columns):
            seen = f"{len(fields)} fields, the header names {len(self.columns)}"
            fix = f'put a text with "{self.delimiter}" in it in double quotes'
            return RowFault("wrong number of fields", seen, fix)
        return dict(zip(self.columns, fields, strict=True))


def _header(path: Path, source: str, limit: int, delimiter: str) -> list[str]:
    with open(path, "rb") as file, _field_limit(limit):
        lines = _Lines(file, source, limit)
        try:
            fields = next(csv.reader(lines, delimiter=delimiter, strict=True))
        except (csv.Error, _TooLong, StopIteration) as error:
            fix = "its first line must name the columns, e.g. prompt,chosen,rejected"
            raise DataError(f"{source}: the header cannot be read ({error}); {fix}") from None
    return [field.strip() for field in fields]


@contextlib.contextmanager
def _field_limit(limit: int) -> Iterator[None]:
    """Lets the csv module read fields of `limit` characters; its own limit, 128 Ki, is global."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, limit))
    try:
        yield
    finally:
        csv.field_size_limit(before)


# --- Parquet ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file whose schema has been read."""

    path: Path
    source: str
    limit: int  # bytes a row may have
    columns: tuple[str, ...]

    @staticmethod
    def open(path: Path, source: str, limit: int) -> "ParquetTable":
        """Raises DataError when the file is not Parquet or is cut short."""
        import pyarrow.parquet as pq

        with _explain(source), pq.ParquetFile(path) as file:
            return ParquetTable(path, source, limit, tuple(file.schema_arrow.names))

    def rows(self, wanted: Collection[str] | None = None) -> Generator[Raw, None, None]:
        """Yields every row as a dict of the `wanted` columns; the others are never decoded."""
        import pyarrow.parquet as pq

        columns = None if wanted is None else [c for c in self.columns if c in wanted]
        row = 0
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:
            batches = file.iter_batches(_PARQUET_BATCH, columns=columns, use_threads=False)
            while True:
                with _explain(self.source):
                    batch = next(batches, None)
                if batch is None:
                    return
                for value in self._values(batch, row + 1):
                    row += 1
                    yield Raw(row, None, value)

    def _values(self, batch: Any, first: int) -> Iterator[Any]:
        """The rows of a batch as Python values; one by one if one may be too large or broken."""
        if batch.nbytes <= self.limit:
            with contextlib.suppress(ValueError, OverflowError):
                yield from batch.to_pylist()
                return
        for i in range(batch.num_rows):
            yield self._value(batch.slice(i, 1), first + i)

    def _value(self, record: Any, row: int) -> Any:
        """One row of a batch as Python values; measured before it is decoded."""
        if record.nbytes > self.limit:
            return too_large(record.nbytes, self.limit)
        try:
            return record.to_pylist()[0]
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.source} row {row}, byte {error.start} of a text: not UTF-8; write the "
                "column as UTF-8 strings"
            ) from None
        except (ValueError, OverflowError) as error:  # e.g. a timestamp beyond Python's range
            return RowFault(
                "wrong type", f"the row cannot be read ({error})", "store texts as strings"
            )


@contextlib.contextmanager
def _explain(source: str) -> Iterator[None]:
    """Turns pyarrow's errors into DataError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "write it again, e.g. with pandas' DataFrame.to_parquet"
        raise DataError(f"{source}: not a readable Parquet file ({text[:160]}); {fix}") from None
