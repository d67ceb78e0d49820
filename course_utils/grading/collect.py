"""Finds the submissions in a folder or a zip file; nothing is unpacked, no link is followed.

    SUBMISSIONS/student/assignment/04_ppo.ipynb    nbgrader's layout
    SUBMISSIONS/student/04_ppo.ipynb               a folder for each student (Moodle)
    SUBMISSIONS/student.ipynb                      flat (Colab downloads, Canvas)

Each student's file, or each reason why there is none, becomes one row: nothing is dropped silently.
"""

import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

from course_utils.errors import CourseError
from course_utils.grading.checks import SETS
from course_utils.grading.notebook import MAX_BYTES, NotebookError, read_bytes

MAX_FILES = 20_000  # entries looked at
SKIPPED = (".ipynb_checkpoints", "__MACOSX", ".git")
_SET = re.compile(r"(?:^|[^0-9])(0[1-9])_[a-z]")  # "04_ppo.ipynb", "anna_04_ppo.ipynb"


@dataclass(frozen=True)
class Submission:
    """One student's notebook for one set, not read yet; or, with `fault`, why there is none."""

    student: str  # as the folder or file is called
    set: str
    where: str  # path below the collection's root, for messages
    root: Path  # a folder, or a zip file
    fault: str = ""
    ours: bool = False  # the fault is nobody's but a person's to settle: not graded, not 0 points

    @property
    def slug(self) -> str:
        return slug(self.student)

    def read(self) -> bytes:
        """The notebook's bytes. Raises NotebookError: a link, too large, unreadable, encrypted."""
        if self.fault:
            raise NotebookError(self.fault)
        if self.root.is_dir():
            return read_bytes(self.root / self.where)
        return _read_member(self.root, self.where)


def slug(student: str) -> str:
    """A file name for any student's name: letters, digits, `-_.` kept, told apart by a digest."""
    plain = unicodedata.normalize("NFC", student)
    name = re.sub(r"[^\w.-]+", "_", plain).strip("._")[:40]
    if name and name == plain:
        return name
    return f"{name or 'student'}-{sha256(student.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


Entry = tuple[tuple[str, ...], str]  # a path's parts below the root, what is wrong with it


def collect(
    root: Path, set: str | None = None, student: str | None = None
) -> tuple[list[Submission], list[str]]:
    """Every submission below `root`, in the order of students and sets; and what was ignored.

    Args:
        root: the folder or .zip file.
        set: only this set ("04"); needed where neither a folder nor a file name tells.
        student: a regular expression that finds the student in a flat file's or a folder's name;
            its group counts where it has one ("^([a-z]+_[a-z]+)" for Canvas).

    Raises:
        CourseError: no such folder, nothing in it, a set that nothing tells, a broken zip.
    """
    if set is not None and set not in SETS:
        raise CourseError(f"there is no exercise set {set!r}; there are {', '.join(SETS)}")
    try:
        pattern = re.compile(student) if student else None
    except re.error as error:
        raise CourseError(f"{student!r} is not a regular expression: {error}") from error
    entries, wrapper = _unwrapped(list(_entries(root)))
    ours = [e for e in entries if _is_notebook(e)]
    ignored = ["/".join(parts) for parts, _ in entries if not _is_notebook((parts, _))]
    lost = _without_notebook(entries, ours)
    found = [_submission(root, wrapper, e, set, pattern) for e in (*ours, *lost)]
    if not ours or (set and all(one.set not in (set, "") for one in found)):
        raise CourseError(
            f"{root} holds no notebooks{f' of set {set}' if set else ''}; expected "
            "student/assignment/notebook.ipynb, student/notebook.ipynb or student.ipynb"
        )
    unknown = [one for one in found if not one.set and not one.fault]
    if unknown:
        raise CourseError(
            f"{unknown[0].where}: neither a folder nor the file says which exercise set it is (a "
            'name like "04_ppo.ipynb" does); give all of them one: --set 04'
        )
    sets = sorted({one.set for one in found if one.set}) or [""]
    known = [one if one.set else replace(one, set=sets[0]) for one in found]
    return _one_for_each([one for one in known if set in (None, one.set)]), ignored


def _unwrapped(entries: list[Entry]) -> tuple[list[Entry], str]:
    """Without the one folder that a zip program puts around everything; and that folder's path."""
    depths = [len(parts) for parts, _ in entries]
    if len({parts[0] for parts, _ in entries}) != 1 or min(depths) < 2:
        return entries, ""
    notebooks = sum(parts[-1].lower().endswith(".ipynb") for parts, _ in entries)
    if max(depths) < 4 and not (max(depths) == 2 and notebooks > 1):
        return entries, ""  # one student's folder
    return [(parts[1:], fault) for parts, fault in entries], entries[0][0][0] + "/"


