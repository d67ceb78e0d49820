"""What goes wrong on the way: each failure of the Hub by real HTTP, and what the user reads."""

from pathlib import Path
from typing import Any

import pytest
from datasets import config

from course_utils.data.hub import fetch, load_public
from course_utils.data.hub.sources import find
from course_utils.errors import CourseError, DataError

from . import repos
from .server import Hub

ALPACA = "tatsu-lab/alpaca"
CHAT = "HuggingFaceH4/ultrachat_200k"
FILE = r"/resolve/.*parquet$"


def texts(rows: Any) -> list[str]:
    return [row["prompt"][-1]["content"] for row in rows]


def kept() -> list[Path]:
    """The folders of rows kept on disk, whole or not."""
    return list((Path(config.HF_DATASETS_CACHE) / "course_utils").glob("*/*"))


# ---- what was loaded before ----------------------------------------------------------------------


def test_the_same_request_reads_no_file_again_and_works_without_the_hub(hub: Hub) -> None:
    hub.add(ALPACA, repos.alpaca())
    first, report = load_public(ALPACA, n=20, seed=1)
    asked = len(hub.requests)
    again, report_again = load_public(ALPACA, n=20, seed=1)
    assert [path for _, path in hub.requests[asked:]] == [f"/api/datasets/{ALPACA}"]
    assert again.to_list() == first.to_list()
    assert report_again == report
    hub.close()
    offline, report = load_public(ALPACA, n=20, seed=1)
    assert offline.to_list() == first.to_list()
    assert any("cannot be reached" in notice for notice in report.notices)
    with pytest.raises(CourseError, match="not in the local cache, and the Hub cannot be reached"):
        load_public(ALPACA, n=20, seed=2)


def test_switched_off_it_says_so_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.add(ALPACA, repos.alpaca())
    load_public(ALPACA, n=5)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert len(load_public(ALPACA, n=5)[0]) == 5
    with pytest.raises(CourseError, match=r"tatsu-lab/alpaca.*unset HF_HUB_OFFLINE.*load_file"):
        load_public(ALPACA, n=6)
    assert len(hub.requests) == asked


def test_a_commit_can_be_pinned(hub: Hub) -> None:
    repo = hub.add(ALPACA, repos.alpaca())
    old = repo.branches["main"]
    before = load_public(ALPACA, n=20)[0].to_list()
    repo.commit({**repos.alpaca(80), "README.md": b"# new\n"})
    report = load_public(ALPACA, n=None)[1]
    assert report.rows < 90
    assert repo.branches["main"][:8] in report.source
    pinned, report = load_public(ALPACA, n=20, revision=old)
    assert pinned.to_list() == before
    assert old[:8] in report.source
    hub.close()
    assert load_public(ALPACA, n=20, revision=old)[0].to_list() == before
    with pytest.raises(CourseError, match="cannot be reached"):  # no other commit in its place
        load_public(ALPACA, n=20, revision="f" * 40)


def test_damaged_rows_on_disk_are_loaded_again(hub: Hub) -> None:
    hub.add(ALPACA, repos.alpaca())
    first = load_public(ALPACA, n=20)[0].to_list()
    [folder] = kept()
    [arrow] = (folder / "rows").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert load_public(ALPACA, n=20)[0].to_list() == first
    (folder / "report.json").write_text('{"source": "half')
    assert load_public(ALPACA, n=20)[0].to_list() == first


