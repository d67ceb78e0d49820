"""What this machine has: cores and memory that this process may use, GPUs, and where it runs."""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One CUDA (or ROCm) device as torch sees it."""

    name: str
    memory_gib: float  # total, as the driver reports it (a "16 GB" T4 shows 14.6)
    capability: tuple[
        int, int
    ]  # CUDA compute capability: T4 (7, 5), A100 (8, 0), L4 (8, 9), H100 (9, 0)
    bf16_native: bool  # false where torch would only emulate bf16
    supported: bool = True  # false if the installed torch build has no kernels for this capability

    @property
    def short_name(self) -> str:
        """The name without the maker's: "Tesla T4" -> "T4"."""
        return self.name.removeprefix("NVIDIA ").removeprefix("Tesla ").strip()


@dataclass(frozen=True)
class Hardware:
    """A machine, as far as tiers and traps need it. Nothing here probes the network."""

    cpus: int  # cores this process may use (affinity and container quota)
    ram_gib: float  # memory this process may use (container limit included); 0 if unknown
    gpus: tuple[Gpu, ...] = ()
    mps: bool = False  # Apple GPU usable by torch
    platform: str = "local"  # "colab" | "kaggle" | "local"
    system: str = ""  # e.g. "Linux x86_64"
    avx512_bf16: bool = False  # the CPU has AVX512-BF16 instructions
    cpus_total: int = 0  # cores of the whole machine; 0 if unknown
    nvidia_driver: bool = False  # an NVIDIA driver is installed, whether torch can use it or not
    torch_problem: str = ""  # why torch could not be imported; empty if it could

    @property
    def best_gpu(self) -> Gpu | None:
        """The usable GPU with the most memory (the first of equals), or None."""
        usable = [gpu for gpu in self.gpus if gpu.supported]
        return max(usable, key=lambda gpu: gpu.memory_gib, default=None)

    @property
    def best_index(self) -> int:
        """The CUDA index of `best_gpu`; 0 if there is none."""
        return self.gpus.index(self.best_gpu) if self.best_gpu else 0

    def describe(self) -> str:
        """One line: cores, memory, GPUs, place."""
        memory = f"{self.ram_gib:.1f} GiB RAM" if self.ram_gib else "RAM unknown"
        parts = [f"{self.cpus} CPU core{'s' if self.cpus != 1 else ''}", memory]
        for gpu in self.gpus:
            major, minor = gpu.capability
            parts.append(f"{gpu.name} ({gpu.memory_gib:.1f} GiB, capability {major}.{minor})")
        if self.mps:
            parts.append("Apple GPU (MPS)")
        if not self.gpus and not self.mps:
            parts.append("no GPU")
        place = {"colab": "Google Colab", "kaggle": "Kaggle"}.get(self.platform, "")
        return ", ".join(filter(None, [*parts, self.system, place]))


def detect_hardware(environ: Mapping[str, str] | None = None) -> Hardware:
    """Looks at this machine. Imports torch; one that cannot be imported is reported, not raised."""
    environ = os.environ if environ is None else environ
    gpus: tuple[Gpu, ...] = ()
    mps, problem = False, ""
    try:
        import torch

        gpus = _cuda_devices()
        mps = torch.backends.mps.is_available()
    except (ImportError, OSError, RuntimeError) as error:  # a missing wheel, library or driver
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    total = os.cpu_count() or 1
    return Hardware(
        cpus=usable_cpus(),
        ram_gib=usable_ram_gib(),
        gpus=gpus,
        mps=mps,
        platform=where(environ),
        system=f"{platform.system()} {platform.machine()}".strip(),
        avx512_bf16=_cpu_flag("avx512_bf16"),
        cpus_total=total,
        nvidia_driver=shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists(),
        torch_problem=problem,
    )


def where(environ: Mapping[str, str]) -> str:
    """ "colab", "kaggle" or "local", from the variables that these services set."""
    if "KAGGLE_KERNEL_RUN_TYPE" in environ:
        return "kaggle"
    if "COLAB_RELEASE_TAG" in environ or "COLAB_GPU" in environ:
        return "colab"
    return "local"


def _cuda_devices() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        capability = (facts.major, facts.minor)
        with torch.cuda.device(index):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        found.append(
            Gpu(
                name=facts.name,
                memory_gib=facts.total_memory / GIB,
                capability=capability,
                bf16_native=bool(native),
                supported=torch.version.hip is not None
                or has_kernels(capability, torch.cuda.get_arch_list()),
            )
        )
    return tuple(found)


def has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether a torch build for `architectures` (["sm_75", "compute_90"]) runs on `capability`.

    Machine code (sm_XY) runs on the same major version from that minor version on; PTX
    (compute_XY) on everything from X.Y on.
    """
    major, minor = capability
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
        if not digits.isdigit() or len(digits) < 2:
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        exact = digits != number  # sm_90a: that one capability only
        if exact and built != capability:
            continue
        if kind == "sm" and built[0] == major and built[1] <= minor:
            return True
        if kind == "compute" and built <= capability:
            return True
    return not architectures  # a build that names none is left to speak for itself


def usable_cpus() -> int:
    """Cores this process may use: its affinity, cut to the container's quota."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        count = len(os.sched_getaffinity(0))
    quota = cpu_quota(Path("/sys/fs/cgroup"))
    return max(1, min(count, round(quota))) if quota else count


def cpu_quota(root: Path) -> float | None:
    """Cores that the cgroup (version 2, else 1) at `root` allows, or None without a limit."""
    try:
        limit, period = (root / "cpu.max").read_text().split()[:2]
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit = (root / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if int(limit) > 0 else None
    except (OSError, ValueError):
        return None


def usable_ram_gib() -> float:
    """GiB of memory this process may use, the container's limit included; 0 if unknown."""
    total = _physical_memory()
    limit = memory_limit(Path("/sys/fs/cgroup"))
    return (min(total, limit) if total and limit else total or limit or 0) / GIB


def memory_limit(root: Path) -> int | None:
    """Bytes that the cgroup (version 2, else 1) at `root` allows, or None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**60:  # version 1 writes a huge number for "no limit"
            return int(text)
    return None


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        pass
    try:
        import psutil
    except ImportError:
        return 0
    return int(psutil.virtual_memory().total)


def _cpu_flag(flag: str) -> bool:
    try:
        return flag in Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return False
