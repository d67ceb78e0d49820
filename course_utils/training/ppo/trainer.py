"""PPOTrainer: sample, score, update; a row and a checkpoint at a time."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from course_utils.errors import CourseError, RunError
from course_utils.generation import stop_ids
from course_utils.models import (
    PolicyWithValue,
    Reference,
    copy_model,
    disable_dropout,
    fuse_activations,
    parts_of,
    unwrapped,
)
from course_utils.objectives import AdaptiveKL, FixedKL, explained_variance
from course_utils.training.ppo.advantages import compute_advantages, sequence_kl
from course_utils.training.ppo.config import PPOConfig
from course_utils.training.ppo.judge import HeldOutJudge
from course_utils.training.ppo.processes import Processes
from course_utils.training.ppo.rewards import Scorer
from course_utils.training.ppo.rollout import (
    PromptStream,
    Rollouts,
    sample_answers,
    score_rollouts,
)
from course_utils.training.ppo.state import load_state, state_writer
from course_utils.training.ppo.update import NonFiniteError, Updater
from course_utils.training.run import RunLog

Gold = Callable[[list[str], list[str]], Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step of training leaves behind."""

    stats: dict[str, Any]  # the row of the log
    rollouts: Rollouts  # the answers, with every per-token quantity

    @property
    def number(self) -> int:  # 1 .. steps
        return int(self.stats["step"])


