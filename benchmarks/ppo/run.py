"""Our PPO against the trainers that still run: seconds, memory, models held, learning.

    python benchmarks/ppo/run.py                         the tables, about 40 minutes on two cores
    python benchmarks/ppo/run.py --rounds 1 --no-learning      a look, about 8 minutes

Peers, each in its own environment (made in --envs at the first call, pinned below):
    trl 1.12.0 PPOTrainer          the last release that had one
    trl 0.11.4 PPOTrainer          the classic one with generate() and step()
    trl 1.16.0 RLOOTrainer         what TRL offers today; no critic
The trainers take turns within a round, so that a busy machine hurts all alike; compare CPU seconds.
Writes benchmarks/results/ppo.json and prints the tables.
"""

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS: dict[str, tuple[str, list[str]]] = {  # name -> (script, what its environment holds)
    "trl 1.12.0 PPO": (
        "trl_1_12.py",
        ["trl==1.12.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0"],
    ),
    "trl 0.11.4 PPO": (
        "trl_0_11.py",
        ["trl==0.11.4", "transformers==4.45.2", "accelerate==1.0.1", "datasets==3.1.0", "rich"],
    ),
    "trl 1.16.0 RLOO": (
        "trl_rloo.py",
        ["trl==1.16.0", "transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0"],
    ),
}
OURS = {"ours": [], "ours, LoRA": ["--lora"]}
TORCH = "torch==2.13.0"


def environment(root: Path, packages: list[str]) -> Path:
    """The interpreter of an environment with these packages, made if it is not there."""
    folder = root / packages[0].replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making {folder} ({', '.join([TORCH, *packages])})", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, TORCH, *packages], check=True)
        (folder / "complete").touch()
    return python


def run(python: Path | str, script: str, *options: str, precision: str = "fp32") -> dict[str, Any]:
    """A trainer's iterations ("rows") and its memory."""
    variables = {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(HERE.parents[1]),  # ours; the peers have no course_utils' needs
    }
    if precision == "bf16":  # bf16=True of trl 1.12's config changes nothing
        variables["ACCELERATE_MIXED_PRECISION"] = "bf16"
    command = [str(python), str(HERE / script), "--precision", precision, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    lines = done.stdout.splitlines()
    rows = [json.loads(line[4:]) for line in lines if line.startswith("ROW ")]
    end = next(json.loads(line[4:]) for line in lines if line.startswith("END "))
    return {"rows": rows, **end}


def time_all(
    pythons: dict[str, Path], rounds: int, threads: int, precision: str
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(rounds):
        for name, (script, _) in {"ours": ("ours.py", []), **PEERS}.items():
            for label, extra in OURS.items() if name == "ours" else ((name, []),):
                options = ["--iterations", "6", "--threads", str(threads), *extra]
                done = run(pythons[name], script, *options, precision=precision)
                found.setdefault(label, []).append(done)
                seconds = statistics.median(row["cpu"] for row in done["rows"][1:])
                print(f"  {precision} round {number + 1}, {label}: {seconds:.2f} CPU s", flush=True)
    return found


def learn_all(pythons: dict[str, Path], seeds: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for name, (script, _) in {"ours": ("ours.py", []), **PEERS}.items():
            options = ["--task", "learn", "--iterations", "15", "--seed", str(seed)]
            found.setdefault(name, []).append(run(pythons[name], script, *options))
            last = found[name][-1]["rows"][-1]
            print(f"  seed {seed}, {name}: {last['score']:.2f} at KL {last['kl']:.1f}", flush=True)
    return found


# ---- tables --------------------------------------------------------------------------------------


def part(runs: list[dict[str, Any]], name: str) -> float:
    """Median over all iterations but each run's first (warm-up)."""
    return statistics.median(row[name] for run in runs for row in run["rows"][1:])


def timing_table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    base = part(found["ours"], "cpu")
    lines = [
        "| trainer | CPU s an iteration (rounds) | times ours | rollout / scoring / update CPU s "
        "| wall s | full models held | MiB above imports |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        rounds = " ".join(
            f"{statistics.median(row['cpu'] for row in run['rows'][1:]):.2f}" for run in runs
        )
        split = " / ".join(
            f"{part(runs, f'{p}_cpu'):.2f}" for p in ("rollout", "scoring", "update")
        )
        memory = statistics.median(run["peak_mib"] - run["imports_mib"] for run in runs)
        lines.append(
            f"| {name} | {part(runs, 'cpu'):.2f} ({rounds}) | {part(runs, 'cpu') / base:.2f} "
            f"| {split} | {part(runs, 'wall'):.2f} | {runs[0]['models_held']:.1f} | {memory:.0f} |"
        )
    return lines


def score_at(rows: list[dict[str, float]], kl: float) -> float:
    """Score where a run's KL first reaches `kl`, between its iterations; nan if it never does."""
    for before, after in itertools.pairwise(rows):
        if before["kl"] <= kl <= after["kl"]:
            share = (kl - before["kl"]) / max(after["kl"] - before["kl"], 1e-9)
            return before["score"] + share * (after["score"] - before["score"])
    return math.nan


def spread(values: list[float]) -> str:
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "not reached"
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.2f} ± {deviation:.2f}"


def learning_table(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    levels = (2.0, 5.0, 8.0)
    lines = [
        "| trainer | score, iteration 1 | 5 | 10 | 15 | KL at 15 | "
        + " | ".join(f"score at KL {kl:g}" for kl in levels)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(levels),
    ]
    for name, runs in found.items():
        cells = [spread([run["rows"][i - 1]["score"] for run in runs]) for i in (1, 5, 10, 15)]
        cells.append(spread([run["rows"][-1]["kl"] for run in runs]))
        cells += [spread([score_at(run["rows"], kl) for run in runs]) for kl in levels]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", type=Path, default=Path("build/bench-envs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ppo.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-learning", action="store_true")
    options = parser.parse_args()
    pythons = {name: environment(options.envs, packages) for name, (_, packages) in PEERS.items()}
    pythons["ours"] = Path(sys.executable)
    result: dict[str, Any] = {"machine": machine(), "threads": options.threads}
    precisions = ["fp32", "bf16"] if computes_bf16() else ["fp32"]  # else several times slower
    for precision in precisions:
        result[precision] = time_all(pythons, options.rounds, options.threads, precision)
    if not options.no_learning:
        result["learning"] = learn_all(pythons, options.seeds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(f"\n{result['machine']}, {options.threads} threads")
    for precision in ("fp32", "bf16"):
        if precision in result:
            print(f"\n{precision}\n", *timing_table(result[precision]), sep="\n")
    if "learning" in result:
        print("\nlearning\n", *learning_table(result["learning"]), sep="\n")


def processor(field: str) -> str:
    """A line of /proc/cpuinfo, "" where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith(field)), "")


def computes_bf16() -> bool:
    flags = processor("flags").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def machine() -> str:
    name = processor("model name") or platform.machine()
    return f"{name} ({'with' if computes_bf16() else 'without'} bf16 instructions)"


if __name__ == "__main__":
    main()
