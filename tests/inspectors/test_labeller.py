"""PreferenceLabeller without a browser: pairs, the file, the log, judges, what labels train."""

import json
import random
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from course_utils.data.label_file import LabelFile
from course_utils.data.labels import read_labels
from course_utils.data.pairs import read_pairs
from course_utils.errors import CourseError, DataError
from course_utils.inspectors.labeller import PreferenceLabeller

from .conftest import NASTY


def rows(n: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"ask {i}", "chosen": f"great {i}", "rejected": f"bad {i}"} for i in range(n)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels.jsonl"


def messages(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def chat(n: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": messages("user", r["prompt"]),
            "chosen": messages("assistant", r["chosen"]),
            "rejected": messages("assistant", r["rejected"]),
        }
        for r in rows(n)
    ]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# ---- pairs -----------------------------------------------------------------------------------


def test_the_side_of_an_answer_is_a_fair_coin_that_does_not_know_the_label() -> None:
    pairs = read_pairs(rows(2000)).kept
    assert 900 < sum(p.given == "left" for p in pairs) < 1100
    turned = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows(2000)]
    assert [p.shown() for p in read_pairs(turned).kept] == [p.shown() for p in pairs]
    other = read_pairs(rows(2000), seed=1).kept
    assert 900 < sum(a.left != b.left for a, b in zip(pairs, other, strict=True)) < 1100
    mixed = read_pairs(random.Random(0).sample(rows(2000), 2000)).kept
    assert {p.id: p.left for p in mixed} == {p.id: p.left for p in pairs}


def test_pairs_come_from_dicts_tuples_and_datasets() -> None:
    from datasets import Dataset

    plain = read_pairs([("p", "x", "y")]).kept
    assert plain[0].given is None
    assert read_pairs([{"prompt": "p", "a": "y", "b": "x"}]).kept[0].shown() == plain[0].shown()
    table = read_pairs(Dataset.from_list(chat(3)))
    assert table.conversational
    assert [p.prompt[0]["content"] for p in table.kept] == ["ask 0", "ask 1", "ask 2"]


def test_equal_and_repeated_pairs_are_left_out_and_counted(path: Path) -> None:
    labeller = PreferenceLabeller(
        [("p", "x", "y"), ("p", "x", " x "), ("p", "y", "x"), ("q", "x", "y")], path
    )
    assert len(labeller.pairs) == 2
    assert labeller.summary()["left_out"] == 2
    assert "answers are equal): row 2" in labeller.state["notes"][0]
    assert "there already): row 3" in labeller.state["notes"][1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "x"}, 'no column "rejected"'),
        ({"a": "x", "b": "y"}, 'no column "prompt"'),
        (("p", "x", ""), 'column "b" is empty'),
        (("p", "x", None), 'column "b" has no value'),
        (("p", 3, "y"), 'column "a" is the number 3'),
        ((messages("user", "p"), "x", "y"), "use one kind for all"),
        ({"prompt": "p", "chosen": messages("assistant", "x"), "rejected": "y"}, '"chosen"'),
        ("just text", "not|the row is"),
    ],
)
def test_a_bad_row_is_named(row: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"^pairs row 2: .*{said}"):
        read_pairs([("p", "x", "y"), row])


def test_no_pairs_at_all(path: Path) -> None:
    labeller = PreferenceLabeller([], path)
    assert "0 of 0" in labeller.line()
    assert labeller.undo() is None
    assert "no pairs" in labeller.html()
    with pytest.raises(CourseError, match="no pair 0"):
        labeller.label(0, "left")


# ---- labels and the file -----------------------------------------------------------------------


def test_every_label_is_a_line_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    synced: list[int] = []
    real = os.fsync
    labeller = PreferenceLabeller(rows(3), path)
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(path.stat().st_size), real(fd)))
    made = labeller.label(0, "left", seconds=2.5)
    assert synced == [path.stat().st_size]
    header, line = lines(path)
    assert header["kind"] == "labels"
    assert header["id"] == labeller.state["labeller"]
    assert line == made
    pair = labeller.pairs[0]
    wanted = {"left": pair.left, "right": pair.right, "choice": "left", "seconds": 2.5}
    assert wanted.items() <= line.items()


