"""The other datasets of the catalogue: real library, tiny repositories, each trap."""

from pathlib import Path

import pytest

from course_utils.data.hub import catalogue, load_public, public_datasets
from course_utils.data.hub.sources import markdown
from course_utils.data.shapes import detect, validate
from course_utils.errors import CourseError, DataError

from . import repos, repos_more
from .repos import assistant, user
from .server import Hub
from .test_families_a import by_prompt, reasons

OASST = "OpenAssistant/oasst1"


def test_dolly(hub: Hub) -> None:
    hub.add("databricks/databricks-dolly-15k", repos_more.dolly())
    both = [*load_public("databricks-dolly-15k", n=None)[0]]
    both += load_public("databricks-dolly-15k", n=None, split="heldout")[0]
    assert len(both) == 59
    assert by_prompt(both)["Do 1\n\nThe text."]["completion"] == [assistant("Done 1")]


def test_oasst_trees_become_conversations(hub: Hub) -> None:
    hub.add(OASST, repos_more.oasst())
    rows, _ = load_public("oasst1", n=None)
    found = by_prompt(rows)
    assert set(found) == {"first?", "and then?", "a tie?"}  # nothing below a deleted message
    assert found["first?"]["completion"] == [assistant("best")]
    assert found["and then?"]["prompt"] == [user("first?"), assistant("best"), user("and then?")]
    assert found["and then?"]["completion"] == [assistant("only answer")]


def test_oasst_ranks_become_pairs(hub: Hub) -> None:
    hub.add(OASST, repos_more.oasst())
    rows, report = load_public("oasst1", kind="preference", n=None)
    assert rows.to_list() == [
        {
            "prompt": [user("first?")],
            "chosen": [assistant("best")],
            "rejected": [assistant("worse")],
        }
    ]
    assert reasons(report) == {"not ranked": 1, "tie": 1}
    held, _ = load_public("oasst1", kind="preference", split="heldout", n=None)
    assert held[0]["chosen"] == [assistant("good")]


def test_sharegpt_reads_the_named_file_and_drops_an_answer_that_comes_first(hub: Hub) -> None:
    hub.add("anon8231489123/ShareGPT_Vicuna_unfiltered", repos_more.sharegpt())
    both = [*load_public("ShareGPT_Vicuna_unfiltered", n=None)[0]]
    both += load_public("ShareGPT_Vicuna_unfiltered", n=None, split="heldout")[0]
    found = by_prompt(both)
    assert len(both) == 78
    assert found["go on 0"]["prompt"] == [user("go on 0")]
    assert found["go on 0"]["completion"] == [assistant("gone on 0")]
    assert "wrong" not in found


def test_tldr(hub: Hub) -> None:
    hub.add("trl-lib/tldr", repos_more.tldr())
    hub.add("trl-lib/tldr-preference", repos_more.tldr_preference())
    rows, _ = load_public("trl-lib/tldr", n=None)
    assert len(rows) == 20
    assert all(row["completion"][0]["content"].startswith("sum") for row in rows)
    held, _ = load_public("tldr", n=3, split="heldout")
    assert "POST: validation" in held[0]["prompt"][0]["content"]
    pairs, report = load_public("tldr-preference", n=None)
    assert len(pairs) == 10
    assert reasons(report)["chosen = rejected"] == 1
    assert reasons(report)["duplicate prompt"] == 9


def test_helpsteer2_pairs_two_answers_to_one_prompt(hub: Hub) -> None:
    hub.add("nvidia/HelpSteer2", repos_more.helpsteer2())
    rows, report = load_public("HelpSteer2", n=None)
    found = by_prompt(rows)
    assert reasons(report) == {"tie": 3, "several turns": 1}  # 2 and 2: ask 2, 6, 10
    assert len(rows) == 8
    assert found["ask 1"]["chosen"] == [assistant("second 1")]
    assert found["ask 3"]["chosen"] == [assistant("first 3")]
    assert "alone" not in found


def test_helpsteer3_takes_the_side_from_the_sign(hub: Hub) -> None:
    hub.add("nvidia/HelpSteer3", repos_more.helpsteer3())
    rows, report = load_public("HelpSteer3", n=None)
    found = by_prompt(rows)
    assert found["ask 0"]["chosen"] == [assistant("one")]  # -3
    assert found["ask 6"]["chosen"] == [assistant("two")]  # 3
    assert reasons(report) == {"tie": 2}


