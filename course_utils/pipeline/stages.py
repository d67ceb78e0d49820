"""The stages of a run: each trains one model, writes its log and checkpoints, and saves the result.

A finished stage leaves `done.json` with its costs beside its log, and its model under models/. When
a run is continued, finished stages are loaded and an unfinished one goes on from its checkpoint.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from course_utils.errors import CourseError
from course_utils.evaluation import CostMeter, Evaluation, evaluate_policy
from course_utils.evaluation.costs import forward_flops, matmul_parameters, training_flops
from course_utils.files import write_atomic
from course_utils.lab import Lab, seed_everything
from course_utils.models import load_policy
from course_utils.pipeline.inputs import Inputs
from course_utils.pipeline.job import Job
from course_utils.publish import save_model
from course_utils.training.jsonl import JsonLines
from course_utils.training.ppo import PPOConfig, PPOTrainer, per_answer
from course_utils.training.reward_model import RewardModel
from course_utils.training.run import RunLog

HELD_OUT_POINTS = 8  # measurements on held-out prompts along a PPO run, denser at its start
NORMALISE_ON = 400  # SFT answers that the reward model's mean and std are taken from
LABELS = {
    "base": "Base",
    "sft": "SFT",
    "ppo": "PPO",
    "ppo_low_beta": "PPO pushed too far",
    "dpo": "DPO",
}


class Pipeline:
    """Runs the stages of a job in order; afterwards holds every model and what each stage cost."""

    def __init__(self, job: Job, lab: Lab | None = None) -> None:
        """`lab`: open already, of the job's tier and seed; None opens one and says so."""
        self.job = job
        if lab is None:
            print(job.choice.reason)
            for warning in job.choice.warnings:
                print(f"note: {warning}")
        self.lab = lab or Lab(job.choice, job.seed)
        seed_everything(job.seed)
        self.inputs = Inputs(job, self.lab)
        self.models: dict[str, Any] = {}
        self.reward: RewardModel | None = None
        self.costs: list[dict[str, Any]] = []

    def run(self) -> None:
        self.models["base"] = self.lab.base()
        stages = self.job.stages
        if "sft" in stages:
            self._sft()
        if "rm" in stages or "dpo" in stages:
            self._pairs = self._sample_pairs()
        if "rm" in stages:
            self._reward_model()
        if "ppo" in stages:
            self._ppo("ppo", self.lab.settings.ppo)
            # without the truth there is nothing to see; offline it would take too long
            if self.inputs.gold is not None and not self.lab.tier.is_offline:
                self._ppo("ppo_low_beta", self.lab.settings.ppo_low_beta)
        if "dpo" in stages:
            self._dpo()

    def train_one(self, key: str) -> None:
        """Trains the model `key` ("sft", "reward", "ppo", "ppo_low_beta" or "dpo"; "pairs" samples
        the pairs) and nothing else; SFT, and for PPO the reward model, are loaded where they are
        done. Raises CourseError for PPO without a reward model."""
        self.models["base"] = self.lab.base()
        self._sft()
        if key in ("pairs", "reward", "dpo"):
            self._pairs = self._sample_pairs()
        if key == "reward":
            self._reward_model()
        elif key == "dpo":
            self._dpo()
        elif key in ("ppo", "ppo_low_beta"):
            settings = self.lab.settings
            self._ppo(key, settings.ppo if key == "ppo" else settings.ppo_low_beta)

    @property
    def start(self) -> Any:
        """The model that PPO and DPO start from and are held to: SFT, or without it the base."""
        return self.models.get("sft", self.models["base"])

    def log(self, key: str) -> RunLog | None:
        """A stage's log, if it ran."""
        directory = self.job.out / key
        return RunLog.open(directory) if (directory / "meta.json").exists() else None

    def held_out(self, key: str) -> JsonLines:
        """The measurements on held-out prompts along a PPO run."""
        return JsonLines(self.job.out / key / "heldout.jsonl")

    # ---- one stage -----------------------------------------------------------------------------

    def _stage(
        self,
        key: str,
        settings: Any,
        train: Callable[[RunLog, CostMeter], Any],
        save: Callable[[Any, Path], Any],
        load: Callable[[Path], Any],
    ) -> Any:
        """Trains and saves a model, or loads it when this was done before."""
        model_dir, done = self.job.out / "models" / key, self.job.out / key / "done.json"
        title = {"reward": "reward model", **LABELS}.get(key, key)
        if done.exists():
            print(f"— {title}: done before, loaded from {model_dir}")
            self.costs.append(json.loads(done.read_text(encoding="utf-8")))
            return load(model_dir)
        print(f"— {title}", flush=True)
        config = dataclasses.asdict(settings)
        log = RunLog.create(self.job.out / key, config, self.job.seed, resume=self.job.resume)
        with CostMeter(title) as cost:
            model = train(log, cost)
        save(model, model_dir)
        row = cost.row()
        write_atomic(done, json.dumps(row, indent=2) + "\n")
        self.costs.append(row)
        return model

    def _policy_stage(
        self, key: str, settings: Any, train: Callable[[RunLog, CostMeter], Any]
    ) -> None:
        device = self.lab.device
        self.models[key] = self._stage(
            key,
            settings,
            train,
            lambda model, path: save_model(path, model, self.lab.tokenizer),
            lambda path: load_policy(str(path), device=device)[0],
        )

    # ---- the stages ----------------------------------------------------------------------------

    def _sft(self) -> None:
        from course_utils.training.sft import train_sft

        def train(log: RunLog, cost: CostMeter) -> Any:
            rows, held = self.inputs.demonstrations
            model = self.lab.base()
            train_sft(
                model,
                self.lab.tokenizer,
                rows,
                self.lab.settings.sft,
                log,
                eval_dataset=held,
                resume=self.job.resume,
                progress=not self.job.quiet,
            )
            cost.trained_tokens = int(log.rows[-1]["tokens"])
            cost.flops = training_flops(matmul_parameters(model), cost.trained_tokens)
            return model

        self._policy_stage("sft", self.lab.settings.sft, train)

    def _sample_pairs(self) -> Any:
        # Two thirds of the answers come from the model that PPO and DPO will start from.
        models = {"base": self.models["base"], "start": self.start, "start again": self.start}
        with CostMeter("preference pairs") as cost:
            print("— preference pairs", flush=True)
            pairs = self.inputs.preferences(models)
            if self.inputs.samples_pairs:
                shown = [row["chosen"][0]["content"] for row in pairs[0]]
                shown += [row["rejected"][0]["content"] for row in pairs[0]]
                ids = self.lab.tokenizer(shown, add_special_tokens=False).input_ids
                cost.generated_tokens = sum(len(row) + 1 for row in ids)
                parameters = matmul_parameters(self.models["base"])
                cost.flops = forward_flops(parameters, cost.generated_tokens)
        self.costs.append(cost.row())
        return pairs

    @property
    def held_out_pairs(self) -> Any:
        return self._pairs[1]

    def _reward_model(self) -> None:
        from course_utils.training.reward import train_reward_model

        def train(log: RunLog, cost: CostMeter) -> RewardModel:
            rows, held = self._pairs
            asked = self.inputs.prompts[: min(NORMALISE_ON, self.lab.tier.preference_pairs)]
            answers = self.lab.generate(self.start, asked)
            model = train_reward_model(
                self.models["base"],
                self.lab.tokenizer,
                rows,
                self.lab.settings.reward,
                log,
                eval_dataset=held,
                resume=self.job.resume,
                progress=not self.job.quiet,
                normalise_on=list(zip(asked, answers, strict=True)),
            )
            cost.trained_tokens = int(log.rows[-1]["tokens"])
            cost.flops = training_flops(matmul_parameters(model.model), cost.trained_tokens)
            return model

        self.reward = self._stage(
            "reward",
            self.lab.settings.reward,
            train,
            lambda model, path: model.save(path),
            lambda path: RewardModel.load(path, device=self.lab.device),
        )

    def _require_reward(self) -> RewardModel:
        if self.reward is None:
            saved = self.job.out / "models" / "reward"
            if not saved.exists():
                raise CourseError(
                    "PPO needs a reward model, and this run has none: add rm to --stages "
                    "(for example --stages sft,rm,ppo), or continue with --resume a run that has it"
                )
            self.reward = RewardModel.load(saved, device=self.lab.device)
        return self.reward

    def _ppo(self, key: str, config: PPOConfig) -> None:
        reward = self._require_reward()

        def train(log: RunLog, cost: CostMeter) -> Any:
            from course_utils.models import copy_model

            policy = copy_model(self.start)
            trainer = PPOTrainer(
                policy,
                reward,
                self.lab.tokenizer,
                self.inputs.prompts,
                config,
                log=log,
                gold=per_answer(self.inputs.gold) if self.inputs.gold else None,
            )
            if self.job.resume:
                trainer.resume()
            self._train_ppo(trainer, key)
            self._ppo_costs(trainer, reward, cost)
            return policy

        self._policy_stage(key, config, train)

    def _train_ppo(self, trainer: PPOTrainer, key: str) -> None:
        """Trains, and every few steps measures the policy on held-out prompts."""
        from tqdm.auto import tqdm

        measured = self.held_out(key)
        measured.mend()
        measured.keep_until(trainer.steps_done)
        due_at = measured_steps(trainer.config.steps)

        def measure() -> None:
            due = trainer.steps_done in due_at or trainer.finished
            if due and trainer.steps_done not in {row["step"] for row in measured.read()}:
                measured.append([self._measure(trainer.steps_done, trainer.policy)])

        measure()
        with tqdm(
            total=trainer.config.steps,
            initial=trainer.steps_done,
            desc=LABELS[key],
            disable=self.job.quiet,
        ) as bar:
            for step in trainer:
                shown = {
                    name: step.stats[name]
                    for name in ("reward", "gold", "kl")
                    if name in step.stats
                }
                bar.set_postfix({name: f"{value:.2f}" for name, value in shown.items()})
                bar.update(1)
                measure()

    def evaluate(self, model: Any) -> Evaluation:
        """A model on the evaluation prompts, as every model of the run is measured."""
        return evaluate_policy(
            model,
            self.lab.tokenizer,
            self.inputs.evaluation_prompts,
            gold=self.inputs.gold,
            reward=self.reward,
            reference=self.start,
            max_new_tokens=self.lab.tier.ppo.max_new_tokens,
            seed=self.job.seed,
            batch_size=self.lab.tier.evaluation_prompts,
        )

    def _measure(self, step: int, policy: Any) -> dict[str, Any]:
        found = self.evaluate(policy)
        example = found.completions[0]
        return {
            "step": step,
            "kl": found.kl.mean if found.kl else None,
            "proxy": found.reward.mean if found.reward else None,
            "gold": found.gold.mean if found.gold else None,
            "interval": list(found.gold.interval) if found.gold else None,
            "prompt": example.prompt,
            "text": example.text,
        }

    def _ppo_costs(self, trainer: PPOTrainer, reward: RewardModel, cost: CostMeter) -> None:
        config, policy = trainer.config, matmul_parameters(trainer.policy)
        cost.generated_tokens = trainer.tokens
        prompt_tokens = sum(len(t) for t in trainer.prompts.tokens) / len(trainer.prompts.tokens)
        read = trainer.tokens + prompt_tokens * trainer.steps_done * config.rollouts_per_step
        cost.trained_tokens = trainer.tokens * config.epochs
        cost.flops = (
            forward_flops(policy, 2 * read)  # sampling, and the reference's logprobs
            + forward_flops(matmul_parameters(reward.model), read)
            + training_flops(policy, read * config.epochs)
        )

    def _dpo(self) -> None:
        from course_utils.models import copy_model
        from course_utils.training.dpo import train_dpo

        settings = self.lab.settings.dpo

        def train(log: RunLog, cost: CostMeter) -> Any:
            rows, held = self._pairs
            model = copy_model(self.start)
            train_dpo(
                model,
                self.lab.tokenizer,
                rows,
                settings,
                log,
                eval_dataset=held,
                resume=self.job.resume,
                progress=not self.job.quiet,
            )
            cost.trained_tokens = int(log.rows[-1]["tokens"])
            parameters = matmul_parameters(model)
            cost.flops = training_flops(parameters, cost.trained_tokens) + forward_flops(
                parameters, cost.trained_tokens
            )
            return model

        self._policy_stage("dpo", settings, train)


def measured_steps(steps: int) -> set[int]:
    """Steps after which a PPO run is measured: 0, the last, and most of the others early on.

    The KL grows faster and faster, and gold rises and peaks while it is small.
    """
    return {round(steps * (k / HELD_OUT_POINTS) ** 1.5) for k in range(HELD_OUT_POINTS + 1)}
