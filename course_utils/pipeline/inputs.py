"""The data of a run: the user's own files where they were given, else the tier's: the embedded
world's or a public dataset."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils import data
from course_utils.errors import DataError
from course_utils.evaluation.sampling import question
from course_utils.files import write_atomic
from course_utils.lab import Lab
from course_utils.pipeline.job import Job
from course_utils.tiers import WORLD

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT = 0.1  # share of a user's file that is only measured on, never trained on
PPO_PROMPTS = 2_000  # different prompts that PPO draws from, at most
SHOWN = 6  # a user's prompts whose answers the report shows
_PAIRS = "preferences.jsonl", "preferences_heldout.jsonl"


class Inputs:
    """Hands each stage its data; `notes` collects what the user should know about it."""

    def __init__(self, job: Job, lab: Lab) -> None:
        self.job = job
        self.lab = lab
        self.notes: list[str] = []

    # ---- the user's files ----------------------------------------------------------------------

    def _file(self, name: str, kind: str) -> "Dataset | None":
        path = self.job.files.get(name)
        if path is None:
            return None
        length = self.lab.tier.sft.max_length
        loaded, report = data.load_file(path, kind, tokenizer=self.lab.tokenizer, max_length=length)
        print(report.text())
        self.notes.append(report.text().replace("\n", "; "))
        return loaded

    def _split(self, name: str, kind: str) -> "tuple[Dataset, Dataset] | None":
        loaded = self._file(name, kind)
        if loaded is None:
            return None
        if len(loaded) < 2:
            raise DataError(
                f"{self.job.files[name]} has {len(loaded)} usable row; one is needed to train on "
                "and one to measure on, so give at least 2"
            )
        held = max(1, round(len(loaded) * HELD_OUT))
        parts = loaded.train_test_split(test_size=held, seed=self.job.seed)
        return parts["train"], parts["test"]

    @functools.cached_property
    def _prompt_file(self) -> "Dataset | None":
        return self._file("prompts", "prompt-only")

    @functools.cached_property
    def _demonstration_file(self) -> "tuple[Dataset, Dataset] | None":
        return self._split("demonstrations", "prompt-completion")

    @functools.cached_property
    def _preference_file(self) -> "tuple[Dataset, Dataset] | None":
        return self._split("preferences", "preference")

    def read_files(self) -> None:
        """Looks at all data that the job needs, so that a fault shows before anything is trained.

        Raises:
            DataError: names file, row, column and fix. TierError: the tier's own data cannot be
                loaded, and there is no file in its place.
        """
        _ = self._demonstration_file, self._preference_file, self.evaluation_prompts
        if "sft" in self.job.stages:
            _ = self.demonstrations
        if {"rm", "ppo"} & set(self.job.stages):
            _ = self.prompts
        if {"rm", "dpo"} & set(self.job.stages) and self._preference_file is None:
            _ = self._public_pairs

    @functools.cached_property
    def _public_pairs(self) -> "tuple[Dataset, Dataset] | None":
        """Pairs of the tier's public dataset; None where the tier is the world's."""
        tier = self.lab.tier
        if not self.lab.is_public(tier.preference_data, "preferences"):
            return None
        from course_utils.data.hub import tiersets

        n = tier.preference_pairs
        length = min(tier.reward.max_length, tier.dpo.max_length)
        return tiersets.pairs(
            tier.preference_data,
            n,
            max(8, tier.held_out_pairs),
            self.job.seed,
            tokenizer=self.lab.tokenizer,
            max_length=length,
        )

    # ---- what the stages use -------------------------------------------------------------------

    @functools.cached_property
    def demonstrations(self) -> "tuple[Dataset, Dataset | None]":
        """(train, held-out) prompt-completion rows for SFT."""
        if self._demonstration_file is not None:
            return self._demonstration_file
        held = self.lab.demonstrations("heldout", min(200, self.lab.tier.demonstrations))
        return self.lab.demonstrations(), held

    @functools.cached_property
    def prompts(self) -> list[str]:
        """What PPO samples answers to."""
        if self._prompt_file is not None:
            return [question(row["prompt"]) for row in self._prompt_file]
        return self.lab.prompts("train", PPO_PROMPTS)

    @functools.cached_property
    def evaluation_prompts(self) -> list[str]:
        """What every model is measured on: the tier's held-out prompts, or the user's own."""
        n = self.lab.tier.evaluation_prompts
        if self._prompt_file is not None:
            return self.prompts[:n]
        return self.lab.prompts("heldout", n)

    @property
    def shown_prompts(self) -> list[str]:
        """The prompts whose answers the report prints: the lecture's, then the user's first."""
        own = self.prompts[:SHOWN] if self._prompt_file is not None else []
        return list(dict.fromkeys([*self.lab.lecture_prompts, *own]))

    @property
    def has_pairs(self) -> bool:
        """Whether `preferences` needs no model any more: the pairs are there, or sampled."""
        sampled = all((self.job.out / name).exists() for name in _PAIRS)
        return sampled or not self.samples_pairs

    @property
    def samples_pairs(self) -> bool:
        """Whether the pairs are the models' own answers: not the user's, not a public dataset's,
        and not those that tier small has offline in a public dataset's place."""
        if "preferences" in self.job.files or self.lab.tier.is_offline:
            return False
        return not self.lab.is_public(self.lab.tier.preference_data, "preferences")

    def preferences(self, models: dict[str, Any]) -> "tuple[Dataset, Dataset]":
        """(train, held-out) pairs: the user's, a public dataset's, or answers put to the annotator:
        the models' own, offline those of the world's writers.

        Sampled pairs are kept in the run directory, and read from there when the run goes on.
        """
        if self._preference_file is not None:
            return self._preference_file
        if self._public_pairs is not None:
            return self._public_pairs
        from course_utils.world import Annotator

        tier = self.lab.tier
        sizes = (tier.preference_pairs, max(8, tier.held_out_pairs))
        annotator = Annotator(temperature=tier.annotator_temperature, seed=self.job.seed)
        if tier.is_offline:
            train, held = (
                data.worldsets.written_pairs(n, split, self.job.seed, annotator)
                for split, n in zip(("train", "heldout"), sizes, strict=True)
            )
            return train, held
        paths = [self.job.out / name for name in _PAIRS]
        if not self.has_pairs:
            for path, split, size in zip(paths, ("train", "heldout"), sizes, strict=True):
                rows = self.lab.preferences(models, size, split, annotator, batch_size=256)
                _write_rows(path, rows)
        train, held = (data.load_file(path, "preference")[0] for path in paths)
        return train, held

    # ---- the truth, where it is known ----------------------------------------------------------

    @functools.cached_property
    def gold(self) -> Callable[[str, str], Any] | None:
        """(prompt, answer) -> GoldScore, when the world knows every prompt of this run."""
        if self.lab.gold is None:
            return None
        from course_utils.world import find

        asked = dict.fromkeys([*self.prompts, *self.evaluation_prompts])  # each once
        unknown = [p for p in asked if find(p) is None]
        if unknown:
            self.notes.append(
                f"The world does not know {len(unknown)} of your prompts (such as "
                f'"{unknown[0][:80]}"), so there is no gold reward: the reward model judges.'
            )
            return None
        return self.lab.gold

    @property
    def plain_documents(self) -> list[str] | None:
        """Text of the base model's own kind, on which forgetting shows; None outside the world."""
        if self.lab.tier.policy != WORLD:
            return None
        from course_utils.world import plain_corpus

        return plain_corpus(100, seed=1_000 + self.job.seed)


def _write_rows(path: Path, rows: "Dataset") -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, text)
