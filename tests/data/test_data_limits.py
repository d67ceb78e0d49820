"""Whatever the bytes and however many: a DataError or a counted drop, in bounded memory."""

import contextlib
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import data
from course_utils.data.readers import SUFFIXES
from course_utils.errors import DataError

# Loads sys.argv[1] and prints the report's numbers and how far the peak memory rose meanwhile, in
# MiB. VmHWM is the peak of this process alone; that of getrusage begins at its parent's.
MEASURE = """
import json, re, sys
from pathlib import Path
from course_utils import data
from course_utils.data.shapes import features
import pyarrow, pyarrow.parquet, datasets
features("prompt-only")
status = Path("/proc/self/status")
peak = lambda: int(re.search("VmHWM: *\\t* *([0-9]+)", status.read_text())[1]) / 1024
before = peak()
dataset, report = data.load_prompts(sys.argv[1])
drops = {reason: d.count for reason, d in report.drops.items()}
print(json.dumps([report.rows, len(dataset), drops, peak() - before]))
"""


def measure(path):
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def write_around(path, middle):
    """A file with a good row, a row whose prompt is `middle` repeated to 100 MB, and a good row."""
    times = 100_000_000 // len(middle)
    begin, end = {
        ".jsonl": (b'{"prompt": "a"}\n{"prompt": "', b'"}\n{"prompt": "b"}\n'),
        ".json": (b'[{"prompt": "a"}, {"prompt": "', b'"}, {"prompt": "b"}]'),
        ".csv": (b'prompt\na\n"', b'"\nb\n'),
    }[path.suffix]
    with open(path, "wb") as file:
        file.write(begin)
        for _ in range(100):
            file.write(middle * (times // 100))
        file.write(end)
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_a_row_of_100_mb_is_dropped_in_bounded_memory(tmp_path, name):
    rows, kept, drops, rise = measure(write_around(tmp_path / name, b"words and "))
    assert (rows, kept, drops) == (3, 2, {"too large": 1})
    assert rise < 60, f"{rise:.0f} MiB"  # the row itself would be 95


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_a_row_of_100_mb_of_escapes_is_dropped_in_bounded_memory(tmp_path, name):
    rows, kept, drops, rise = measure(write_around(tmp_path / name, rb"\"[{,"))
    assert (rows, kept, drops) == (3, 2, {"too large": 1})
    assert rise < 60, f"{rise:.0f} MiB"


@pytest.mark.nightly
def test_a_parquet_row_of_100_mb_is_dropped_in_bounded_memory(tmp_path):
    path = tmp_path / "p.parquet"
    pd.DataFrame({"prompt": ["a", "x" * 100_000_000, "b"]}).to_parquet(path)
    rows, kept, drops, rise = measure(path)
    assert (rows, kept, drops) == (3, 2, {"too large": 1})
    assert rise < 400, f"{rise:.0f} MiB"  # Parquet decodes a page at a time, and it is one page


@pytest.mark.nightly
def test_a_parquet_file_that_unpacks_to_a_multiple_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "p.parquet"
    texts = ["x" * 5_000_000, "y" * 9_000_000]  # each stored once, by the dictionary
    pd.DataFrame({"prompt": texts * 60}).to_parquet(path)
    assert path.stat().st_size < 2**20
    rows, kept, drops, rise = measure(path)
    assert (rows, kept) == (120, 1)
    assert drops == {"too large": 60, "duplicate": 59}
    assert rise < 400, f"{rise:.0f} MiB"  # 840 MB unpacked


@pytest.mark.nightly
@pytest.mark.timeout(900)  # about 15 s of CPU; a busy machine may take minutes
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_file_of_300_mb_is_read_in_bounded_memory(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    text = "words and " * 100
    with open(path, "w") as file:
        file.write({".json": "[", ".csv": "n,prompt\n"}.get(suffix, ""))
        for i in range(300_000):
            row = f"{i},{text} {i}" if suffix == ".csv" else json.dumps({"prompt": f"{text} {i}"})
            file.write(row + (",\n" if suffix == ".json" else "\n"))
        file.write("]" if suffix == ".json" else "")
    rows, kept, drops, rise = measure(path)
    assert (rows, kept, drops) == (300_000, 300_000, {})
    assert rise < 250, f"{rise:.0f} MiB"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_limit_on_one_row(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    frame = pd.DataFrame({"prompt": ["a", "x" * 900, "y" * 1100, "b", "z" * 200_000]})
    match suffix:
        case ".csv" | ".tsv":
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
        case ".parquet":
            frame.to_parquet(path)
        case _:
            frame.to_json(path, orient="records", lines=suffix != ".json")
    dataset, report = data.load_prompts(path, max_row_bytes=1000)
    assert data.to_standard(dataset)["prompt"][:] == ["a", "x" * 900, "b"]
    assert report.drops["too large"].rows == [3, 5]
    assert "the limit is 1000 bytes" in report.text()
    with pytest.raises(
        DataError, match=r"row 3.*: the row has .*; shorten it, or raise max_row_bytes"
    ):
        data.load_prompts(path, max_row_bytes=1000, on_bad_row="error")


def test_a_byte_offset_counts_the_rows_that_were_too_large(tmp_path):
    for name, row in (("p.jsonl", b'{"prompt": "%s"}\n'), ("p.csv", b"%s\n")):
        path = tmp_path / name
        raw = b"prompt\n" if name == "p.csv" else b""
        raw += row % b"a" + row % (b"x" * 5_000_000) + row % b"\xe9"
        path.write_bytes(raw)
        with pytest.raises(DataError, match=rf"row 3, byte offset {raw.index(0xE9)}: not UTF-8"):
            data.load_prompts(path, max_row_bytes=1000)


def test_a_small_limit_bounds_the_memory_of_the_reader(tmp_path):
    path = tmp_path / "p.jsonl"
    with open(path, "w") as file:
        for i in range(20):
            file.write(json.dumps({"prompt": f"{i}" + "x" * 10_000_000 * (i % 2)}) + "\n")
    data.load_prompts(path, max_row_bytes=2**16)  # imports
    tracemalloc.start()
    _, report = data.load_prompts(path, max_row_bytes=2**16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.drops["too large"].count == 10
    assert peak < 4 * 2**20, f"{peak / 2**20:.1f} MiB"


def test_a_quote_that_swallows_more_than_a_row_may_have(tmp_path):
    path = tmp_path / "p.csv"
    for text in ('"a\n' + "b\n" * 1000, '"' + "a" * 2000 + "\nb\n", "a" * 2000 + '"\nb\n'):
        path.write_text("prompt\nx\n" + text)
        with pytest.raises(DataError, match=r"row 2 \(line 3\): a quoted field is not closed"):
            data.load_prompts(path, max_row_bytes=1000)


# --- arbitrary bytes --------------------------------------------------------------------------

PIECES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [
            *(b"{ } [ ] , : \" ' \\ \n \r ; \t # \x00".split(b" ")),
            b'{"prompt": "a"}',
            b'{"prompt": "a", "chosen": [{"role": "user", "content": "x"}], "rejected": "b"}\n',
            b'[{"role": "user", "content": "x"}]',
            b"prompt,completion,label\n",
            b'"prompt": ',
            b'"messages": [{"from": "gpt", "value": 3}]',
            b"null",
            b"true",
            b"1e999",
            b"NaN",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"\\ud800",
            "ñ🥘\u2028".encode(),
        ]
    ),
)
CONTENT = st.lists(PIECES, max_size=30).map(b"".join)


@pytest.mark.parametrize("kind", data.KINDS)
@settings(max_examples=100, deadline=None)
@given(content=CONTENT)
def test_arbitrary_bytes_raise_nothing_but_data_errors(tmp_path_factory, kind, content):
    folder = tmp_path_factory.mktemp("any", numbered=True)
    for suffix in SUFFIXES:
        path = folder / f"any{suffix}"
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            dataset, report = data.load_file(path, kind, max_row_bytes=200)
            assert len(dataset) == report.kept == report.rows - report.dropped
            data.validate(dataset, kind, "any")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [*data.KINDS["preference"], *data.KINDS["unpaired"], "messages", "role", "content"]
            )
            | st.text(max_size=3),
            inner | st.sampled_from(["user", "assistant", "system", "human"]),
            max_size=6,
        )
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("kind", data.KINDS)
@settings(max_examples=100, deadline=None)
@given(rows=st.lists(JSON, min_size=1, max_size=4))
def test_arbitrary_json_raises_nothing_but_data_errors(tmp_path_factory, kind, rows):
    folder = tmp_path_factory.mktemp("any", numbered=True)
    (folder / "any.json").write_text(json.dumps(rows, indent=1))
    (folder / "any.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("any.json", "any.jsonl"):
        with contextlib.suppress(DataError):
            dataset, report = data.load_file(folder / name, kind)
            assert len(dataset) == report.kept == report.rows - report.dropped
            data.validate(dataset, kind, name)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(JSON, max_size=5), indent=st.sampled_from([None, 0, 3]), chunk=st.integers(8, 40)
)
def test_the_list_splitter_agrees_with_the_json_module(tmp_path_factory, rows, indent, chunk):
    from course_utils.data import jsonrows

    path = tmp_path_factory.mktemp("any", numbered=True) / "any.json"
    path.write_text(" [" + json.dumps(rows, indent=indent)[1:] + " \n")
    with pytest.MonkeyPatch.context() as patch, open(path, "rb") as file:
        patch.setattr(jsonrows, "CHUNK", chunk)
        values = [raw.value for raw in jsonrows.json_list(file, "any", 2**20)]
    assert json.dumps(values) == json.dumps(rows)
