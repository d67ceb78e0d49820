"""Recipe: what is trained, in which precision and with which optimizer. No torch.

RECIPES["qlora"]                                  # the named ones
recipe("dpo", method="lora", rank=64)             # one of them, changed
"""

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from course_utils.errors import CourseError
from course_utils.memory.shape import ModelShape

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CHOICES = {
    "task": ("sft", "reward", "dpo", "ppo", "inference"),
    "method": ("full", "lora", "qlora"),
    "weights": ("fp32", "bf16", "fp16"),
    "autocast": ("none", "bf16", "fp16"),
    "adapters": ("fp32", "bf16", "fp16"),
    "optimizer": (
        "adamw",
        "paged-adamw",
        "adamw-8bit",
        "paged-adamw-8bit",
        "sgd",
        "sgd-momentum",
        "adafactor",
    ),
    "attention": ("eager", "sdpa", "flash"),
    "logits": ("completion", "all", "tiled"),
    "reference": ("auto", "copy", "adapter-off", "none"),
    "reward_model": ("none", "copy"),
}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Every field decides bytes; see estimate.py for which."""

    name: str
    task: str = "sft"
    method: str = "full"
    weights: str = "fp32"  # the base model's; with qlora: of what is not 4-bit (embedding, head)
    autocast: str = "bf16"  # 16-bit arithmetic over the weights, or "none": all in their own type
    rank: int = 16  # R of LoRA
    targets: str | tuple[str, ...] = "all-linear"  # or names: ("q_proj", "v_proj")
    adapters: str = "fp32"  # of LoRA's A and B
    double_quant: bool = True  # qlora: the 4-bit blocks' scales are themselves 8-bit
    optimizer: str = "adamw"  # states in the type of the trained weights; AdamW is torch's fused
    checkpointing: bool = False  # keep each block's input only, compute the rest again
    attention: str = "sdpa"
    logits: str = "completion"  # where: the answer's positions, all of them, or TRL's tiles
    accumulate: bool = False  # gradients are alive during the forward pass too
    reference: str = "auto"  # dpo, ppo: a copy for full, the adapter switched off for lora, qlora
    reward_model: str = "none"  # ppo: "copy" holds another model of the same shape
    rollouts: int = 0  # ppo: answers sampled at a time; 0: as many as the batch

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                raise CourseError(
                    f"recipe {self.name}: {field} is {value!r}; {_near(value, allowed)}"
                )
        if self.rollouts < 0:
            raise CourseError(f"recipe {self.name}: rollouts is {self.rollouts}, not 0 or more")
        if self.weights != "fp32" and self.autocast not in ("none", self.weights):
            raise CourseError(
                f"recipe {self.name}: autocast to {self.autocast} over {self.weights} weights "
                f'computes in two 16-bit types; take autocast="{self.weights}" or "none"'
            )
        if self.method == "full" and self.reference == "adapter-off":
            raise CourseError(
                f"recipe {self.name}: full fine-tuning has no adapter to switch off for the "
                'reference; take reference="copy"'
            )

    @property
    def trains(self) -> bool:
        return self.task != "inference"

    @property
    def peft(self) -> bool:
        return self.method != "full" and self.trains

    @property
    def holds_reference(self) -> bool:
        """Whether a second copy of the base model is held."""
        if self.task not in ("dpo", "ppo"):
            return False
        return self.reference == "copy" or (self.reference == "auto" and self.method == "full")

    @property
    def compute(self) -> int:
        """Bytes of a matrix product's result."""
        return BYTES[self.weights if self.autocast == "none" else self.autocast]

    @property
    def residual(self) -> int:
        """Bytes of the residual stream's numbers: autocast leaves them in the weights' type."""
        return BYTES[self.weights]

    @property
    def casts_weights(self) -> bool:
        """Whether autocast makes 16-bit copies of the base's matrices."""
        return self.autocast != "none" and self.residual == 4 and self.method != "qlora"

    def targeted(self, shape: ModelShape) -> set[str]:
        """Names of the matrices that carry an adapter.

        Raises: CourseError for a rank or a target that this model cannot have.
        """
        if not self.peft:
            return set()
        names = [linear.name for linear in shape.linears]
        wanted = names if self.targets == "all-linear" else _names(self.targets)
        found: set[str] = set()
        for target in wanted:
            hit = {name for name in names if name == target or name.endswith(f".{target}")}
            if not hit:
                raise CourseError(
                    f"{shape.name} has no matrix {target!r} for LoRA; {_near(target, names)}"
                )
            found |= hit
        limit = min(min(x.inputs, x.outputs) for x in shape.linears if x.name in found)
        if not 1 <= self.rank <= limit:
            raise CourseError(
                f"rank {self.rank} does not fit {shape.name}: it must be from 1 to {limit}, the "
                "smallest side of the matrices it is added to"
            )
        return found


def _names(targets: str | Iterable[str]) -> list[str]:
    names = targets.split(",") if isinstance(targets, str) else list(targets)
    return [name.strip() for name in names if name.strip()]


def _near(value: Any, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    near = difflib.get_close_matches(str(value).lower(), allowed, n=2, cutoff=0.5)
    choose = f"choose from {', '.join(allowed)}"
    return f"did you mean {' or '.join(near)}? {choose}" if near else choose


_PEFT: dict[str, Any] = {"weights": "bf16", "method": "lora", "checkpointing": True}
_QLORA: dict[str, Any] = {
    **_PEFT,
    "method": "qlora",
    "adapters": "bf16",
    "optimizer": "paged-adamw",
}

RECIPES: dict[str, Recipe] = {
    found.name: found
    for found in (
        Recipe("full"),
        Recipe("full-bf16", weights="bf16"),
        Recipe("full-8bit", optimizer="adamw-8bit", checkpointing=True),
        Recipe("lora", **_PEFT),
        Recipe("qlora", **_QLORA),
        Recipe("reward", task="reward"),
        Recipe("reward-lora", task="reward", **_PEFT),
        Recipe("reward-qlora", task="reward", **_QLORA),
        Recipe("dpo", task="dpo"),
        Recipe("dpo-lora", task="dpo", **_PEFT),
        Recipe("dpo-qlora", task="dpo", **_QLORA),
        Recipe("ppo", task="ppo", reward_model="copy"),
        Recipe("ppo-lora", task="ppo", reward_model="copy", **_PEFT),
        Recipe("ppo-qlora", task="ppo", reward_model="copy", **_QLORA),
        Recipe("inference", task="inference", weights="bf16"),
        Recipe("inference-4bit", task="inference", weights="bf16", method="qlora"),
    )
}


def recipe(name: str, **changes: Any) -> Recipe:
    """The named recipe, with fields replaced.

    Raises: CourseError naming near matches for an unknown recipe, field or value.
    """
    key = name.strip().lower()
    if key not in RECIPES:
        raise CourseError(f"unknown recipe {name!r}; {_near(key, RECIPES)}")
    unknown = changes.keys() - {field.name for field in dataclasses.fields(Recipe)}
    if unknown:
        fields = [field.name for field in dataclasses.fields(Recipe)]
        first = sorted(unknown)[0]
        raise CourseError(f"a recipe has no field {first!r}; {_near(first, fields)}")
    return dataclasses.replace(RECIPES[key], **changes)
