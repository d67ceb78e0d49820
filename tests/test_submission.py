"""Submissions: the gold reward is computed again, files of others are read with care."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from course_utils import submission
from course_utils.cli import main
from course_utils.errors import CourseError, DataError
from course_utils.lab import Lab
from course_utils.tiers import choose_tier


@pytest.fixture(scope="module")
def lab() -> Lab:
    return Lab(choose_tier("tiny", environ={"COURSE_FAST": "1"}), seed=3)


@pytest.fixture(scope="module")
def content(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("own") / "submission.json"
    base = lab.base()
    submission.write_submission(path, " Ada ", lab, {"base": base}, base, {"base": 12.0})
    return json.loads(path.read_text(encoding="utf-8"))


def put(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def changed(content: dict[str, Any], **entry: Any) -> dict[str, Any]:
    return {**content, "entries": [{**content["entries"][0], **entry}]}


def test_what_was_written_is_read_back(content: dict[str, Any], tmp_path: Path) -> None:
    (entry,) = submission.read_submission(put(tmp_path, "a.json", content))
    assert (entry.student, entry.method, entry.cpu_seconds) == ("Ada", "base", 12.0)
    assert entry.gold.mean == pytest.approx(content["entries"][0]["gold"])
    assert entry.gold.n == submission.PROMPTS == len(submission.leaderboard_prompts())
    assert entry.kl == pytest.approx(0, abs=1e-3)


def test_a_claimed_score_counts_for_nothing(content: dict[str, Any], tmp_path: Path) -> None:
    forged = changed(content, gold=99.0)
    (entry,) = submission.read_submission(put(tmp_path, "a.json", forged))
    assert entry.gold.mean == pytest.approx(content["entries"][0]["gold"])


def test_the_leaderboard_ranks_and_leaves_out_what_it_cannot_read(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "in/zoë/a.json", content)
    silent = changed({**content, "student": "=cmd()"}, answers=[""] * 64, method="si\nlent")
    put(tmp_path, "in/b b.json", silent)
    put(tmp_path, "in/c.json", "{")
    out = tmp_path / "table.csv"
    assert main(["leaderboard", str(tmp_path / "in"), "--out", str(out)]) == 1
    rows = list(csv.DictReader(out.open(encoding="utf-8")))
    assert [row["rank"] for row in rows] == ["1", "2"]
    golds = [float(row["gold"]) for row in rows]
    assert golds == sorted(golds, reverse=True)
    assert {row["student"] for row in rows} == {"Ada", "'=cmd()"}
    assert {row["method"] for row in rows} == {"base", "si lent"}
    assert "left out: c.json is not a JSON file" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"answers": ["x"] * 63}, "answers must be a list of 64"),
        ({"answers": ["x"] * 63 + [7]}, "answer 64 must be text"),
        ({"answers": ["x" * 5000] * 64}, "at most 4000 characters"),
        ({"method": None}, "method must be text"),
        ({"kl": "1"}, "kl must be a number"),
        ({"kl": -1.0}, "from 0 up"),
        ({"kl": True}, "kl must be a number"),
        ({"cpu_seconds": 10**400}, "from 0 up"),
    ],
)
def test_a_fault_names_file_and_place(
    content: dict[str, Any], tmp_path: Path, broken: dict[str, Any], said: str
) -> None:
    path = put(tmp_path, "ada.json", changed(content, **broken))
    with pytest.raises(DataError, match=f"ada.json: entry 1, .*{said}"):
        submission.read_submission(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "not a submission in format 1"),
        ('{"format": 2}', "not a submission in format 1"),
        ('{"format": 1, "student": 3}', "student must be text"),
        ('{"format": 1, "student": "a", "entries": []}', "1 to 20 models"),
        ('{"format": 1, "student": "a", "entries": [3]}', "entry 1 must be an object"),
        ("[" * 100_000, "not a JSON file"),
        ("x" * 2_000_001, "larger than"),
    ],
)
def test_files_that_are_no_submissions(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        submission.read_submission(put(tmp_path, "a.json", text))


def test_nothing_to_rank(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \*\.json file"):
        submission.leaderboard(tmp_path)


def test_faults_of_ones_own(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(CourseError, match="whose submission"):
        submission.write_submission(path, " ", lab, {"a": None})
    with pytest.raises(CourseError, match="1 to 20 models"):
        submission.write_submission(path, "Ada", lab, {})
    monkeypatch.setattr(Lab, "gold", None)
    with pytest.raises(CourseError, match=r"lab\.world"):
        submission.write_submission(path, "Ada", lab, {"a": None})
    assert not path.exists()
