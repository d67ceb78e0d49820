"""The tiers' own datasets: real library, tiny repositories in the real schemas, their traps."""

import pytest

from course_utils.data.hub import load_public
from course_utils.errors import DataError

from . import repos
from .server import Hub


def by_prompt(rows) -> dict[str, dict]:
    return {row["prompt"][-1]["content"]: row for row in rows}


def reasons(report) -> dict[str, int]:
    return {reason: drops.count for reason, drops in report.drops.items()}


def test_alpaca_joins_the_input_and_drops_what_has_no_answer(hub: Hub, capsys) -> None:
    hub.add("tatsu-lab/alpaca", repos.alpaca(), licence="cc-by-nc-4.0")
    rows, report = load_public("tatsu-lab/alpaca", n=None)
    held, held_report = load_public("alpaca", split="heldout", n=None)
    both = by_prompt([*rows, *held])
    assert both["Name thing 0."]["completion"] == [repos.assistant("Thing 0.")]
    assert "Name thing 1.\n\nBirds:\nwren, owl" in both
    assert "Name thing 2." in both  # not "<noinput>"
    total = {
        k: reasons(report).get(k, 0) + reasons(held_report).get(k, 0)
        for k in ("empty value", "duplicate prompt")
    }
    assert total == {"empty value": 2, "duplicate prompt": 1}  # the empty one is seen by both
    assert len(rows) + len(held) == len(both) == 118
    said = capsys.readouterr().out
    assert said.count("licence cc-by-nc-4.0") == 1


def test_hh_transcripts_are_cut_where_the_answers_begin(hub: Hub) -> None:
    hub.add("Anthropic/hh-rlhf", repos.hh())
    rows, report = load_public("Anthropic/hh-rlhf", n=None, config="helpful-base")
    assert rows.column_names == ["prompt", "chosen", "rejected"]
    three = by_prompt(rows)["helpful-base: what is 5?"]
    assert three == {
        "prompt": [
            repos.user("May I ask?"),
            repos.assistant("Yes."),
            repos.user("helpful-base: what is 5?"),
        ],
        "chosen": [repos.assistant("Five.")],
        "rejected": [repos.assistant("No.")],
    }
    assert reasons(report) == {"chosen = rejected": 1, "empty value": 1, "not a transcript": 1}
    assert len(rows) == 57
    every, _ = load_public("Anthropic/hh-rlhf", n=None)
    assert len(every) == 4 * 57  # red-team-attempts is no preference set, and is not read
    held, _ = load_public("hh-rlhf", split="test", n=None, one_turn=True)
    assert len(held) == 80


def test_ultrachat_takes_the_sft_splits_and_the_last_answer(hub: Hub) -> None:
    hub.add("HuggingFaceH4/ultrachat_200k", repos.ultrachat())
    rows, report = load_public("HuggingFaceH4/ultrachat_200k", n=None)
    assert len(rows) == 298
    assert reasons(report) == {"empty value": 2}
    assert all("train_sft" in row["prompt"][0]["content"] for row in rows)
    found = by_prompt(rows)
    assert found["Sure?"]["prompt"][:2] == [
        repos.user("train_sft 0 1?"),
        repos.assistant("Yes, 1."),
    ]
    assert found["train_sft 0 2?"]["completion"] == [repos.assistant("Yes, 2.")]
    held, _ = load_public("ultrachat_200k", split="heldout", n=5)
    assert len(held) == 5
    assert all("test_sft" in row["prompt"][0]["content"] for row in held)
    with pytest.raises(DataError, match=r'no split "train_sft".*train_sft and test_sft'):
        load_public("ultrachat_200k", split="train_sft")


def test_ultrafeedback_has_its_prompt_once_and_no_ties(hub: Hub) -> None:
    hub.add("HuggingFaceH4/ultrafeedback_binarized", repos.ultrafeedback())
    rows, report = load_public("HuggingFaceH4/ultrafeedback_binarized", n=None)
    assert reasons(report) == {
        "tie": 1,
        "chosen = rejected": 1,
        "prompt mismatch": 1,
        "duplicate prompt": 1,
    }
    assert len(rows) == 116
    for row in rows:
        assert [m["role"] for m in row["prompt"]] == ["user"]
        assert [m["role"] for m in row["chosen"] + row["rejected"]] == ["assistant"] * 2
        assert row["prompt"][0]["content"].startswith("train_prefs")
    held, _ = load_public(
        "HuggingFaceH4/ultrafeedback_binarized", split="heldout", n=7, kind="prompt-only"
    )
    assert len(held) == 7
    assert held.column_names == ["prompt"]
    assert held[0]["prompt"][0]["content"].startswith("test_prefs")
