"""Known traps of the libraries under this course, as pure checks: facts in, findings out.

Nothing here looks at the machine (doctor.py does), so a test can ask what a Colab T4 is told.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from course_utils.hardware import Hardware

Level = Literal["ok", "note", "warning", "error"]
Versions = Mapping[
    str, str | None
]  # package (or "python") -> version; None or absent: not installed

INSTALL = 'pip install -c constraints.txt -e ".", then restart a running notebook kernel'
UNCHECKED = "not checked"
OLDEST_PYTHON = (3, 11)
DISK_LOW_MIB, DISK_FULL_MIB = 1024, 200  # a run with its checkpoints and report takes some 100 MiB
RAM_LOW_GIB = 2.0


@dataclass(frozen=True)
class Finding:
    """What one check saw. An "error" means that the course cannot be used before it is mended."""

    id: str
    level: Level
    seen: str
    fix: str = ""  # what to type or change; empty if there is nothing to do


@dataclass(frozen=True)
class Situation:
    """What is neither hardware nor a version. The defaults are a machine with nothing wrong."""

    requirements: (
        tuple[str, ...] | None
    ) = ()  # e.g. "torch>=2.8"; None: the course is not installed
    environ: Mapping[str, str] = field(default_factory=dict)
    openmp_too_late: bool = False  # torch was imported before the OpenMP variables were set
    torch_cuda: str = ""  # CUDA version that torch was built for; empty for a CPU build
    torch_threads: int = 0  # threads torch computes with; 0 if unknown
    device_problem: str = (
        ""  # what happened when a small computation was tried on the chosen device
    )
    import_problem: str = ""  # why the library stack behind the models cannot be imported
    weights_problem: str = ""  # why the shipped base model cannot be used
    disk_path: str = "."
    disk_free_mib: float | None = None
    vscode: bool = False


def release(version: str | None) -> tuple[int, ...]:
    """ "2.13.0+cpu" -> (2, 13, 0); () for None."""
    numbers = re.match(r"\d+(?:\.\d+)*", version or "")
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def checks(
    hardware: Hardware, versions: Versions, situation: Situation | None = None
) -> list[Finding]:
    """Every known trap, checked; one finding each, "ok" where it does not apply."""
    situation = Situation() if situation is None else situation
    return [check(hardware, versions, situation) for check in CHECKS]


def python_version(_: Hardware, versions: Versions, __: Situation) -> Finding:
    seen = versions.get("python") or "unknown"
    if versions.get("python") and release(seen)[:2] < OLDEST_PYTHON:
        fix = "make a new environment with Python 3.11 or newer: make PYTHON=python3.12"
        return Finding("python", "error", f"Python {seen} is too old", fix)
    return Finding("python", "ok", f"Python {seen}")


def requirements(_: Hardware, versions: Versions, situation: Situation) -> Finding:
    """Missing or too old, too new packages; a missing one makes the course unusable."""
    if situation.requirements is None:
        seen = "course_utils is not installed, so the versions it needs cannot be checked"
        return Finding("packages", "warning", seen, INSTALL)
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return Finding("packages", "error", "the package packaging is missing", INSTALL)
    missing: list[str] = []
    wrong: list[str] = []
    for text in situation.requirements:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate():
            continue
        version = versions.get(need.name)
        if version is None:
            missing.append(str(need.name) + str(need.specifier))
        elif not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version} (wanted {need.specifier})")
    words = [f"missing: {', '.join(missing)}"] if missing else []
    words += [f"not the wanted version: {', '.join(wrong)}"] if wrong else []
    if not words:
        return Finding("packages", "ok", "every package is there in a version that fits")
    return Finding("packages", "error" if missing else "warning", "; ".join(words), INSTALL)


def torch_import(hardware: Hardware, _: Versions, situation: Situation) -> Finding:
    if hardware.torch_problem:
        seen = f"torch cannot be imported ({hardware.torch_problem})"
        fix = f"{INSTALL}; if it is there but broken: pip install --force-reinstall torch"
        return Finding("torch", "error", seen, fix)
    if situation.import_problem:
        return Finding("torch", "error", situation.import_problem, INSTALL)
    if situation.device_problem:
        fix = "CUDA_VISIBLE_DEVICES= (empty) uses the CPU; compare torch's build with the driver"
        return Finding("torch", "error", f"computing fails: {situation.device_problem}", fix)
    return Finding("torch", "ok", "torch computes")


def torch_build(hardware: Hardware, versions: Versions, situation: Situation) -> Finding:
    """A CUDA build without a GPU, or a GPU without a CUDA build, or one without kernels for it."""
    lost = [gpu for gpu in hardware.gpus if not gpu.supported]
    torch = versions.get("torch") or "?"
    if lost:
        major, minor = lost[0].capability
        seen = f"torch {torch} has no kernels for {lost[0].short_name} (capability {major}.{minor})"
        fix = "choose another GPU (on Kaggle: T4 x2), or an older torch built for it"
        return Finding("torch-build", "warning", seen, fix)
    if hardware.gpus or hardware.torch_problem:
        return Finding("torch-build", "ok", f"torch {torch} fits this machine")
    if hardware.nvidia_driver and not situation.torch_cuda:
        seen = f"there is an NVIDIA driver, but torch {torch} is a build for the CPU"
        fix = (
            "to use the GPU: pip install --force-reinstall torch (from PyPI), then `course doctor`"
        )
        return Finding("torch-build", "warning", seen, fix)
    if hardware.nvidia_driver:
        seen = f"there is an NVIDIA driver, but torch (CUDA {situation.torch_cuda}) finds no GPU"
        fix = "compare the driver's CUDA version in `nvidia-smi`; check CUDA_VISIBLE_DEVICES"
        return Finding("torch-build", "warning", seen, fix)
    if situation.torch_cuda:
        seen = f"torch is a CUDA {situation.torch_cuda} build of several GB, and there is no GPU"
        fix = "harmless; to save space: rm -r .venv; make venv TORCH_INDEX=... (see Makefile)"
        return Finding("torch-build", "note", seen, fix)
    return Finding("torch-build", "ok", f"torch {torch} fits this machine")


def torchao(_: Hardware, versions: Versions, __: Situation) -> Finding:
    seen = versions.get("torchao")
    if seen and versions.get("peft") and release(seen) < (0, 16):
        return Finding(
            "torchao",
            "warning",
            f"with torchao {seen}, PEFT raises ImportError in get_peft_model, for plain LoRA too",
            "pip uninstall -y torchao (or: pip install 'torchao>=0.16'), then restart the kernel",
        )
    return Finding("torchao", "ok", f"torchao {seen or 'is not installed'}")


def bf16_emulation(hardware: Hardware, versions: Versions, _: Situation) -> Finding:
    """TRL's configs set bf16=True unless told otherwise; without hardware for it that crawls."""
    gpu = hardware.best_gpu
    if gpu is not None and gpu.bf16_native:
        return Finding("bf16", "ok", f"{gpu.short_name} computes bf16 natively")
    if gpu is not None:
        seen = (
            f"{gpu.short_name} only emulates bf16, yet torch.cuda.is_bf16_supported() says True, "
            "and TRL's configs set bf16=True by default"
        )
        fix = (
            "the course passes fp16=True, bf16=False over fp32 weights; do so in your own configs "
            "(fp16 weights fail: 'Attempting to unscale FP16 gradients')"
        )
        return Finding("bf16", "note", seen, fix)
    if versions.get("trl") and not hardware.mps:
        seen = "TRL's configs set bf16=True by default, also on a CPU"
        fix = "the course passes bf16=False here; do so in configs of your own"
        return Finding("bf16", "note", seen, fix)
    return Finding("bf16", "ok", "not used here")