def test_ctrl_c_leaves_nothing_behind(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(ALPACA, repos.alpaca())

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    from datasets import Dataset

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_to_disk", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_public(ALPACA, n=20)
    assert kept() == []
    assert len(load_public(ALPACA, n=20)[0]) == 20


# ---- reading no more than is needed --------------------------------------------------------------


def big_chat() -> dict[str, bytes]:
    """Four shards of about 2 MB in row groups of 5 rows."""
    shards = {}
    for shard in range(4):
        rows = [
            {
                "prompt": f"{shard} {i}?",
                "prompt_id": "0",
                "messages": [
                    repos.user(f"{shard} {i}?"),
                    repos.assistant(repos.noise(6_000, shard * 1000 + i)),
                ],
            }
            for i in range(300)
        ]
        shards[f"data/train_sft-{shard:05d}-of-00004.parquet"] = repos.parquet(rows, group=5)
    shards["data/test_sft-00000-of-00001.parquet"] = repos.parquet(rows[:40])
    named = {split: f"data/{split}-*" for split in ("train_sft", "test_sft")}
    return {"README.md": repos.card(default=named), **shards}


def test_a_large_dataset_is_read_only_as_far_as_rows_are_taken(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.hf_file_system import HfFileSystemFile

    monkeypatch.setattr(fetch, "BUFFER", 20)
    monkeypatch.setattr(fetch, "RANGE", 50_000)  # to these files what they are to real ones
    monkeypatch.setattr(HfFileSystemFile, "DEFAULT_BLOCK_SIZE", 50_000)
    files = big_chat()
    hub.add(CHAT, files)
    rows, _ = load_public(CHAT, n=10)
    assert len(rows) == 10
    size = sum(len(data) for data in files.values())
    assert sum(hub.sent.values()) < 0.4 * size
    assert hub.ranges
    assert texts(load_public(CHAT, n=10, seed=1)[0]) != texts(rows)
    hub.sent.clear()
    whole, _ = load_public(CHAT, n=10, streaming=False)
    assert sum(hub.sent.values()) > 0.9 * size
    hub.sent.clear()
    load_public(CHAT, n=20, streaming=False)  # another request, the same files
    assert sum(hub.sent.values()) < 1_000
    assert len(whole) == 10


# ---- connections ---------------------------------------------------------------------------------


def test_a_cut_download_goes_on_where_it_was_cut(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # written piece by piece
    files = big_chat()
    hub.add(CHAT, files)
    shard = "data/train_sft-00002-of-00004.parquet"
    hub.fail("train_sft-00002.*parquet$", method="GET", cut_after=1_000_000)
    rows, _ = load_public(CHAT, n=None, streaming=False)
    assert len(rows) == 1_200
    assert "bytes=1000000-" in hub.ranges
    assert hub.sent[shard] == 2 * len(files[shard]) - 1_000_000  # `sent` counts what was asked for


@pytest.mark.parametrize("fault", [{"cut_after": 300}, {"status": 503}, {"status": 429}])
def test_a_broken_stream_goes_on_with_the_same_rows(hub: Hub, fault: dict[str, int]) -> None:
    hub.add(CHAT, repos.ultrachat())
    expected = load_public(CHAT, n=None)[0].to_list()
    for path in kept():
        path.rename(path.parent.with_name("gone"))
        break
    hub.fail(FILE, times=2, method="GET", **fault)
    assert load_public(CHAT, n=None)[0].to_list() == expected


def test_a_stream_that_is_opened_again_goes_on_behind_the_last_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ReadError(Exception):
        """As the HTTP library calls a connection that broke."""

    breaks = iter([4, 4, 9])

    def opened(*_: object) -> Any:
        at = next(breaks, None)
        for i in range(12):
            if i == at:
                raise ReadError
            yield {"messages": i}

    monkeypatch.setattr(fetch, "_open", opened)
    monkeypatch.setattr(fetch, "WAITS", (0.0, 0.0))
    source = find(CHAT)
    rows = fetch.rows(source, "train_sft", None, "f" * 40, 0, True)
    assert [row["messages"] for row in rows] == list(range(12))
    breaks = iter([4] * 9)
    with pytest.raises(CourseError, match="cannot load"):
        list(fetch.rows(source, "train_sft", None, "f" * 40, 0, True))


def test_a_slow_server_is_asked_again(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from huggingface_hub import constants

    hub.add(ALPACA, repos.alpaca())
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.fail(FILE, method="GET", pause=0.6)
    assert len(load_public(ALPACA, n=20)[0]) == 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_that_is_always_cut_is_never_used(hub: Hub, stream: bool) -> None:
    hub.add(CHAT, repos.ultrachat())
    hub.fail("train_sft-00001.*parquet$", times=10_000, method="GET", cut_after=200)
    with pytest.raises(CourseError, match=f"cannot load the dataset {CHAT}"):
        load_public(CHAT, n=None, streaming=stream)
    assert kept() == []
    hub.faults.clear()
    assert len(load_public(CHAT, n=None, streaming=stream)[0]) == 298


@pytest.mark.parametrize(
    ("status", "said"), [(429, "slow down"), (500, r"in trouble \(500\)"), (503, "in trouble")]
)
def test_a_hub_that_stays_in_trouble(hub: Hub, capsys, status: int, said: str) -> None:
    hub.add(ALPACA, repos.alpaca())
    hub.fail("/api/datasets", times=10_000, status=status)
    with pytest.raises(CourseError, match=said):
        load_public(ALPACA, n=5)
    assert capsys.readouterr().out.count("trying again") == len(fetch.WAITS)
    hub.faults.clear()
    hub.fail("/api/datasets", times=2, status=status)
    assert len(load_public(ALPACA, n=5)[0]) == 5


# ---- who may read, and what there is -------------------------------------------------------------


def test_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(ALPACA, repos.alpaca(), gated=True)
    page = f"accept its terms on https://huggingface.co/datasets/{ALPACA}.*hf auth login"
    with pytest.raises(CourseError, match=page):
        load_public(ALPACA, n=5)
    monkeypatch.setenv("HF_TOKEN", "hf_someone_else")
    with pytest.raises(CourseError, match=page):
        load_public(ALPACA, n=5)
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert len(load_public(ALPACA, n=5)[0]) == 5
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(CourseError, match="token is not valid"):
        load_public(ALPACA, n=6)


def test_nothing_there(hub: Hub) -> None:
    with pytest.raises(CourseError, match="no such dataset, or it is private"):
        load_public(ALPACA)
    hub.add(ALPACA, repos.alpaca())
    with pytest.raises(CourseError, match=r"no such revision.*/commits/main"):
        load_public(ALPACA, revision="v9")


def test_a_program_is_not_run(hub: Hub) -> None:
    hub.add(ALPACA, {"alpaca.py": b"raise SystemExit('run')", "README.md": b"# x\n"})
    with pytest.raises(CourseError, match="no program of the Hub is run"):
        load_public(ALPACA)


@pytest.mark.parametrize("stream", [False, True])
def test_changed_columns_and_splits_show_expected_and_found(hub: Hub, stream: bool) -> None:
    rows = [{"question": f"{i}?", "output": "yes"} for i in range(5)]
    repo = hub.add(ALPACA, {"data/train-0.parquet": repos.parquet(rows)})
    sha = repo.branches["main"]
    columns = (
        rf'{ALPACA} \(revision {sha}\): expected the columns "instruction", "input", "output", '
        'found "question", "output"; "instruction", "input" missing.*revision="…"'
    )
    with pytest.raises(DataError, match=columns):
        load_public(ALPACA, streaming=stream)
    hub.add(CHAT, {"data/train-0.parquet": repos.parquet(rows)})
    with pytest.raises(DataError, match='expected the split "train_sft", found "train"'):
        load_public(CHAT, streaming=stream)
    assert kept() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("alpaka",), 'did you mean "tatsu-lab/alpaca"'),
        (("some/thing",), "no loader.*load_file"),
        (("alpaca", "preference"), "prompt-completion data, which cannot serve as preference"),
        (("alpaca", "pairs"), 'unknown kind of data "pairs"'),
    ],
)
def test_wrong_names(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_public(arguments[0], kind=arguments[1] if arguments[1:] else None)


def test_wrong_options() -> None:
    for options, said in [
        ({"n": 0}, "at least one row"),
        ({"config": "x"}, 'no configuration "x"'),
        ({"max_length": 5}, "go together"),
        ({"split": "dev"}, 'no split "dev"'),
    ]:
        with pytest.raises(DataError, match=said):
            load_public(ALPACA, **options)
