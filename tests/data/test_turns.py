"""One row's cells -> messages: conversations, transcripts, and prompts hidden in the answers."""

import json

import pytest

from course_utils.data import turns
from course_utils.data.report import RowFault

NAMES = ("prompt", "chosen", "rejected")
U, A = turns.user_turn, turns.assistant_turn
EXPLICIT = {"prompt": U("q"), "chosen": A("good"), "rejected": A("bad")}


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("q", "good", "bad"),
        (U("q"), A("good"), A("bad")),
        (U("q"), "good", "bad"),
        ("q", A("good"), A("bad")),
        # UltraFeedback: the prompt is a text and also the first turn of both answers
        ("q", U("q") + A("good"), U("q") + A("bad")),
        (" q\n", U("q") + A("good"), U("q") + A("bad")),
        (U("q"), U("q") + A("good"), U("q") + A("bad")),
        # trl-lib/ultrafeedback_binarized: no prompt at all
        (None, U("q") + A("good"), U("q") + A("bad")),
        # HH-RLHF: transcripts
        (None, "\n\nHuman: q\n\nAssistant: good", "\n\nHuman: q\n\nAssistant: bad"),
        # messages as JSON in a CSV cell
        ("q", json.dumps(U("q") + A("good")), json.dumps(U("q") + A("bad"))),
    ],
)
def test_every_spelling_of_a_preference_means_the_same(prompt, chosen, rejected):
    assert turns.split_pair(prompt, chosen, rejected, NAMES) == EXPLICIT


def test_a_long_conversation_is_cut_at_the_last_common_user_turn():
    start = U("a") + A("b") + U("c")
    row = turns.split_pair(None, start + A("good"), start + A("bad"), NAMES)
    assert row == {"prompt": start, "chosen": A("good"), "rejected": A("bad")}
    # The answers go apart early: what follows belongs to the answers.
    chosen, rejected = U("a") + A("b") + U("c") + A("d"), U("a") + A("x") + U("c") + A("d")
    row = turns.split_pair(None, chosen, rejected, NAMES)
    assert row == {"prompt": U("a"), "chosen": chosen[1:], "rejected": rejected[1:]}
    chosen, rejected = U("a") + A("b") + U("c") + A("d"), U("a") + A("b") + U("x") + A("d")
    row = turns.split_pair(None, chosen, rejected, NAMES)
    assert row == {"prompt": U("a"), "chosen": chosen[1:], "rejected": rejected[1:]}
    # The same first answer is no part of the difference, and no prompt may end with it.
    row = turns.split_pair(None, U("a") + A("b") + U("c") + A("d"), U("a") + A("b"), NAMES)
    assert row["prompt"] == U("a")


def test_the_prompt_column_of_a_long_conversation_may_be_one_of_its_user_turns():
    start = U("first") + A("b") + U("last")
    for prompt in ("first", "last", U("last"), start):
        assert turns.split_pair(prompt, start + A("y"), start + A("n"), NAMES)["prompt"] == start


def fault(*arguments):
    with pytest.raises(RowFault) as caught:
        turns.split_pair(*arguments, NAMES)
    return caught.value


def test_pairs_that_teach_nothing_or_contradict_themselves():
    assert fault("q", "same", "same ").reason == "chosen = rejected"
    assert fault(None, U("q") + A("x"), U("q") + A("x")).reason == "chosen = rejected"
    assert fault(None, U("q") + A("x"), U("other") + A("y")).reason == "prompt mismatch"
    assert fault("other", U("q") + A("x"), U("q") + A("y")).reason == "prompt mismatch"
    assert fault(None, "x", "y").reason == "missing prompt"
    assert fault(None, A("x"), A("y")).reason == "missing prompt"
    assert fault("q", "x", A("y")).reason == "wrong type"
    assert fault("q", None, "y").reason == "empty value"
    assert fault("q", "x", "").reason == "empty value"
    assert fault("q", [], A("y")).reason == "empty value"
    assert fault(None, U("q"), U("q") + A("y")).reason == "empty value"  # no answer in it
    assert fault(None, ["x"], ["y"]).reason == "wrong type"
    dog = [*U("q"), {"role": "dog", "content": "y"}]
    assert fault(None, U("q") + A("x"), dog).reason == "unknown role"


def test_sharegpt_and_other_role_names_become_ours():
    conversation = [{"from": "human", "value": "q"}, {"from": "GPT", "value": "a"}]
    assert turns.split_conversation(conversation, "conversations") == (U("q"), A("a"))
    assert turns.messages([{"role": "prompter", "content": "x", "weight": 1}]) == U("x")


def test_a_conversation_gives_prompt_and_last_answer():
    conversation = [{"role": "system", "content": "s"}, *U("a"), *A("b"), *U("c"), *A("d")]
    assert turns.split_conversation(conversation, "messages") == (conversation[:-1], A("d"))
    assert turns.prompt_of(conversation, "messages") == conversation[:-1]
    assert turns.prompt_of(conversation[:-1], "messages") == conversation[:-1]
    for broken in (conversation[:-1], "text", [], None, A("b"), [3]):
        with pytest.raises(RowFault, match='"messages"'):
            turns.split_conversation(broken, "messages")


def test_messages_printed_by_python_are_not_taken_for_a_text():
    with pytest.raises(RowFault, match=r"not JSON.*json\.dumps"):
        turns.as_prompt(str(U("q")), "prompt")


def test_a_text_that_only_looks_like_a_list_stays_a_text():
    for text in ("[{x}] is what?", '[{"a": 1}]', "[1, 2]"):
        assert turns.as_prompt(text, "prompt") == U(text)


def test_transcripts_keep_paragraphs_and_refuse_other_texts():
    text = "\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant:"
    assert turns.transcript(text) == [*U("a\n\nb"), *A("c"), *U("d"), *A("")]
    assert turns.transcript("He said:\n\nHuman: no") is None
    assert turns.transcript("no speaker") is None
