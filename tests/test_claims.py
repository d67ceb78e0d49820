"""A claim beside what one run found: the card, the file that lesson 10 reads, its faults."""

import json
from pathlib import Path

import pytest

from course_utils.claims import CLAIMS, findings
from course_utils.errors import CourseError
from course_utils.lab import Lab
from course_utils.tiers import choose_tier


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab(choose_tier("tiny", environ={}), seed=4)


def test_twenty_claims() -> None:
    assert list(CLAIMS) == [f"C{n:02d}" for n in range(1, 21)]


def test_a_card_says_claim_measurement_place_and_verdict(lab: Lab) -> None:
    found = lab.claim("C07", "gold rose by <0.3>", holds=True, gain=0.3)
    for text in (repr(found), found._repr_html_()):
        assert CLAIMS["C07"].split(",")[0] in text
        assert "tier tiny, seed 4" in text
        assert "as the lecture says" in text
    assert "&lt;0.3&gt;" in found._repr_html_()
    assert found.numbers == {"gain": 0.3}


def test_what_was_found_is_kept_and_replaced(lab: Lab) -> None:
    lab.claim("C09", "expensive", holds=True)
    lab.claim("C07", "first", holds=False)
    lab.claim("C07", "second", holds=None, condition="on the seed")
    assert [(one.id, one.measured) for one in findings(lab)] == [
        ("C07", "second"),
        ("C09", "expensive"),
    ]
    assert findings(lab)[0].verdict == "it depends: on the seed"


def test_a_fast_run_gives_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fast = Lab(choose_tier("tiny", environ={"COURSE_FAST": "1"}))
    assert "no verdict" in fast.claim("C07", "quick", holds=True).verdict
    Lab(choose_tier("tiny", environ={})).claim("C07", "measured", holds=True)
    fast.claim("C07", "quick again", holds=True)
    fast.claim("C08", "quick", holds=True)
    assert [one.measured for one in findings(fast)] == ["measured", "quick"]


def test_faults(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CourseError, match="C01 to C20"):
        lab.claim("C21", "x", holds=True)
    with pytest.raises(CourseError, match="on what"):
        lab.claim("C01", "x", holds=None)
    with pytest.raises(CourseError, match="gain is not a finite number"):
        lab.claim("C01", "x", holds=True, gain=float("nan"))
    assert findings(lab) == []
    file = lab.run_directory("claims").with_suffix(".json")
    file.parent.mkdir(parents=True)
    file.write_text('[{"id": ')
    assert findings(lab) == []
    assert "damaged" in capsys.readouterr().out
    lab.claim("C01", "x", holds=True)
    assert [row["id"] for row in json.loads(file.read_text())] == ["C01"]
