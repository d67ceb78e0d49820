"""The lab: one dial in; models, data, settings and readable pages out."""

import dataclasses
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from course_utils import world
from course_utils.answer_table import Answer, AnswerTable
from course_utils.errors import CourseError, TierError
from course_utils.lab import Lab
from course_utils.pipeline_map import PipelineMap
from course_utils.tiers import TIERS, choose_tier

QUESTIONS = ["explain black holes to a 5-year-old", "how much is 2 + 3?"]


@pytest.fixture
def lab() -> Lab:
    return Lab(choose_tier("tiny", environ={}), seed=3)


def test_open_says_why_and_takes_the_tier_and_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setenv("COURSE_TIER", "tiny")
    monkeypatch.delenv("COURSE_FAST", raising=False)
    lab = Lab.open(seed=7)
    first = torch.rand(1)
    said = capsys.readouterr().out
    assert said.strip() == lab.choice.reason
    assert "tier tiny" in said
    assert lab.tier == TIERS["tiny"]
    Lab.open(seed=7)
    assert torch.equal(torch.rand(1), first)
    monkeypatch.setenv("COURSE_FAST", "1")
    assert Lab.open().tier.is_fast
    with pytest.raises(TierError, match="tiny"):
        Lab.open(tier="tinny")


def test_opening_prints_warnings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choice = dataclasses.replace(choose_tier("tiny", environ={}), warnings=("hot today",))
    monkeypatch.setattr("course_utils.lab.choose_tier", lambda tier: choice)
    Lab.open()
    assert "note: hot today" in capsys.readouterr().out