def bitsandbytes_cpu(hardware: Hardware, versions: Versions, _: Situation) -> Finding:
    seen = versions.get("bitsandbytes")
    if seen and hardware.avx512_bf16 and hardware.best_gpu is None:
        return Finding(
            "bitsandbytes-cpu",
            "warning",
            f"bitsandbytes {seen} on a CPU with AVX512-BF16: after the first evaluation or "
            "generation 4-bit layers stay repacked; gradients vanish and merging gives garbage",
            'load with load_policy(…, quantization="nf4"), or call course_utils.qlora.guard_cpu'
            "(model) right after loading a 4-bit model yourself",
        )
    return Finding("bitsandbytes-cpu", "ok", f"bitsandbytes {seen or 'is not installed'}")


def openmp(hardware: Hardware, _: Versions, situation: Situation) -> Finding:
    if situation.openmp_too_late and hardware.system.startswith("Linux"):
        return Finding(
            "openmp",
            "warning",
            "torch was imported before course_utils, so its threads spin while they wait: on a "
            "shared machine that can cost many times the run time",
            "restart and import course_utils first, or start with OMP_WAIT_POLICY=PASSIVE",
        )
    policy = situation.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "ACTIVE":
        fix = "unset OMP_WAIT_POLICY if the machine is shared with other work"
        return Finding("openmp", "note", "OMP_WAIT_POLICY=ACTIVE: threads spin as you asked", fix)
    return Finding("openmp", "ok", "OpenMP threads sleep while they wait")


def threads(hardware: Hardware, _: Versions, situation: Situation) -> Finding:
    """In a container torch counts the host's cores, not the quota."""
    if situation.torch_threads > hardware.cpus:
        seen = f"torch uses {situation.torch_threads} threads on {hardware.cpus} usable cores"
        fix = (
            f"start with OMP_NUM_THREADS={hardware.cpus}, or torch.set_num_threads({hardware.cpus})"
        )
        return Finding("threads", "warning", seen, fix)
    return Finding("threads", "ok", "torch's threads fit the usable cores")


