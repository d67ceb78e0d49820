"""The user's own files of prompts, demonstrations and preferences: JSON lines, JSON, CSV, Parquet.

Faults of the whole file (no such column, not UTF-8, no usable row) raise DataError. Faults of
single rows are dropped, counted by reason and shown in the LoadReport, or raised with
on_bad_row="error".
Whatever a row looked like in the file, it comes out conversational: lists of {role, content}.
"""

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from course_utils.data.columns import Planner
from course_utils.data.readers import open_table
from course_utils.data.report import LoadReport, RowFault
from course_utils.data.shapes import KINDS, Message, features
from course_utils.errors import CourseError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

MAX_ROW_BYTES = 8 * 2**20  # a row above this is refused; 8 MiB is about two million tokens
SPOOL_BYTES = 64 * 2**20  # text above this goes to a temporary file and is memory-mapped
_FLUSH_BYTES = 4 * 2**20  # text held as Python strings before it becomes an Arrow batch
_FLUSH_ROWS = 1000

_OTHER_NAMES = {"prompts": "prompt-only", "demonstrations": "prompt-completion"}
_OTHER_NAMES["preferences"] = "preference"


def load_prompts(path: Path | str, **options: Any) -> "tuple[Dataset, LoadReport]":
    """Prompts from a file: {prompt}. Options as for load_file."""
    return load_file(path, "prompt-only", **options)


def load_demonstrations(path: Path | str, **options: Any) -> "tuple[Dataset, LoadReport]":
    """Demonstrations from a file: {prompt, completion}. Options as for load_file."""
    return load_file(path, "prompt-completion", **options)


def load_preferences(path: Path | str, **options: Any) -> "tuple[Dataset, LoadReport]":
    """Preferences from a file: {prompt, chosen, rejected}. Options as for load_file."""
    return load_file(path, "preference", **options)


def load_file(
    path: Path | str,
    kind: str,
    *,
    tokenizer: Any = None,
    max_length: int | None = None,
    on_bad_row: Literal["drop", "error"] = "drop",
    max_row_bytes: int = MAX_ROW_BYTES,
) -> "tuple[Dataset, LoadReport]":
    """Reads a file into a conversational dataset, row by row, in bounded memory.

    Memory: one row, one Arrow batch, about 150 bytes for each row kept (to find duplicates), and
    the result, which moves to a temporary memory-mapped file above 64 MiB.

    Args:
        path: .jsonl, .ndjson, .json, .csv, .tsv or .parquet; text in UTF-8.
        kind: one of shapes.KINDS, or "prompts", "demonstrations", "preferences".
        tokenizer: with `max_length`, finds rows of which truncation leaves nothing to learn.
        max_length: tokens (prompt and answer together) that training will keep.
        on_bad_row: "drop" counts bad rows in the report, "error" raises on the first.
        max_row_bytes: a row above this size is bad.

    Returns:
        The dataset and the report; `print(report.text())` shows what was dropped and why.

    Raises:
        DataError: the file as a whole cannot be used, or a row with on_bad_row="error".
    """
    kind = _OTHER_NAMES.get(kind, kind)
    if kind not in KINDS:
        raise DataError(f'unknown kind of data "{kind}"; use one of {", ".join(KINDS)}')
    if on_bad_row not in ("drop", "error"):
        raise DataError(f'on_bad_row is "{on_bad_row}"; use "drop" or "error"')
    if (tokenizer is None) != (max_length is None):
        raise DataError("tokenizer and max_length go together; give both or neither")
    path = Path(path).expanduser()
    report = LoadReport(str(path), kind)
    length = LengthCheck(tokenizer, max_length) if max_length is not None else None
    try:
        dataset = _load(path, report, on_bad_row, max_row_bytes, length)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); check the file"
        ) from error
    return dataset, report


def _load(
    path: Path, report: LoadReport, on_bad_row: str, limit: int, length: "LengthCheck | None"
) -> "Dataset":
    table = open_table(path, report.source, limit, report.notice)
    planner = Planner(report)
    wanted = None
    if table.columns is not None:
        planner.columns = table.columns
        try:
            wanted = planner.plan(table.columns).names()
        except RowFault as fault:
            raise fault.at(report.source) from None
    sink = Sink(report.kind)
    try:
        with contextlib.closing(table.rows(wanted)) as rows:
            for number, line, value in rows:
                report.rows = number
                try:
                    row = planner.row(value)
                    if length:
                        length.check(row)
                    sink.add(row, number)
                except RowFault as fault:
                    if on_bad_row == "error":
                        at_line = "" if line in (None, number) else f" (line {line})"
                        raise fault.at(f"{report.source} row {number}{at_line}") from None
                    report.drop(number, fault)
                else:
                    report.kept += 1
        if not report.kept:
            raise report.hopeless()
        return sink.dataset()
    except BaseException:
        sink.discard()
        raise


