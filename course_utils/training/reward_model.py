"""RewardModel: r_φ(x, y), a policy's trunk with one linear score on the answer's last token."""

import copy
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from course_utils.errors import CourseError, WeightsError
from course_utils.files import atomic_dir
from course_utils.models import evaluating, positions_of
from course_utils.objectives.preference import RewardNormalisation
from course_utils.training.lm_head import inner_model
from course_utils.training.tokenise import whole_ids


def sequence_classifier(policy: Any, seed: int = 0) -> Any:
    """A sequence classifier with one output whose trunk is a copy of the policy's.

    The policy (also one with adapters, which are merged into the copy) is not changed. The score
    head starts small, N(0, 0.02²), so that all answers score about 0.
    """
    from transformers import AutoModelForSequenceClassification

    if hasattr(policy, "get_base_model"):
        policy = copy.deepcopy(policy).merge_and_unload()
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.device("meta"):  # no memory, no random numbers: both parts are replaced
        model = AutoModelForSequenceClassification.from_config(config)
    trunk = copy.deepcopy(policy.base_model)
    trunk.config = model.config
    setattr(model, model.base_model_prefix, trunk)
    head = _head(model)
    weight = torch.empty(head.weight.shape)
    nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(seed))
    head.weight = nn.Parameter(weight.to(policy.device, policy.dtype))
    if head.bias is not None:
        head.bias = nn.Parameter(torch.zeros(1, device=policy.device, dtype=policy.dtype))
    return model.eval()


def _head(model: Any) -> Any:
    head = getattr(inner_model(model), "score", None)
    if head is None:
        raise CourseError(
            f"{type(inner_model(model)).__name__} has no linear head named `score`; start the "
            "reward model from a decoder (a causal language model)"
        )
    return head


