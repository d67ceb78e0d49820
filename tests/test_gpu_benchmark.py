"""benchmarks/gpu/run_all.py without a GPU: whatever a part does, the rest goes on."""

import contextlib
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from course_utils.memory import ModelShape

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / "benchmarks" / "gpu"
NAMES = ("conduct", "flops", "tables", "parts", "stages", "pressure", "memory")
FAKES = """
import os, signal, subprocess, sys, time
from pathlib import Path
from conduct import Skip

def good(place):
    yield {"what": place["name"], "step_seconds": 0.5, "tokens_s": 1234.5, "mfu": 0.25}

def raises(place):
    yield {"what": "first half"}
    raise ValueError("broken | on purpose\\nand more")

def full(place):
    raise RuntimeError("CUDA error: out of memory")

def hangs(place):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(place["pid"]).write_text(str(child.pid))
    yield {"what": "before it hangs"}
    time.sleep(600)

def dies(place):
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    yield {}

def exits(place):
    yield {"what": "before it leaves"}
    os._exit(3)

def nothing(place):
    return
    yield {}

def cannot(place):
    raise Skip("not on this machine")
    yield {}
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The script's modules, which are no package, for the time of a test."""
    monkeypatch.syspath_prepend(str(GPU))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    for name in NAMES:
        sys.modules.pop(name, None)


