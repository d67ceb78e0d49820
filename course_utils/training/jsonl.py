"""A JSONL file of rows that one process appends to and any number of processes read. No torch."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

from course_utils.errors import RunError
from course_utils.files import explain_full_disk, write_atomic


def plain(value: Any) -> Any:
    """`value` made of dict, list, str, int, float, bool and None only.

    Tensors and arrays become (nested) lists or numbers, dataclasses dicts, tuples lists, paths
    strings; NaN and infinities, which JSON lacks, become None. Raises RunError for anything else.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):  # also numpy.float64, which is a float
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # torch.Tensor, numpy arrays and scalars
        return plain(value.tolist())
    raise RunError(f"cannot write {type(value).__name__} {value!r} into a run; use numbers or text")


def _line(row: dict[str, Any]) -> str:
    step = row.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise RunError(f'a row of a run needs an int "step", got {step!r} in {sorted(row)}')
    return json.dumps(plain(row), allow_nan=False, ensure_ascii=False) + "\n"


class JsonLines:
    """The file at `path`; each row is a dict with an int "step". A missing file has no rows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Adds whole lines and flushes; after a failed write (full disk, Ctrl-C) cuts it off."""
        data = "".join(_line(row) for row in rows).encode()
        with explain_full_disk(self.path), open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
            except BaseException:
                file.truncate(end)
                raise

    def sync(self) -> None:
        """Waits until the rows are on the disk."""
        if self.path.exists():
            with explain_full_disk(self.path), open(self.path, "ab") as file:
                os.fsync(file.fileno())

    def _raw(self) -> list[bytes]:
        """The complete lines; what a killed process left without a newline is dropped."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        return data[: data.rfind(b"\n") + 1].splitlines()

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row["step"], int):
                return row
        except (ValueError, KeyError):
            pass
        raise RunError(
            f"{self.path} line {number} is not a row of a run ({line[:60]!r}): the file was "
            "changed or damaged; delete that line, or restore the file"
        )

    def read(self) -> list[dict[str, Any]]:
        """All complete rows. Raises RunError naming a line that is not one."""
        return [self._parse(number, line) for number, line in enumerate(self._raw(), start=1)]

    def mend(self) -> None:
        """Cuts a torn last line off, so that the next row does not continue it."""
        if self.path.exists():
            whole = self.path.read_bytes().rfind(b"\n") + 1
            if whole != self.path.stat().st_size:
                os.truncate(self.path, whole)

    def keep_until(self, step: int) -> None:
        """Drops rows of later steps; a new file takes the old one's place in one rename."""
        lines = list(enumerate(self._raw(), start=1))
        kept = [line for number, line in lines if self._parse(number, line)["step"] <= step]
        if len(kept) < len(lines):
            write_atomic(self.path, b"".join(line + b"\n" for line in kept))
