"""Rows loaded before, on disk: the same request reads no network, and nothing half-written counts.

They lie in the datasets library's cache (HF_HOME, HF_DATASETS_CACHE), one folder for each request
and in it one for each commit.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.data.report import Drops, LoadReport
from course_utils.files import atomic_dir

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT = 1  # raised when rows are made otherwise than before
_REPORT = "report.json"


def place(request: dict[str, Any]) -> Path:
    """The folder of a request: everything the rows depend on but the commit."""
    from datasets import config

    text = json.dumps({"format": FORMAT, **request}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    owner = str(request["id"]).replace("/", "--")
    return Path(config.HF_DATASETS_CACHE) / "course_utils" / f"{owner}-{digest}"


def save(folder: Path, revision: str, dataset: "Dataset", report: LoadReport) -> None:
    """Writes rows and report: both or nothing."""
    with atomic_dir(folder / revision) as temporary:
        dataset.save_to_disk(temporary / "rows")
        text = json.dumps(dataclasses.asdict(report), ensure_ascii=False)
        (temporary / _REPORT).write_text(text, encoding="utf-8")


def load(folder: Path, revision: str) -> "tuple[Dataset, LoadReport] | None":
    """What `save` wrote for this commit; None when there is nothing or it is damaged."""
    from datasets import Dataset

    path = folder / revision
    if not path.is_dir():
        return None
    try:
        found = json.loads((path / _REPORT).read_text(encoding="utf-8"))
        drops = {reason: Drops(**entry) for reason, entry in found.pop("drops").items()}
        report = LoadReport(**found, drops=drops)
        dataset = Dataset.load_from_disk(str(path / "rows"))
        if len(dataset) != report.kept:
            raise ValueError("rows are missing")
    except Exception:  # pyarrow has many; whatever is wrong with it, it is loaded again
        shutil.rmtree(path, ignore_errors=True)
        return None
    return dataset, report


def newest(folder: Path) -> str | None:
    """The commit that was loaded last for a request."""
    if not folder.is_dir():
        return None
    commits = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    return max(commits, key=lambda p: p.stat().st_mtime).name if commits else None
