"""Whole files or none: full disks, interrupts and errors leave what was there before."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from course_utils import files
from course_utils.errors import CourseError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fail_with(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
QUOTA = OSError(errno.EDQUOT, "Disk quota exceeded")


# --- write_atomic -----------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["text ñ 🥘\n", b"\x00\xff\r\n", "", b""])
def test_written_files_hold_exactly_what_was_given(tmp_path, content):
    path = tmp_path / "new" / "folders" / "file.txt"
    assert files.write_atomic(str(path), content) == path
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(path.parent) == ["file.txt"]


def test_writing_again_replaces_the_file(tmp_path):
    path = tmp_path / "file.txt"
    files.write_atomic(path, "a long first text")
    files.write_atomic(path, "short")
    assert path.read_text() == "short"


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_atomic(tmp_path / "file", "x")
        with files.atomic_dir(tmp_path / "folder"):
            pass
        assert os.umask(0o027) == 0o027  # writing did not change it
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o640
    assert mode(tmp_path / "folder") == 0o750


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [FULL, QUOTA, KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(
    tmp_path, monkeypatch, step, error
):
    path = tmp_path / "file.txt"
    files.write_atomic(path, "old")
    if step == "write":
        real = os.fdopen

        class Broken:
            """A file whose write fails; it closes like the real one."""

            def __init__(self, *args):
                self.file = real(*args)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.file.close()

            def write(self, payload):
                self.file.write(payload[:1])
                raise error

        monkeypatch.setattr(os, "fdopen", Broken)
    else:
        monkeypatch.setattr(os, step, fail_with(error))
    expected = CourseError if error in (FULL, QUOTA) else type(error)
    with pytest.raises(expected) as caught:
        files.write_atomic(path, "new text")
    monkeypatch.undo()
    if expected is CourseError:
        assert f"no space left on the disk while writing {path}" in str(caught.value)
        assert "free some space" in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_the_data_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: (order.append(name), real(*args))[1]
        )
    files.write_atomic(tmp_path / "file", "x")
    assert order[:2] == ["fsync", "replace"]
    assert order[2:] == ([] if os.name == "nt" else ["fsync"])  # of the folder
    order.clear()
    with files.atomic_dir(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("a")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text("b")
    assert order[:3] == ["fsync", "fsync", "replace"]  # both files, then the name


# --- atomic_dir -------------------------------------------------------------------------------


def test_a_directory_appears_only_when_it_is_complete(tmp_path):
    final = tmp_path / "runs" / "step-20"
    with files.atomic_dir(final) as temporary:
        (temporary / "model").write_text("weights")
        assert not final.exists()
        assert temporary.parent == final.parent  # the same disk, so that the rename is atomic
    assert names(final) == ["model"]
    assert names(final.parent) == ["step-20"]


def test_a_directory_replaces_the_one_before(tmp_path):
    for name in ("old", "new"):
        with files.atomic_dir(tmp_path / "final") as temporary:
            (temporary / name).write_text(name)
    assert names(tmp_path / "final") == ["new"]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("bad weights")])
def test_an_error_inside_keeps_the_old_directory(tmp_path, error):
    with files.atomic_dir(tmp_path / "final") as temporary:
        (temporary / "old").write_text("old")
    expected = CourseError if error is FULL else type(error)

    def fail():
        with files.atomic_dir(tmp_path / "final") as temporary:
            (temporary / "half").write_text("half")
            raise error

    with pytest.raises(expected):
        fail()
    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["old"]


def test_a_disk_that_fills_up_at_the_end_keeps_the_old_directory(tmp_path, monkeypatch):
    with files.atomic_dir(tmp_path / "final") as temporary:
        (temporary / "old").write_text("old")

    def fill():
        with files.atomic_dir(tmp_path / "final") as temporary:
            (temporary / "new").write_text("new")
            monkeypatch.setattr(os, "fsync", fail_with(FULL))

    with pytest.raises(CourseError, match="no space left"):
        fill()
    monkeypatch.undo()
    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["old"]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
def test_a_rename_that_fails_puts_the_old_directory_back(tmp_path, monkeypatch, error):
    with files.atomic_dir(tmp_path / "final") as temporary:
        (temporary / "old").write_text("old")
    real, renames = os.replace, []

    def replace(source, target):
        renames.append(target)
        if len(renames) == 2:  # the first moved the old one aside, a third puts it back
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with (
        pytest.raises(CourseError if error is FULL else KeyboardInterrupt),
        files.atomic_dir(tmp_path / "final") as temporary,
    ):
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["final"]
    assert names(tmp_path / "final") == ["old"]


def test_other_errors_of_the_system_are_not_called_a_full_disk(tmp_path):
    with pytest.raises(PermissionError), files.explain_full_disk("x"):
        raise PermissionError(errno.EACCES, "Permission denied")


# --- the rest ---------------------------------------------------------------------------------


def test_sha256_of_a_file_larger_than_one_chunk(tmp_path):
    content = os.urandom(3 * 2**20 + 17)
    (tmp_path / "file").write_bytes(content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    (tmp_path / "empty").write_bytes(b"")
    assert files.sha256(str(tmp_path / "empty")) == hashlib.sha256().hexdigest()


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return type("Usage", (), {"free": 100 * 2**20})

    monkeypatch.setattr(files.shutil, "disk_usage", usage)
    files.require_free_space(tmp_path / "not" / "there", 99)
    assert asked == [tmp_path]
    with pytest.raises(CourseError, match="100 MiB free, about 101 MiB needed"):
        files.require_free_space(tmp_path / "not" / "there", 101)