def _is_notebook(entry: Entry) -> bool:
    """A notebook, or a link that stands where one or a student's folder would."""
    parts, fault = entry
    suffix = PurePosixPath(parts[-1]).suffix.lower()
    return len(parts) <= 3 and (suffix == ".ipynb" or bool(fault and not suffix))


def _without_notebook(entries: list[Entry], notebooks: list[Entry]) -> Iterator[Entry]:
    """A row for each student's folder that holds files, but no notebook."""
    have = {parts[0] for parts, _ in notebooks}
    for name in sorted({parts[0] for parts, _ in entries if len(parts) > 1} - have):
        files = ["/".join(parts[1:]) for parts, _ in entries if parts[0] == name]
        yield (name,), f"no notebook (.ipynb) in the folder; there is {', '.join(files[:5])}"


def _one_for_each(found: list[Submission]) -> list[Submission]:
    """Of several notebooks of one student for one set none is chosen: the row says which."""
    groups: dict[tuple[str, str], list[Submission]] = {}
    for one in sorted(found, key=lambda s: (s.student, s.set, s.where)):
        groups.setdefault((unicodedata.normalize("NFC", one.student), one.set), []).append(one)
    rows = []
    for (student, _), all_of_them in sorted(groups.items()):
        several = [one for one in all_of_them if not one.fault] or all_of_them[:1]
        first = replace(several[0], student=student)
        if len(several) > 1:
            names = ", ".join(one.where for one in several[:5])
            message = f"{len(several)} notebooks for one student and set, keep one: {names}"
            first = replace(first, fault=message, ours=True)
        rows.append(first)
    return rows


def _submission(
    root: Path, wrapper: str, entry: Entry, set: str | None, pattern: re.Pattern[str] | None
) -> Submission:
    (parts, fault), ours = entry, False
    name = PurePosixPath(parts[-1])
    student = parts[0] if len(parts) > 1 or name.suffix.lower() != ".ipynb" else name.stem
    if pattern:
        match = pattern.search(student)
        if match:
            student = match.group(1 if pattern.groups else 0) or student
        elif not fault:
            fault, ours = f"the name {student!r} does not match --student-pattern", True
    told = [m.group(1) for part in parts[1:] or parts if (m := _SET.search(part))]
    if len(parts) == 3 and parts[1][:2] in SETS:
        told.append(parts[1][:2])
    where = wrapper + "/".join(parts)
    return Submission(student, told[-1] if told else set or "", where, root, fault, ours)


def _entries(root: Path) -> Iterator[Entry]:
    """Everything that may be a submission."""
    if root.is_dir():
        yield from _walk(root, ())
    elif root.suffix.lower() == ".zip" and root.is_file():
        yield from _members(root)
    else:
        raise CourseError(f"{root} is neither a folder nor a .zip file of submissions")


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Entry]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        if not above:
            raise CourseError(f"{folder} cannot be read: {error.strerror}") from error
        yield above, f"the folder cannot be read: {error.strerror}"
        return
    if len(entries) > MAX_FILES:
        raise CourseError(f"{folder} holds {len(entries):,} files; at most {MAX_FILES:,} are read")
    for path in entries:
        parts = (*above, path.name)
        if path.name in SKIPPED:
            continue
        if path.is_symlink():
            yield parts, "it is a link, and links are not followed"
        elif stat.S_ISDIR(path.lstat().st_mode):
            if len(parts) < 4:
                yield from _walk(path, parts)
        else:
            yield parts, ""


def _members(archive: Path) -> Iterator[Entry]:
    """The members of a zip file."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = [m for m in file.infolist() if not m.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CourseError(f"{archive} is not a zip file that can be read: {error}") from error
    if len(members) > MAX_FILES:
        raise CourseError(f"{archive} has {len(members):,} files; at most {MAX_FILES:,} are read")
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if not parts or any(part in SKIPPED for part in parts):
            continue
        if ".." in parts or parts[0] == "/" or ":" in parts[0]:
            yield ((parts[-1],), f"its path in the zip file leads out of it: {member.filename!r}")
        elif stat.S_ISLNK(member.external_attr >> 16):
            yield parts, "it is a link, and links are not followed"
        else:
            yield parts, ""


def _read_member(archive: Path, name: str) -> bytes:
    """A member of at most MAX_BYTES, whatever its header says; read, never unpacked."""
    try:
        with zipfile.ZipFile(archive) as file:
            found = [m for m in file.infolist() if m.filename.replace("\\", "/") == name]
            if len(found) != 1:
                raise NotebookError(f"{name} stands {len(found)} times in {archive.name}")
            with file.open(found[0]) as member:
                data = member.read(MAX_BYTES + 1)
    except NotebookError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds for damaged members
        raise NotebookError(f"{name} cannot be read from {archive.name}: {error}") from error
    if len(data) > MAX_BYTES:
        raise NotebookError(
            f"{name} is larger than {MAX_BYTES / 2**20:.0f} MiB; clear the outputs, hand in again"
        )
    return data