def test_undo_adds_a_line_and_changes_none(path: Path) -> None:
    labeller = PreferenceLabeller(rows(4), path)
    labeller.label(0, "left")
    labeller.label(1, "tie")
    before = path.read_bytes()
    labeller.undo()
    assert path.read_bytes().startswith(before)
    assert labeller.summary()["labelled"] == 1
    labeller.undo()
    assert labeller.undo() is None
    assert labeller.labels.counts()["undone"] == 2
    labeller.label(0, "left")
    labeller.label(0, "right")  # the last label of a pair counts
    assert [r["choice"] for r in labeller.labels.standing()] == ["right"]
    labeller.undo()  # and taking it back leaves the one before
    assert [r["choice"] for r in labeller.labels.standing()] == ["left"]


def test_it_goes_on_where_it_stopped_also_with_pairs_in_another_order(path: Path) -> None:
    first = PreferenceLabeller(rows(5), path)
    first.label(3, "right")
    again = PreferenceLabeller(rows(8)[::-1], path)
    assert again.state["labeller"] == first.state["labeller"]
    assert again.summary()["labelled"] == 1
    assert again.state["log"][0]["pair"] == first.pairs[3].id


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_half_a_last_line_is_not_read_and_the_next_label_takes_its_place(
    path: Path, cut: int
) -> None:
    labeller = PreferenceLabeller(rows(3), path)
    labeller.label(0, "left")
    whole = path.read_bytes()
    labeller.label(1, "right")
    path.write_bytes(path.read_bytes()[:-cut])
    expected = 2 if cut == 1 else 1  # only its line end is missing: the label is there
    assert len(read_labels(path).records) == expected
    again = PreferenceLabeller(rows(3), path)
    again.label(2, "tie")
    assert path.read_bytes().startswith(whole)
    found = read_labels(path)
    assert len(found.records) == expected + 1
    assert found.records[-1]["choice"] == "tie"


def test_a_file_of_another_kind_is_refused_and_left_alone(path: Path) -> None:
    for text in ('{"prompt": "p"}\n', "hello", '{"kind": "labels", "version": 9, "id": "x"}\n'):
        path.write_text(text)
        with pytest.raises(DataError, match="labels"):
            PreferenceLabeller(rows(1), path)
        assert path.read_text() == text
    with pytest.raises(DataError, match="no file"):
        read_labels(path.with_name("none.jsonl"))


def test_a_header_that_was_never_finished_is_made_again(path: Path) -> None:
    for text in ("", "\n", '{"kind": "lab', '{"kind": "labels", "version": 1, "id'):
        path.write_text(text)
        PreferenceLabeller(rows(1), path).label(0, "left")
        assert len(read_labels(path).records) == 1


def test_a_damaged_line_is_named(path: Path) -> None:
    labeller = PreferenceLabeller(rows(3), path)
    for i in range(3):
        labeller.label(i, "left")
    data = path.read_bytes().split(b"\n")
    data[2] = b'{"kind": "label"}'
    path.write_bytes(b"\n".join(data))
    with pytest.raises(DataError, match=r"labels.jsonl line 3 is not a label"):
        read_labels(path)


def test_a_file_that_was_removed_or_replaced_is_noticed(path: Path) -> None:
    labeller = PreferenceLabeller(rows(2), path)
    labeller.label(0, "left")
    path.unlink()
    with pytest.raises(DataError, match="run the cell"):
        labeller.label(1, "left")
    PreferenceLabeller(rows(2), path)
    with pytest.raises(DataError, match="run the cell"):
        labeller.label(1, "left")


