"""Reads an untrusted .ipynb and takes from its code cells only imports, definitions and literals.

Nothing of the notebook runs here, and no fault of a notebook is a crash: what cannot be read at
all raises `NotebookError`, a cell that cannot be parsed is skipped and reported as a `Note`.
"""

import ast
import json
import os
import re
import stat
import symtable
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from course_utils.errors import CourseError

MAX_BYTES = 24 * 2**20  # of the file; figures in the outputs make honest notebooks big
MAX_CELLS = 2_000
MAX_CODE = 400_000  # characters of code in all cells
MAX_NOTES = 100

CELL_MAGICS_OVER_CODE = ("%%time", "%%capture", "%%timeit", "%%prun")
UNPARSABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
LITERALS = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.UnaryOp)


class NotebookError(CourseError):
    """The file is not a notebook that can be graded; says what it is instead."""


@dataclass(frozen=True)
class Note:
    """Something that the student should know: cell counts from 1, line within the cell (or 0)."""

    cell: int
    line: int
    message: str


@dataclass(frozen=True)
class Piece:
    """One statement of the notebook that may run in the sandbox."""

    kind: Literal["import", "definition", "constant"]
    names: tuple[str, ...]  # what it binds; ("*",) for `from x import *`
    uses: frozenset[str]  # the names that it reads
    source: str
    cell: int  # from 1
    line: int  # of the source's first line, within the cell, from 1


@dataclass(frozen=True)
class Skipped:
    """A statement that computes something at the top level and so is not run."""

    names: tuple[str, ...]
    cell: int
    line: int


@dataclass(frozen=True)
class Notebook:
    pieces: tuple[Piece, ...]
    notes: tuple[Note, ...]
    skipped: tuple[Skipped, ...]
    answers: dict[str, str]  # grade_id -> the markdown that answers in words
    solutions: dict[str, str]  # grade_id -> the code cell's text, for a person to read

    def defines(self, name: str) -> bool:
        return any(name in piece.names for piece in self.pieces if piece.kind != "import")

    def needed(self, functions: Iterable[str]) -> tuple[tuple[Piece, ...], tuple[Note, ...]]:
        """The pieces that these functions need, in the notebook's order, and notes about them.

        A name defined twice is kept twice: run in order, the last one counts, as in a notebook.
        """
        binders = _binders(self.pieces)
        wanted, todo = set[str](), list(functions)
        asked = set(todo)
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                for piece in binders.pop(name, []):
                    todo.extend(piece.uses - wanted)
        kept = tuple(p for p in self.pieces if p.names == ("*",) or wanted & set(p.names))
        notes = [*_redefined(kept, asked), *self._not_run(looked_up(kept, asked))]
        return kept, tuple(notes[:MAX_NOTES])

    def _not_run(self, wanted: set[str]) -> list[Note]:
        bound = {name for piece in self.pieces for name in piece.names}
        return [
            Note(s.cell, s.line, f"{name!r} is computed when the cell runs, so the grader skips it;"
                 " write it as a literal, or compute it inside a function")
            for s in self.skipped
            for name in s.names
            if name in wanted and name not in bound
        ]  # fmt: skip


def looked_up(pieces: Iterable[Piece], functions: Iterable[str]) -> set[str]:
    """The functions' names and all that they look up outside of themselves when they run.

    `needed` keeps more, to be safe: also what only shares its name with a variable of theirs.
    """
    binders = _binders(pieces)
    found, todo = set[str](), list(functions)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            for piece in binders.get(name, ()):
                todo.extend(_globals(piece.source))
    return found


