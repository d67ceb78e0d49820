"""The benchmark scripts run: the GPU one in its smallest form, of the peers' the tables."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_gpu_benchmark_runs_on_a_cpu_in_its_smallest_form() -> None:
    out = run("gpu/ppo.py", "--device", "cpu", "--smallest")
    found = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert found["rollout_tokens_s"] > 0
    assert 0 < found["update_share_of_peak"] < 1
    assert found["rollout_times_hf"] == pytest.approx(
        found["rollout_tokens_s"] / found["hf_generate_tokens_s"]
    )


def test_ours_does_the_peers_workload() -> None:
    """24 new tokens for 64 prompts, 16 updates, three models held, and KL 0 at the start."""
    out = run("ppo/ours.py", "--iterations", "2", "--threads", "1")
    rows = [json.loads(line[4:]) for line in out.splitlines() if line.startswith("ROW ")]
    end = json.loads(next(line for line in out.splitlines() if line.startswith("END "))[4:])
    assert [row["iteration"] for row in rows] == [1, 2]
    assert abs(rows[0]["kl"]) < 1e-5 < rows[1]["kl"]
    parts = sum(rows[1][f"{part}_cpu"] for part in ("rollout", "scoring", "update"))
    assert parts == pytest.approx(rows[1]["cpu"])
    assert end["models_held"] == pytest.approx(3, abs=0.01)


def load(script: str) -> Any:
    path = ROOT / "benchmarks" / script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_score_at_a_kl_lies_between_iterations() -> None:
    peers = load("ppo/run.py")
    rows = [{"kl": 0.0, "score": 1.0}, {"kl": 4.0, "score": 2.0}, {"kl": 6.0, "score": 2.5}]
    assert peers.score_at(rows, 1.0) == pytest.approx(1.25)
    assert peers.score_at(rows, 5.0) == pytest.approx(2.25)
    assert math.isnan(peers.score_at(rows, 7.0))


def test_the_timing_table_leaves_out_the_warm_up_and_compares_with_ours() -> None:
    peers = load("ppo/run.py")

    def runs(cpu: float) -> list[dict[str, Any]]:
        parts = {f"{p}_cpu": cpu / 3 for p in ("rollout", "scoring", "update")}
        rows = [{"cpu": 99.0, "wall": 99.0, **parts}, {"cpu": cpu, "wall": cpu / 2, **parts}]
        return [{"rows": rows, "peak_mib": 700.0, "imports_mib": 400.0, "models_held": 3.0}]

    lines = peers.timing_table({"ours": runs(3.0), "peer": runs(6.0)})
    wanted = "| peer | 6.00 (6.00) | 2.00 | 2.00 / 2.00 / 2.00 | 3.00 | 3.0 | 300"
    assert lines[-1].startswith(wanted)