def ipywidgets(_: Hardware, versions: Versions, situation: Situation) -> Finding:
    seen = versions.get("ipywidgets")
    if release(seen) == (8, 1, 9):
        where = "and this is VS Code" if situation.vscode else "JupyterLab is fine"
        return Finding(
            "ipywidgets",
            "warning" if situation.vscode else "note",
            f"ipywidgets 8.1.9 shows blank widgets in VS Code ({where})",
            "pip install ipywidgets==8.1.8, then restart the kernel",
        )
    return Finding("ipywidgets", "ok", f"ipywidgets {seen or 'is not installed'}")


def trl_ppo(_: Hardware, versions: Versions, __: Situation) -> Finding:
    seen = versions.get("trl")
    if release(seen) >= (1, 13):
        return Finding(
            "trl-ppo",
            "note",
            f"TRL {seen} has no PPOTrainer and no value-head model (removed in 1.13)",
            "the course's own: from course_utils import PPOTrainer",
        )
    return Finding("trl-ppo", "ok", f"TRL {seen or 'is not installed'}")


def datasets_scripts(_: Hardware, versions: Versions, __: Situation) -> Finding:
    seen = versions.get("datasets")
    if release(seen) >= (4,):
        return Finding(
            "datasets",
            "note",
            f"datasets {seen} runs no dataset scripts (openai/summarize_from_feedback has one)",
            'load the converted files: load_dataset(..., revision="refs/convert/parquet")',
        )
    return Finding("datasets", "ok", f"datasets {seen or 'is not installed'}")


def gguf(_: Hardware, versions: Versions, __: Situation) -> Finding:
    if versions.get("gguf") and release(versions.get("transformers")) >= (5,):
        return Finding(
            "gguf",
            "note",
            "a model loaded from GGUF counts as quantized: save_pretrained and Trainer refuse it",
            "model.hf_quantizer = None; model.is_quantized = False; "
            "del model.config.quantization_config",
        )
    return Finding("gguf", "ok", "gguf is not installed")


def several_gpus(hardware: Hardware, _: Versions, situation: Situation) -> Finding:
    count = len(hardware.gpus)
    visible = situation.environ.get("CUDA_VISIBLE_DEVICES", "")
    if count > 1 and "LOCAL_RANK" not in situation.environ:
        seen = f"{count} GPUs in one process: the Trainer would split batches by DataParallel"
        fix = "set CUDA_VISIBLE_DEVICES=0 before torch is imported, or use accelerate launch"
        return Finding("several-gpus", "warning", seen, fix)
    return Finding("several-gpus", "ok", f"one process, {count} GPUs {visible}".strip())


def colab(hardware: Hardware, _: Versions, __: Situation) -> Finding:
    if hardware.platform == "colab":
        seen = "on Colab, packages that were imported before an upgrade stay at the old version"
        fix = "run the setup cell first; after an upgrade: Runtime > Restart session"
        return Finding("colab", "note", seen, fix)
    return Finding("colab", "ok", "not on Colab")


def memory(hardware: Hardware, _: Versions, __: Situation) -> Finding:
    if 0 < hardware.ram_gib < RAM_LOW_GIB:
        seen = f"{hardware.ram_gib:.1f} GiB of memory; `course run` on tier tiny may need more"
        return Finding(
            "memory", "warning", seen, "close other programs, or raise the container's limit"
        )
    return Finding("memory", "ok", f"{hardware.ram_gib:.1f} GiB of memory")


def disk(_: Hardware, __: Versions, situation: Situation) -> Finding:
    free = situation.disk_free_mib
    if free is None:
        return Finding("disk", "ok", "disk space unknown")
    seen = f"{free:,.0f} MiB free at {situation.disk_path}"
    if free >= DISK_LOW_MIB:
        return Finding("disk", "ok", seen)
    fix = "free some space, or write elsewhere: course run --out DIR"
    return Finding("disk", "error" if free < DISK_FULL_MIB else "warning", seen, fix)


def weights(hardware: Hardware, __: Versions, situation: Situation) -> Finding:
    if situation.weights_problem:
        fix = "reinstall course_utils, or make the files again: course world build"
        return Finding("weights", "error", situation.weights_problem, fix)
    if hardware.torch_problem or situation.import_problem:
        return Finding("weights", "ok", UNCHECKED)
    return Finding("weights", "ok", "the shipped base model matches its checksums")


Check = Callable[[Hardware, Versions, Situation], Finding]
CHECKS: tuple[Check, ...] = (
    python_version,
    requirements,
    torch_import,
    torch_build,
    weights,
    disk,
    memory,
    threads,
    openmp,
    bf16_emulation,
    several_gpus,
    torchao,
    bitsandbytes_cpu,
    ipywidgets,
    trl_ppo,
    datasets_scripts,
    gguf,
    colab,
)