def result_of(gpu: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    device = {"name": "cpu", "described": "two cores", "driver": None}
    head = {"dry_run": True, "device": device, "versions": {"torch": "2"}, "commit": None}
    return {**head, "date": "today", "seconds": 1.0, "rows": rows}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# ---- parts that go wrong -------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_a_part_that_goes_wrong_is_a_row_and_the_rest_goes_on(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["raises", "full", "hangs", "dies", "exits", "nothing", "cannot", "absent", "good"]
    limits = {"hangs": 8.0}
    parts = [gpu.conduct.Part(n, f"fakes:{n}", limit=limits.get(n, 100.0)) for n in names]
    parts.insert(0, gpu.conduct.Part("needy", "fakes:good", needs=("warp drive",)))
    place = {"name": "here", "pid": str(tmp_path / "pid"), "has": {}}
    seen: list[list[str]] = []

    def write(rows: list[dict[str, Any]]) -> None:
        file, page = gpu.tables.save(result_of(gpu, rows), tmp_path / "out", "cpu")
        stored = json.loads(file.read_text())["rows"]
        assert all(f"| {part.name} |" in page.read_text() for part in parts)
        seen.append([row["status"] for row in stored])

    context = multiprocessing.get_context("spawn")
    rows = gpu.conduct.conduct(parts, place, 1000, write, context)
    assert [(row["part"], row["status"]) for row in rows] == [
        ("needy", "skipped"),
        ("raises", "ok"),
        ("raises", "failed"),
        ("full", "out of memory"),
        ("hangs", "ok"),
        ("hangs", "timeout"),
        ("dies", "died"),
        ("exits", "ok"),
        ("exits", "died"),
        ("nothing", "failed"),
        ("cannot", "skipped"),
        ("absent", "failed"),
        ("good", "ok"),
    ]
    said = {row["part"]: row.get("reason", "") for row in rows}
    assert "warp drive" in said["needy"]
    assert said["raises"] == "ValueError: broken | on purpose"
    assert "8 s, its limit" in said["hangs"]
    assert "SIGKILL" in said["dies"]
    assert "last words" in said["dies"]
    assert "exit code 3" in said["exits"]
    assert said["cannot"] == "not on this machine"
    assert "absent" in said["absent"]
    assert not alive(int((tmp_path / "pid").read_text()))  # what the hanging part had started
    # after every part the file holds all parts: those done, and those to come
    assert len(seen) == len(parts)
    to_come = [statuses.count("not reached") for statuses in seen]
    assert to_come == list(range(len(parts) - 1, -1, -1))


def test_a_line_cut_off_in_the_middle_is_no_row(gpu: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"what": "whole"}\n{"what": "hal')
    assert list(gpu.conduct.read(file)) == [{"what": "whole"}]
    assert list(gpu.conduct.read(tmp_path / "absent")) == []


def test_the_time_is_kept(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own: parts of 40 s with a limit of 60, 100 s in all, 5 gone already."""
    clock = [1000.0]
    given: list[float] = []

    def alone(part: Any, place: Any, seconds: float, context: Any) -> list[dict[str, Any]]:
        given.append(seconds)
        clock[0] += min(40.0, seconds)
        return [{"part": part.name, "status": "ok", "wall_seconds": 40.0}]

    monkeypatch.setattr(gpu.conduct, "alone", alone)
    monkeypatch.setattr(gpu.conduct, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    parts = [gpu.conduct.Part(name, "a:b", limit=60) for name in "abcde"]
    rows = gpu.conduct.conduct(parts, {"has": {}}, 100, lambda rows: None, None, began=995.0)
    assert given == [60, 55, 15]
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "skipped", "skipped"]
    assert all("no time left" in row["reason"] for row in rows[3:])
    assert clock[0] - 995 == 100


def test_a_part_cut_short_by_the_budget_says_so(gpu: Any) -> None:
    part = gpu.conduct.Part("a", "a:b", limit=60)
    assert "no time left" in gpu.conduct.too_late(part, 15)
    assert "its limit" in gpu.conduct.too_late(part, 60)


# ---- FLOPs ---------------------------------------------------------------------------------------

SMALL = ModelShape(
    name="by hand",
    family="llama",
    vocabulary=10,
    hidden=4,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=2,
    ffn=8,
    context=16,
    tied=True,
)


def test_mfu_by_hand(gpu: Any) -> None:
    # a block: q 4x4, k 4x2, v 4x2, o 4x4, three of 4x8 = 144 weights; two of them 288; head 4x10
    weights = 2 * 288 * (3 * 5) + 2 * 40 * (3 * 2)  # 9120: 15 tokens, 6 of them with logits
    attention = 2 * (2 * 2 * 4 * (5 * 5) / 2) * 3  # 2 layers, QK and AV, half masked, 3 rows
    assert gpu.flops.forward(SMALL, rows=3, seq=5, scored=2) == weights + attention == 10_320
    assert gpu.flops.training(SMALL, 3, 5, 2) == 30_960
    # frozen weights: forward and the gradient of the input; attention has no weights
    assert gpu.flops.training(SMALL, 3, 5, 2, full=False) == 2 * 9_120 + 3 * 1_200
    # 30,960 FLOPs in a microsecond are 30.96 GFLOP/s, of a T4's 65 TFLOP/s
    found = gpu.flops.utilization(30_960, 1e-6, "Tesla T4", "fp16")
    assert found == pytest.approx(30.96e9 / 65e12)
    assert gpu.flops.utilization(30_960, 1e-6, "Tesla T4", "bf16") is None  # it has none
    assert gpu.flops.utilization(30_960, 1e-6, "Some GPU", "fp16") is None


def test_flops_are_those_that_torch_counts(gpu: Any) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from course_utils.memory import recipe
    from course_utils.memory.practice import build

    model = build(SMALL, recipe("full", attention="eager"))
    ids = torch.randint(2, SMALL.vocabulary, (3, 5))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    counted = {str(name): n for name, n in counter.get_flop_counts()["Global"].items()}
    weights, attention = gpu.flops.forward_parts(SMALL, 3, 5, 5)
    assert counted["aten.mm"] == 3 * weights
    assert counted["aten.bmm"] == 3 * 2 * attention  # it counts the masked half too


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("Tesla T4", 65),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA A40-12Q", None),
        ("cpu, dry run", None),
    ],
)
def test_a_peak_only_for_a_gpu_that_is_known(gpu: Any, name: str, peak: float | None) -> None:
    found = gpu.flops.peak(name, "fp16")
    assert (None if found is None else found[0] / 1e12) == peak


# ---- what waits for a GPU --------------------------------------------------------------------


@pytest.mark.parametrize(("gib", "card"), [(14.5, 14.5), (39.3, 39.3)])
def test_every_stage_fits_the_gpus_it_is_sized_for(gpu: Any, gib: float, card: float) -> None:
    """By the calculator: a T4, and the smallest of the GPUs that get four times the rows."""
    place = {"dry": False, "device": "cuda", "gib": gib}
    qlora = {"method": "qlora", "adapters": "fp32", "optimizer": "paged-adamw-8bit"}
    for precision in ("fp32", "bf16", "fp16"):
        work = gpu.stages.work_for(place)
        for task, more in (("sft", {}), ("reward", {}), ("dpo", {"reference": "none"})):
            found = gpu.stages.calculated(place, work, task, precision, **more)
            assert 0.5 < found["calculated_gib"] < 0.9 * card
    for precision, weights in (("bf16", "bf16"), ("fp16", "fp32")):
        work = gpu.stages.work_for(place, gpu.stages.FOUR_BIT)
        found = gpu.stages.calculated(place, work, "sft", precision, **qlora, weights=weights)
        assert 0.5 < found["calculated_gib"] < 0.9 * card


def test_the_room_is_half_of_what_8_bit_states_need(gpu: Any) -> None:
    from course_utils.memory import estimate, find_shape, recipe

    shape = find_shape(gpu.pressure.MODEL)
    room = gpu.pressure.room_for(10, shape.parameters) - 10
    for optimizer, times in (("adamw-8bit", 2), ("adamw", 8)):
        found = estimate(shape, recipe("full", optimizer=optimizer, autocast="none"), 128, 2, 64)
        assert found.terms["optimizer states"] == pytest.approx(times * room, rel=0.02)


@pytest.mark.parametrize("survives", [True, False])
def test_running_out_of_memory_under_pressure_is_a_result(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, survives: bool
) -> None:
    """With a GPU that is only told of: 16 GB free, 3 GB needed, and the ballast fills the rest."""
    import torch

    asked: list[int] = []
    cuda = SimpleNamespace(
        max_memory_reserved=lambda: 3_000_000_000,
        max_memory_allocated=lambda: asked[0] + 3_100_000_000,
        mem_get_info=lambda: (16_000_000_000, 16_500_000_000),
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda: None,
    )
    fake = SimpleNamespace(cuda=cuda, uint8=None, empty=lambda size, **_: asked.append(size))
    monkeypatch.setattr(gpu.pressure, "torch", fake)
    monkeypatch.setattr(gpu.stages, "torch", fake)

    class Practice:
        device = torch.device("cpu")

        def __init__(self, shape: Any, recipe: Any, *where: int, device: str) -> None:
            self.optimizer = recipe.optimizer

        def step(self) -> None:
            if asked and not survives:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 108 MiB")

    monkeypatch.setattr(gpu.pressure, "Practice", Practice)
    place = {"dry": False, "device": "cuda", "gib": 15.0}
    (row,) = gpu.pressure.under_pressure(place, "adamw")
    parameters = 361_821_120
    assert asked == [16_000_000_000 - 3_000_000_000 - parameters]
    assert row["survived"] is survives
    assert row["note"].startswith("survives" if survives else "does not survive: OutOfMemoryError")
    if survives:
        assert row["peak_gib"] == pytest.approx(3_100_000_000 / 2**30)


def test_a_recipe_that_fails_leaves_its_reason(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"recipe": "x", "measured": 2**30, "calculated": 2**30, "moment": "end"}
    good |= {"reserved": 2**30, "context": 0}

    def alone(model: str, number: int) -> dict[str, Any] | None:
        if number:
            return good
        print("| full | failed: torch.OutOfMemoryError: CUDA out of memory | | | | | |")
        return None

    monkeypatch.setattr(gpu.memory, "alone", alone)
    rows = list(gpu.parts.memory({"dry": False}))
    assert rows[0]["status"] == "out of memory"
    assert rows[0]["reason"] == "torch.OutOfMemoryError: CUDA out of memory"
    assert [row["peak_gib"] for row in rows[1:]] == [1.0] * (len(rows) - 1)
    assert len(rows) > 12


# ---- the table and the command -------------------------------------------------------------------


def test_the_table_has_a_line_for_each_row(gpu: Any) -> None:
    good = {"part": "a", "status": "ok", "step_seconds": 0.01234, "tokens_s": 98765.4}
    good |= {"mfu": 0.4321, "peak_gib": 3.14159, "what": "this | that"}
    bad = {"part": "b", "status": "timeout", "reason": "not done after 60 s, its limit"}
    page = gpu.tables.markdown(result_of(gpu, [good, bad])).splitlines()
    assert "| a | this / that | 0.0123 | 98,765 | 43.2 | 3.14 |  |  |" in page
    assert "| b |  |  |  |  |  |  | timeout: not done after 60 s, its limit |" in page
    assert "**A dry run on a CPU: nothing here is a measurement of a GPU.**" in page
    assert gpu.tables.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_every_stage_and_precision_is_a_part(gpu: Any) -> None:
    names = [part.name for part in gpu.parts.PARTS]
    assert len(set(names)) == len(names)
    for stage in ("sft", "reward", "ppo", "dpo"):
        assert {f"{stage}-{precision}" for precision in ("fp32", "bf16", "fp16")} <= set(names)
    assert {"qlora-bf16", "qlora-fp16", "memory", "pressure-paged-adamw-8bit"} <= set(names)


def command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(GPU / "run_all.py"), *options],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_an_unknown_part_is_told_the_known_ones() -> None:
    done = command("--only", "sft-bf17")
    assert done.returncode != 0
    assert "no part 'sft-bf17'" in done.stderr
    assert "sft-bf16" in done.stderr


def test_without_a_gpu_nothing_is_measured(tmp_path: Path) -> None:
    with contextlib.suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    done = command("--out", str(tmp_path))
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_part_runs_alone(tmp_path: Path) -> None:
    done = command("--dry-run", "--only", "pressure-adamw", "sft-fp16", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "cpu-dry-run-partial.json").read_text())
    assert [(row["part"], row["status"]) for row in found["rows"]] == [
        ("sft-fp16", "skipped"),
        ("pressure-adamw", "ok"),
    ]
    assert found["dry_run"] is True
    assert found["versions"]["torch"]
    assert found["rows"][1]["step_seconds"] > 0
    assert (tmp_path / "cpu-dry-run-partial.md").read_text().splitlines() == (
        done.stdout.splitlines()[:-2]  # without the blank line and where it was written
    )


@pytest.mark.nightly
def test_the_whole_dry_run(gpu: Any, tmp_path: Path) -> None:
    began = time.time()
    done = command("--dry-run", "--seconds", "270", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "cpu-dry-run.json").read_text())
    rows = found["rows"]
    assert list(dict.fromkeys(row["part"] for row in rows)) == [p.name for p in gpu.parts.PARTS]
    needs_gpu = {part.name for part in gpu.parts.PARTS if "cuda" in part.needs}
    assert {row["part"] for row in rows if row["status"] == "skipped"} == {
        *needs_gpu,
        "ppo-peer-trl-ppo",
    }
    for row in rows:
        assert row["status"] in ("ok", "skipped"), row
        assert "mfu" not in row  # nobody knows a CPU's peak
        if row["status"] == "ok" and row["part"] not in ("matmul", "memory"):
            assert row["step_seconds"] > 0, row
    assert found["seconds"] <= time.time() - began