class PPOTrainer:
    """Trains a causal language model on a reward (Schulman et al. 2017; Ouyang et al. 2022).

        trainer = PPOTrainer(policy, reward, tokenizer, prompts, PPOConfig(steps=40))
        for step in trainer:                      # or trainer.train()
            print(step.stats["reward"], step.rollouts.completions[0])

    Args:
        policy: a causal language model with fp32 weights, or a PEFT model (LoRA). It is trained in
            place, in evaluation mode throughout: dropout would make it another model at each pass.
        reward: a function (prompts, completions) -> numbers, a RewardModel, an Ensemble, or a list
            (their mean).
        prompts: strings, message lists, or a Dataset with a "prompt" column.
        reference: the model that the KL is measured from; None: the policy as it is now (a frozen
            copy, or, with LoRA, the policy with its adapter off).
        log: a RunLog opened for writing; None: nothing is written.
        gold: like a reward function, the true quality if it is known; logged, never trained on
            (`per_answer(world.gold_reward)` in the embedded world).
        judge: a HeldOutJudge that ends training when held-out answers stop getting better.
        accelerator: accelerate's Accelerator; None makes one if the script was started by
            `accelerate launch` with several processes. Models are expected on its device, the log
            on the main process (it is ignored on the others); `rollouts_per_step` counts the
            answers of all processes together, and a reward function gets each process's share.
    """

    def __init__(
        self,
        policy: Any,
        reward: Any,
        tokenizer: Any,
        prompts: Any,
        config: PPOConfig | None = None,
        reference: Any = None,
        log: RunLog | None = None,
        gold: Gold | None = None,
        judge: HeldOutJudge | None = None,
        accelerator: Any = None,
    ) -> None:
        self.config = config = PPOConfig() if config is None else config
        self.processes = Processes(accelerator)
        self.processes.check(config.rollouts_per_step, config.minibatches, config.sharded)
        _check_policy(policy)
        self.policy = policy.eval()
        self.processes.same_start(policy)
        self.tokenizer = tokenizer
        stop_ids(tokenizer, policy)  # raises without an EOS
        context = getattr(parts_of(policy).config, "max_position_embeddings", None)
        self.prompts = PromptStream(prompts, tokenizer, config, context)
        self.scorer = Scorer(reward, tokenizer, 2 * config.micro_batch)
        self.gold = gold
        for model in (policy, reference, *(getattr(m, "model", None) for m in self.scorer.members)):
            if isinstance(model, torch.nn.Module):
                fuse_activations(model)
        self.reference = Reference(policy, reference)
        self.actor = PolicyWithValue(policy, _critic(policy, reward, config))
        if config.critic == "reward":
            _value_head_from_reward(self.actor, reward)
        if config.checkpoint_activations:
            disable_dropout(policy)  # this needs train mode during the update
            inner = unwrapped(policy)
            newer = getattr(inner, "activation_checkpointing_enable", None)
            (newer or inner.gradient_checkpointing_enable)({"use_reentrant": False})
        if config.sharded:
            self._shard()
        self.updater = Updater(self.actor, config, self.processes)
        self.kl_control: AdaptiveKL | FixedKL = FixedKL(config.beta)
        if config.kl_target is not None:
            self.kl_control = AdaptiveKL(config.beta, config.kl_target, config.kl_horizon)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.judge = judge
        self.log = log if self.processes.main else None
        self.steps_done = 0
        self.tokens = 0  # generated so far
        self.stop_reason: str | None = None  # why training ended before the last step
        self.timings: dict[str, tuple[float, float]] = {}  # part -> (wall, CPU) seconds, last step
        self._phase: Callable[[str], None] = lambda name: None

    # ---- the loop ----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self.steps_done >= self.config.steps or self.stop_reason is not None

    def __iter__(self) -> Iterator[Step]:
        """Steps from where training stands to its end; the loop may be left and entered again."""
        while not self.finished:
            yield self.step()

    @property
    def _logged(self) -> bool:
        """Whether the main process has a log."""
        return self.processes.from_main(self.log is not None)

    def train(self, progress: bool = True) -> list[dict[str, Any]]:
        """Runs to the end; returns the rows of the steps that were done by this call."""
        from tqdm.auto import tqdm

        rows = []
        with tqdm(
            total=self.config.steps,
            initial=self.steps_done,
            desc="PPO",
            disable=not (progress and self.processes.main),
        ) as bar:
            self._phase = lambda name: bar.set_description(f"PPO: {name}")
            try:
                for step in self:
                    rows.append(step.stats)
                    shown = {"reward": step.stats["reward"], "kl": step.stats["kl"]}
                    if self.gold is not None:
                        shown["gold"] = step.stats["gold"]
                    bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
                    bar.update(1)
            finally:
                self._phase = lambda name: None
            if self.stop_reason is not None:
                bar.write(f"PPO stopped at step {self.steps_done}: {self.stop_reason}")
        return rows

    def step(self) -> Step:
        """One step: sample, score, compute advantages, update, log."""
        if self.steps_done == 0 and self.log is not None and self.log.rows:
            raise RunError(
                f"{self.log.directory} already holds steps; call trainer.resume() to continue "
                "them, or start the run in another directory"
            )
        number, began = self.steps_done + 1, time.perf_counter()
        self.timings = {}
        if number == 1:
            self._ask_judge()
        with self.processes.whole():
            rollouts, plan = self._rollouts()
        beta = self.kl_control.beta
        with self._timed("update", "updating"):
            compute_advantages(rollouts, beta, self.config)
            losses = self._update(rollouts, number, plan)
        self.steps_done, self.tokens = number, self.tokens + int(rollouts.mask.sum())
        row = self._row(rollouts, losses, beta)
        self.kl_control.update(row["kl"], len(rollouts))
        if self.config.kl_stop is not None and row["kl"] > self.config.kl_stop:
            self.stop_reason = (
                f"KL {row['kl']:.3g} nats per answer is above kl_stop = {self.config.kl_stop:g}"
            )
        row.update(self._ask_judge())
        for part, (wall, _) in self.timings.items():
            row[f"{part}_seconds"] = wall
        row["seconds"] = time.perf_counter() - began
        self._write(row, rollouts)
        if self.finished and self.judge is not None and self.judge.restore_best:
            self.judge.restore(self.policy)
        return Step(row, rollouts)

    def _rollouts(self) -> tuple[Rollouts, list[list[torch.Tensor]]]:
        """A step's scored answers, and which of them go into which minibatch."""
        with self._timed("rollout", "sampling"):
            chosen = self.prompts.draw(self.config.rollouts_per_step)
            tokens = [self.prompts.tokens[i] for i in chosen]
            sampled = sample_answers(
                self.actor, self.tokenizer, tokens, self.config, self.generator, self.processes
            )
        plan = self.updater.plan(len(tokens), self.generator)
        with self._timed("scoring", "scoring"):
            rollouts = score_rollouts(
                self.actor,
                self.reference,
                self.scorer,
                self.tokenizer,
                [self.prompts.texts[i] for i in chosen],
                sampled,
                plan[0],
                self.config,
                self.processes,
                self.gold,
            )
        return rollouts, plan

    def _ask_judge(self) -> dict[str, float]:
        """Measures held-out answers when it is time; a judge that has seen enough ends the run."""
        judge, step = self.judge, self.steps_done
        if judge is None or not judge.due(step, self.config.steps):
            return {}
        with self._timed("judge", "held-out answers"), self.processes.whole():
            value = self.processes.from_main(judge.ask(self.policy, self.tokenizer))
        judge.record(step, value, self.policy)
        self.stop_reason = self.stop_reason or judge.reason
        return {"judge": value}

    def _shard(self) -> None:
        """FSDP: each block of the policy is gathered on its own when its turn comes."""
        parts = parts_of(self.policy)
        names = getattr(unwrapped(self.policy), "_no_split_modules", None) or ()
        blocks = [m for m in parts.trunk.modules() if type(m).__name__ in names]
        ids = torch.ones(1, 2, dtype=torch.long, device=self.policy.device)
        self.processes.shard(self.actor, blocks, (ids, ids.new_zeros(1)))

    def _update(
        self, rollouts: Rollouts, number: int, plan: list[list[torch.Tensor]]
    ) -> dict[str, float]:
        # Transformers recomputes activations in train mode only
        self.policy.train(self.config.checkpoint_activations)
        try:
            return self.updater.update(rollouts, number, plan)
        except NonFiniteError as error:
            if self.log is None:
                raise
            self.log.save_rollouts(number, rollouts.rows(self.tokenizer))
            raise NonFiniteError(
                f"{error}: they are in {self.log.directory}/rollouts.jsonl, step {number}"
            ) from None
        finally:
            self.policy.eval()

    def _row(self, rollouts: Rollouts, losses: dict[str, float], beta: float) -> dict[str, Any]:
        """The log's row of a step."""
        kl, kl_k3 = sequence_kl(rollouts)
        assert rollouts.returns is not None
        row: dict[str, Any] = {
            "step": self.steps_done,
            "reward": float(rollouts.scores.mean()),
            "reward_std": float(rollouts.scores.std()),
            "kl": kl,  # nats per answer, estimator k1
            "kl_k3": kl_k3,
            "beta": beta,
            "entropy": rollouts.entropy,  # nats per token, of the policy that sampled
            **losses,
            "explained_variance": float(
                explained_variance(rollouts.values, rollouts.returns, rollouts.mask)
            ),
            "completion_tokens": float(rollouts.mask.sum(dim=1).float().mean()),
            "eos_rate": float(rollouts.ended.float().mean()),
            "tokens": self.tokens,
            "logprob_gap": rollouts.logprob_gap,
            "learning_rate": self.updater.learning_rate(self.steps_done),
            "micro_batch": self.updater.micro_batch,
        }
        if rollouts.gold is not None:
            row["gold"] = sum(rollouts.gold) / len(rollouts.gold)
        if rollouts.disagreement is not None:
            row["reward_disagreement"] = rollouts.disagreement
        if self.updater.scaler.is_enabled():
            row["loss_scale"] = self.updater.scaler.get_scale()
        return row

    def _write(self, row: dict[str, Any], rollouts: Rollouts) -> None:
        number, last = self.steps_done, self.finished
        if self.log is not None:
            self.log.append(row)
            every = self.config.rollouts_every
            if every and (number == 1 or last or number % every == 0):
                shown = rollouts.rows(self.tokenizer, self.config.rollouts_saved)
                self.log.save_rollouts(number, shown)
        if self._logged and (last or number % self.config.save_every == 0):
            self._phase("saving")
            self.save_checkpoint()

    @contextmanager
    def _timed(self, part: str, shown: str) -> Iterator[None]:
        self._phase(shown)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize()
        self.timings[part] = (time.perf_counter() - wall, time.process_time() - cpu)

    # ---- checkpoints -------------------------------------------------------------------------

    def save_checkpoint(self) -> Path | None:
        """Writes all that `resume` needs into the log's directory, whole or not at all.

        Of several processes all must call it, and the main one writes: the others get None.
        """
        if not self._logged:
            raise CourseError(
                "a checkpoint needs a log: pass PPOTrainer(..., log=RunLog.create(…))"
            )
        write = state_writer(self)  # gathers what is sharded
        if self.log is None:
            return None
        return self.log.save_checkpoint(self.steps_done, write)

    def resume(self) -> int:
        """Continues from the log's newest checkpoint, if there is one; returns the steps done.

        The trainer must have been made as it was for the run: with the same *initial* policy (the
        reference is taken from it), prompts and config. Rows after the checkpoint are dropped and
        done again; on a CPU they come out bit-identical.
        """
        if not self._logged:
            raise CourseError("there is nothing to resume from: the trainer has no log")
        found = self.processes.from_main(self.log and self.log.latest_checkpoint())
        if found is not None:
            load_state(self, found[1])
        if self.log is not None:
            self.log.rewind(self.steps_done)
        return self.steps_done


