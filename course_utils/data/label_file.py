"""The file that preference labels go into: added to by several, on the disk before anyone is told.

The format is labels.py's. Nothing in it is ever written again; taking a label back adds a line.
"""

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from course_utils.data.labels import VERSION, Record, encode, header_of, new_id, now, once, parse
from course_utils.errors import DataError
from course_utils.files import explain_full_disk

_HEAD = b'{"kind": "labels"'
_LOCK_AT = 1 << 40  # a byte beyond any label: on Windows a lock forbids reading what it covers


class LabelFile:
    """Appends records, each on the disk before `append` returns. Several may write to one file.

    Every append holds a lock on the file and first reads what others have added, so two labellers
    (two notebooks, or a cell that was run twice) merge and never overwrite each other.

    Attributes:
        id: of the file, drawn when it was made; the browser keeps its unsent labels under it.
        records: all records so far, in the file's order.

    Raises: DataError if `path` is another kind of file, or has a damaged line.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.records: list[Record] = []
        self._seen: set[str] = set()
        self._offset = 0  # bytes read
        self._line = 0  # lines read
        self._guard = threading.RLock()  # a front end's messages may come in another thread
        _begin(self.path)
        with open(self.path, "rb") as file:
            self.id = str(header_of(self.path, file.readline().rstrip(b"\n"))["id"])
        self.refresh()

    def refresh(self) -> list[Record]:
        """Reads what others added; returns it."""
        with self._guard, open(self.path, "rb") as file:
            return self._read(file)

    def append(self, records: Iterable[Record]) -> list[Record]:
        """Adds the records whose id is new, and waits until they are on the disk.

        Returns: what `self.records` grew by: others' records found on the way, then the new ones.
        Raises: CourseError if the disk is full, DataError if the file was removed or replaced;
            then none of the new ones is in the file.
        """
        with self._guard, explain_full_disk(self.path), self._open() as file, _locked(file):
            found = self._read(file)
            fresh = [r for r in once(records) if r["id"] not in self._seen]
            if fresh:
                self._write(file, b"".join(map(encode, fresh)))
                found += self._read(file)
            return found

    def _open(self) -> Any:
        try:
            return open(self.path, "r+b", buffering=0)
        except FileNotFoundError:
            raise self._gone() from None

    def _gone(self) -> DataError:
        return DataError(
            f"{self.path} was removed or replaced while it was being labelled; run the cell that "
            "makes the labeller again (labels that are not in the file are still in the browser)"
        )

    def _read(self, file: Any) -> list[Record]:
        file.seek(0)
        head = json.loads(file.readline() or b"null")
        if not isinstance(head, dict) or head.get("id") != self.id:
            raise self._gone()
        if not self._offset:
            self._offset, self._line = file.tell(), 1
        if file.seek(0, os.SEEK_END) < self._offset:
            raise self._gone()
        file.seek(self._offset)
        data = file.read()
        found, taken = parse(self.path, data, self._line + 1)
        self._offset += taken
        self._line += data[:taken].count(b"\n")
        fresh = [r for r in once(found) if r["id"] not in self._seen]
        self._seen.update(r["id"] for r in fresh)
        self.records += fresh
        return fresh

    def _write(self, file: Any, data: bytes) -> None:
        """Appends after the last whole line; half a line, of a killed process, is cut off."""
        file.truncate(self._offset)
        file.seek(self._offset - 1)
        if file.read(1) != b"\n":  # whole, but its line end is missing: an editor's doing
            data = b"\n" + data
        try:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(self._offset)
            raise


def _begin(path: Path) -> None:
    """Makes the file, or finishes what a process was killed at: its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with explain_full_disk(path), open(path, "a+b", buffering=0) as file, _locked(file):
        file.seek(0)
        data = file.read(400)
        if data.strip() and (b"\n" in data or not _HEAD.startswith(data[: len(_HEAD)])):
            return
        file.truncate(0)
        header = {"kind": "labels", "version": VERSION, "id": new_id(), "created": now()}
        file.write(encode(header))
        os.fsync(file.fileno())
        if os.name != "nt":  # the file's name, too, is to survive a power cut
            directory = os.open(path.parent, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)


@contextlib.contextmanager
def _locked(file: Any) -> Iterator[None]:
    """Keeps other processes from appending. The lock ends with the process, however that ends."""
    if os.name == "nt":
        import msvcrt

        lock: Any = msvcrt
        file.seek(_LOCK_AT)
        lock.locking(file.fileno(), lock.LK_LOCK, 1)
        try:
            yield
        finally:
            file.seek(_LOCK_AT)
            lock.locking(file.fileno(), lock.LK_UNLCK, 1)
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        # Some network drives have no locks: right for one labeller at a time.
    yield  # closing the file ends the lock
