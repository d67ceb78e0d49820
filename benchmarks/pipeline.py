"""What `course run` shows, over several seeds: the numbers of the README.

    python benchmarks/pipeline.py --seeds 3 --out build/pipeline

Runs the whole job once a seed (a finished run in --out is only read, an unfinished one continued)
and prints means and standard deviations over the seeds. Seconds are this machine's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from course_utils.files import write_atomic

MODELS = ("base", "sft", "ppo", "ppo_low_beta", "dpo")


def run(seed: int, out: Path, tier: str) -> dict[str, Any]:
    """The report.json of one seed, with the wall-clock seconds of the whole command."""
    clock = out / "command_seconds.json"
    if not clock.exists():
        command = [sys.executable, "-m", "course_utils", "run", "--quiet", "--out", str(out)]
        resume = (out / "run.json").exists()
        command += ["--resume"] if resume else ["--tier", tier, "--seed", str(seed)]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        write_atomic(clock, json.dumps({"seconds": time.perf_counter() - began, "resumed": resume}))
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {**report, "command": json.loads(clock.read_text())}


def row(name: str, values: list[float], unit: str = "") -> str:
    mean = statistics.mean(values)
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    shown = "  ".join(f"{v:.4g}" for v in values)
    return f"| {name} | {mean:.3g} ± {spread:.2g}{unit} | {shown} |"


def gold(report: dict[str, Any], key: str) -> dict[str, float]:
    return next(m for m in report["models"] if m["key"] == key)["evaluation"]["gold"]


def pushed(report: dict[str, Any]) -> dict[str, float]:
    """Start, peak and end of gold along the run that is pushed too far, on held-out prompts."""
    rows = report["overoptimisation"]["rows"]
    peak = max(rows, key=lambda r: r["gold_heldout"])
    return {
        "gold at the start": rows[0]["gold_heldout"],
        "gold at its peak": peak["gold_heldout"],
        "KL at the peak": peak["kl"],
        "gold at the end": rows[-1]["gold_heldout"],
        "KL at the end": rows[-1]["kl"],
        "proxy at the start": rows[0]["proxy"],
        "proxy at the peak": peak["proxy"],
        "proxy at the end": rows[-1]["proxy"],
    }


def table(reports: list[dict[str, Any]]) -> str:
    lines = ["| what | mean ± sd | each seed |", "|---|---|---|"]
    for key in MODELS:
        lines.append(row(f"held-out gold, {key}", [gold(r, key)["mean"] for r in reports]))
    for a, b in (("sft", "base"), ("ppo", "sft"), ("dpo", "sft")):
        wins = [next(w for w in r["win_rates"] if (w["a"], w["b"]) == (a, b)) for r in reports]
        lines.append(row(f"win rate, {a} over {b}", [w["rate"] for w in wins]))
        lines.append(row("… lower end of its 95% interval", [w["interval"][0] for w in wins]))
    for name in pushed(reports[0]):
        lines.append(row(f"pushed too far: {name}", [pushed(r)[name] for r in reports]))
    judged = [r["reward_model"] for r in reports]
    lines.append(row("reward model, held-out pairs", [j["accuracy"]["mean"] for j in judged]))
    lines.append(row("… against gold", [j["accuracy_gold"]["mean"] for j in judged]))
    lines.append(row("… calibration error", [j["calibration"]["ece"] for j in judged]))
    first = [r["curves"]["ppo"][0] for r in reports]
    lines.append(row("PPO before the first update: KL", [f["kl"] for f in first]))
    lines.append(row("… largest ratio - 1", [f["ratio_first_max"] - 1 for f in first]))
    lines.append(row("command, seconds", [r["command"]["seconds"] for r in reports]))
    lines.append(row("stages, seconds", [r["seconds"] for r in reports]))
    cpu = [sum(c["cpu_seconds"] for c in r["costs"]) for r in reports]
    lines.append(row("stages, CPU seconds", cpu))
    lines.append(row("peak memory, MiB", [r["costs"][-1]["peak_mib"] for r in reports]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tier", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("build/pipeline"))
    args = parser.parse_args()
    reports = [run(seed, args.out / f"seed{seed}", args.tier) for seed in range(args.seeds)]
    print(f"{reports[0]['machine']}; torch {reports[0]['versions']['torch']}\n")
    print(table(reports))


if __name__ == "__main__":
    main()