# ---- checks and critics --------------------------------------------------------------------------


def _check_policy(policy: Any) -> None:
    trained = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
    if not trained:
        raise CourseError(
            "the policy has no trainable parameter (a frozen reference?); pass a copy with "
            "requires_grad_(True), or a model with a LoRA adapter"
        )
    for name, parameter in trained:
        if parameter.dtype != torch.float32:
            raise CourseError(
                f"the policy's {name} is {parameter.dtype}: updates of a small learning rate are "
                'lost in half precision; use policy.float() with PPOConfig(precision="bf16")'
            )


def _critic(policy: Any, reward: Any, config: PPOConfig) -> Any:
    """The trunk of a separate critic, trainable, or None for a shared one."""
    if config.critic == "shared":
        return None
    if config.critic == "policy":
        trunk = copy_model(parts_of(policy).trunk)
    else:
        model = getattr(reward, "trunk", None)
        if model is None:
            raise CourseError(
                'critic="reward" starts the critic from the reward model, but the reward is a '
                f'{type(reward).__name__}; pass a RewardModel, or critic="policy"'
            )
        trunk = copy_model(model)
    return trunk.float().to(policy.device).eval().requires_grad_(True)


def _value_head_from_reward(actor: PolicyWithValue, reward: Any) -> None:
    """Starts the value head as the reward model's own score head, on its normalised scale."""
    head, scale = reward.head, reward.normalisation
    with torch.no_grad():
        actor.value_head.weight.copy_(head.weight.float() / scale.std)
        bias = torch.zeros(1) if head.bias is None else head.bias.float().cpu()
        actor.value_head.bias.copy_((bias - scale.mean) / scale.std)
