"""RunLog: one directory holds everything a run leaves behind.

    runs/sft/
      meta.json                  format and package versions, seed, git commit, config
      log.jsonl                  one row per training step, appended as it comes
      rollouts.jsonl             sampled completions with their per-token quantities
      checkpoints/step-000020/   whole or absent; manifest.json holds the SHA-256 of every file

Trainers write it; inspectors, reports and tests read only it, also while it is being written.
No torch is imported here.
"""

import functools
import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import course_utils
from course_utils.errors import CheckpointError, RunError
from course_utils.files import atomic_dir, explain_full_disk, sha256, write_atomic
from course_utils.training.jsonl import JsonLines, plain

if TYPE_CHECKING:
    import pandas

FORMAT = 1  # raised when a reader of the old files would misread the new ones
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
_META, _LOG, _ROLLOUTS, _MANIFEST = "meta.json", "log.jsonl", "rollouts.jsonl", "manifest.json"


@functools.cache
def package_versions() -> dict[str, str | None]:
    """Installed version of each package that a result depends on; None where it is missing."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Commit of the checkout this package runs from ("…-dirty" with local changes), else None.

    A package installed below somebody else's repository is not part of it: git must know our file.
    """
    here = Path(course_utils.__file__).resolve()
    quiet: dict[str, Any] = {
        "cwd": here.parent,
        "capture_output": True,
        "text": True,
        "timeout": 10,
    }
    try:
        known = subprocess.run(["git", "ls-files", "--error-unmatch", here.name], **quiet)
        if known.returncode != 0:
            return None
        wanted = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(wanted, **quiet).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


