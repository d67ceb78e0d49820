"""What is known of each public dataset, and the catalogue of them all."""

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from course_utils.data.shapes import KINDS
from course_utils.errors import DataError

Row = dict[str, Any]
FAMILIES = ("alpaca", "chats", "oasst", "hh", "feedback", "helpsteer", "summaries", "texts")


@dataclass(frozen=True)
class Source:
    """One dataset in one shape.

    `row` turns one raw row into {prompt, ...} with message lists, in the columns of `kind`, or
    raises RowFault. Where one row of ours takes several raw ones (a tree of messages, two answers
    to a prompt), `gather` first joins them.
    """

    id: str  # on the Hub: "owner/name"
    kind: str  # one of shapes.KINDS
    licence: str  # as its page states it
    rows: str  # train + held-out, as counted on its page
    note: str  # what to know before using it
    columns: tuple[str, ...]  # what `row` reads
    row: Callable[[Row], Row]
    train: str = "train"  # the split to train on
    heldout: str | None = None  # its own split for measuring; None: 5 % of the prompts, by hash
    config: str | None = None  # the configuration that is taken unless another is asked for
    configs: tuple[str, ...] = ()  # those that can be asked for
    folders: bool = False  # `configs` are folders of the repository (data_dir)
    files: Mapping[str, str] = field(default_factory=dict)  # split -> file, where it must be named
    revision: str | None = None  # the branch to take unless another is asked for; None: main
    large: bool = False  # over 100 MB: read over the network as far as needed, not downloaded
    gather: Callable[[Iterable[Row]], Iterator[Row]] | None = None

    def split(self, name: str) -> str:
        """The dataset's own name of "train" or "heldout"; without a held-out split both are one.

        Raises:
            DataError: another name.
        """
        wanted = {"test": "heldout", "validation": "heldout"}.get(name, name)
        if wanted not in ("train", "heldout"):
            own = f"{self.train} and {self.heldout or 'a fixed 5 % of it'}"
            raise DataError(
                f'{self.id} has no split "{name}" here: use "train" or "heldout" (in this dataset: '
                f"{own})"
            )
        return self.heldout or self.train if wanted == "heldout" else self.train


def catalogue() -> list[Source]:
    """All datasets with a loader, in the order of their families; one entry a shape."""
    modules = (importlib.import_module(f"course_utils.data.hub.{name}") for name in FAMILIES)
    return [source for module in modules for source in module.SOURCES]


def find(name: str, kind: str | None = None) -> Source:
    """The entry of a dataset: by Hub id, any case, the owner may be left out.

    Args:
        kind: the shape wanted; None: the first that the dataset has. Every dataset gives prompts,
            and one of preferences also demonstrations, its chosen answers.

    Raises:
        DataError: no such dataset, with the nearest name; or it does not give that shape.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f'unknown kind of data "{kind}"; use one of {", ".join(KINDS)}')
    known = catalogue()
    key = name.strip().lower()
    same = [s for s in known if key in (s.id.lower(), s.id.lower().split("/")[1])]
    if not same:
        names = {s.id.lower(): s.id for s in known} | {
            s.id.lower().split("/")[1]: s.id for s in known
        }
        near = difflib.get_close_matches(key, names, 1, 0.6)
        hint = f'did you mean "{names[near[0]]}"? ' if near else ""
        raise DataError(
            f'there is no loader for "{name}"; {hint}public_datasets() lists them. A dataset of '
            "your own or another of the Hub: save it to a file and use "
            "course_utils.data.load_file"
        )
    owners = list(dict.fromkeys(s.id for s in same))
    if len(owners) > 1:
        raise DataError(f'"{name}" can be {" or ".join(owners)}: give the whole id')
    for source in same:
        if kind in (None, source.kind):
            return source
    for source in same:
        if kind in derived(source.kind):
            return source
    gives = ", ".join(dict.fromkeys(s.kind for s in same))
    raise DataError(f"{same[0].id} holds {gives} data, which cannot serve as {kind}")


def has_loader(id: str) -> bool:
    """Whether `id` is in the catalogue."""
    return any(source.id == id for source in catalogue())


def derived(kind: str) -> tuple[str, ...]:
    """The shapes that a row of `kind` also gives, by leaving something out."""
    return ("prompt-only", "prompt-completion") if kind == "preference" else ("prompt-only",)


_HEAD = ("dataset", "shape", "licence", "rows (train + held-out)", "to know")


def _table() -> list[tuple[str, ...]]:
    return [(s.id, s.kind, s.licence, s.rows, s.note) for s in catalogue()]


def public_datasets() -> None:
    """Prints the catalogue: id, shape, licence, rows, and what to know before using it."""
    lines = [_HEAD, *_table()]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    for *cells, note in lines:
        print("  ".join([*(c.ljust(w) for c, w in zip(cells, widths, strict=True)), note]))


def markdown() -> str:
    """The catalogue as a Markdown table, as docs/data.md shows it."""
    lines = [_HEAD, ("---",) * len(_HEAD)]
    lines += [(f"`{id}`", *rest) for id, *rest in _table()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
