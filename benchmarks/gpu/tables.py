"""The results as a file: JSON, and the Markdown table beside it."""

import json
import re
from pathlib import Path
from typing import Any

from course_utils.files import write_atomic

COLUMNS = ("part", "what", "step s", "tokens/s", "MFU %", "peak GiB", "calculated GiB", "remarks")


def slug(name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits, no exponent; nothing for None."""
    if value is None:
        return ""
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}g}"
    return shown


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    mfu = row.get("mfu")
    remarks = [row["status"]] if row["status"] != "ok" else []
    remarks += [str(row[key]) for key in ("reason", "note") if row.get(key)]
    cells = [
        row["part"],
        row.get("what", ""),
        number(row.get("step_seconds")),
        number(row.get("tokens_s")),
        "" if mfu is None else number(100 * mfu),
        number(row.get("peak_gib")),
        number(row.get("calculated_gib")),
        ": ".join(remarks),
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def markdown(result: dict[str, Any]) -> str:
    """The whole page: what it was measured on, then a line for each row."""
    device = result["device"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    warning = ["**A dry run on a CPU: nothing here is a measurement of a GPU.**", ""]
    return "\n".join(
        [
            f"# {device['name']}",
            "",
            *(warning if result["dry_run"] else []),
            f"{device['described']}; driver {device['driver'] or 'none'}; {versions}; commit "
            f"{result['commit'] or 'unknown'}; {result['date']}; {result['seconds']:.0f} s.",
            "",
            "Random weights of the named shapes, random tokens. MFU: of the data sheet's dense "
            "peak; of the update alone for PPO. Calculated: `course memory`'s formulas.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|" + "---|" * len(COLUMNS),
            *(line(row) for row in result["rows"]),
            "",
        ]
    )


def save(result: dict[str, Any], folder: Path, name: str) -> tuple[Path, Path]:
    """Writes folder/name.json and .md, each whole or not at all."""
    files = folder / f"{name}.json", folder / f"{name}.md"
    write_atomic(files[0], json.dumps(result, indent=1) + "\n")
    write_atomic(files[1], markdown(result))
    return files