def test_runs_go_where_course_runs_says(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COURSE_RUNS", str(tmp_path / "elsewhere"))
    assert lab.run_directory("sft") == tmp_path / "elsewhere" / "sft"
    monkeypatch.delenv("COURSE_RUNS")
    assert lab.run_directory("sft").parent.name == "runs"


def test_base_is_a_fresh_copy_of_the_shipped_model_each_time(lab: Lab) -> None:
    import torch

    first, second = lab.base(), lab.base()
    with torch.no_grad():
        first.lm_head.weight.zero_()
    shipped = world.load_base_model().lm_head.weight
    assert torch.equal(second.lm_head.weight.cpu(), shipped)
    assert torch.equal(lab.base().lm_head.weight.cpu(), shipped)
    assert lab.tokenizer.chat_template == world.load_tokenizer().chat_template


def test_prompts_and_demonstrations_come_from_the_split_and_the_seed(lab: Lab) -> None:
    asked = lab.prompts("heldout", 20)
    assert asked == [p.text for p in world.prompts("heldout", 20, seed=3)]
    assert all(world.find(text).split == "heldout" for text in asked)  # type: ignore[union-attr]
    assert asked != Lab(lab.choice, seed=4).prompts("heldout", 20)
    rows = lab.demonstrations(n=5)
    assert len(rows) == 5
    assert rows[0]["prompt"][0]["role"] == "user"
    assert rows[0]["completion"][0]["role"] == "assistant"
    assert lab.lecture_prompts == list(world.LECTURE_PROMPTS)


def test_generate_uses_the_tiers_length_and_the_labs_seed(lab: Lab) -> None:
    base = lab.base()
    found = lab.generate(base, QUESTIONS)
    assert found == lab.generate(base, QUESTIONS)
    assert found != lab.generate(base, QUESTIONS, seed=99)
    lengths = [len(lab.tokenizer(t, add_special_tokens=False).input_ids) for t in found]
    assert max(lengths) <= lab.tier.ppo.max_new_tokens
    short = lab.generate(base, QUESTIONS, max_new_tokens=2)
    assert all(len(lab.tokenizer(t, add_special_tokens=False).input_ids) <= 4 for t in short)


def test_answers_score_each_model_on_each_prompt(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ["black holes are objects with strong gravity.", "the answer is 5."]
    said = {"good": right, "rude": ["who cares."] * 2}
    monkeypatch.setattr(Lab, "generate", lambda self, model, prompts, **options: said[model])
    table = lab.answers({"good": "good", "rude": "rude"}, QUESTIONS)
    frame = table.frame()
    assert list(frame.prompt) == [q for q in QUESTIONS for _ in range(2)]
    assert list(frame.model) == ["good", "rude"] * 2
    assert list(frame.answer) == [right[0], "who cares.", right[1], "who cares."]
    for row in frame.itertuples():
        score = world.gold_reward(row.prompt, row.answer)
        assert row.gold == pytest.approx(score.total)
        assert row.correctness == pytest.approx(score.parts["correctness"])
    assert frame.gold[0] > frame.gold[1]
    page = table._repr_html_()
    assert f"correctness {frame.correctness[0]:+.2f}" in page
    assert f"tone {frame.tone[1]:+.2f}" in page
    assert frame.tone[1] < 0 < frame.correctness[0]


def test_of_several_samples_the_one_with_the_median_gold_is_shown(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = ["the answer is 9.", "the answer is 5.", "who cares. who cares. who cares."]
    monkeypatch.setattr(Lab, "generate", lambda self, model, prompts, **options: drawn * 2)
    table = lab.answers({"m": None, "n": None}, [QUESTIONS[1], "who knows?"], samples=3)
    assert [a.text for a in table.answers] == [drawn[0]] * 4  # median where scored, else the first
    assert [(a.prompt, a.model) for a in table.answers] == [
        (q, m) for q in (QUESTIONS[1], "who knows?") for m in "mn"
    ]
    drawn.reverse()
    table = lab.answers({"m": None}, [QUESTIONS[1], "who knows?"], samples=3)
    assert [a.text for a in table.answers] == [drawn[2], drawn[0]]
    with pytest.raises(CourseError, match="at least 1"):
        lab.answers({"m": None}, QUESTIONS, samples=0)


def test_answer_table_escapes_everything_and_leaves_out_zero_parts() -> None:
    nasty = "<script>alert('x')</script> & <b>"
    parts = {"tone": 0.0, "<i>": -0.5}
    table = AnswerTable([Answer(nasty, nasty, nasty, 1.5, parts)], {"<i>": nasty})
    page = table._repr_html_()
    assert "<script" not in page
    assert "<b>" not in page.replace("<b style", "")
    assert "<i>" not in page
    assert "&lt;script&gt;" in page
    assert "tone" not in page
    assert "+1.50" in page
    assert "-0.50" in page


def test_answer_table_without_gold_and_without_answers() -> None:
    table = AnswerTable([Answer("why?", "m", ""), Answer("why?", "n", "because " * 40)])
    assert table.frame().gold.isna().all()
    assert "(nothing)" in table._repr_html_()
    assert "+" not in table._repr_html_().replace("max-width", "")
    assert max(map(len, repr(table).splitlines())) <= 100
    assert len(table) == 1
    assert len(AnswerTable([])) == 0
    assert "no answers" in AnswerTable([])._repr_html_()


def test_a_question_that_the_world_does_not_know_is_answered_without_a_score(lab: Lab) -> None:
    frame = lab.answers({"base": lab.base()}, ["who wrote this?", QUESTIONS[1]]).frame()
    assert frame.gold.isna().tolist() == [True, False]


def test_preferences_pair_different_samples_and_ask_the_annotator(lab: Lab) -> None:
    class Alphabetical:
        """Prefers what comes first in the alphabet."""

        def compare(self, prompt: str, a: str, b: str) -> int:
            return int(b < a)

    base = lab.base()
    made = lab.preferences(
        {"base": base, "copy": base}, n=12, annotator=Alphabetical(), max_new_tokens=6
    )
    assert 8 <= len(made) <= 12
    for row in made:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen < rejected
        assert world.find(row["prompt"][0]["content"]).split == "train"  # type: ignore[union-attr]
    again = lab.preferences(
        {"base": base, "copy": base}, n=12, annotator=Alphabetical(), max_new_tokens=6
    )
    assert again.to_list() == made.to_list()


def test_preferences_draw_from_all_models_and_repeat_prompts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def generate(self: Lab, model: str, prompts: list[str], **options: Any) -> list[str]:
        asked.extend(prompts)
        return [f"{model} {options['seed']} {i}" for i in range(len(prompts))]

    monkeypatch.setattr(Lab, "generate", generate)
    monkeypatch.setattr(Lab, "prompts", lambda self, split="train", n=None: ["p", "q", "r"][:n])
    made = lab.preferences(
        {"a": "a", "b": "b"}, n=40, annotator=SimpleNamespace(compare=lambda *shown: 0)
    )
    texts = [(r["chosen"][0]["content"][0], r["rejected"][0]["content"][0]) for r in made]
    assert {frozenset(pair) for pair in texts} == {frozenset("a"), frozenset("b"), frozenset("ab")}
    assert len(made) == 40
    assert len(asked) == 80
    with pytest.raises(CourseError, match="need a model"):
        lab.preferences({})


def test_evaluate_measures_held_out_gold(lab: Lab) -> None:
    found = lab.evaluate(lab.base(), n=6, max_new_tokens=4)
    assert found.prompts == 6
    assert found.gold is not None
    assert math.isfinite(found.mean)
    assert [c.prompt for c in found.completions] == lab.prompts("heldout", 6)


def test_tiers_without_known_quality_have_no_gold_and_say_what_to_do() -> None:
    choice = dataclasses.replace(choose_tier("tiny", environ={}), tier=TIERS["small"])
    lab = Lab(choice)
    assert lab.gold is None
    for call in (lab.prompts, lab.demonstrations):  # no network in tests
        with pytest.raises(CourseError, match=r'tatsu-lab/alpaca.*Lab\.open\(tier="tiny"\)'):
            call()
    with pytest.raises(CourseError, match="Anthropic/hh-rlhf"):
        lab.preferences({"base": None})
    other = dataclasses.replace(TIERS["small"], prompt_data="some/thing")
    with pytest.raises(TierError, match=r'some/thing.*no loader.*Lab\.open\(tier="tiny"\)'):
        Lab(dataclasses.replace(choice, tier=other)).prompts()
    page = lab._repr_html_()
    assert "SmolLM2-135M" in page
    assert "not known" in page


def test_run_directory_is_in_the_checkout_or_here(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lab.run_directory("sft") == tmp_path / "runs" / "sft"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "course_utils"\n')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert lab.run_directory() == tmp_path / "runs" / "latest"
    for bad in ("", "../up", "a/b", "..", ".hidden", "a\\b/c"):
        with pytest.raises(CourseError, match="cannot name a run"):
            lab.run_directory(bad)


def test_card_shows_the_tier_and_escapes(lab: Lab) -> None:
    lab.choice = dataclasses.replace(lab.choice, reason="<b>why</b>", warnings=("<i>",))
    page = lab._repr_html_()
    assert "Tier tiny" in page
    assert "&lt;b&gt;why" in page
    assert "<i>" not in page
    assert repr(lab) == f"Lab(tier='tiny', device={lab.device!r}, seed=3)"


def test_settings_follow_the_tiers_row(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, settings = lab.tier, lab.settings
    for name in ("sft", "reward", "dpo"):
        stage, made = getattr(tier, name), getattr(settings, name)
        for field in ("steps", "batch_size", "learning_rate", "max_length"):
            assert getattr(made, field) == getattr(stage, field), (name, field)
        assert (made.seed, made.precision) == (3, lab.choice.precision)
    assert settings.dpo.beta == tier.dpo.beta
    ppo = settings.ppo
    assert (ppo.steps, ppo.rollouts_per_step) == (tier.ppo.iterations, tier.ppo.rollouts)
    assert (ppo.beta, ppo.learning_rate) == (tier.ppo.beta, tier.ppo.learning_rate)
    assert (ppo.max_new_tokens, ppo.seed) == (tier.ppo.max_new_tokens, 3)


def test_importing_the_lab_imports_no_torch() -> None:
    import subprocess

    code = "import sys, course_utils.lab; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- the pipeline's picture ------------------------------------------------------------------


def test_pipeline_map_shows_the_numbers_it_is_given() -> None:
    page = PipelineMap({"sft": "gold +1.23", "dpo": "<b>", "unknown": "secret"})._repr_html_()
    assert "gold +1.23" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "secret" not in page
    assert "Reward model" in page
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert "SFT model (gold +1.23)" in repr(PipelineMap({"sft": "gold +1.23"}))
