"""load_public: a dataset of the Hub -> rows of one shape, and the account of what was dropped."""

import hashlib
import json
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from course_utils.data.files import LengthCheck, Sink
from course_utils.data.hub import fetch, kept, sources, trouble
from course_utils.data.hub.sources import Row, Source
from course_utils.data.report import LoadReport, RowFault
from course_utils.data.shapes import KINDS, check_row
from course_utils.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT_SHARE = 20  # one prompt in 20 is held out where a dataset has no split for measuring
_shown: set[str] = set()  # datasets whose licence was printed in this process


def load_public(
    name: str,
    *,
    kind: str | None = None,
    split: str = "train",
    n: int | None = 1_000,
    seed: int = 0,
    streaming: bool | None = None,
    revision: str | None = None,
    config: str | None = None,
    one_turn: bool = False,
    tokenizer: Any = None,
    max_length: int | None = None,
) -> "tuple[Dataset, LoadReport]":
    """Rows of a public dataset, conversational, in one of the course's shapes.

    The rows are drawn at random by `seed` (of a large dataset: from what a stream passes by); one
    row a prompt, the first drawn. They are kept on disk, so that the same call needs no network.

    Args:
        name: Hub id, such as "tatsu-lab/alpaca"; public_datasets() lists them.
        kind: one of shapes.KINDS; None: the dataset's own. Any dataset gives "prompt-only".
        split: "train" or "heldout": the dataset's own test or validation split, else a fixed 5 %
            of the prompts, chosen by their hash.
        n: rows at most; None: all, which of a large dataset is gigabytes.
        streaming: read over the network only as much as `n` rows take; False: download the whole
            dataset into the cache first; None: streaming where it is large.
        revision: branch, tag or commit; None: the newest. A commit makes the rows reproducible
            (of a large dataset under one version of the datasets library, which shuffles it).
        config: configuration, where the dataset has several.
        one_turn: only prompts of one user turn.
        tokenizer, max_length: together; drop rows of which `max_length` tokens leave no answer, or
            the same answer twice.

    Returns:
        The dataset and the report of what was dropped and why.

    Raises:
        DataError: unknown dataset, split or shape; other columns than expected; no usable row.
        CourseError: gated, no network and not in the cache, and the Hub's other failures.
    """
    source = sources.find(name, kind)
    kind = kind or source.kind
    place = source.split(split)
    _check(source, n, config, tokenizer, max_length)
    config = config or source.config
    stream = source.large if streaming is None else streaming
    if source.gather is not None:
        stream = False  # what belongs together may lie anywhere
    heldout = place != source.train or split != "train"
    request = {
        "id": source.id, "kind": kind, "split": place, "heldout": heldout, "n": n, "seed": seed,
        "stream": stream, "revision": revision, "config": config, "one_turn": one_turn,
        "max_length": max_length, "tokenizer": _fingerprint(tokenizer),
    }  # fmt: skip
    folder = kept.place(request)
    try:
        commit = fetch.commit(source.id, revision or source.revision)
    except Exception as error:
        newest = kept.newest(folder) if trouble.is_away(error) else None
        found = kept.load(folder, newest) if newest else None
        if found is None:
            raise trouble.explain(error, source.id, revision or source.revision) from error
        _show_licence(source, None)
        found[1].notice("the Hub cannot be reached: these are the rows loaded before")
        return found
    _show_licence(source, commit.licence)
    if found := kept.load(folder, commit.revision):
        return found
    # A named branch such as the Hub's Parquet conversion is no commit of main: ask by its name.
    raw = _raw_rows(source, place, config, source.revision or commit.revision, seed, stream)
    wanted = _Wanted(source, kind, heldout, one_turn, tokenizer, max_length)
    label = place if source.heldout or not heldout else f"{place}, held-out 5 %"
    report = LoadReport(f"{source.id} @{commit.revision[:8]} ({label})", kind)
    dataset = _collect(raw, wanted, report, n)
    kept.save(folder, commit.revision, dataset, report)
    return dataset, report


