"""The parts of run_all.py in the order of their importance, and the smaller of them."""

import contextlib
import importlib.metadata
import io
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

from conduct import Part, Row, Skip

from course_utils.training.run import package_versions

GIB = 2**30
ORDER = ("sft", "ppo", "reward", "dpo")


def _stages(precision: str, *needs: str) -> list[Part]:
    options = {"precision": precision}
    return [Part(f"{s}-{precision}", f"stages:{s}", options, 75, needs) for s in ORDER]


def _pressure(optimizer: str) -> Part:
    target = "pressure:under_pressure"
    return Part(f"pressure-{optimizer}", target, {"optimizer": optimizer}, 60, ("bitsandbytes",))


PARTS = [
    Part("matmul", "parts:matmul", limit=45),
    *_stages("bf16", "bf16"),
    *_stages("fp16", "cuda"),  # the trainers refuse fp16 on a CPU
    Part("qlora-bf16", "stages:qlora", {"precision": "bf16"}, 90, ("bitsandbytes", "bf16")),
    Part("qlora-fp16", "stages:qlora", {"precision": "fp16"}, 90, ("bitsandbytes", "cuda")),
    *(_pressure(name) for name in ("adamw", "adamw-8bit", "paged-adamw-8bit")),
    Part("memory", "parts:memory", limit=180),
    Part("sft-fp32", "stages:sft", {"precision": "fp32"}, 75),
    Part("ppo-generate", "parts:ppo_beside_generate", limit=75),
    Part("ppo-peer-rloo", "peers:rloo", limit=75),
    Part("ppo-peer-trl-ppo", "peers:trl_ppo", limit=20),
    *_stages("fp32")[1:],
    Part("ppo-1.7b-lora", "parts:ppo_beside_generate", {"model": "1.7B"}, 120, ("cuda",)),
]


# ---- where this runs -----------------------------------------------------------------------------


def device(place: dict[str, Any]) -> Iterator[Row]:
    """What `place` is filled with: one row of facts about the GPU, or about the CPU when dry."""
    import torch

    from course_utils.hardware import detect_hardware

    hardware = detect_hardware()
    gpu = None if place["dry"] else hardware.best_gpu
    if gpu is None and not place["dry"]:
        raise Skip("no CUDA GPU that this torch can use")
    bits = _version("bitsandbytes")
    yield {
        "device": "cpu" if gpu is None else "cuda",
        "name": "cpu, dry run" if gpu is None else gpu.name,
        "described": hardware.describe(),
        "gib": 0.0 if gpu is None else gpu.memory_gib,
        "driver": None if gpu is None else driver(),
        "has": {
            "cuda": gpu is not None,
            "bf16": gpu is None or gpu.bf16_native,
            "bitsandbytes": bits is not None,
        },
        "versions": {
            "python": platform.python_version(),
            **package_versions(),
            "bitsandbytes": bits,
            "cuda": torch.version.cuda,
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """The NVIDIA driver's version; None where nvidia-smi does not say it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


# ---- the smaller parts ---------------------------------------------------------------------------


def matmul(place: dict[str, Any]) -> Iterator[Row]:
    """What large matrix products reach, in each precision: a peak that was measured."""
    import flops
    import ppo  # puts benchmarks/ppo on the path
    import torch

    where = torch.device(place["device"])
    size = 128 if place["dry"] else 8192
    for precision, dtype in ppo.DTYPES.items():
        if precision == "fp16" and place["dry"]:
            continue  # takes minutes on a CPU
        if precision == "bf16" and not place["has"]["bf16"]:
            continue
        reached = ppo.w.peak_flops(where, dtype, size)
        row: Row = {"what": f"{size} x {size} x {size} in {precision}", "precision": precision}
        known = flops.peak(place["name"], precision)
        note = f"{reached / 1e12:.3g} TFLOP/s"
        if known is not None:
            row |= {"mfu": reached / known[0], "peak_flops_s": known[0], "source": known[1]}
            note += f" of {known[0] / 1e12:.4g} ({known[1]})"
        yield {**row, "flops_s": reached, "note": note}


def memory(place: dict[str, Any]) -> Iterator[Row]:
    """The calculator against the allocator's peak: memory.py's recipes, each in its own process."""
    import memory as script

    if place["dry"]:
        import torch

        torch.set_num_threads(1)
        yield compared(script.on_cpu(script.QUICK[0]), script)
        return
    model = "smollm2-135m"
    for number, case in enumerate(script.cases(model)):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            found = script.alone(model, number)
        if found is None:
            why = said.getvalue().strip(" |\n").split("|")[-1].strip().removeprefix("failed: ")
            status = "out of memory" if "OutOfMemory" in why else "failed"
            yield {"what": case.label, "status": status, "reason": why[:300]}
        else:
            yield compared(found, script)


def compared(found: Row, script: Any) -> Row:
    """A row of ours from one of memory.py's."""
    return {
        "what": found["recipe"],
        "peak_gib": found["measured"] / GIB,
        "calculated_gib": found["calculated"] / GIB,
        "reserved_gib": found["reserved"] / GIB,
        "context_gib": found["context"] / GIB,
        "error_percent": script.percent(found),
        "note": f"calculated {script.percent(found):+.1f} %, worst at the {found['moment']}",
    }


def ppo_beside_generate(place: dict[str, Any], model: str = "135M") -> Iterator[Row]:
    """Our sampling beside Transformers' generate for the same answers: a case of ppo.py."""
    import ppo
    import torch

    where = torch.device(place["device"])
    precision = "fp32" if place["dry"] else "bf16" if place["has"]["bf16"] else "fp16"
    top = ppo.w.peak_flops(where, ppo.DTYPES[precision], 128 if place["dry"] else 8192)
    model = "smallest" if place["dry"] else model
    for answers, new in ((4, 8),) if place["dry"] else ((64, 128), (256, 128)):
        found = ppo.measure(model, model != "1.7B", answers, new, precision, where, top)
        times, share = found["rollout_times_hf"], 100 * found["update_share_of_peak"]
        yield {
            **found,
            "what": f"{model}, {found['training']}, {answers} answers of {new} after {ppo.PROMPT}",
            "step_seconds": found["seconds"],
            "tokens_s": found["rollout_tokens_s"],
            "note": f"sampling alone; {times:.2f} times generate's {precision}; the update reaches "
            f"{share:.3g} % of this device's matrix products",
        }