class RewardModel:
    """Scores answers; normalised so that the answers it was fitted on have mean 0 and std 1.

    `model` is a sequence classifier with one output (or a PEFT model around it). Mean, std and the
    form of the text are kept in its config, so that they are saved and loaded with it.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
        labels = getattr(model.config, "num_labels", None)
        if labels != 1:
            raise CourseError(
                f"{type(model).__name__} has num_labels={labels}, and a reward model has one "
                "output; make it with sequence_classifier(policy)"
            )
        if any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values()):
            raise CourseError("prompt and prefix tuning are not supported here; use LoRA")
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size  # texts in one forward pass of __call__
        self.head = _head(model)
        inner = inner_model(model)
        self.trunk = getattr(inner, inner.base_model_prefix)
        self._takes_positions = "position_ids" in inspect.signature(self.trunk.forward).parameters

    def __repr__(self) -> str:
        n = self.normalisation
        name = type(inner_model(self.model)).__name__
        return f"RewardModel({name}, mean={n.mean:.3g}, std={n.std:.3g})"

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def normalisation(self) -> RewardNormalisation:
        """What turns raw scores into rewards."""
        config = self.model.config
        return RewardNormalisation(
            getattr(config, "reward_mean", 0.0), getattr(config, "reward_std", 1.0)
        )

    @normalisation.setter
    def normalisation(self, value: RewardNormalisation) -> None:
        self.model.config.reward_mean, self.model.config.reward_std = value.mean, value.std

    @property
    def conversational(self) -> bool:
        """Whether texts go through the chat template, as the pairs it was trained on did."""
        return getattr(self.model.config, "reward_conversational", True)

    @conversational.setter
    def conversational(self, value: bool) -> None:
        self.model.config.reward_conversational = value

    # ---- scoring -----------------------------------------------------------------------------

    def raw_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores before normalisation, with gradients if enabled: (B, T) ids and mask -> (B,).

        The score is read at the last real token by the mask, wherever the padding is and whatever
        id fills it.
        """
        extra = {"position_ids": positions_of(attention_mask)} if self._takes_positions else {}
        hidden = self.trunk(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra
        ).last_hidden_state  # (B, T, D)
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (steps * attention_mask.bool()).argmax(dim=1)  # (B,)
        rows = torch.arange(len(last), device=last.device)
        return self.head(hidden[rows, last].to(self.head.weight.dtype)).squeeze(-1).float()

    @torch.no_grad()
    def score_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Normalised rewards of token sequences (prompt and answer): (B, T), (B, T) -> (B,) fp32.

        Padding may be on either side. Raises CourseError naming the row of a score that is not
        finite, or that has no token.
        """
        empty = attention_mask.sum(dim=1) == 0
        if bool(empty.any()):
            raise CourseError(f"reward model: row {int(empty.nonzero()[0])} has no token to score")
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        with evaluating(self.model):
            scores = self.normalisation.apply(self.raw_scores(input_ids, attention_mask))
        bad = ~scores.isfinite()
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise CourseError(
                f"reward model: the score of row {row} is {float(scores[row])}; the weights or the "
                "precision are broken (fp16 overflow?): score in fp32, or train it again"
            )
        return scores

    def encode(self, prompts: Sequence[str], completions: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt (one user turn) and its answer with EOS, as in training."""
        if len(prompts) != len(completions):
            raise CourseError(f"{len(prompts)} prompts and {len(completions)} completions")
        if not self.conversational:
            return whole_ids(self.tokenizer, prompts, completions)
        users = [[{"role": "user", "content": prompt}] for prompt in prompts]
        answers = [[{"role": "assistant", "content": text}] for text in completions]
        return whole_ids(self.tokenizer, users, answers)

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """Normalised reward of each answer, in order."""
        rows = self.encode(prompts, completions)
        room = getattr(inner_model(self.model).config, "max_position_embeddings", None)
        for number, row in enumerate(rows):
            if room is not None and len(row) > room:
                raise CourseError(
                    f"reward model: row {number} has {len(row)} tokens with its prompt, the model "
                    f"has room for {room}; shorten the prompt or lower max_new_tokens"
                )
        scores = [0.0] * len(rows)
        by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(rows), self.batch_size):
            batch = by_length[start : start + self.batch_size]
            ids, mask = pad_right([rows[index] for index in batch])
            try:
                values = self.score_tokens(ids, mask).tolist()
            except CourseError:
                self._blame(rows, batch)
                raise
            for index, value in zip(batch, values, strict=True):
                scores[index] = value
        return scores

    def _blame(self, rows: list[list[int]], batch: list[int]) -> None:
        """Raises for the first row of a batch that cannot be scored, by its number in the call."""
        for index in sorted(batch):
            try:
                self.score_tokens(*pad_right([rows[index]]))
            except CourseError as error:
                message = str(error).replace("row 0", f"row {index}")
                raise CourseError(message) from None

    def fit_normalisation(self, pairs: Sequence[tuple[str, str]]) -> RewardNormalisation:
        """Sets mean and std to those of the raw scores of (prompt, completion) pairs."""
        if len(pairs) < 2:
            raise CourseError(f"normalisation needs at least 2 answers, got {len(pairs)}")
        self.normalisation = RewardNormalisation()
        raw = torch.tensor(self([p for p, _ in pairs], [c for _, c in pairs]))
        try:
            self.normalisation = RewardNormalisation.fit(raw)
        except ValueError as error:
            raise CourseError(f"reward normalisation: {error}; use more varied answers") from None
        return self.normalisation

    # ---- files -------------------------------------------------------------------------------

    def save(self, directory: Path | str) -> Path:
        """Writes weights (safetensors), config and tokenizer: the whole directory or nothing.

        Adapters are merged into a copy first, so that `load` needs no PEFT. Plain transformers
        (AutoModelForSequenceClassification) gives the raw scores: the head has no bias to hold the
        mean, so (score - config.reward_mean) / config.reward_std is the reward. It finds the last
        token by the padding's id, which is therefore written as one that ends no answer.
        """
        self.normalisation, self.conversational = self.normalisation, self.conversational
        model = self.model  # whose config now has both, also where they are the defaults
        if hasattr(model, "get_base_model"):
            if getattr(model, "is_loaded_in_4bit", False) or getattr(
                model, "is_loaded_in_8bit", False
            ):
                raise CourseError(
                    "merging adapters into quantised weights loses precision; save the adapters "
                    "with reward.model.save_pretrained(directory)"
                )
            model = copy.deepcopy(model).merge_and_unload()
        tokenizer, config = copy.deepcopy(self.tokenizer), model.config.get_text_config()
        pad = padding_id(tokenizer, config.pad_token_id)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        tokenizer.padding_side = "right"  # GPT-2 counts positions from the left edge, padded or not
        before, config.pad_token_id = config.pad_token_id, pad
        try:
            with atomic_dir(directory) as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
        finally:
            config.pad_token_id = before
        return Path(directory)

    @classmethod
    def load(
        cls, directory: Path | str, device: Any = "cpu", batch_size: int = 64
    ) -> "RewardModel":
        """Reads what `save` wrote. Raises WeightsError when it is missing or damaged."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        directory = Path(directory)
        try:
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            known = {"reward_mean", "reward_std", "reward_conversational"} <= set(config)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{directory} holds no reward model ({error}); train it again"
            ) from None
        if not known:
            raise WeightsError(
                f"{directory}/config.json is no reward model of this course (reward_mean is not in "
                "it); wrap the model in RewardModel and save() it"
            )
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                directory, local_files_only=True, use_safetensors=True, dtype="auto"
            )
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            raise WeightsError(
                f"{directory}: the reward model cannot be read ({type(error).__name__}: {error}); "
                "train it again, or copy the directory again"
            ) from None
        return cls(model.to(device).eval(), tokenizer, batch_size)


def padding_id(tokenizer: Any, trained_with: int | None = None) -> int:
    """An id to pad a classifier's texts with, not the one that ends every answer.

    Transformers' classifier scores the last token that is not padding: with padding = EOS (as
    SmolLM2 has it) that would be the token before the end, and another score.
    """
    candidates = [trained_with, tokenizer.pad_token_id, *tokenizer.all_special_ids]
    known = range(len(tokenizer))
    free = [i for i in candidates if i is not None and i in known and i != tokenizer.eos_token_id]
    return free[0] if free else next(i for i in known if i != tokenizer.eos_token_id)


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token lists -> ids (B, T) and mask (B, T); the id 0 fills, the mask says what is real."""
    width = max(len(row) for row in rows)
    ids = [list(row) + [0] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