def _check(source: Source, n: int | None, config: str | None, tokenizer: Any, length: Any) -> None:
    if n is not None and n < 1:
        raise DataError(f"n is {n}: ask for at least one row, or None for all")
    if config is not None and config not in source.configs:
        known = ", ".join(source.configs) or "none: leave config out"
        raise DataError(f'{source.id} has no configuration "{config}"; it has {known}')
    if (tokenizer is None) != (length is None):
        raise DataError("tokenizer and max_length go together; give both or neither")


def _fingerprint(tokenizer: Any) -> str | None:
    """Changes when the tokenizer cuts texts differently."""
    if tokenizer is None:
        return None
    parts = tokenizer.name_or_path, getattr(tokenizer, "chat_template", ""), len(tokenizer)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _show_licence(source: Source, stated: str | None) -> None:
    if source.id in _shown:
        return
    _shown.add(source.id)
    print(f"{source.id}: licence {stated or source.licence}; {source.note}")
    print(f"  https://huggingface.co/datasets/{source.id}")


def _raw_rows(
    source: Source, split: str, config: str | None, revision: str, seed: int, stream: bool
) -> Iterator[Row]:
    if source.gather is None:
        return fetch.rows(source, split, config, revision, seed, stream)
    joined = list(source.gather(fetch.rows(source, split, config, revision, None, stream)))
    random.Random(f"public:{seed}").shuffle(joined)
    return iter(joined)


def prompt_key(row: Row) -> bytes:
    """A digest of a row's prompt; spaces around its texts do not count."""
    said = [(m["role"], m["content"].strip()) for m in row["prompt"]]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).digest()


def held_out(key: bytes) -> bool:
    """Whether the prompt with this digest is only measured on; the same in every release."""
    return int.from_bytes(key[:4], "big") % HELD_OUT_SHARE == 0


class _Wanted:
    """Turns raw rows into rows of one shape; None for those of the other split."""

    def __init__(
        self, source: Source, kind: str, heldout: bool, one_turn: bool, tokenizer: Any, length: Any
    ) -> None:
        self._source, self._kind = source, kind
        self._by_hash = source.heldout is None
        self._heldout, self._one_turn = heldout, one_turn
        self._length = LengthCheck(tokenizer, length) if length is not None else None
        self._prompts: dict[bytes, int] = {}  # digest -> number of the row that had it first

    def row(self, raw: Row, number: int) -> Row | None:
        """Raises RowFault when the row cannot be used."""
        try:
            made = self._source.row(raw)
        except KeyError as error:  # of JSON every row may have other columns
            seen = f"the row has no column {error}"
            raise RowFault("missing column", seen, "drop the row") from None
        key = prompt_key(made)
        if self._by_hash and held_out(key) != self._heldout:
            return None
        row = {name: made[name if name in made else "chosen"] for name in KINDS[self._kind]}
        if self._one_turn and sum(m["role"] == "user" for m in row["prompt"]) > 1:
            turns = len(row["prompt"])
            raise RowFault("several turns", f"the prompt has {turns} turns", "drop the row")
        check_row(row, self._kind, conversational=True)
        first = self._prompts.setdefault(key, number)
        if first != number:
            raise RowFault("duplicate prompt", f"the prompt of row {first}", "keep one of them")
        if self._length:
            self._length.check(row)
        return row


def _collect(raw: Iterator[Row], wanted: _Wanted, report: LoadReport, n: int | None) -> "Dataset":
    """The first `n` usable rows."""
    sink = Sink(report.kind)
    try:
        for value in raw:
            number = report.rows + 1
            try:
                row = wanted.row(value, number)
                if row is None:
                    continue
                sink.add(row, number)
            except RowFault as fault:
                report.drop(number, fault)
            else:
                report.kept += 1
            report.rows = number
            if report.kept == n:
                break
        if not report.kept:
            raise report.hopeless()
        if n is not None and report.kept < n:
            report.notice(f"{n} rows were asked for; there are no more")
        return sink.dataset()
    except BaseException:
        sink.discard()
        raise
