"""The user's own files: every way to spell the data that we know, and every way to get it wrong."""

import json

import pandas as pd
import pytest

from course_utils import data
from course_utils.data.readers import SUFFIXES
from course_utils.errors import DataError

PAIR = {"prompt": "hi", "chosen": "hello", "rejected": "go away"}


def lines(path, rows):
    """Writes rows as JSON lines; a row that is bytes or text is written as it is."""
    with open(path, "wb") as file:
        for row in rows:
            raw = row if isinstance(row, str | bytes) else json.dumps(row)
            file.write((raw.encode() if isinstance(raw, str) else raw) + b"\n")
    return path


def pairs(n):
    return [{"prompt": f"question {i}", "chosen": "yes", "rejected": "no"} for i in range(n)]


def refused(load, path, **options):
    with pytest.raises(DataError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


# --- what is read -----------------------------------------------------------------------------


def write_as(path, rows):
    frame = pd.DataFrame(rows)
    match path.suffix:
        case ".jsonl" | ".ndjson":
            lines(path, rows)
        case ".json":
            path.write_text(json.dumps(rows, indent=2))
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".parquet":
            frame.to_parquet(path, row_group_size=3)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    rows = [
        {"prompt": f'is "{i}", a\nnumber? ñ 🥘', "chosen": f"yes {i}", "rejected": "[no]"}
        for i in range(10)
    ]
    dataset, report = data.load_preferences(write_as(tmp_path / f"mine{suffix}", rows))
    assert (report.rows, report.kept, report.drops, report.notices) == (10, 10, {}, [])
    assert report.text() == f"{tmp_path / 'mine'}{suffix}: 10 of 10 rows kept (preference)"
    assert data.to_standard(dataset).to_list() == rows
    data.validate(dataset, "preference", "mine")


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"instruction": "add", "input": "1 and 2", "output": "3"}, "add\n\n1 and 2", "3"),
        ({"instruction": "add", "input": "", "output": "3", "text": "add 3"}, "add", "3"),
        ({"instruction": "a", "context": "c", "response": "r", "category": "x"}, "a\n\nc", "r"),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"input": "q", "output": "a"}, "q", "a"),
        ({" Prompt": "q", "RESPONSE": "a"}, "q", "a"),
        ({"text": "q", "completion": "a"}, "q", "a"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "q",
            "a",
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "q",
            "a",
        ),
        (  # UltraChat: the prompt is there twice
            {
                "prompt": "q",
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ],
            },
            "q",
            "a",
        ),
    ],
)
def test_the_usual_names_of_columns_are_understood(tmp_path, row, prompt, completion):
    dataset, report = data.load_demonstrations(lines(tmp_path / "d.jsonl", [row]))
    assert data.to_standard(dataset)[0] == {"prompt": prompt, "completion": completion}
    assert report.notices
    only, _ = data.load_prompts(lines(tmp_path / "p.jsonl", [row]))
    assert data.to_standard(only)[0] == {"prompt": prompt}


def test_aliases_are_told_once(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(5)]
    _, report = data.load_demonstrations(lines(tmp_path / "d.jsonl", rows))
    assert report.notices == [
        'column "question" read as "prompt"',
        'column "answer" read as "completion"',
    ]
    assert "note: column" in report.text()


def test_a_system_column_becomes_a_system_message(tmp_path):
    rows = [{"system": "be brief", "question": "q", "chosen": "a", "rejected": "b"}]
    dataset, _ = data.load_preferences(lines(tmp_path / "p.jsonl", rows))
    assert dataset[0]["prompt"][0] == {"role": "system", "content": "be brief"}
    assert dataset[0]["prompt"][1] == {"role": "user", "content": "q"}


def test_preferences_with_the_prompt_inside_the_answers(tmp_path):
    turn = {"role": "user", "content": "hi"}
    row = {
        "prompt": "hi",
        "chosen": [turn, {"role": "assistant", "content": "hello"}],
        "rejected": [turn, {"role": "assistant", "content": "go away"}],
        "score_chosen": 8.0,
    }
    expected = data.load_preferences(lines(tmp_path / "e.jsonl", [PAIR]))[0][:]
    for name in ("i.jsonl", "i.json", "i.parquet"):
        dataset, _ = data.load_preferences(write_as(tmp_path / name, [row]))
        assert dataset[:] == expected
    row.pop("prompt")
    dataset, _ = data.load_preferences(lines(tmp_path / "j.jsonl", [row]))
    assert dataset[:] == expected