def test_imdb_has_labels_of_both_kinds(hub: Hub) -> None:
    hub.add("stanfordnlp/imdb", repos_more.imdb())
    rows, _ = load_public("imdb", n=None)
    assert detect(rows).kind == "unpaired"
    assert {row["label"] for row in rows} == {True, False}
    assert len(rows[0]["prompt"][0]["content"].split()) == 8
    assert all("<br" not in row["completion"][0]["content"] for row in rows)
    held, _ = load_public("imdb", n=4, split="heldout", kind="prompt-only")
    assert all(row["prompt"][0]["content"].startswith("test") for row in held)


def test_gsm8k_needs_a_configuration_and_has_a_result(hub: Hub) -> None:
    hub.add("openai/gsm8k", repos_more.gsm8k())
    rows, report = load_public("gsm8k", n=None)
    assert len(rows) == 8
    assert reasons(report) == {"no result": 1}
    assert len(load_public("gsm8k", n=3, config="socratic")[0]) == 3
    with pytest.raises(DataError, match="it has main, socratic"):
        load_public("gsm8k", config="other")


def test_tinystories(hub: Hub) -> None:
    hub.add("roneneldan/TinyStories", repos_more.stories())
    rows, report = load_public("TinyStories", n=None)
    assert len(rows) == 28
    assert reasons(report) == {"too short": 1, "empty value": 1}
    assert rows[0]["prompt"][0]["content"].startswith("Once there was cat")
    assert rows[0]["completion"] == [assistant("It ran. It slept.")]


def test_mixtures_of_chats_and_pairs(hub: Hub) -> None:
    hub.add("HuggingFaceTB/smoltalk", repos_more.chats("train", "test", config="all"))
    hub.add("allenai/tulu-3-sft-mixture", repos_more.chats("train"))
    hub.add("allenai/llama-3.1-tulu-3-8b-preference-mixture", repos_more.pairs("train"))
    hub.add("trl-lib/ultrafeedback_binarized", repos_more.pairs("train", "test"))
    rows, report = load_public("smoltalk", n=None)
    assert len(rows) == 119
    assert by_prompt(rows)["train 0?"]["prompt"][0]["role"] == "system"
    assert sum(reasons(report).values()) == 1
    parts = [
        load_public("tulu-3-sft-mixture", n=None, split=split)[0] for split in ("train", "heldout")
    ]
    assert sum(map(len, parts)) == 119
    pairs, _ = load_public("llama-3.1-tulu-3-8b-preference-mixture", n=None)
    assert [m["role"] for m in pairs[0]["prompt"]] == ["user"]
    held, _ = load_public("trl-lib/ultrafeedback_binarized", n=5, split="heldout")
    assert held[0]["prompt"][0]["content"].startswith("test")
    with pytest.raises(DataError, match="give the whole id"):
        load_public("ultrafeedback_binarized")


def test_every_entry_is_complete_and_loads_as_its_shape(hub: Hub, capsys) -> None:
    made = {
        "tatsu-lab/alpaca": repos.alpaca(),
        OASST: repos_more.oasst(),
        "OpenAssistant/oasst2": repos_more.oasst(),
        "Anthropic/hh-rlhf": repos.hh(),
    }
    for id, files in made.items():
        hub.add(id, files)
    for source in catalogue():
        assert source.licence
        assert source.rows
        assert "|" not in source.note
        assert source.config is None or source.config in source.configs
        if source.id in made:
            rows, _ = load_public(source.id, kind=source.kind, n=2)
            validate(rows, source.kind, source.id)
    public_datasets()
    said = capsys.readouterr().out
    assert all(source.id in said for source in catalogue())


def test_the_page_shows_the_catalogue_as_it_is() -> None:
    page = Path(__file__).parents[2] / "docs" / "data.md"
    assert markdown() in page.read_text(encoding="utf-8")


def test_a_license_that_the_repository_states_is_the_one_shown(hub: Hub, capsys) -> None:
    hub.add(OASST, repos_more.oasst(), licence="cc-by-4.0")
    load_public("oasst1")
    load_public("oasst1", kind="preference")
    said = capsys.readouterr().out
    assert said.count("licence cc-by-4.0") == 1
    with pytest.raises(CourseError, match="cannot load"):
        load_public("oasst2")
