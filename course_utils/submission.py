"""A student's results for a class leaderboard: one JSON file in, one table out.

    write_submission("submission.json", "Ada", lab, {"my PPO": policy}, reference=sft)
    course leaderboard submissions/            # instructors: a folder of such files

A file holds the answers themselves, so the gold reward is computed again by whoever reads it, and a
number that somebody typed counts for nothing. It does not show *how* the answers came about: a file
of hand-written answers looks the same. KL and cost are as the file states them.
"""

import argparse
import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import course_utils
from course_utils.errors import CourseError, DataError
from course_utils.files import write_atomic

if TYPE_CHECKING:
    from course_utils.evaluation import Estimate
    from course_utils.lab import Lab

FORMAT = 1
PROMPTS = 64  # held-out prompts that every submission answers, the same for all
LARGEST = 2_000_000  # bytes of a file that is read at all
LONGEST = 4_000  # characters of one answer
MOST_ENTRIES = 20


@dataclass(frozen=True)
class Entry:
    """One model of a submission; `gold` is computed from its answers, never read."""

    student: str
    method: str
    gold: "Estimate"
    kl: float | None  # nats per answer, as stated
    cpu_seconds: float | None  # of the training, as stated


def leaderboard_prompts() -> list[str]:
    """The prompts that every submission answers, whatever its seed."""
    from course_utils import world

    return [prompt.text for prompt in world.prompts("heldout", PROMPTS, seed=2025)]


def write_submission(
    path: Path | str,
    student: str,
    lab: "Lab",
    models: Mapping[str, Any],
    reference: Any = None,
    cpu_seconds: Mapping[str, float] | None = None,
) -> Path:
    """Lets each model answer the leaderboard's prompts and writes the file.

    Args:
        student: the name to show.
        lab: of a tier whose gold reward is known.
        models: method -> policy, at most 20.
        reference: what the KL is measured to, usually the SFT model; None leaves it out.
        cpu_seconds: method -> what its training took.
    Raises: CourseError for an empty name, no or too many models, or a tier without gold.
    """
    if not student.strip():
        raise CourseError('say whose submission it is: student="your name"')
    if not 1 <= len(models) <= MOST_ENTRIES:
        raise CourseError(f"a submission has 1 to {MOST_ENTRIES} models, got {len(models)}")
    if lab.gold is None:
        raise CourseError(
            f"tier {lab.tier.name} has no gold reward to rank by: pass lab.world and models of it"
        )
    from course_utils.evaluation import evaluate_policy
    from course_utils.training.run import package_versions

    entries = []
    for method, model in models.items():
        found = evaluate_policy(
            model,
            lab.tokenizer,
            leaderboard_prompts(),
            gold=lab.gold,
            reference=reference,
            seed=lab.seed,
            max_new_tokens=lab.tier.ppo.max_new_tokens,
        )
        entries.append(
            {
                "method": method,
                "gold": found.mean,
                "kl": found.kl.mean if found.kl else None,
                "cpu_seconds": (cpu_seconds or {}).get(method),
                "answers": [c.text for c in found.completions],
            }
        )
    content = {
        "format": FORMAT,
        "student": student.strip(),
        "tier": lab.tier.name,
        "seed": lab.seed,
        "course_version": course_utils.__version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "packages": package_versions(),
        "entries": entries,
    }
    return write_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# ---- reading files of others ---------------------------------------------------------------------


def read_submission(path: Path | str) -> list[Entry]:
    """The entries of a file, each with its gold reward computed from its answers.

    Raises: DataError naming the file, the place in it and what is expected there.
    """
    path = Path(path)
    content = _load(path)
    student = _text(content.get("student"), path, "student", 200)
    entries = content.get("entries")
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_ENTRIES:
        raise DataError(f"{path.name}: entries must be a list of 1 to {MOST_ENTRIES} models")
    return [_entry(path, student, number, row) for number, row in enumerate(entries, 1)]


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path.name} is larger than {LARGEST:,} bytes and is not read")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not a JSON file in UTF-8 ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(
            f"{path.name} is not a submission in format {FORMAT}; write it with lesson 10's cell"
        )
    return content


def _text(value: Any, path: Path, where: str, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise DataError(f"{path.name}: {where} must be text of at most {longest} characters")
    return value


def _number(value: Any, path: Path, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{path.name}: {where} must be a number, not {str(value)[:40]!r}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not (math.isfinite(found) and found >= -1e-3):  # a KL of 0 may come out as -1e-9
        raise DataError(f"{path.name}: {where} must be a number from 0 up, not {str(value)[:40]}")
    return found


def _entry(path: Path, student: str, number: int, row: Any) -> Entry:
    from course_utils import world
    from course_utils.evaluation import estimate

    where = f"entry {number}"
    if not isinstance(row, dict):
        raise DataError(f"{path.name}: {where} must be an object with method and answers")
    method = _text(row.get("method"), path, f"{where}, method", 100)
    answers = row.get("answers")
    if not isinstance(answers, list) or len(answers) != PROMPTS:
        raise DataError(
            f"{path.name}: {where}, answers must be a list of {PROMPTS}, one for each prompt of "
            "submission.leaderboard_prompts()"
        )
    texts = [_text(a, path, f"{where}, answer {i}", LONGEST) for i, a in enumerate(answers, 1)]
    prompts = leaderboard_prompts()
    scores = [world.gold_reward(p, t).total for p, t in zip(prompts, texts, strict=True)]
    kl = _number(row.get("kl"), path, f"{where}, kl")
    seconds = _number(row.get("cpu_seconds"), path, f"{where}, cpu_seconds")
    return Entry(student, method, estimate(scores), kl, seconds)


def leaderboard(folder: Path | str) -> tuple[list[Entry], list[str]]:
    """(entries of all *.json below a folder, best gold first; what was wrong with the others).

    No file can stop the rest. Raises: DataError when there is no such folder, or no file in it.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*.json") if path.is_file())
    if not files:
        raise DataError(f"{folder} holds no *.json file; collect the students' submissions in it")
    entries: list[Entry] = []
    faults: list[str] = []
    for path in files:
        try:
            entries += read_submission(path)
        except DataError as error:
            faults.append(f"{path.relative_to(folder).parent}/: {error}".removeprefix("./: "))
    return sorted(entries, key=lambda entry: -entry.gold.mean), faults


def table(entries: Sequence[Entry]) -> str:
    """The leaderboard as CSV: rank, student, method, gold with its interval, KL, CPU seconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["rank", "student", "method", "gold", "low", "high", "kl (stated)", "cpu s (stated)"]
    )
    for rank, entry in enumerate(entries, 1):
        numbers = [f"{x:.3f}" for x in (entry.gold.mean, entry.gold.low, entry.gold.high)]
        stated = ["" if x is None else f"{x:.2f}" for x in (entry.kl, entry.cpu_seconds)]
        writer.writerow([rank, _cell(entry.student), _cell(entry.method), *numbers, *stated])
    return out.getvalue()


def _cell(text: str) -> str:
    """A spreadsheet must not take a student's text for a formula."""
    plain = " ".join(text.split())
    return f"'{plain}" if plain[:1] in ("=", "+", "-", "@") else plain


def main(args: argparse.Namespace) -> int:
    """`course leaderboard FOLDER --out FILE`. Exit status 1 when a file could not be read."""
    entries, faults = leaderboard(args.folder)
    for fault in faults:
        print(f"left out: {fault}")
    if entries:
        write_atomic(args.out, table(entries))
    print(
        f"{len(entries)} entries, {len(faults)} files left out" + f" -> {args.out}" * bool(entries)
    )
    return 1 if faults else 0
