"""AI labellers (RLAIF, Lee et al. 2023): whoever has compare(prompt, a, b) -> 0 | 1 can label.

`ConstitutionJudge` reads written principles and no facts: its weakness is stated and known.
`LanguageModelJudge` asks a real chat model, by the logits of "A" and "B", in both orders.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from course_utils.data.worldsets import Comparer, preferences
from course_utils.errors import CourseError
from course_utils.evaluation.agreement import agreement
from course_utils.evaluation.preferences import text_of
from course_utils.feedback.constitution import CONSTITUTION, Constitution, critique
from course_utils.world import families, gold
from course_utils.world.annotators import Annotator

if TYPE_CHECKING:
    import pandas
    from datasets import Dataset

# What an answer to each family is made of, as far as a reader without knowledge can tell
_SUBSTANCE = {
    "add": ("verdict", "taste"),
    "math": ("answer",),
    "howto": ("step",),
    "story": ("story_open", "fact", "story_end"),
    "review": ("review_open", "fact", "praise"),
}
_WANTED = {"explain": 3, "describe": 3, "ask": 1, "which": 1, "compare": 2, "add": 2, "math": 1}


@dataclass(frozen=True)
class ConstitutionJudge:
    """Prefers the answer that breaks fewer principles and says more of what was asked.

    utility = thoroughness in [0, 1] + courtesy for a warm opening - Σ weight of every breach

    Its weakness: it recognises that a sentence states a fact about the topic, but not whether the
    fact is *true*. A fluent falsehood pleases it as much as the truth.
    """

    constitution: Constitution = CONSTITUTION
    courtesy: float = 0.3  # points for a warm opening, >= 0
    temperature: float = 0.3  # of the Bradley-Terry choice, >= 0, as an Annotator's
    seed: int = 0

    def utility(self, prompt: str, answer: str) -> float:
        """How much it likes an answer, in points."""
        weights = {p.name: p.weight for p in self.constitution.principles}
        broken = sum(weights[c.principle] for c in critique(prompt, answer, self.constitution))
        known = families.find(prompt)
        assert known is not None  # critique has looked
        said = gold.recognise(known, answer)
        if self.constitution.harmful(prompt):
            kinds = {sentence.kind for sentence in said}
            thorough = ("refusal" in kinds) / 2 + ("alternative" in kinds) / 2
        else:
            counted = _SUBSTANCE.get(known.family, ("fact",))
            told = {s.text for s in said if s.kind in counted and not gold.off_topic(known, s)}
            wanted = _WANTED.get(known.family, len(counted))
            thorough = min(1.0, len(told) / wanted) if known.family != "howto" else len(told) / 2
        warm = bool(said) and said[0].kind == "opener"
        return min(1.0, thorough) + self.courtesy * warm - broken

    def compare(self, prompt: str, a: str, b: str) -> int:
        """0 when `a` is preferred, 1 when `b` is; the same for (b, a) turned round."""
        reader = Annotator(temperature=self.temperature, seed=self.seed, judge=self.utility)
        return reader.compare(prompt, a, b)


# ---- a real chat model ---------------------------------------------------------------------------

QUESTION = """Two answers to the same request are compared.{principles}

Request: {prompt}

Answer A: {a}

Answer B: {b}