class RunLog:
    """One run (or one stage of a pipeline run) as a directory; see the module's first lines.

    Made by `RunLog.create` (to write) or `RunLog.open` (to read). `directory` is its Path, `config`
    the settings it was started with, `seed` its seed, `meta` the whole of meta.json.
    """

    def __init__(self, directory: Path, meta: dict[str, Any], writable: bool) -> None:
        self.directory = directory
        self.meta = meta
        self.config: dict[str, Any] = meta["config"]
        self.seed: int = meta["seed"]
        self._writable = writable
        self._log = JsonLines(directory / _LOG)
        self._rollouts = JsonLines(directory / _ROLLOUTS)

    def __repr__(self) -> str:
        return f"RunLog({str(self.directory)!r}, seed={self.seed})"

    # ---- making and opening ------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directory: Path | str,
        config: dict[str, Any],
        seed: int,
        resume: bool = False,
        overwrite: bool = False,
    ) -> "RunLog":
        """Starts a run in `directory`, or continues the one that is there when `resume`.

        With `resume` and no run there, a new one starts. `overwrite` deletes an earlier run first.
        Raises RunError when a run is already there (and neither is asked for), was written in
        another format, or was started with another config or seed.
        """
        directory = Path(directory)
        config = plain(config)
        there = (directory / _META).exists() or (directory / _LOG).exists()
        if there and resume:
            return cls._continue(directory, config, seed)
        if there and not overwrite:
            raise RunError(
                f"{directory} already holds a run; pass resume=True (--resume) to continue it, "
                "overwrite=True to replace it, or choose another directory"
            )
        if there:
            for name in (_META, _LOG, _ROLLOUTS):
                (directory / name).unlink(missing_ok=True)
            shutil.rmtree(directory / "checkpoints", ignore_errors=True)
        meta = {
            "format": FORMAT,
            "course_version": course_utils.__version__,
            "python": platform.python_version(),
            "packages": package_versions(),
            "git_commit": git_commit(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": seed,
            "config": config,
        }
        with explain_full_disk(directory):
            directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / _META, json.dumps(meta, indent=2) + "\n")
        return cls(directory, meta, writable=True)

    @classmethod
    def _continue(cls, directory: Path, config: dict[str, Any], seed: int) -> "RunLog":
        log = cls.open(directory)
        old, new = {**log.config, "seed": log.seed}, {**config, "seed": seed}
        changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        if changed:
            shown = "; ".join(f"{k} was {old.get(k)!r}, is now {new.get(k)!r}" for k in changed[:4])
            raise RunError(
                f"{directory} was started with other settings ({shown}), so continuing would mix "
                "two runs; use the old settings, or start a new run in another directory"
            )
        for leftover in (directory / "checkpoints").glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # a half-written one of a killed process
        log._log.mend()
        log._rollouts.mend()
        log._writable = True
        return log

    @classmethod
    def open(cls, directory: Path | str) -> "RunLog":
        """Opens a run for reading, finished or still being written.

        Raises RunError when `directory` is not a run or was written in another format.
        """
        directory = Path(directory)
        path = directory / _META
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{directory} is not a run directory: it has no {_META}; give the directory of one "
                "run, such as runs/latest/sft"
            ) from None
        except ValueError as error:
            raise RunError(
                f"{path} is damaged ({error}); restore it, or start a new run elsewhere"
            ) from None
        found = meta.get("format") if isinstance(meta, dict) else None
        if found != FORMAT:
            version = meta.get("course_version", "unknown") if isinstance(meta, dict) else "unknown"
            raise RunError(
                f"{directory} was written by course {version} in run format {found!r}, and this "
                f"version ({course_utils.__version__}) reads format {FORMAT}; open it with course "
                f"{version}, or start a new run in another directory"
            )
        if not isinstance(meta.get("config"), dict) or not isinstance(meta.get("seed"), int):
            raise RunError(
                f"{path} lacks its config or seed; restore it, or start a new run elsewhere"
            )
        return cls(directory, meta, writable=False)

    def _require_writable(self) -> None:
        if not self._writable:
            raise RunError(
                f"{self.directory} was opened for reading; to write, use "
                "RunLog.create(..., resume=True)"
            )

    # ---- rows --------------------------------------------------------------------------------

    def append(self, row: dict[str, Any]) -> None:
        """Adds one step's row; it must hold an int "step". Numbers are written with full precision.

        NaN and infinities, which JSON lacks, are written as null.
        """
        self._require_writable()
        self._log.append([row])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All rows so far, read from disk; the torn last line of a killed process is left out."""
        return self._log.read()

    def frame(self) -> "pandas.DataFrame":
        """The rows as a DataFrame with one column per key."""
        import pandas

        return pandas.DataFrame(self.rows)

    def column(self, name: str) -> list[Any]:
        """One value per row, None where the row lacks it. Raises RunError for a name no row has."""
        rows = self.rows
        if not any(name in row for row in rows):
            known = sorted({key for row in rows for key in row})
            raise RunError(f"{self.directory} has no column {name!r}; it has {known}")
        return [row.get(name) for row in rows]

    def save_rollouts(self, step: int, rollouts: list[dict[str, Any]]) -> None:
        """Adds completions sampled at `step`, one row each (keys: see `course_utils.training`)."""
        self._require_writable()
        self._rollouts.append([{**rollout, "step": step} for rollout in rollouts])

    def rollouts(self, step: int | None = None) -> list[dict[str, Any]]:
        """The saved completions, of one step or of all."""
        rows = self._rollouts.read()
        return rows if step is None else [row for row in rows if row["step"] == step]

    def rewind(self, step: int) -> None:
        """Forgets what came after `step`: rows, rollouts and checkpoints."""
        self._require_writable()
        for later in [number for number in self._checkpoint_steps() if number > step]:
            shutil.rmtree(self.checkpoint_dir(later))
        self._log.keep_until(step)
        self._rollouts.keep_until(step)

    # ---- checkpoints -------------------------------------------------------------------------

    def checkpoint_dir(self, step: int) -> Path:
        """Where the checkpoint of `step` is, or would be."""
        return self.directory / "checkpoints" / f"step-{step:06d}"

    def _checkpoint_steps(self) -> list[int]:
        found = (self.directory / "checkpoints").glob("step-*")
        return sorted(int(p.name[5:]) for p in found if p.name[5:].isdigit())

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
        """Lets `write` fill a directory, which becomes the checkpoint of `step` once it is whole.

        The rows up to now reach the disk first; the newest `keep` checkpoints are kept. An error or
        a Ctrl-C inside leaves the earlier checkpoints as they were.
        """
        self._require_writable()
        self._log.sync()
        self._rollouts.sync()
        final = self.checkpoint_dir(step)
        with atomic_dir(final) as directory:
            write(directory)
            files = {
                file.relative_to(directory).as_posix(): {
                    "sha256": sha256(file),
                    "bytes": file.stat().st_size,
                }
                for file in sorted(directory.rglob("*"))
                if file.is_file()
            }
            manifest = {"format": FORMAT, "step": step, "files": files}
            (directory / _MANIFEST).write_text(
                json.dumps(manifest, indent=2) + "\n", encoding="utf-8"
            )
        for old in self._checkpoint_steps()[:-keep]:
            shutil.rmtree(self.checkpoint_dir(old), ignore_errors=True)
        return final

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """(step, directory) of the newest checkpoint with every file checked; None without any.

        Raises CheckpointError when the newest one is damaged: it is never passed over in silence.
        """
        steps = self._checkpoint_steps()
        if not steps:
            return None
        newest = self.checkpoint_dir(steps[-1])
        fault = _fault(newest, steps[-1])
        if fault is None:
            return steps[-1], newest
        intact = [step for step in steps[:-1] if _fault(self.checkpoint_dir(step), step) is None]
        restart = f"resume from step {intact[-1]}" if intact else "start from the beginning"
        raise CheckpointError(f"{fault}; delete {newest} to {restart}")


def _fault(directory: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, or None when all its files match the manifest."""
    path = directory / _MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, files = manifest["format"], dict(manifest["files"])
        if found != FORMAT:
            return f"checkpoint {directory} has format {found!r}, this version reads {FORMAT}"
        if manifest["step"] != step:
            return f"checkpoint {directory} says it is of step {manifest['step']}"
        for name, wanted in files.items():
            file = directory / name
            if not file.is_file():
                return f"checkpoint file {file} is missing"
            if file.stat().st_size != wanted["bytes"]:
                size = file.stat().st_size
                return (
                    f"checkpoint file {file} is cut or grown: {size} bytes, not {wanted['bytes']}"
                )
            if sha256(file) != wanted["sha256"]:
                return (
                    f"checkpoint file {file} is corrupted: its SHA-256 does not match the manifest"
                )
    except FileNotFoundError:
        return f"checkpoint file {path} is missing"
    except (ValueError, KeyError, TypeError) as error:
        return f"checkpoint file {path} is damaged ({type(error).__name__}: {error})"
    return None
