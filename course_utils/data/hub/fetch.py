"""Rows of one split of a Hub dataset, of one commit, through failures that pass."""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from course_utils.data.hub import trouble
from course_utils.data.hub.sources import Row, Source
from course_utils.errors import CourseError, DataError

WAITS = (1.0, 3.0, 9.0)  # seconds before the second, third and fourth try
BUFFER = 2_000  # rows that a stream is shuffled within; its files are shuffled too
RANGE = 4 << 20  # bytes of a Parquet file asked for at a time
_BATCH = 64  # rows in memory at a time
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    revision: str  # hash of the commit
    licence: str | None  # as its card states it


def commit(id: str, revision: str | None) -> Commit:
    """What `revision` (None: main) is now. Raises what the library raises."""
    from huggingface_hub import HfApi

    info = _patiently(lambda: HfApi().dataset_info(id, revision=revision, timeout=30))
    licence = getattr(info.card_data, "license", None)
    stated = ", ".join(licence) if isinstance(licence, list) else licence
    return Commit(info.sha or str(revision), stated)


def rows(
    source: Source, split: str, config: str | None, revision: str, seed: int | None, stream: bool
) -> Iterator[Row]:
    """Raw rows of a split in an order that `seed` decides (None: the files').

    A stream that breaks is opened again and goes on behind the row that came last.

    Args:
        stream: read over the network as far as rows are taken; False: download the whole
            configuration into the datasets cache first.

    Raises:
        CourseError: the Hub's failure as a sentence. DataError: other columns than expected.
    """
    done = 0
    tries = 0
    while True:
        try:
            opened = _patiently(lambda: _open(source, split, config, revision, seed, stream))
            for row in itertools.islice(opened, done, None):
                if not done:
                    _check_columns(source, row, revision)
                yield row
                done, tries = done + 1, 0
            return
        except CourseError:
            raise
        except Exception as error:
            if tries >= len(WAITS) or not trouble.is_passing(error):
                raise trouble.explain(error, source.id, revision) from error
            _wait(tries, error)
            tries += 1


def _open(
    source: Source, split: str, config: str | None, revision: str, seed: int | None, stream: bool
) -> Iterator[Row]:
    from datasets import load_dataset_builder

    places: dict[str, Any] = {"data_files": dict(source.files)} if source.files else {}
    if config is not None:
        places["data_dir" if source.folders else "name"] = config
    with _quiet():
        builder = load_dataset_builder(source.id, revision=revision, **places)
        # On any failure the library falls back to whatever commit its cache holds, with a warning.
        if builder.hash is not None and len(revision) == 40 and builder.hash != revision:
            raise ConnectionError(f"only commit {builder.hash} is in the cache, not {revision}")
        known = list(builder.info.splits or getattr(builder.config, "data_files", None) or ())
        if known and split not in known:
            raise DataError(
                f'{source.id} (revision {revision}): expected the split "{split}", found '
                f"{_listed(known)}; {_CHANGED}"
            )
        if stream:
            _read_little(builder.config)
            data = builder.as_streaming_dataset(split=split)
        else:
            builder.download_and_prepare()
            data = builder.as_dataset(split=split)
    if seed is not None:
        data = data.shuffle(seed, buffer_size=BUFFER) if stream else data.shuffle(seed)
    return _by_row(data) if not stream else iter(data)


def _read_little(config: Any) -> None:
    """Ranges of RANGE bytes of a Parquet file, not 32 MiB of each shard for the first row."""
    if not hasattr(config, "fragment_scan_options"):  # another format, or an older library
        return
    import pyarrow as pa
    import pyarrow.dataset as ds

    ranges = pa.CacheOptions(
        hole_size_limit=min(8192, RANGE // 2), range_size_limit=RANGE, lazy=True, prefetch_limit=0
    )
    config.fragment_scan_options = ds.ParquetFragmentScanOptions(cache_options=ranges)


def _by_row(data: Any) -> Iterator[Row]:
    """The rows of a Dataset, decoded a few at a time."""
    for batch in data.iter(_BATCH):
        names = list(batch)
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(names, cells, strict=True))


_CHANGED = (
    "the dataset has changed since this course was written: pin a commit from before with "
    'revision="…", or install a newer course'
)


def _check_columns(source: Source, row: Row, revision: str) -> None:
    missing = [name for name in source.columns if name not in row]
    if missing:
        raise DataError(
            f"{source.id} (revision {revision}): expected the columns {_listed(source.columns)}, "
            f"found {_listed(row)}; {_listed(missing)} missing: {_CHANGED}"
        )


def _listed(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _patiently(call: Callable[[], T]) -> T:
    """`call()`, again after a wait while it fails for a reason that passes."""
    for tries in itertools.count():
        try:
            return call()
        except CourseError:
            raise
        except Exception as error:
            if tries >= len(WAITS) or not trouble.is_passing(error):
                raise
            _wait(tries, error)
    raise AssertionError("unreachable")


def _wait(tries: int, error: Exception) -> None:
    status = trouble.status_of(error)
    why = f"status {status}" if status else type(error).__name__
    print(f"the Hub failed ({why}): trying again in {WAITS[tries]:.0f} s …", flush=True)
    time.sleep(WAITS[tries])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Download bars stay; the libraries' log lines about unauthenticated requests do not."""
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub", "httpx")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
