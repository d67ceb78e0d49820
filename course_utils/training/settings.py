"""What SFT, reward-model and DPO training have in common in their settings. No torch."""

from dataclasses import dataclass
from typing import Literal, get_args

from course_utils.errors import CourseError

Precision = Literal["fp32", "bf16", "fp16"]
Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Shared by the three TRL trainers; each adds its own. Give `steps` or `epochs`, not both."""

    learning_rate: float = 1e-3  # peak, 1/step, > 0; 1e-3 suits the 1M-parameter world model
    batch_size: int = 16  # rows (for preferences: pairs) in one forward pass, >= 1
    gradient_accumulation: int = 1  # forward passes per optimizer step, >= 1
    steps: int | None = None  # optimizer steps, >= 1
    epochs: float | None = None  # passes over the data, > 0; 1 when `steps` is None too
    warmup: float = 0.05  # share of the steps over which the learning rate rises from 0, [0, 1]
    schedule: Schedule = "linear"  # after the warm-up: down to 0 in a line or a cosine, or constant
    weight_decay: float = 0.0  # AdamW's, 1/step relative to the learning rate, >= 0
    optimizer: Optimizer | None = None  # transformers' name; None: AdamW in fp32. QLoRA's is paged
    max_grad_norm: float = 1.0  # the gradient is scaled down to this norm, > 0
    max_length: int = 256  # tokens of prompt + answer, >= 2; what happens beyond: see each trainer
    group_by_length: bool = True  # batches of similar length: less padding, still shuffled
    precision: Precision = "fp32"  # of the computation (autocast); trained weights stay fp32
    checkpoint_activations: bool = False  # recompute activations: less memory, 30 % more time
    seed: int = 0  # of the data order (and dropout, adapters' and heads' initial values)
    log_every: int = 1  # steps between rows of the RunLog, >= 1
    eval_every: int = 0  # steps between evaluations on eval_dataset; 0: at the end only
    save_every: int = 50  # steps between checkpoints, the last step has one too; 0: none at all

    def __post_init__(self) -> None:
        positive = ("learning_rate", "batch_size", "gradient_accumulation", "max_grad_norm")
        for name in (*positive, "log_every"):
            self.require(getattr(self, name) > 0, name, "> 0")
        for name in ("weight_decay", "eval_every", "save_every"):
            self.require(getattr(self, name) >= 0, name, ">= 0")
        self.require(self.steps is None or self.steps >= 1, "steps", ">= 1")
        self.require(self.epochs is None or self.epochs > 0, "epochs", "> 0")
        self.require(0 <= self.warmup <= 1, "warmup", "in [0, 1], a share of the steps")
        self.require(self.max_length >= 2, "max_length", ">= 2 tokens")
        self.require(self.precision in ("fp32", "bf16", "fp16"), "precision", "fp32, bf16 or fp16")
        self.require(
            self.schedule in ("constant", "linear", "cosine"),
            "schedule",
            '"constant", "linear" or "cosine"',
        )
        known = get_args(Optimizer)
        self.require(
            self.optimizer is None or self.optimizer in known, "optimizer", " or ".join(known)
        )
        if self.steps is not None and self.epochs is not None:
            raise CourseError(
                f"{type(self).__name__}: steps={self.steps} and epochs={self.epochs} contradict; "
                "give one of them"
            )

    def require(self, holds: bool, name: str, wanted: str) -> None:
        """Raises CourseError naming the field, its value and what it must be."""
        if not holds:
            value = getattr(self, name)
            raise CourseError(f"{type(self).__name__}.{name} is {value!r}; it must be {wanted}")
