"""PPOConfig: every number of a PPO run, with its unit, its range and why it has this default."""

import dataclasses
import math
from typing import Any, Literal

from course_utils.errors import CourseError


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Settings of a run. One *step* samples answers, scores them and updates the policy on them.

    The defaults fit the embedded world's model (about 1M parameters). Raises CourseError naming the
    field and the fix when a value makes no sense.
    """

    # ---- how much ----
    steps: int = 60  # iterations of sampling and updating, >= 1
    rollouts_per_step: int = 96  # answers sampled per step, >= 2 (advantages are whitened)
    epochs: int = 2  # passes over the answers of a step, >= 1
    minibatches: int = 2  # optimizer updates per epoch, 1 .. rollouts_per_step
    micro_batch: int = 16  # answers per forward and backward pass, >= 1: memory and padding only

    # ---- sampling ----
    max_new_tokens: int = 48  # tokens of an answer at most, >= 1
    max_prompt_tokens: int | None = None  # tokens, >= 1; None: what the model's context leaves
    overlong_prompts: Literal["error", "truncate"] = "error"  # "truncate" cuts from the left
    temperature: float = 1.0  # > 0; divides the logits of policy and reference, everywhere

    # ---- optimizer ----
    learning_rate: float = 1e-4  # peak, >= 0 (0 is a test: nothing may move)
    value_lr_factor: float = 10.0  # > 0; the value head starts from zero and may learn faster
    lr_schedule: Literal["constant", "linear"] = "constant"  # "linear" falls to 0 at the last step
    weight_decay: float = 0.0  # >= 0, decoupled
    adam_eps: float = 1e-5  # > 0; torch's 1e-8 makes the first updates much larger
    max_grad_norm: float = 1.0  # > 0, L2 norm over policy and value head together
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the autocast; the weights stay fp32
    checkpoint_activations: bool = False  # recompute activations: less memory, a third slower
    sharded: bool = False  # FSDP2: weights, gradients and Adam's states shared out among processes

    # ---- staying near the reference ----
    beta: float = 0.02  # β >= 0, reward units per nat: KL penalty (the start value if kl_target)
    kl_target: float | None = None  # nats per answer, > 0: β adapts towards it; None: β is fixed
    kl_horizon: int = 10_000  # answers in which an adaptive β may change by e^±0.2, > rollouts / 5
    kl_stop: float | None = None  # nats per answer, > 0: the KL budget; the run stops beyond it

    # ---- credit ----
    gamma: float = 1.0  # γ in [0, 1]
    lam: float = 0.95  # λ of GAE in [0, 1]
    whiten_advantages: bool = True  # once over all tokens of the step
    whiten_rewards: bool = False  # scale (not shift) per-token rewards to variance 1; harmful
    missing_eos_penalty: float = 1.0  # >= 0, reward units, subtracted from cut answers' scores
    bootstrap_truncated: bool = False  # cut answers end with V(s_T), not 0: they were not over

    # ---- the losses ----
    clip: float = 0.2  # ε in (0, 1]: the ratio pays within 1 ± ε
    dual_clip: float | None = None  # > 1 + clip (3 is usual): floor for tokens with Â < 0
    value_clip: float | None = 0.2  # > 0, reward units: how far V may pay per step; None: no clip
    vf_coef: float = 0.1  # >= 0, weight of the value loss
    entropy_coef: float = 0.0  # >= 0, weight of the entropy bonus
    max_approx_kl: float | None = None  # nats per token, > 0: beyond it the step's updates end
    critic: Literal["shared", "policy", "reward"] = "shared"  # V's trunk: the policy's, or a copy
    old_logprobs: Literal["auto", "captured", "recomputed"] = "auto"  # auto: captured in fp32

    # ---- the run ----
    seed: int = 0  # of sampling, the order of prompts and the minibatches
    save_every: int = 20  # steps between checkpoints, >= 1; the last step is always saved
    rollouts_every: int = 10  # steps between saved rollouts (and the first and last); 0: none
    rollouts_saved: int = 16  # answers of such a step that are saved, >= 1

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "minibatches", "micro_batch", "max_new_tokens"):
            self._whole(name, 1)
        for name in ("save_every", "rollouts_saved", "kl_horizon"):
            self._whole(name, 1)
        self._whole("rollouts_per_step", 2)
        self._whole("rollouts_every", 0)
        self._whole("seed", 0)
        if self.max_prompt_tokens is not None:
            self._whole("max_prompt_tokens", 1)
        for name in ("learning_rate", "weight_decay", "beta", "missing_eos_penalty"):
            self._number(name, 0.0)
        for name in ("vf_coef", "entropy_coef"):
            self._number(name, 0.0)
        for name in ("temperature", "adam_eps", "max_grad_norm", "value_lr_factor"):
            self._number(name, 0.0, above=True)
        for name in ("kl_target", "kl_stop", "value_clip", "max_approx_kl"):
            if getattr(self, name) is not None:
                self._number(name, 0.0, above=True)
        for name in ("gamma", "lam"):
            self._number(name, 0.0, 1.0)
        self._number("clip", 0.0, 1.0, above=True)
        if self.dual_clip is not None:
            self._number("dual_clip", 1 + self.clip, above=True)
        for field in dataclasses.fields(self):
            self._one_of(field)
        self._fit_together()

    def _fit_together(self) -> None:
        if self.minibatches > self.rollouts_per_step:
            raise CourseError(
                f"minibatches = {self.minibatches} would be empty: there are only "
                f"rollouts_per_step = {self.rollouts_per_step} answers to share out; lower it"
            )
        if self.sharded and self.precision == "fp16":
            raise CourseError(
                'sharded=True does not go with precision="fp16", whose loss scaling would have to '
                'agree among the shards; use "bf16"'
            )
        if self.kl_target is not None and self.beta == 0:
            raise CourseError(
                "beta = 0 cannot adapt towards kl_target, since it is changed by a factor; start "
                "from a small beta such as 0.02, or leave out kl_target"
            )
        if self.kl_target is not None and self.rollouts_per_step >= 5 * self.kl_horizon:
            raise CourseError(
                f"kl_horizon = {self.kl_horizon} is too short for {self.rollouts_per_step} answers "
                "a step (β could turn negative); raise it, for example to 10000"
            )

    def _whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise CourseError(f"{name} must be a whole number >= {least}, got {value!r}")

    def _number(self, name: str, low: float, high: float = math.inf, above: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (
            number
            and math.isfinite(value)
            and low <= value <= high
            and not (above and value == low)
        ):
            return
        wanted = f"> {low:g}" if above else f">= {low:g}"
        wanted += f" and <= {high:g}" if high < math.inf else ""
        raise CourseError(f"{name} must be a number {wanted}, got {value!r}")

    def _one_of(self, field: "dataclasses.Field[Any]") -> None:
        choices = getattr(field.type, "__args__", ())
        value = getattr(self, field.name)
        if field.type is bool and not isinstance(value, bool):
            raise CourseError(f"{field.name} must be True or False, got {value!r}")
        if choices and all(isinstance(choice, str) for choice in choices) and value not in choices:
            raise CourseError(f"{field.name} must be one of {', '.join(choices)}, got {value!r}")

    @property
    def recomputes(self) -> bool:
        """Whether old log-probabilities come from a second forward pass, not from the sampler.

        Decoding and scoring use different kernels. In fp32 they agree to about 1e-6; in bf16 and
        fp16 they do not, and the ratio would not be 1 before the first update.
        """
        return self.old_logprobs == "recomputed" or (
            self.old_logprobs == "auto" and self.precision != "fp32"
        )

    @property
    def planned_updates(self) -> int:
        """Optimizer updates of a whole run, if nothing stops early."""
        return self.steps * self.epochs * self.minibatches