def test_a_failed_write_leaves_no_trace(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    labeller = PreferenceLabeller(rows(3), path)
    labeller.label(0, "left")
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(CourseError, match="no space left"):
            labeller.label(1, "left")
    assert path.read_bytes() == before
    labeller.label(1, "left")
    assert labeller.summary()["labelled"] == 2


def test_labellers_on_one_file_merge(path: Path) -> None:
    one, two = PreferenceLabeller(rows(40), path), PreferenceLabeller(rows(40), path)

    def work(labeller: PreferenceLabeller, start: int) -> None:
        for i in range(start, 40, 2):
            labeller.label(i, "left")

    threads = [threading.Thread(target=work, args=a) for a in ((one, 0), (two, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.refresh() + two.refresh() > 0
    assert one.summary()["labelled"] == two.summary()["labelled"] == 40
    assert one.state["log"] == two.state["log"]
    assert len(lines(path)) == 41


def test_annotators_share_a_file_and_not_their_labels(path: Path) -> None:
    me = PreferenceLabeller(rows(2), path)
    ana = PreferenceLabeller(rows(2), path, annotator="Ana")
    me.label(0, "left")
    ana.label(0, "right")
    me.refresh()
    assert [r["choice"] for r in me.labels.standing()] == ["left"]
    assert len(me.state["log"]) == 1
    assert read_labels(path).annotators == ["me", "Ana"]
    assert len(read_labels(path).by("Ana").standing()) == 1


def test_nasty_text_survives_the_file(path: Path) -> None:
    texts = [NASTY, "שלום \u202e \u2028 🏳️‍🌈", "line\r\nend\x00", "lone \ud83d surrogate"]
    labeller = PreferenceLabeller([(f"p{i}", text, "x") for i, text in enumerate(texts)], path)
    for i, pair in enumerate(labeller.pairs):
        labeller.label(i, "left" if pair.left == texts[i] else "right")
    again = PreferenceLabeller([(f"p{i}", text, "x") for i, text in enumerate(texts)], path)
    assert [row["chosen"] for row in again.labels.rows()] == texts
    assert again.summary()["labelled"] == 4
    assert "<script>window" not in again.html()


# ---- what the browser sends ----------------------------------------------------------------------


def sent(labeller: PreferenceLabeller, index: int, choice: str, number: int) -> dict[str, Any]:
    pair = labeller.pairs[index].id
    return {
        "kind": "label", "id": f"{number:032x}", "pair": pair, "choice": choice,
        "annotator": "me", "seconds": 1.0, "at": "2026-01-01T00:00:00.000Z", "peeked": True,
    }  # fmt: skip


def test_records_from_the_browser_are_written_once_however_often_they_come(path: Path) -> None:
    labeller = PreferenceLabeller(rows(3), path)
    records = [sent(labeller, 0, "left", 1), sent(labeller, 1, "tie", 2)]
    undo = {"kind": "undo", "id": "f" * 32, "of": records[1]["id"], "at": "x"}
    for _ in range(3):
        labeller.received({"kind": "labels", "have": 0, "records": [undo, *records]})
    assert len(lines(path)) == 4
    assert [r["pair"] for r in labeller.labels.standing()] == [labeller.pairs[0].id]
    assert labeller.labels.standing()[0]["peeked"] is True
    assert labeller.labels.standing()[0]["left"] == labeller.pairs[0].left


def test_a_page_that_missed_the_answer_is_told_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labeller = PreferenceLabeller(rows(3), path)
    heard: list[Any] = []
    monkeypatch.setattr(labeller.widget, "send", heard.append)
    message = {"kind": "labels", "have": 0, "records": [sent(labeller, 0, "left", 1)]}
    labeller.received(message)
    heard.clear()
    labeller.received(message)
    log = labeller.state["log"]
    assert heard == [{"kind": "append", "at": {"log": 0}, "add": {"log": log}}]


def test_a_label_on_other_pairs_brings_its_texts_along(path: Path) -> None:
    old = PreferenceLabeller(rows(5), path)
    record = {**sent(old, 4, "right", 1), **old.pairs[4].shown(), "id": f"{1:032x}"}
    labeller = PreferenceLabeller(rows(2), path)
    labeller.received({"kind": "labels", "have": 0, "records": [record]})
    assert labeller.labels.rows()[0]["prompt"] == "ask 4"
    assert labeller.labels.standing()[0]["pair"] == old.pairs[4].id
    assert labeller.summary()["labelled"] == 0


def test_what_is_no_label_is_refused_with_a_reason(path: Path) -> None:
    labeller = PreferenceLabeller(rows(2), path)
    good = sent(labeller, 0, "left", 1)
    bad = [
        {**good, "id": "a" * 32, "choice": "best"},
        {**good, "id": "b" * 32, "pair": "unknown"},
        {**good, "id": "c" * 32, "kind": "other"},
    ]
    labeller.received({"kind": "labels", "have": 0, "records": [*bad, good]})
    assert set(labeller.state["refused"]) == {"a" * 32, "b" * 32, "c" * 32}
    assert len(lines(path)) == 2


def test_a_full_disk_is_said_and_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labeller = PreferenceLabeller(rows(2), path)
    message = {"kind": "labels", "have": 0, "records": [sent(labeller, 0, "left", 1)]}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(LabelFile, "_write", full)
        with pytest.raises(CourseError, match="no space left"):
            labeller.received(message)
    assert "no space left" in labeller.state["notice"]
    labeller.received(message)
    assert labeller.state["notice"] is None
    assert labeller.summary()["labelled"] == 1


def test_a_download_of_a_page_is_merged(path: Path, tmp_path: Path) -> None:
    other = PreferenceLabeller(rows(3), tmp_path / "downloaded.jsonl")
    other.label(2, "left")
    labeller = PreferenceLabeller(rows(3), path)
    assert labeller.merge(tmp_path / "downloaded.jsonl") == 1
    assert labeller.merge(tmp_path / "downloaded.jsonl") == 0
    assert labeller.summary()["labelled"] == 1


# ---- judges ----------------------------------------------------------------------------------


def test_agreement_with_scores_annotators_files_and_the_data(path: Path, tmp_path: Path) -> None:
    class Opposite:
        def compare(self, prompt: str, a: str, b: str) -> int:
            return int(a.startswith("great"))

    ana = PreferenceLabeller(rows(6), tmp_path / "ana.jsonl", annotator="Ana", seed=5)
    for i, pair in enumerate(ana.pairs[:4]):
        ana.label(i, "left" if pair.left.startswith("great") else "right")
    ana.label(4, "tie")

    def gold(prompt: str, answer: str) -> float:
        if prompt == "ask 5":
            raise DataError("not known")
        return float(answer.startswith("great"))

    judges = {"gold": gold, "opposite": Opposite(), "Ana": tmp_path / "ana.jsonl"}
    labeller = PreferenceLabeller(chat(6), path, judges)
    assert labeller.against == ["gold", "opposite", "Ana", "the dataset"]
    plain = PreferenceLabeller(rows(6), tmp_path / "plain.jsonl", judges)
    for one in (labeller, plain):
        for i, pair in enumerate(one.pairs):
            one.label(i, "left" if pair.given == "left" else "right")
    assert (labeller.agreement().share, labeller.agreement().n) == (1.0, 5)
    assert labeller.agreement("gold").left_out == 1
    assert (plain.agreement("opposite").share, plain.agreement("opposite").n) == (0.0, 6)
    assert (plain.agreement("Ana").share, plain.agreement("Ana").n) == (1.0, 4)
    assert plain.agreement("the dataset").n == 6
    with pytest.raises(CourseError, match="no judge"):
        plain.agreement("x")
    assert "agree" not in plain.line().replace(str(plain.file.path), "")
    assert not any("agree" in key for key in plain.summary())


def test_ties_and_skips_are_left_out_of_agreement_and_of_preferences(path: Path) -> None:
    labeller = PreferenceLabeller(rows(4), path)
    for i, choice in enumerate(("left", "right", "tie", "skip")):
        labeller.label(i, choice, seconds=float(i))
    assert (labeller.agreement().n, labeller.agreement().left_out) == (2, 2)
    counts = {"pairs": 4, "preferred": 2, "ties": 1, "skips": 1, "undone": 0}
    assert labeller.labels.counts() == counts
    assert len(labeller.preferences()) == 2
    said = labeller.summary()
    assert (said["left_share"], said["median_seconds"]) == (0.5, 1.5)


# ---- export ----------------------------------------------------------------------------------


def test_preferences_are_what_trl_and_the_validator_accept(path: Path, tmp_path: Path) -> None:
    from course_utils.data.shapes import detect, validate

    for made, name in ((rows(3), "plain"), (chat(3), "chat")):
        labeller = PreferenceLabeller(made, tmp_path / f"{name}.jsonl")
        for i, pair in enumerate(labeller.pairs):
            labeller.label(i, pair.given or "tie")
        dataset = labeller.preferences()
        validate(dataset, "preference", "labels")
        assert detect(dataset).conversational == (name == "chat")
        assert dataset.to_list() == made
        assert labeller.preferences(conversational=True).to_list() == chat(3)
        assert labeller.preferences(conversational=False).to_list() == rows(3)


def test_no_preference_yet_is_said(path: Path) -> None:
    labeller = PreferenceLabeller(rows(2), path)
    labeller.label(0, "tie")
    with pytest.raises(DataError, match="1 ties"):
        labeller.preferences()
    with pytest.raises(CourseError, match="choice must be"):
        labeller.label(1, "best")


def test_labels_train_a_reward_model(path: Path, tiny_model: Any, tiny_tokenizer: Any) -> None:
    from course_utils.training.reward import RewardSettings, train_reward_model

    rng = random.Random(0)
    words = "the moon is hello rice star light with pull".split()  # noqa: SIM905
    made = []
    for _ in range(48):
        prompt, rest = " ".join(rng.sample(words, 3)), " ".join(rng.sample(words, 2))
        made.append((messages("user", prompt), *(messages("assistant", f"{w} {rest}") for w in ("great", "bad"))))  # fmt: skip  # noqa: E501
    labeller = PreferenceLabeller(made, path)
    for i, pair in enumerate(labeller.pairs):
        great = "great" in pair.left[0]["content"]
        labeller.label(i, "tie" if i % 12 == 0 else "left" if great else "right")
    dataset = read_labels(path).preferences()
    assert len(dataset) == len(labeller.pairs) - len(range(0, len(labeller.pairs), 12))
    settings = RewardSettings(steps=20, batch_size=8, learning_rate=5e-3, save_every=0)
    reward = train_reward_model(tiny_model, tiny_tokenizer, dataset, settings, progress=False)
    good, bad = reward(["the moon"] * 2, ["great rice", "bad rice"])
    assert good > bad + 0.5


# ---- the layers ------------------------------------------------------------------------------


def test_the_html_layer_stays_small_and_keeps_whole_pairs(path: Path) -> None:
    long = [(f"p{i}", f"{i} " + "word " * 5000, f"{i} " + "other " * 5000) for i in range(3)]
    labeller = PreferenceLabeller(rows(300) + [{"prompt": p, "a": a, "b": b} for p, a, b in long],
                                  path)  # fmt: skip
    for i in range(20):
        labeller.label(i, "left")
    html = labeller.html()
    assert len(html.encode()) <= 60_000
    state = json.loads(html.split('type="application/json"')[1].split(">", 1)[1].split("</script")[0])["state"]  # fmt: skip  # noqa: E501
    assert state["kernel"] is False
    assert state["left_out"] + len(state["pairs"]) == 303
    assert len(state["pairs"]) > 100
    assert all(len(j["verdicts"]) == len(state["pairs"]) for j in state["against"])
    only_long = PreferenceLabeller(long, path.with_name("long.jsonl"))
    assert len(only_long.html().encode()) <= 60_000


def test_headless_and_without_anywidget(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from course_utils.inspectors import base

    monkeypatch.setitem(sys.modules, "anywidget", None)
    base._live_class.cache_clear()
    labeller = PreferenceLabeller(rows(2), path)
    labeller.label(0, "left")
    assert repr(labeller).startswith("PreferenceLabeller: 1 of 2 pairs labelled")
    assert set(labeller.mimebundle()[0]) == {"text/plain", "text/html"}
    base._live_class.cache_clear()