class LengthCheck:
    """Finds rows of which truncation to `max_length` tokens leaves nothing to learn."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length

    def check(self, row: dict[str, Any]) -> None:
        """Raises RowFault when the prompt is too long, or its answers are cut off or made equal."""
        limit, fix = self._max_length, "drop the row or raise max_length"
        if "chosen" in row:
            chosen, rejected = (
                self._ids(row["prompt"] + row[c])[:limit] for c in ("chosen", "rejected")
            )
            if chosen == rejected:
                seen = f'"chosen" equals "rejected" after truncation to {limit} tokens'
                raise RowFault("equal after truncation", seen, fix)
            return
        prompt = len(self._ids(row["prompt"], generation=True))
        if prompt >= limit and "completion" in row:
            seen = f"the prompt has {prompt} tokens, so truncation to {limit} leaves no answer"
            raise RowFault("no answer after truncation", seen, fix)
        if prompt > limit:
            seen = f"the prompt has {prompt} tokens, max_length is {limit}"
            raise RowFault("prompt too long", seen, fix)

    def _ids(self, messages: list[Message], generation: bool = False) -> list[int]:
        """Token ids as training sees them; without a chat template, of the bare texts in a row."""
        text = "".join(m["content"] for m in messages)
        if getattr(self._tokenizer, "chat_template", None):
            from jinja2 import TemplateError

            try:
                text = self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=generation
                )
            except TemplateError as error:  # e.g. Gemma's, which takes no system message
                seen = f"the model's chat template refuses the row ({error})"
                raise RowFault("chat template", seen, "drop the turn it names") from None
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


class Sink:
    """Collects rows as Arrow batches: in memory, above SPOOL_BYTES in a memory-mapped file."""

    def __init__(self, kind: str) -> None:
        self._schema = features(kind).arrow_schema
        self._seen: dict[bytes, int] = {}  # digest of a row -> its number
        self._rows: list[dict[str, Any]] = []  # not yet a batch
        self._row_bytes = 0
        self._batches: list[Any] = []  # not yet in the file
        self._bytes = 0  # of the batches
        self._path: Path | None = None
        self._writer: Any = None

    def add(self, row: dict[str, Any], number: int) -> None:
        """Takes one row; raises RowFault when it was seen before or is not valid Unicode."""
        digest = hashlib.blake2b(digest_size=16)
        size = 0
        for name in sorted(row):
            for part in [name, *_texts(row[name])]:
                try:
                    raw = part.encode("utf-8")
                except UnicodeEncodeError as error:
                    seen = f'column "{name}" has half a character (\\u{ord(part[error.start]):04x})'
                    fix = "write both halves or neither"
                    raise RowFault("invalid Unicode", seen, fix) from None
                digest.update(len(raw).to_bytes(8, "big") + raw)
                size += len(raw)
        first = self._seen.setdefault(digest.digest(), number)
        if first != number:
            raise RowFault("duplicate", f"the same as row {first}", "keep one of them")
        self._rows.append(row)
        self._row_bytes += size
        if len(self._rows) >= _FLUSH_ROWS or self._row_bytes >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            batch = pa.RecordBatch.from_pylist(self._rows, schema=self._schema)
            self._bytes += batch.nbytes
            self._batches.append(batch)
            self._rows, self._row_bytes = [], 0
        if self._bytes > SPOOL_BYTES:
            with _explain_full_disk():
                if self._writer is None:
                    self._path = _spool_directory() / f"{os.urandom(8).hex()}.arrow"
                    self._writer = pa.ipc.new_stream(str(self._path), self._schema)
                for batch in self._batches:
                    self._writer.write_batch(batch)
            self._batches = []

    def dataset(self) -> "Dataset":
        """All rows taken."""
        import pyarrow as pa
        from datasets import Dataset

        self._flush()
        if self._writer is None:
            return Dataset(pa.Table.from_batches(self._batches, self._schema))
        with _explain_full_disk():
            self._writer.close()
        return Dataset.from_file(str(self._path))

    def discard(self) -> None:
        """Removes the file of a load that failed."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _texts(cell: list[Message] | bool) -> list[str]:
    if isinstance(cell, bool):
        return [str(cell)]
    return [message[key] for message in cell for key in ("role", "content")]


@contextlib.contextmanager
def _explain_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CourseError(
            f"no space left in {tempfile.gettempdir()} for the temporary copy of the data; free "
            "some space there, or set TMPDIR to a folder with more"
        ) from error


@functools.cache
def _spool_directory() -> Path:
    """A temporary folder for big datasets, removed when this process ends."""
    folder, owner = Path(tempfile.mkdtemp(prefix="course-data-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in forked workers
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
