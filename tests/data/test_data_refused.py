"""The user's own files as a whole: those that are refused, and those too big for memory."""

import errno
import json

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from course_utils import data
from course_utils.data import files as data_files
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