def _binders(pieces: Iterable[Piece]) -> dict[str, list[Piece]]:
    """name -> the statements that bind it, in the notebook's order."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        for name in piece.names:
            found.setdefault(name, []).append(piece)
    return found


def _globals(source: str) -> set[str]:
    """The names that a definition looks up outside of itself when it runs."""
    try:
        todo = [symtable.symtable(source, "cell", "exec")]
    except (*UNPARSABLE, RuntimeError):
        return set()
    found = set()
    while todo:
        scope = todo.pop()
        todo += scope.get_children()
        top = scope.get_type() == "module"
        found |= {s.get_name() for s in scope.get_symbols() if s.is_referenced() and (
            top or s.is_global())}  # fmt: skip
    return found


def _redefined(pieces: tuple[Piece, ...], asked: set[str]) -> list[Note]:
    first: dict[str, Piece] = {}
    notes = []
    for piece in pieces:
        for name in piece.names:
            if name in asked and name in first:
                before = first[name].cell
                notes.append(
                    Note(piece.cell, piece.line, f"{name!r} was defined in cell {before} already; "
                         "the last definition counts")
                )  # fmt: skip
            first[name] = piece
    return notes


def read(path: Path | str) -> Notebook:
    """Reads a notebook file. Raises NotebookError; the file is never followed as a link."""
    return parse(read_bytes(path), where=Path(path).name)


def read_bytes(path: Path | str, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes: no link, pipe, device or directory."""
    name = Path(path).name
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        link = Path(path).is_symlink()
        reason = "it is a link, and links are not followed" if link else str(error.strerror)
        raise NotebookError(f"{name} cannot be opened: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotebookError(f"{name} is not a regular file; hand in the .ipynb itself")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise NotebookError(
            f"{name} is larger than {limit / 2**20:.0f} MiB; clear the outputs, save, hand in again"
        )
    return data


def parse(data: bytes, where: str = "the notebook") -> Notebook:
    """The bytes of an .ipynb -> what of it may run. Raises NotebookError."""
    pieces: list[Piece] = []
    notes: list[Note] = []
    skipped: list[Skipped] = []
    answers: dict[str, str] = {}
    solutions: dict[str, str] = {}
    seen: dict[str, int] = {}
    code = 0
    for number, cell in enumerate(_cells(data, where), 1):
        text = _source(cell)
        if text is None:
            notes.append(Note(number, 0, "the cell has no readable source and was skipped"))
            continue
        marks = _nbgrader(cell)
        task = marks.get("grade_id")
        if isinstance(task, str) and marks:
            task = task[:100]
            if task in seen:
                message = f"the cell of {task!r} stands in cell {seen[task]} already"
                notes.append(Note(number, 0, message))
            seen.setdefault(task, number)
        if marks.get("solution") is True and isinstance(task, str) and len(text) <= MAX_CODE:
            kept = answers if cell.get("cell_type") == "markdown" else solutions
            kept[task] = text
        if cell.get("cell_type") != "code":
            continue
        code += len(text)
        if code > MAX_CODE:
            raise NotebookError(f"{where} has more than {MAX_CODE:,} characters of code")
        taken, ignored, faults = _statements(text, number)
        if marks.get("locked") is True:  # a check: the grader has its own
            own = sorted({n for p in taken if p.kind == "definition" for n in p.names})
            if own:
                message = f"{', '.join(own)[:200]} stands in a locked cell, which is not graded"
                notes.append(Note(number, 0, message))
            continue
        pieces += taken
        skipped += ignored
        notes += faults
    return Notebook(tuple(pieces), tuple(notes[:MAX_NOTES]), tuple(skipped), answers, solutions)


