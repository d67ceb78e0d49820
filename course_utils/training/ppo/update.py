"""The update: epochs of minibatches over one step's answers, with the clipped PPO losses."""

import math
from typing import Any

import torch
from torch import Tensor

from course_utils.errors import CourseError
from course_utils.models import PolicyWithValue
from course_utils.objectives import clipped_value_loss, ppo_policy_loss
from course_utils.training.ppo.config import PPOConfig
from course_utils.training.ppo.processes import Processes, local_part
from course_utils.training.ppo.rollout import Rollouts
from course_utils.training.ppo.sequences import autocast, micro_batches, spread

_EXTREMES = {"ratio_max": 1, "ratio_min": -1}  # the sign that makes the extreme the largest


class NonFiniteError(CourseError):
    """A loss or gradient became NaN or infinite; nothing of that update was applied."""


class Updater:
    """Owns the optimizer; `update` is called once per step."""

    def __init__(
        self, actor: PolicyWithValue, config: PPOConfig, processes: Processes | None = None
    ) -> None:
        self.actor = actor
        self.config = config
        self.processes = Processes() if processes is None else processes
        self.device = next(actor.parameters()).device
        self.parameters = [p for p in actor.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            lr=config.learning_rate,
            eps=config.adam_eps,
            fused=self.device.type in ("cpu", "cuda"),
        )
        # fp16 gradients underflow below 6e-8: the loss is scaled up, the gradients down again
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.micro_batch = config.micro_batch  # halved when memory runs out

    def _groups(self) -> list[dict[str, Any]]:
        """Matrices (which decay), vectors (which do not), and the value head (which is faster)."""
        head = {id(p) for p in self.actor.value_head.parameters()}
        trunk = [p for p in self.parameters if id(p) not in head]
        factor, decay = self.config.value_lr_factor, self.config.weight_decay
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trunk if p.dim() > 1], "weight_decay": decay, "factor": 1.0},
            {"params": [p for p in trunk if p.dim() <= 1], "weight_decay": 0.0, "factor": 1.0},
            {
                "params": list(self.actor.value_head.parameters()),
                "weight_decay": 0.0,
                "factor": factor,
            },
        ]
        return [group for group in groups if group["params"]]

    def learning_rate(self, step: int) -> float:
        """Of step 1 .. steps."""
        left = 1.0 - (step - 1) / self.config.steps if self.config.lr_schedule == "linear" else 1.0
        return self.config.learning_rate * left

    def plan(self, count: int, generator: torch.Generator) -> list[list[Tensor]]:
        """Which answers go into which minibatch: epochs x minibatches of row numbers."""
        orders = [torch.randperm(count, generator=generator) for _ in range(self.config.epochs)]
        return [
            list(order.to(self.device).tensor_split(self.config.minibatches)) for order in orders
        ]

    def update(self, rollouts: Rollouts, step: int, plan: list[list[Tensor]]) -> dict[str, float]:
        """Epochs x minibatches of updates on one step's answers; returns what to log.

        Raises: NonFiniteError naming the step, before the bad gradient is applied.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step) * group["factor"]
        done: list[dict[str, float]] = []
        for epoch, minibatches in enumerate(plan, start=1):
            for number, rows in enumerate(minibatches, start=1):
                where = f"step {step}, epoch {epoch}, minibatch {number}"
                stats = self._minibatch(rollouts, rows, where)
                done.append(stats)
                if stats["stopped_early"]:
                    return self._summary(done)
        return self._summary(done)

    def _minibatch(self, rollouts: Rollouts, rows: Tensor, where: str) -> dict[str, float]:
        """One optimizer update, or none when the policy has already moved too far."""
        self.optimizer.zero_grad(set_to_none=True)
        stats = self._gradients(rollouts, rows)
        limit = self.config.max_approx_kl
        if limit is not None and stats["approx_kl"] > limit:
            self.optimizer.zero_grad(set_to_none=True)
            return {**stats, "stopped_early": 1.0, "updates": 0.0}
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        self._check_finite(stats, norm, where)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        applied = float(self.scaler.get_scale() >= before)  # else fp16 overflowed: skipped
        return {**stats, "grad_norm": norm, "stopped_early": 0.0, "updates": applied}

    def _clip(self) -> float:
        """Scales the gradients down to norm max_grad_norm if it is larger; returns what it was."""
        gradients = [local_part(p.grad) for p in self.parameters if p.grad is not None]
        norm = self.processes.norm(gradients)
        if norm > self.config.max_grad_norm:
            torch._foreach_mul_(gradients, self.config.max_grad_norm / (norm + 1e-6))
        return norm

    def _check_finite(self, stats: dict[str, float], norm: float, where: str) -> None:
        loss = stats["policy_loss"] + stats["value_loss"]
        if self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() >= 1:
            return  # the scaler skips this update and lowers its scale
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise NonFiniteError(
            f"{where}: the loss or its gradient is not finite (policy loss "
            f"{stats['policy_loss']:.4g}, value loss {stats['value_loss']:.4g}, gradient norm "
            f"{norm:.4g}); this update was not applied. Lower learning_rate, raise beta, or look "
            "at the rewards of this step's answers"
        )

    def _gradients(self, rollouts: Rollouts, rows: Tensor) -> dict[str, float]:
        """Accumulates a minibatch's gradient, with smaller micro-batches if memory runs out."""
        while True:
            try:
                return self._accumulate(rollouts, rows)
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not _out_of_memory(error) or self.processes.sharded:
                    raise  # the other processes of a sharded model cannot repeat this pass
                if self.micro_batch == 1:
                    raise CourseError(
                        "out of memory with a single answer at a time: lower max_new_tokens, set "
                        "checkpoint_activations=True, or train a LoRA adapter instead"
                    ) from None
            # outside of the except block, which would keep the failed pass's tensors alive
            self.optimizer.zero_grad(set_to_none=True)
            self.micro_batch = math.ceil(min(self.micro_batch, len(rows)) / 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate(self, rollouts: Rollouts, rows: Tensor) -> dict[str, float]:
        """Backward passes over micro-batches of similar length; their losses add up.

        Every micro-batch divides by the token count of the *whole* minibatch, so the gradient does
        not depend on how the minibatch is cut, into micro-batches or among processes.
        """
        tokens = int(rollouts.mask[rows].sum())
        mine = self.processes.share(rows)
        parts = list(micro_batches(rollouts.sequences, mine, self.micro_batch))
        total: dict[str, list[Tensor]] = {}
        for number, part in enumerate(parts, start=1):
            loss, stats = self._loss(rollouts, part, tokens)
            self.processes.last_backward(number == len(parts))
            self.scaler.scale(loss * self.processes.loss_factor).backward()
            for name, value in stats.items():
                total.setdefault(name, []).append(value.detach())
        self.processes.sum_gradients(self.parameters)
        return self._joined(total)

    def _joined(self, total: dict[str, list[Tensor]]) -> dict[str, float]:
        """Parts of sums are added up, extremes compared, over micro-batches and processes."""
        sums = {n: torch.stack(v).float().sum() for n, v in total.items() if n not in _EXTREMES}
        largest = {n: (torch.stack(total[n]).float() * sign).max() for n, sign in _EXTREMES.items()}
        added = self.processes.sum(torch.stack(list(sums.values()))).tolist()
        top = self.processes.largest(torch.stack(list(largest.values()))).tolist()
        extremes = {n: value * _EXTREMES[n] for n, value in zip(largest, top, strict=True)}
        return {**dict(zip(sums, added, strict=True)), **extremes}

    def _loss(
        self, rollouts: Rollouts, rows: Tensor, tokens: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_policy + c_v L_value - c_e H of some rows, divided by the minibatch's `tokens`."""
        config = self.config
        sequences = rollouts.sequences.rows(rows)
        mask = sequences.mask  # (b, c)
        width = mask.shape[1]
        assert rollouts.advantages is not None
        assert rollouts.returns is not None
        with autocast(self.device, config.precision):
            scored = self.actor(
                sequences.ids,
                sequences.where,
                config.temperature,
                entropy=config.entropy_coef > 0,
            )
        policy = ppo_policy_loss(
            spread(scored.logprobs, mask),  # log π_θ(a_t|s_t)
            rollouts.logprobs[rows, :width],  # log π_old(a_t|s_t)
            rollouts.advantages[rows, :width],  # Â_t
            mask,
            clip=config.clip,
            dual_clip=config.dual_clip,
            denominator=tokens,
        )
        value = clipped_value_loss(
            spread(scored.values, mask),  # V_θ(s_t)
            rollouts.values[rows, :width],
            rollouts.returns[rows, :width],
            mask,
            clip=config.value_clip,
            denominator=tokens,
        )
        loss = policy.loss + config.vf_coef * value.loss
        if scored.entropy is not None:
            loss = loss - config.entropy_coef * scored.entropy.sum() / tokens
        stats = {"policy_loss": policy.loss, "value_loss": value.loss, **policy.stats}
        stats["value_clip_fraction"] = value.stats["value_clip_fraction"]
        return loss, stats

    @staticmethod
    def _summary(done: list[dict[str, float]]) -> dict[str, float]:
        """Means over the minibatches, extremes of the ratio, and the first minibatch's ratio."""
        names = [name for name in done[0] if name != "updates"]
        mean = {n: sum(s.get(n, 0.0) for s in done) / len(done) for n in names}
        return {
            **mean,
            "grad_norm": sum(s.get("grad_norm", 0.0) for s in done) / len(done),
            "ratio_max": max(s["ratio_max"] for s in done),
            "ratio_min": min(s["ratio_min"] for s in done),
            "ratio_first_max": done[0]["ratio_max"],  # 1 ± 1e-6: nothing has moved yet
            "ratio_first_min": done[0]["ratio_min"],
            "stopped_early": max(s["stopped_early"] for s in done),
            "updates": sum(s["updates"] for s in done),
        }


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "allocate memory" in text or "out of memory" in text