def test_unpaired_labels(tmp_path):
    path = tmp_path / "u.csv"
    path.write_text("prompt,completion,label\na,b,True\nc,d,0\ne,f,maybe\n")
    dataset, report = data.load_file(path, "unpaired")
    assert dataset["label"][:] == [True, False]
    assert report.drops["wrong type"].rows == [3]
    data.validate(dataset, "unpaired", "u")


def test_prompts_may_be_bare_strings(tmp_path):
    (tmp_path / "p.json").write_text('["explain black holes", "and stars"]')
    dataset, _ = data.load_file(tmp_path / "p.json", "prompts")
    assert data.to_standard(dataset)["prompt"][:] == ["explain black holes", "and stars"]


def test_json_is_told_by_what_it_holds_not_by_its_suffix(tmp_path):
    for name, text in {
        "list.jsonl": json.dumps([PAIR, {**PAIR, "prompt": "x"}]),
        "lines.json": json.dumps(PAIR) + "\n" + json.dumps({**PAIR, "prompt": "x"}),
        "wrapped.json": json.dumps(
            {"version": 1, "data": [PAIR, {**PAIR, "prompt": "x"}]}, indent=1
        ),
        "bom.jsonl": "\ufeff" + json.dumps(PAIR) + "\r\n" + json.dumps({**PAIR, "prompt": "x"}),
    }.items():
        (tmp_path / name).write_bytes(text.encode())
        dataset, report = data.load_preferences(tmp_path / name)
        assert data.to_standard(dataset)["prompt"][:] == ["hi", "x"], name
        assert report.dropped == 0
    (tmp_path / "one.json").write_text(json.dumps(PAIR, indent=2))
    assert len(data.load_preferences(tmp_path / "one.json")[0]) == 1