def _cells(data: bytes, where: str) -> list[dict[str, Any]]:
    if len(data) > MAX_BYTES:
        raise NotebookError(f"{where} is larger than {MAX_BYTES / 2**20:.0f} MiB")
    if not data.strip():
        raise NotebookError(f"{where} is empty")
    try:
        notebook = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise NotebookError(f"{where} is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise NotebookError(f"{where} is nested too deeply to be a notebook") from error
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        raise NotebookError(f"{where} is not JSON: {error}") from error
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        old = isinstance(notebook, dict) and "worksheets" in notebook
        what = "an old notebook (format 3); open and save it once" if old else "not a notebook"
        raise NotebookError(f"{where} is {what}: it has no list of cells")
    version = notebook.get("nbformat")
    if version != 4 or isinstance(version, bool):
        raise NotebookError(f"{where} has nbformat {str(version)[:20]!r}; 4 is needed")
    if len(notebook["cells"]) > MAX_CELLS:
        raise NotebookError(f"{where} has {len(notebook['cells']):,} cells, over {MAX_CELLS:,}")
    return [cell if isinstance(cell, dict) else {} for cell in notebook["cells"]]


def _source(cell: dict[str, Any]) -> str | None:
    source = cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    return source if isinstance(source, str) else None


def _nbgrader(cell: dict[str, Any]) -> dict[str, Any]:
    metadata = cell.get("metadata")
    marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    return marks if isinstance(marks, dict) else {}


def _statements(text: str, cell: int) -> tuple[list[Piece], list[Skipped], list[Note]]:
    if text.startswith("%%"):
        first, _, rest = text.partition("\n")
        if not first.startswith(CELL_MAGICS_OVER_CODE):
            return [], [], []  # %%bash, %%html, … hold no Python
        text = "#\n" + rest
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    tree = _tree(text)
    if isinstance(tree, Note):
        return [], [], [Note(cell, tree.line, tree.message)]
    if isinstance(tree, tuple):
        text, tree = tree
    taken, ignored = [], []
    # Only \n ends a line for the parser (str.splitlines knows ten more); offsets count bytes.
    lines = [line.encode("utf-8", "replace") for line in text.split("\n")]
    for statement in tree.body:
        kind, names = _kind(statement)
        if kind is None:
            if names:
                ignored.append(Skipped(names, cell, statement.lineno))
            continue
        decorators = getattr(statement, "decorator_list", [])
        start = min([statement.lineno, *(d.lineno for d in decorators)])
        uses = frozenset(n.id for n in ast.walk(statement) if isinstance(n, ast.Name))
        taken.append(Piece(kind, names, uses, _segment(lines, statement, start), cell, start))
    return taken, ignored, []


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():  # "invalid escape sequence" is the student's affair
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _tree(text: str) -> ast.Module | tuple[str, ast.Module] | Note:
    """The parsed cell; with its text where lines of magics had to be blanked; or why not."""
    try:
        return _parse(text)
    except UNPARSABLE as error:
        first = error
    blanked = re.sub(r"(?m)^([ \t]*)[%!?].*$|^([ \t]*)\S.*\?$", r"\1\2pass", text)
    try:
        return blanked, _parse(blanked)
    except UNPARSABLE:
        pass
    line = first.lineno if isinstance(first, SyntaxError) else 0
    reason = first.msg if isinstance(first, SyntaxError) else type(first).__name__
    return Note(0, line or 0, f"the cell is not valid Python and was skipped: {reason}"[:300])


def _segment(lines: list[bytes], statement: ast.stmt, start: int) -> str:
    """The statement's text with its decorators; `a = 1; b = 2` on one line are told apart."""
    end = statement.end_lineno or statement.lineno
    block = lines[start - 1 : end]
    block[-1] = block[-1][: statement.end_col_offset]
    if start == statement.lineno:
        block[0] = block[0][statement.col_offset :]
    return b"\n".join(block).decode("utf-8", "replace")


def _kind(
    statement: ast.stmt,
) -> tuple[Literal["import", "definition", "constant"] | None, tuple[str, ...]]:
    """What a top-level statement is, and the names it binds; None for what is not to be run."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return "definition", (statement.name,)
    if isinstance(statement, ast.Import):
        return "import", tuple((a.asname or a.name).split(".")[0] for a in statement.names)
    if isinstance(statement, ast.ImportFrom):
        return "import", tuple(a.asname or a.name for a in statement.names)
    if isinstance(statement, ast.Assign):
        names, value = _bound(statement.targets), statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        names, value = _bound([statement.target]), statement.value
    elif isinstance(statement, ast.AugAssign):
        return None, _bound([statement.target])
    else:
        return None, ()
    if names and isinstance(value, ast.Lambda):
        return "definition", names
    return ("constant" if names and _is_literal(value) else None), names


def _bound(targets: list[ast.expr]) -> tuple[str, ...]:
    """The names of `a = b, c = …`; () where something else (x.y, x[0]) is assigned to."""
    flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple | ast.List) else [t])]
    return tuple(e.id for e in flat if isinstance(e, ast.Name)) if all(
        isinstance(e, ast.Name) for e in flat
    ) else ()  # fmt: skip


def _is_literal(value: ast.expr) -> bool:
    """True for numbers, strings, None and containers of them; nothing that calls or looks up."""
    allowed = (*LITERALS, ast.expr_context, ast.unaryop)
    return all(isinstance(node, allowed) for node in ast.walk(value))
