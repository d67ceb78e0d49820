"""The four shapes: what is detected, what is refused, and that both spellings convert."""

import tracemalloc

import pytest
from datasets import Dataset, DatasetDict

from course_utils import data
from course_utils.data.shapes import Shape, features
from course_utils.errors import DataError


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


ROWS = {
    "prompt-only": {"prompt": "hi"},
    "prompt-completion": {"prompt": "hi", "completion": "hello"},
    "preference": {"prompt": "hi", "chosen": "hello", "rejected": "go away"},
    "unpaired": {"prompt": "hi", "completion": "hello", "label": True},
}
CONVERSATIONS = {
    "prompt-only": {"prompt": user("hi")},
    "prompt-completion": {"prompt": user("hi"), "completion": assistant("hello")},
    "preference": {
        "prompt": user("hi"),
        "chosen": assistant("hello"),
        "rejected": assistant("go away"),
    },
    "unpaired": {"prompt": user("hi"), "completion": assistant("hello"), "label": True},
}


@pytest.mark.parametrize("kind", data.KINDS)
def test_each_shape_is_detected_valid_and_converted_both_ways(kind):
    standard, conversational = (
        Dataset.from_list([{**rows[kind], "note": "extra"}]) for rows in (ROWS, CONVERSATIONS)
    )
    assert data.detect(standard) == Shape(kind, conversational=False)
    assert data.detect(conversational) == Shape(kind, conversational=True)
    data.validate(standard, kind, "toy")
    data.validate(conversational, kind, "toy")
    assert data.to_conversational(standard)[0] == conversational[0]
    assert data.to_standard(conversational)[0] == standard[0]
    assert data.to_conversational(conversational) is conversational
    assert data.to_standard(standard) is standard


def test_detect_tells_an_empty_conversational_dataset_by_its_schema():
    empty = Dataset.from_dict({"prompt": []}, features=features("prompt-only"))
    assert data.detect(empty) == Shape("prompt-only", conversational=True)


def test_detect_names_the_columns_it_does_not_know():
    with pytest.raises(DataError, match=r'columns "text", "stars".*prompt-only \{prompt\}'):
        data.detect(Dataset.from_list([{"text": "x", "stars": 1}]))


def bad(kind, row, *, good_rows=2):
    """The message about one bad row that stands behind `good_rows` good ones."""
    good = CONVERSATIONS if any(isinstance(v, list) for v in row.values()) else ROWS
    columns = {name: [good[kind][name]] * good_rows + [row[name]] for name in data.KINDS[kind]}
    with pytest.raises(DataError) as caught:
        data.validate(Dataset.from_dict(columns), kind, "prefs.jsonl")
    message = str(caught.value)
    assert message.startswith(f"prefs.jsonl row {good_rows + 1}: ")
    assert ";" in message  # what was seen; the fix
    return message


@pytest.mark.parametrize("text", ["", "  \n", None])
def test_an_empty_string_is_refused(text):
    message = bad("prompt-completion", {"prompt": "hi", "completion": text})
    assert 'column "completion"' in message


def test_equal_answers_are_refused_even_with_spaces_around():
    assert '"chosen" equals "rejected"' in bad(
        "preference", {"prompt": "hi", "chosen": "same", "rejected": " same\n"}
    )
    assert '"chosen" equals "rejected"' in bad(
        "preference",
        {"prompt": user("hi"), "chosen": assistant("a"), "rejected": assistant("a ")},
    )


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([{"role": "human", "content": "x"}], "turn 1 has the role 'human'; use \"system\""),
        (user("x") + user("y"), 'turn 2 is from "user" where "assistant" must speak'),
        (assistant("x"), 'turn 1 is from "assistant" where "user" must speak'),
        (user("x") + assistant("y"), 'ends with "assistant"; end it with "user"'),
        ([*user("x"), {"role": "system", "content": "y"}], 'turn 2 is from "system"'),
        ([{"role": "system", "content": "y"}], 'ends with "system"'),
        (user(" "), "turn 1 is empty"),
        (user(None), "turn 1 is empty"),
        ([], "has no messages"),
        (None, "has no messages"),
    ],
)
def test_faults_of_a_conversational_prompt(prompt, expected):
    with pytest.raises(DataError) as caught:
        data.validate(
            Dataset.from_list([{"prompt": user("x")}, {"prompt": prompt}]), "prompt-only", "p"
        )
    message = str(caught.value)
    assert message.startswith("p row 2: ")
    assert expected in message
    assert 'column "prompt"' in message


def test_an_answer_must_start_with_the_assistant():
    row = {"prompt": user("hi"), "completion": user("hello")}
    message = bad("prompt-completion", row)
    assert 'column "completion", turn 1 is from "user" where "assistant" must speak' in message


def test_long_conversations_with_a_system_message_are_fine():
    prompt = [{"role": "system", "content": "s"}, *user("a"), *assistant("b"), *user("c")]
    completion = assistant("d") + user("e") + assistant("f")
    rows = [{"prompt": prompt, "completion": completion}]
    data.validate(Dataset.from_list(rows), "prompt-completion", "p")
    with pytest.raises(DataError, match='row 1: column "prompt" is not one single user turn'):
        data.to_standard(Dataset.from_list(rows))


@pytest.mark.parametrize("label", [1, 1.0, "true"])
def test_a_label_must_be_a_boolean(label):
    rows = [{"prompt": "hi", "completion": "hello", "label": label}]
    with pytest.raises(DataError, match=r'row 1: column "label" is .* not true or false'):
        data.validate(Dataset.from_list(rows), "unpaired", "p")


def test_a_number_in_place_of_text_is_refused():
    with pytest.raises(DataError, match='row 1: column "prompt" is the number 3, not text'):
        data.validate(Dataset.from_list([{"prompt": 3}]), "prompt-only", "p")


def test_half_conversational_data_is_refused():
    rows = [{"prompt": user("hi"), "completion": "hello"}]
    with pytest.raises(DataError, match='column "completion" is the text "hello", not messages'):
        data.validate(Dataset.from_list(rows), "prompt-completion", "p")


def test_a_missing_column_names_the_found_ones_and_the_nearest():
    rows = Dataset.from_list([{"prompt": "hi", "choosen": "a", "rejected": "b"}])
    with pytest.raises(DataError) as caught:
        data.validate(rows, "preference", "hub/prefs")
    message = str(caught.value)
    assert message.startswith('hub/prefs: no column "chosen"')
    assert '"prompt", "choosen", "rejected"' in message
    assert 'did you mean "choosen"? rename it to "chosen"' in message


def test_what_is_no_dataset_or_has_no_rows_is_refused():
    one = Dataset.from_list([{"prompt": "hi"}])
    with pytest.raises(DataError, match='splits "train", "test"; choose one'):
        data.validate(DatasetDict({"train": one, "test": one}), "prompt-only", "p")
    with pytest.raises(DataError, match=r"is a list, not a datasets\.Dataset"):
        data.validate([{"prompt": "hi"}], "prompt-only", "p")
    with pytest.raises(DataError, match="has no rows"):
        data.validate(one.select([]), "prompt-only", "p")
    with pytest.raises(DataError, match="unknown kind"):
        data.validate(one, "prompts-only", "p")


def test_validation_memory_does_not_grow_with_the_dataset():
    text = "x" * 20_000
    rows = Dataset.from_dict({"prompt": [text] * 2000})  # 40 MB
    tracemalloc.start()
    data.validate(rows, "prompt-only", "big")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20, f"{peak / 2**20:.1f} MiB"