def test_csv_with_byte_order_mark_semicolons_or_messages_in_cells(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes("\ufeffprompt;completion\r\nhi, you;hello\r\n".encode())
    dataset, report = data.load_demonstrations(path)
    assert data.to_standard(dataset)[0] == {"prompt": "hi, you", "completion": "hello"}
    assert 'the fields are separated by ";"' in report.text()
    cell = json.dumps([{"role": "user", "content": "hi"}])
    pd.DataFrame([{"prompt": cell, "completion": "x"}]).to_csv(path, index=False)
    dataset, _ = data.load_demonstrations(path)
    assert dataset[0]["prompt"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_long_texts_below_the_limit_are_read_whole(tmp_path, suffix):
    rows = [{"prompt": "a" * 300_000, "completion": "b\n" * 700_000}]  # csv's own limit: 131,072
    dataset, _ = data.load_demonstrations(write_as(tmp_path / f"mine{suffix}", rows))
    assert data.to_standard(dataset).to_list() == rows


# --- rows that are dropped --------------------------------------------------------------------


def test_bad_rows_are_counted_by_reason_with_the_first_three(tmp_path):
    rows = [
        *pairs(1),
        {"prompt": "q", "chosen": "same", "rejected": "same "},
        {"prompt": "q", "chosen": "", "rejected": "x"},
        "",
        '{"prompt": "q", "chosen": ',
        {"prompt": 3, "chosen": "a", "rejected": "b"},
        *pairs(1),
        [1, 2],
        {"prompt": "q", "chosen": "a"},
        {},
        {"prompt": None, "chosen": "a", "rejected": "b"},
        '{"prompt": "half \\ud800", "chosen": "a", "rejected": "b"}',
        *[{"prompt": f"q{i}", "chosen": "s", "rejected": "s"} for i in range(4)],
        "[" * 100_000,
        '{"prompt": ' + "1" * 5000 + "}",
    ]
    path = lines(tmp_path / "p.jsonl", rows)
    dataset, report = data.load_preferences(path)
    assert {reason: (d.count, d.rows) for reason, d in report.drops.items()} == {
        "chosen = rejected": (5, [2, 13, 14]),
        "empty value": (2, [3, 11]),
        "empty row": (2, [4, 10]),
        "invalid JSON": (3, [5, 17, 18]),
        "wrong type": (2, [6, 8]),
        "duplicate": (1, [7]),
        "missing column": (1, [9]),
        "invalid Unicode": (1, [12]),
    }
    assert report.kept == len(dataset) == 1
    assert report.rows == report.kept + report.dropped == len(rows)
    text = report.text()
    assert "1 of 18 rows kept (preference)" in text
    assert "5        chosen = rejected  2, 13, 14, …" in text
    assert max(map(len, text.splitlines())) < 140


def test_on_bad_row_error_names_file_row_and_fix(tmp_path):
    path = lines(tmp_path / "p.jsonl", [*pairs(2), {"prompt": "q", "chosen": "s", "rejected": "s"}])
    message = refused(data.load_preferences, path, on_bad_row="error")
    assert message.startswith(f'{path} row 3: "chosen" equals "rejected"')
    assert message.endswith("drop the row")


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_a_row_is_named_by_its_number_and_line(tmp_path, name):
    good, bad = PAIR, {**PAIR, "chosen": ""}
    path = write_as(tmp_path / name, [good, bad])
    place = {"p.jsonl": "row 2: ", "p.json": "row 2 (line 7): ", "p.csv": "row 2 (line 3): "}[name]
    message = refused(data.load_preferences, path, on_bad_row="error")
    assert message.startswith(f'{path} {place}column "chosen" is empty')


def test_blank_lines_count_except_at_the_end(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('\n{"prompt": "a"}\n \n\n{"prompt": "b"}\n\n\n')
    _, report = data.load_prompts(path)
    assert (report.rows, report.kept, report.drops["empty row"].rows) == (5, 2, [1, 3, 4])
    path = tmp_path / "p.csv"
    path.write_text("prompt,n\na,1\n,\n\nb,2\n,\n\n")
    _, report = data.load_prompts(path)
    assert (report.rows, report.kept, report.drops["empty row"].rows) == (4, 2, [2, 3])


def test_rows_equal_after_truncation_are_dropped(tmp_path, tiny_tokenizer):
    same_start = "the moon is big and "
    rows = [
        {"prompt": "hello", "chosen": "yes", "rejected": "no"},
        {"prompt": "hello", "chosen": same_start + "dark", "rejected": same_start + "small"},
    ]
    path = lines(tmp_path / "p.jsonl", rows)
    # <|user|> hello <|assistant|> the moon is big and dark <|end|>: the answers differ at token 9
    for length, kept in ((8, 1), (9, 2)):
        dataset, report = data.load_preferences(path, tokenizer=tiny_tokenizer, max_length=length)
        assert len(dataset) == kept
    _, report = data.load_preferences(path, tokenizer=tiny_tokenizer, max_length=8)
    assert '"chosen" equals "rejected" after truncation to 8 tokens' in report.text()
    message = refused(
        data.load_preferences, path, tokenizer=tiny_tokenizer, max_length=8, on_bad_row="error"
    )
    assert message == (
        f'{path} row 2: "chosen" equals "rejected" after truncation to 8 tokens; drop the row or '
        "raise max_length"
    )


def test_prompts_that_leave_no_room_are_dropped(tmp_path, tiny_tokenizer):
    rows = [{"prompt": "hello", "completion": "yes"}, {"prompt": "why " * 20, "completion": "yes"}]
    path = lines(tmp_path / "d.jsonl", rows)
    # with the generation marker the prompts have 3 and 22 tokens
    dataset, report = data.load_demonstrations(path, tokenizer=tiny_tokenizer, max_length=22)
    assert len(dataset) == 1
    assert "the prompt has 22 tokens, so truncation to 22 leaves no answer" in str(report.drops)
    assert len(data.load_demonstrations(path, tokenizer=tiny_tokenizer, max_length=23)[0]) == 2
    assert len(data.load_prompts(path, tokenizer=tiny_tokenizer, max_length=22)[0]) == 2
    dataset, report = data.load_prompts(path, tokenizer=tiny_tokenizer, max_length=21)
    assert len(dataset) == 1
    assert report.drops["prompt too long"].rows == [2]


def test_a_tokenizer_without_chat_template_measures_the_bare_texts(tmp_path, tiny_tokenizer):
    tiny_tokenizer.chat_template = None
    path = lines(tmp_path / "d.jsonl", [{"prompt": "one two three "}, {"prompt": "one "}])
    dataset, _ = data.load_prompts(path, tokenizer=tiny_tokenizer, max_length=2)
    assert data.to_standard(dataset)["prompt"][:] == ["one "]


def test_what_the_chat_template_refuses_is_dropped(tmp_path, tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('no system role') }}{% endif %}hi"
    )
    rows = [{"prompt": "one"}, {"prompt": "two", "system": "be brief"}]
    path = lines(tmp_path / "p.jsonl", rows)
    dataset, report = data.load_prompts(path, tokenizer=tiny_tokenizer, max_length=10)
    assert len(dataset) == 1
    assert "refuses the row (no system role)" in str(report.drops["chat template"])


def test_csv_rows_with_broken_quotes_or_too_many_fields(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt,completion\na,b\nc,d,e\n"f"x,g\nh\ni,j\n')
    dataset, report = data.load_demonstrations(path)
    assert data.to_standard(dataset)["prompt"][:] == ["a", "i"]
    assert report.drops["wrong number of fields"].rows == [2, 4]
    assert report.drops["broken quotes"].rows == [3]
