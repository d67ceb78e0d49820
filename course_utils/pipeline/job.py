"""What a run was asked to do, kept in its directory so that --resume needs no other argument."""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import course_utils
from course_utils.errors import RunError
from course_utils.files import require_free_space, write_atomic
from course_utils.tiers import TierChoice, choose_tier

FORMAT = 1  # of the run directory; raised when an older one can no longer be continued
STAGES = ("sft", "rm", "ppo", "dpo")
FILES = ("prompts", "preferences", "demonstrations")
_RUN = "run.json"
_MIB = {"tiny": 100, "small": 9_000, "medium": 40_000, "large": 60_000}  # disk a run may need


@dataclasses.dataclass(frozen=True)
class Job:
    """One `course run`: where, on what, with which seed, stages and files."""

    out: Path
    choice: TierChoice
    seed: int
    stages: tuple[str, ...]  # of STAGES, in that order
    files: dict[str, Path]  # of FILES, only those given
    fast: bool
    quiet: bool
    resume: bool
    started: str  # ISO date and time of the first start

    @property
    def command(self) -> str:
        """The command line that starts this job afresh."""
        words = ["course run", f"--tier {self.choice.tier.name}", f"--seed {self.seed}"]
        words += ["--offline"] if self.choice.tier.is_offline else []
        if self.stages != STAGES:
            words.append(f"--stages {','.join(self.stages)}")
        words += [f"--{name} {path}" for name, path in self.files.items()]
        return " ".join([*words, *(["--fast"] if self.fast else [])])


def _read(directory: Path) -> dict[str, Any]:
    """run.json of a run directory. Raises RunError when it is not one, or of another version."""
    path = directory / _RUN
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        found = saved["format"]
    except FileNotFoundError:
        raise RunError(
            f"there is no run to continue in {directory} (no {_RUN}); start one without --resume"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}); start a new run without --resume") from None
    if found != FORMAT:
        raise RunError(
            f"{directory} was written by course {saved.get('course_version')} in run format "
            f"{found}, and this is course {course_utils.__version__} with format {FORMAT}; "
            "continue it with that version, or start a new run in another directory (--out)"
        )
    return saved


def _taken(out: Path) -> bool:
    """Whether runs/latest holds an earlier run. Refuses any other directory with things in it."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if out.name != "latest" or not (out / _RUN).exists():
        raise RunError(
            f"{out} already exists; continue the run in it with --resume, or choose another "
            "directory with --out"
        )
    return True


def claim(job: Job) -> None:
    """Makes the run directory the job's own; an earlier run in runs/latest is moved, not lost.

    Called when everything that can be wrong with the request has been looked at. Raises RunError
    when the directory is taken, CourseError when the disk is too full.
    """
    mib = _MIB.get(job.choice.tier.name, 100)
    require_free_space(job.out, mib / 4 if job.resume else mib)
    if not job.resume and _taken(job.out):
        _move_away(job.out)
    _write(job)


def _move_away(out: Path) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime((out / _RUN).stat().st_mtime))
    kept = out.with_name(stamp)
    number = 1
    while kept.exists():
        number += 1
        kept = out.with_name(f"{stamp}-{number}")
    out.rename(kept)
    print(f"the earlier run is kept in {kept}")


def open_job(args: argparse.Namespace) -> Job:
    """The job of parsed arguments, new or with --resume the one in the directory; writes nothing.

    Raises:
        RunError: nothing to resume, another format, other settings than it was started with, or
            the directory is taken. TierError: unknown tier.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            "course run is one process on one device; for PPO on several, start a script of your "
            "own with accelerate launch (docs/ppo.md)"
        )
    out = Path(args.out)
    given = {name: getattr(args, name) for name in FILES if getattr(args, name) is not None}
    if args.resume:
        return _continue(out, args, given)
    _taken(out)
    choice = choose_tier(args.tier)
    files = {name: Path(path).absolute() for name, path in given.items()}
    return Job(
        out=out,
        choice=choice,
        seed=args.seed,
        stages=tuple(args.stages),
        files=files,
        fast=choice.tier.is_fast,
        quiet=args.quiet,
        resume=False,
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


def _continue(out: Path, args: argparse.Namespace, given: dict[str, Path]) -> Job:
    saved = _read(out)
    asked = {
        "tier": args.tier,
        "seed": args.seed or None,
        **{name: str(Path(path).absolute()) for name, path in given.items()},
    }
    for name, value in asked.items():
        before = saved["files"].get(name) if name in FILES else saved[name]
        if value is not None and value != before:
            raise RunError(
                f"the run in {out} was started with {name} {before!r}, not {value!r}; leave out "
                f"--{name} to continue it, or start a new run without --resume"
            )
    if saved["fast"]:
        os.environ["COURSE_FAST"] = "1"  # read where the tier is chosen
    if saved.get("offline"):
        os.environ["COURSE_OFFLINE"] = "1"
    stages = tuple(args.stages) if tuple(args.stages) != STAGES else tuple(saved["stages"])
    choice = choose_tier(saved["tier"])
    if choice.tier.is_fast != saved["fast"]:
        raise RunError(f"the run in {out} was not a --fast one: unset COURSE_FAST to continue it")
    if choice.tier.is_offline != bool(saved.get("offline")):
        raise RunError(
            f"the run in {out} was not an --offline one: leave out --offline and unset "
            "COURSE_OFFLINE to continue it"
        )
    return Job(
        out=out,
        choice=choice,
        seed=saved["seed"],
        stages=stages,
        files={name: Path(path) for name, path in saved["files"].items()},
        fast=saved["fast"],
        quiet=args.quiet,
        resume=True,
        started=saved["started"],
    )


def _write(job: Job) -> None:
    saved = {
        "format": FORMAT,
        "course_version": course_utils.__version__,
        "tier": job.choice.tier.name,
        "seed": job.seed,
        "stages": job.stages,
        "files": {name: str(path) for name, path in job.files.items()},
        "fast": job.fast,
        "offline": job.choice.tier.is_offline,
        "started": job.started,
    }
    write_atomic(job.out / _RUN, json.dumps(saved, indent=2) + "\n")
