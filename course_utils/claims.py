"""The lecture's claims, and what a student's own notebooks found about them.

`lab.claim("C07", …)` in a lesson shows the claim beside the measurement and keeps it in
runs/claims.json; lesson 10 shows that file as the student's own ledger. One run with one seed is a
look, not a proof: it says so.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from course_utils.errors import CourseError
from course_utils.files import write_atomic

if TYPE_CHECKING:
    from course_utils.lab import Lab

CLAIMS = {
    "C01": "Full fine-tuning gives the most flexibility and is prone to catastrophic forgetting; "
    "parameter-efficient methods are less so.",
    "C02": "LoRA trains 0.1 to 1 % of the parameters.",
    "C03": "Parameter-efficient fine-tuning reduces compute and memory.",
    "C04": "The quality of supervision greatly affects behaviour.",
    "C05": "SFT is safe but bland, hallucinates, and overfits noisy or small data.",
    "C06": "The reward model gives higher scores to the preferred answer: a proxy for people.",
    "C07": "PPO maximises the reward while the KL penalty keeps the policy near its start.",
    "C08": "Reward models can be misaligned, and PPO is sensitive to their errors.",
    "C09": "PPO is expensive: it needs many rollouts.",
    "C10": "DPO is simpler and more stable than PPO.",
    "C11": "DPO depends on high-quality preference data.",
    "C12": "Low-rank updates suffice, but may miss global interactions.",
    "C13": "LoRA adapters are plug-and-play: they can be swapped, merged and composed.",
    "C14": "QLoRA fine-tunes a 65B model on one 48 GB GPU.",
    "C15": "NF4, double quantization and paged optimizers save memory without significant loss.",
    "C16": "A small aligned model beats a large unaligned one (InstructGPT).",
    "C17": "AI feedback can take the place of human labels (RLAIF).",
    "C18": "A constitution guides behaviour: critique, revise, and learn to prefer the revision.",
    "C19": "Reward hacking can be defended against.",
    "C20": "Alignment extends beyond text: to images, to code.",
}
VERDICTS = {True: "as the lecture says", False: "not here", None: "it depends"}
_TONES = {True: "20,150,130", False: "235,125,20", None: "120,120,130"}


@dataclass(frozen=True)
class Finding:
    """One claim and what one run found about it; shows itself as a card."""

    id: str
    says: str
    measured: str
    holds: bool | None
    condition: str
    tier: str
    seed: int
    fast: bool  # under COURSE_FAST=1 nothing was trained long enough to prove anything
    numbers: dict[str, float]

    @property
    def verdict(self) -> str:
        """In words; a fast run gives none."""
        if self.fast:
            return "no verdict: COURSE_FAST trains a few steps only"
        return VERDICTS[self.holds] + (f": {self.condition}" if self.condition else "")

    def __repr__(self) -> str:
        where = f"one run, tier {self.tier}, seed {self.seed}"
        return (
            f"{self.id}  the lecture says: {self.says}\n     measured ({where}): {self.measured}\n"
            f"     verdict: {self.verdict}"
        )

    def _repr_html_(self) -> str:
        tone = _TONES[None if self.fast else self.holds]
        small = 'style="font-size:12.5px;opacity:.75"'
        return (
            f'<div style="border:1px solid rgba(128,128,128,.4);border-left:4px solid rgb({tone});'
            'border-radius:6px;padding:10px 16px;max-width:760px;font-size:14px;line-height:1.5">'
            f"<div {small}>{self.id} · the lecture says</div><div>{escape(self.says)}</div>"
            f'<div {small[:-1]};margin-top:6px">measured here, in one run (tier {self.tier}, seed '
            f"{self.seed})</div><div>{escape(self.measured)}</div>"
            f'<div style="margin-top:6px;font-weight:600">{escape(self.verdict)}</div></div>'
        )


def record(
    lab: "Lab",
    id: str,
    measured: str,
    holds: bool | None,
    condition: str = "",
    numbers: Mapping[str, Any] | None = None,
) -> Finding:
    """A Finding of this lab, kept in runs/claims.json in place of an earlier one on the claim.

    Raises:
        CourseError: unknown id; "it depends" without saying on what; a number that is none.
    """
    if id not in CLAIMS:
        raise CourseError(f'there is no claim "{id}"; there are C01 to C{len(CLAIMS):02d}')
    if holds is None and not condition:
        raise CourseError(f'{id}: "it depends" needs to say on what: pass condition="…"')
    plain = {name: float(value) for name, value in (numbers or {}).items()}
    broken = [name for name, value in plain.items() if not math.isfinite(value)]
    if broken:
        raise CourseError(f"{id}: {', '.join(broken)} is not a finite number")
    verdict = None if holds is None else bool(holds)
    tier = lab.tier
    where = (tier.name, lab.seed, tier.is_fast)
    found = Finding(id, CLAIMS[id], measured, verdict, condition, *where, plain)
    path = _file(lab)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        kept = {one.id: one for one in findings(lab)}
        if tier.is_fast and id in kept and not kept[id].fast:
            return found  # a quick pass through a notebook does not replace what was measured
        kept[id] = found
        rows = [asdict(kept[key]) for key in sorted(kept)]
        write_atomic(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return found


def findings(lab: "Lab") -> list[Finding]:
    """What has been found so far, by id; a damaged file counts as empty."""
    try:
        return [Finding(**row) for row in json.loads(_file(lab).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        print(f"note: {_file(lab)} is damaged and will be written anew")
        return []


def _file(lab: "Lab") -> Path:
    return lab.run_directory("claims").with_suffix(".json")