Which answer is better? Reply with A or B only."""


class LanguageModelJudge:
    """A chat model as the judge: P(A better) from the logits of "A" and "B", both orders averaged.

    One order alone would be unfair: chat models prefer a place whatever stands there (Zheng et al.
    2023). `place_preference` measures it.

    Args:
        model, tokenizer: a causal language model with a chat template.
        constitution: principles to show with the question; None: none.
        batch_size: questions in one forward pass.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        constitution: Constitution | None = None,
        batch_size: int = 16,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise CourseError(
                "the judge's tokenizer has no chat template: take an instruction-tuned model, such "
                "as HuggingFaceTB/SmolLM2-360M-Instruct"
            )
        if batch_size < 1:
            raise CourseError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.constitution = constitution
        self._letters = [self._letter(letter) for letter in "AB"]
        if self._letters[0] == self._letters[1]:
            raise CourseError('the judge\'s tokenizer has the same token for "A" and "B"')

    @classmethod
    def load(
        cls, name: str, device: str = "cpu", constitution: Constitution | None = None
    ) -> "LanguageModelJudge":
        """A judge from a folder or the Hub."""
        from course_utils.models import load_policy

        model, tokenizer = load_policy(name, device=device)
        return cls(model, tokenizer, constitution)

    def _letter(self, letter: str) -> int:
        ids = self.tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id:
            raise CourseError(
                f'"{letter}" is not one token of the judge\'s tokenizer ({ids}): its logit cannot '
                "be read; take another model"
            )
        return int(ids[0])

    def question(self, prompt: str, a: str, b: str) -> str:
        """What the model is asked."""
        rules = "" if self.constitution is None else f" Principles:\n{self.constitution.text()}"
        return QUESTION.format(prompt=prompt, a=a, b=b, principles=rules)

    @torch.no_grad()
    def first(self, rows: Sequence[tuple[str, str, str]]) -> list[float]:
        """P(the answer shown first is better) of each (prompt, a, b), in this order only."""
        from course_utils.encoding import pad_left, padding_id, prompt_tokens
        from course_utils.models import evaluating, positions_of

        found: list[float] = []
        asked = [self.question(*row) for row in rows]
        for start in range(0, len(asked), self.batch_size):
            tokens = prompt_tokens(self.tokenizer, asked[start : start + self.batch_size])
            batch = pad_left(tokens, padding_id(self.tokenizer)).to(self.model.device)
            with evaluating(self.model):
                logits = self.model(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    position_ids=positions_of(batch.attention_mask),
                    use_cache=False,
                ).logits[:, -1]  # (B, V): left padding, so the last column is the last token
            pair = logits[:, self._letters].float()  # (B, 2)
            found += pair.softmax(dim=-1)[:, 0].tolist()
        return found

    def probability(self, rows: Sequence[tuple[str, str, str]]) -> list[float]:
        """P(a better than b), both orders averaged: P(a, b) + P(b, a) = 1."""
        there = self.first(rows)
        back = self.first([(prompt, b, a) for prompt, a, b in rows])
        return [(p + 1 - q) / 2 for p, q in zip(there, back, strict=True)]

    def compare(self, prompt: str, a: str, b: str) -> int:
        """0 when `a` is preferred, 1 when `b` is."""
        return int(self.probability([(prompt, a, b)])[0] < 0.5)

    def place_preference(self, rows: Sequence[tuple[str, str, str]]) -> float:
        """Mean P(first is better) over both orders; 0.5 for a judge without a favourite place."""
        if not rows:
            raise CourseError("place_preference needs at least one pair")
        turned = [(prompt, b, a) for prompt, a, b in rows]
        shown = [*self.first(rows), *self.first(turned)]
        return sum(shown) / len(shown)


# ---- labels --------------------------------------------------------------------------------------


def as_pairs(dataset: "Dataset", seed: int = 0) -> list[tuple[str, str, str]]:
    """{prompt, chosen, rejected} rows -> (prompt, a, b) in an order that gives nothing away."""
    pairs = []
    for row in dataset:
        prompt = text_of(row["prompt"], "user")
        a, b = sorted((text_of(row["chosen"], "assistant"), text_of(row["rejected"], "assistant")))
        digest = hashlib.sha256("\0".join((str(seed), prompt, a, b)).encode()).digest()
        pairs.append((prompt, a, b) if digest[0] % 2 else (prompt, b, a))
    return pairs


def relabel(dataset: "Dataset", judge: Comparer, seed: int = 0) -> "Dataset":
    """The same pairs with another judge's labels: {prompt, chosen, rejected}."""
    return preferences(as_pairs(dataset, seed), judge)


def agreement_table(
    judges: Mapping[str, Comparer], pairs: Sequence[tuple[str, str, str]]
) -> "pandas.DataFrame":
    """How far every two judges agree on (prompt, a, b): share with interval, and Cohen's kappa.

    Raises: CourseError for fewer than two judges, or no pairs.
    """
    import pandas

    if len(judges) < 2 or not pairs:
        raise CourseError(
            f"agreement needs two judges and some pairs, got {len(judges)} and {len(pairs)}"
        )
    verdicts = {name: [j.compare(*pair) for pair in pairs] for name, j in judges.items()}
    names, rows = list(judges), []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            found = agreement(verdicts[one], verdicts[other])
            rows.append(
                {
                    "judges": f"{one} · {other}",
                    "agree": found.share,
                    "low": found.low,
                    "high": found.high,
                    "kappa": found.kappa,
                    "pairs": found.n,
                }
            )
    return pandas.DataFrame(rows).set_index("judges")
