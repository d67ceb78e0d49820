"""Writing files so that a crash, a full disk or a Ctrl-C never leaves half of one behind."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from course_utils.errors import CourseError


def sha256(path: Path | str) -> str:
    """Hex SHA-256 digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def waiting_lock(path: Path | str, waiting: str) -> Iterator[None]:
    """Holds a lock file; prints `waiting` once where another process holds it, and waits."""
    from filelock import FileLock, Timeout  # here: `course doctor` must run where it is missing

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def require_free_space(path: Path | str, mib: float) -> None:
    """Raises CourseError when the disk that holds `path` has less than `mib` MiB free."""
    free = shutil.disk_usage(_existing_parent(Path(path))).free / 2**20
    if free < mib:
        raise CourseError(
            f"not enough disk space for {path}: {free:.0f} MiB free, about {mib:.0f} MiB needed; "
            "free some space or choose another directory with --out"
        )


@contextlib.contextmanager
def explain_full_disk(path: Path | str) -> Iterator[None]:
    """Turns "no space left" and quota errors raised inside into a CourseError naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CourseError(
                f"no space left on the disk while writing {path}; what was complete before is "
                "kept: free some space and continue with --resume"
            ) from error
        raise


def _fsync_directory(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path | str, data: str | bytes) -> Path:
    """Writes a whole file or nothing: temporary file beside it, flush, fsync, rename."""
    path = Path(path)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    with explain_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _fsync_directory(path.parent)
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _replace_dir(new: Path, final: Path) -> None:
    """Renames `new` to `final`; what stood there is removed only when the new one is in place."""
    if not final.exists():
        new.replace(final)
        return
    old = new.with_name(f"{new.name}.old")
    try:
        final.replace(old)
        new.replace(final)
    except BaseException:
        if not final.exists():
            old.replace(final)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def atomic_dir(final: Path | str) -> Iterator[Path]:
    """Yields a temporary directory that becomes `final` if the block ends well, else vanishes.

    An existing `final` is replaced. Files written inside are fsynced before the rename.
    """
    final = Path(final)
    with explain_full_disk(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            temporary.chmod(0o777 & ~_umask())
            _replace_dir(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _fsync_directory(final.parent)
