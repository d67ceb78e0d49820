"""The user's own files: every way to spell the data that we know, and every way to get it wrong."""

import errno
import json

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from course_utils import data
from course_utils.data import files as data_files
from course_utils.data.readers import SUFFIXES
from course_utils.data.report import RowFault
from course_utils.errors import CourseError, DataError

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


def test_csv_rows_with_broken_quotes_or_too_many_fields(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('prompt,completion\na,b\nc,d,e\n"f"x,g\nh\ni,j\n')
    dataset, report = data.load_demonstrations(path)
    assert data.to_standard(dataset)["prompt"][:] == ["a", "i"]
    assert report.drops["wrong number of fields"].rows == [2, 4]
    assert report.drops["broken quotes"].rows == [3]


# --- files that are refused -------------------------------------------------------------------


def test_a_missing_column_names_the_found_ones_and_the_nearest(tmp_path):
    rows = [{"prompt": "q", "choosen": "a", "rejected": "b"}]
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        message = refused(data.load_preferences, write_as(tmp_path / name, rows))
        assert 'no column "chosen"; it has "prompt", "choosen", "rejected"' in message
        assert 'did you mean "choosen"? rename it to "chosen"' in message
    rows = [{"promt": "q", "chosen": "a", "rejected": "b"}]
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        assert 'did you mean "promt"?' in refused(
            data.load_preferences, write_as(tmp_path / name, rows)
        )
    message = refused(
        data.load_demonstrations, write_as(tmp_path / "d.csv", [{"prompt": "q", "x": "y"}])
    )
    assert 'add a column "completion" (or one of "response", "answer"' in message


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_what_is_not_utf8_names_row_and_byte(tmp_path, name):
    path = write_as(tmp_path / name, [PAIR, {**PAIR, "prompt": "MARK"}])
    raw = path.read_bytes().replace(b"MARK", "paëlla".encode("latin-1"))
    path.write_bytes(raw)
    message = refused(data.load_preferences, path)
    assert f"{path} row 2, byte offset {raw.index(0xEB)}: not UTF-8 (byte 0xeb" in message
    assert "save as UTF-8" in message


def test_a_header_that_is_not_utf8(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes("prompt,añadido\nx,y\n".encode("latin-1"))
    assert "header, byte offset 8: not UTF-8" in refused(data.load_prompts, path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_recognised(tmp_path, encoding):
    for name in ("p.jsonl", "p.csv"):
        path = tmp_path / name
        path.write_bytes("prompt\nhello there\n".encode(encoding))
        message = refused(data.load_prompts, path)
        assert "UTF-16" in message
        assert 'save as "UTF-8"' in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.jsonl", b"", "the file is empty; add at least one row"),
        ("p.csv", b" \n\n", "the file is empty"),
        ("p.parquet", b"", "the file is empty"),
        ("p.json", b"[]", "holds no rows"),
        ("p.csv", b"prompt\n", "holds no rows"),
        ("p.csv", b'"prompt\nx\n', "the header cannot be read"),
        ("p.csv", b"prompt,prompt\nx,y\n", 'names the column "prompt" twice'),
        ("p.csv", b'prompt\na\n"b\nc\n', "row 2 (line 3): a quote opened here is never closed"),
        ("p.json", b'[{"prompt": "a"}, {"prompt": "b"', "ends inside row 2"),
        ("p.json", b'[{"prompt": "a"}] []', "text follows the closing ]"),
        ("p.jsonl", b"PK\x03\x04junk", "Excel workbook"),
        ("p.jsonl", b"\x1f\x8bjunk", "gzip"),
        ("p.csv", b"PAR1junk", "Parquet"),
        ("p.parquet", b"PAR1junkPAR1", "not a readable Parquet file"),
        ("p.parquet", b"prompt\nhello\n", "not a readable Parquet file"),
        ("p.docx", b"hello", 'the suffix ".docx" does not tell the format; save it as .jsonl'),
        ("p", b"hello", "a name without suffix"),
    ],
)
def test_files_that_cannot_be_data(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    assert expected in refused(data.load_prompts, path)


def test_a_file_of_bad_rows_only_leads_with_the_commonest_reason(tmp_path):
    path = lines(tmp_path / "p.jsonl", [{**PAIR, "chosen": ""}] * 3 + ["{"])
    message = refused(data.load_preferences, path)
    assert "none of its 4 rows can be used as preference data; row 1: column" in message
    assert "invalid JSON" in message  # the whole table follows


def test_paths_that_are_no_file(tmp_path):
    lines(tmp_path / "prefs.jsonl", [PAIR])
    assert "directory, not a file; name one file in it: prefs.jsonl" in refused(
        data.load_preferences, tmp_path
    )
    assert "did you mean prefs.jsonl?" in refused(data.load_preferences, tmp_path / "pref.jsonl")
    assert "did you mean prefs.jsonl?" in refused(data.load_preferences, tmp_path / "prefs.csv")
    assert "no such file; check the path" in refused(data.load_preferences, tmp_path / "zzz.csv")
    assert "and no folder" in refused(data.load_preferences, tmp_path / "no" / "prefs.jsonl")


def test_a_disk_that_fails_is_an_error_for_the_user(tmp_path, monkeypatch):
    path = lines(tmp_path / "p.jsonl", [PAIR])

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(data_files, "open_table", broken)
    assert "cannot be read (Input/output error)" in refused(data.load_preferences, path)


def test_arguments_are_checked(tmp_path, tiny_tokenizer):
    path = lines(tmp_path / "p.jsonl", [PAIR])
    with pytest.raises(DataError, match="unknown kind"):
        data.load_file(path, "pairs")
    with pytest.raises(DataError, match="go together"):
        data.load_preferences(path, tokenizer=tiny_tokenizer)
    with pytest.raises(DataError, match='use "drop" or "error"'):
        data.load_preferences(path, on_bad_row="ignore")


# --- big files --------------------------------------------------------------------------------


@pytest.fixture
def spooled(tmp_path, monkeypatch):
    """Everything above 64 KiB goes to a file in this folder."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(data_files, "SPOOL_BYTES", 2**16)
    monkeypatch.setattr(data_files, "_spool_directory", lambda: folder)
    return folder


def test_a_big_result_is_memory_mapped_and_the_same(tmp_path, spooled):
    rows = [{"prompt": f"{i} " + "x" * 100, "chosen": "a", "rejected": "b"} for i in range(3000)]
    dataset, _ = data.load_preferences(lines(tmp_path / "p.jsonl", rows))
    assert dataset.cache_files
    assert isinstance(dataset.data, datasets.table.MemoryMappedTable)
    assert data.to_standard(dataset).to_list() == rows


def test_a_full_disk_while_spooling_is_explained(tmp_path, spooled, monkeypatch):
    class FullDisk:
        def write_batch(self, batch):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = pa.ipc.new_stream

    def new_stream(path, schema):
        real(path, schema).close()  # the file is there
        return FullDisk()

    monkeypatch.setattr(pa.ipc, "new_stream", new_stream)
    path = lines(tmp_path / "p.jsonl", pairs(3000))
    with pytest.raises(CourseError, match=r"no space left in .* set TMPDIR"):
        data.load_preferences(path)
    assert not list(spooled.iterdir())


def test_a_load_that_fails_leaves_no_file(tmp_path, spooled):
    rows = [*pairs(3000), b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}']
    assert "row 3001" in refused(data.load_preferences, lines(tmp_path / "p.jsonl", rows))
    assert not list(spooled.iterdir())


def test_half_a_character_is_a_fault_of_its_row():
    sink = data_files.Sink("prompt-only")
    with pytest.raises(RowFault, match=r"half a character \(\\udfff\)"):
        sink.add({"prompt": [{"role": "user", "content": "\udfff"}]}, 1)
