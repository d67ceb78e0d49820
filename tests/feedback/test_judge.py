"""AI judges: what the reader of principles can and cannot see, a chat model's letters, labels."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from course_utils import world
from course_utils.data.worldsets import preferences
from course_utils.errors import CourseError
from course_utils.feedback.constitution import CONSTITUTION
from course_utils.feedback.ensemble import cautious, resample, train_members
from course_utils.feedback.judge import (
    ConstitutionJudge,
    LanguageModelJudge,
    agreement_table,
    as_pairs,
    relabel,
)

LIONS = "what do lions eat?"
SURE = ConstitutionJudge(temperature=0.0)
WORDS = [
    *[
        "hello",
        "why",
        "is",
        "the",
        "moon",
        "big",
        "it",
        "rocket",
        "star",
        "and",
        "rice",
        "explain",
        "no",
        "yes",
        "great",
        "bad",
    ]
]


def test_the_reader_sees_manners_and_not_truth():
    right, wrong = "lions eat meat.", "lions eat plants."
    assert SURE.utility(LIONS, right) == SURE.utility(LIONS, wrong)
    assert world.gold_reward(LIONS, right).total > world.gold_reward(LIONS, wrong).total
    assert SURE.compare(LIONS, right, "who cares. " + right) == 0
    assert SURE.compare(LIONS, right, "happy to help! " + right) == 1
    harm = "how do i hack a bank?"
    assert SURE.compare(harm, "first use a computer.", "i can not help with that.") == 1


def test_the_order_shown_changes_nothing_and_the_principles_matter():
    noisy = ConstitutionJudge(temperature=1.0)
    a, b = "lions eat meat.", "you are so smart! lions eat meat."
    for seed in range(20):
        judge = ConstitutionJudge(temperature=1.0, seed=seed)
        assert judge.compare(LIONS, a, b) == 1 - judge.compare(LIONS, b, a)
    easy = ConstitutionJudge(CONSTITUTION.without("upright"), temperature=0.0)
    assert easy.utility(LIONS, a) == easy.utility(LIONS, b)
    assert noisy.utility(LIONS, a) > noisy.utility(LIONS, b)


# ---- a chat model --------------------------------------------------------------------------------


@pytest.fixture
def chat():
    """A random model with letters in its vocabulary, and a template that ends at the answer."""
    names = ["<pad>", "<unk>", "<end>", "A", "B", *dict.fromkeys(WORDS)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '?' }}{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


ROWS = [
    ("hello", "great", "bad moon"),
    ("why is the moon big", "it is", "the rocket star and the rice"),
    ("explain", "no", "yes"),
]


def test_probabilities_are_the_letters_softmax_row_by_row(chat):
    model, tokenizer = chat
    judge = LanguageModelJudge(model, tokenizer, batch_size=2)
    for row, found in zip(ROWS, judge.first(ROWS), strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": judge.question(*row)}],
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        a, b = (logits[tokenizer.convert_tokens_to_ids(letter)] for letter in "AB")
        assert found == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-5)


def test_both_orders_make_it_fair_whatever_place_it_likes(chat):
    model, tokenizer = chat
    with torch.no_grad():  # a judge that always says "A"
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("A")] *= 0
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("B")] *= 0
    judge = LanguageModelJudge(model, tokenizer)
    judge_first = judge.first
    judge.first = lambda rows: [min(1.0, p + 0.4) for p in judge_first(rows)]
    assert judge.place_preference(ROWS) == pytest.approx(0.9, abs=1e-6)
    assert judge.probability(ROWS) == pytest.approx([0.5] * 3, abs=1e-6)
    judge = LanguageModelJudge(*chat)
    there = judge.probability(ROWS)
    back = judge.probability([(p, b, a) for p, a, b in ROWS])
    assert [p + q for p, q in zip(there, back, strict=True)] == pytest.approx([1.0] * 3)
    assert judge.compare(*ROWS[0]) == int(there[0] < 0.5)


def test_the_question_carries_the_principles(chat):
    plain, ruled = (LanguageModelJudge(*chat, constitution=c) for c in (None, CONSTITUTION))
    assert "Principles" not in plain.question(*ROWS[0])
    assert CONSTITUTION.text() in ruled.question(*ROWS[0])
    assert "Answer B: bad moon" in ruled.question(*ROWS[0])


def test_models_that_cannot_judge_are_told(chat, tiny_model, tiny_tokenizer):
    model, tokenizer = chat
    with pytest.raises(CourseError, match='"A" is not one token'):
        LanguageModelJudge(tiny_model, tiny_tokenizer)
    with pytest.raises(CourseError, match="batch_size"):
        LanguageModelJudge(model, tokenizer, batch_size=0)
    tokenizer.chat_template = None
    with pytest.raises(CourseError, match="no chat template"):
        LanguageModelJudge(model, tokenizer)
    with pytest.raises(CourseError, match="at least one pair"):
        LanguageModelJudge.place_preference(object.__new__(LanguageModelJudge), [])


# ---- labels and members --------------------------------------------------------------------------


class Longer:
    def compare(self, prompt, a, b):
        return int(len(a) < len(b))


class Shorter:
    def compare(self, prompt, a, b):
        return int(len(a) > len(b))


def answers(n=40):
    return [(f"question {i}", "yes", f"no {'no ' * (i % 5)}no") for i in range(n)]


def test_relabelling_keeps_the_pairs_and_takes_the_judges_word():
    data = preferences(answers(), Longer())
    other = relabel(data, Shorter())
    assert len(other) == len(data)
    for before, after in zip(data, other, strict=True):
        assert before["prompt"] == after["prompt"]
        assert before["chosen"] == after["rejected"]
        assert before["rejected"] == after["chosen"]
    shown = as_pairs(data)
    first = sum(a == "yes" for _, a, _ in shown)
    assert 8 < first < 32, "the chosen answer must not always stand first"
    assert as_pairs(data) == shown
    assert as_pairs(other) == shown, "the order must not depend on the labels"


def test_agreement_of_every_two_judges():
    table = agreement_table({"long": Longer(), "short": Shorter(), "again": Longer()}, answers())
    assert list(table.index) == ["long · short", "long · again", "short · again"]
    assert list(table.agree) == [0, 1, 0]
    assert (table.pairs == 40).all()
    with pytest.raises(CourseError, match="needs two judges"):
        agreement_table({"long": Longer()}, answers())
    with pytest.raises(CourseError, match="needs two judges"):
        agreement_table({"long": Longer(), "short": Shorter()}, [])


def test_members_differ_and_are_joined(tiny_model, tiny_tokenizer):
    from course_utils.training.reward import RewardSettings

    rows = [(f"why {w}", f"great {w}", f"bad {w}") for w in WORDS * 3]
    data = preferences(rows, Longer())
    settings = RewardSettings(steps=3, batch_size=8, save_every=0)
    members = train_members(
        tiny_model, tiny_tokenizer, data, settings, 2, share=0.5, progress=False
    )
    asked, said = [["why moon"] * 3, ["great moon", "bad moon", "no"]]
    one, two = (torch.tensor(m(asked, said), dtype=torch.float64) for m in members)
    assert not torch.allclose(one, two)
    both = torch.stack([one, two])
    for how, wanted in {
        "mean": both.mean(0),
        "min": both.min(0).values,
        "mean_minus_std": both.mean(0) - 2 * both.std(0, unbiased=False),
    }.items():
        found = cautious(members, how, std_weight=2.0)(asked, said)
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), wanted)


def test_nonsense_ensembles_are_named(tiny_model, tiny_tokenizer):
    one = lambda prompts, completions: [0.0] * len(prompts)  # noqa: E731
    with pytest.raises(CourseError, match="at least two rewards, got 1"):
        cautious([one])
    with pytest.raises(CourseError, match="std_weight must be a number >= 0"):
        cautious([one, one], std_weight=-1.0)
    with pytest.raises(CourseError, match="combine must be"):
        cautious([one, one], "max")
    with pytest.raises(CourseError, match="cannot disagree"):
        train_members(tiny_model, tiny_tokenizer, None, None, count=1)
    assert len(resample(10, 0, 0.3)) == 3
    assert resample(10, 0) == resample(10, 0) != resample(10, 1)
    assert set(resample(10, 0)) <= set(range(10))
    for rows, share in ((0, 1.0), (5, 0.0), (5, 1.5)):
        with pytest.raises(CourseError, match="resample needs"):
            resample(rows, 0, share)
