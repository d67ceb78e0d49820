"""The report: nothing foreign gets in, nothing leaks out, every section can be missing."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from course_utils.report import build_report, report_json, write_report
from course_utils.report.markup import Markup, script_json, tag

SECTIONS = (
    "answers",
    "curves",
    "frontier",
    "overoptimisation",
    "quality",
    "judge",
    "costs",
    "rollouts",
    "run",
)
FILLED_BY = {
    "answers": "answers",
    "curves": "curves",
    "frontier": "frontier",
    "overoptimisation": "overoptimisation",
    "quality": "models",
    "judge": "reward_model",
    "costs": "costs",
    "rollouts": "rollouts",
}


class Reader(HTMLParser):
    """Elements with their attributes, and the text that a reader sees in each section."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text: dict[str, str] = {}
        self.raw: dict[str, str] = {}
        self.where, self.inside = "", ""
        self.feed(page)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        self.inside = name
        if name == "section":
            self.where = dict(attributes)["id"]

    def handle_data(self, data):
        if self.inside in ("script", "style"):
            kind = self.elements[-1][1].get("type", self.inside)
            self.raw[kind] = self.raw.get(kind, "") + data
        else:
            self.text[self.where] = self.text.get(self.where, "") + data


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


# ---- one file, nothing from outside ------------------------------------------------------------


def test_the_page_loads_nothing(results):
    page = build_report(results)
    reader = Reader(page)
    for name, attributes in reader.elements:
        for key in ("src", "srcset", "data", "action", "poster", "background"):
            assert key not in attributes, (name, attributes)
        target = attributes.get("href", "#")
        assert target.startswith(("#", "data:")), target
    css = reader.raw["style"]
    assert "url(" not in css
    assert "@import" not in css
    assert set(re.findall(r"https?://[^\"'\s<)]*", page)) <= {"http://www.w3.org/2000/svg"}
    for call in ("fetch(", "XMLHttpRequest", "import(", "WebSocket", "sendBeacon", "innerHTML"):
        assert call not in reader.raw["script"]
    policy = next(a["content"] for n, a in reader.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert len(page.encode()) < 300_000


def test_every_section_is_there_and_filled(results):
    reader = Reader(build_report(results))
    assert [a["id"] for n, a in reader.elements if n == "section"] == list(SECTIONS)
    assert not [a for n, a in reader.elements if "missing" in a.get("class", "") and n != "p"]
    text = reader.text
    assert "Explain black holes to a 5-year-old" in text["answers"]
    assert "swallows everything" in text["answers"]
    assert "gold reward 2." in text["answers"]
    assert "over refusal" in text["quality"]
    assert "peak memory" in text["costs"]
    assert "course run --tier tiny" in text["run"]
    data = json.loads(reader.raw["application/json"])
    assert {p["stage"] for p in data["panels"]} == {
        "Supervised fine-tuning",
        "Reward model",
        "PPO",
        "DPO",
    }
    assert [path["key"] for path in data["frontier"]][:3] == ["base", "sft", "best_of_n"]
    for element, attributes in reader.elements:  # a place for each figure
        if attributes.get("data-chart"):
            assert element == "div"
    places = [a["data-chart"] for _, a in reader.elements if a.get("data-chart")]
    assert set(places) == {
        "ladder",
        "panel",
        "frontier",
        "overoptimisation",
        "wins",
        "calibration",
    }
    assert places.count("panel") == len(data["panels"])


@pytest.mark.parametrize("absent", FILLED_BY)
@pytest.mark.parametrize("how", ["gone", "none", "empty"])
def test_a_missing_section_is_a_sentence(results, absent, how):
    key = FILLED_BY[absent]
    if how == "gone":
        del results[key]
    else:
        results[key] = None if how == "none" else type(results[key])()
    reader = Reader(build_report(results))
    assert [a["id"] for n, a in reader.elements if n == "section"] == list(SECTIONS)
    whole = build_report({})
    sentence = re.search(rf'<section id="{absent}">.*?<p class="missing">(.*?)</p>', whole).group(1)
    assert sentence.split(" (")[0] in build_report(results)


def test_nothing_at_all_still_gives_a_page():
    reader = Reader(build_report({}))
    assert [a["id"] for n, a in reader.elements if n == "section"] == list(SECTIONS)
    assert "measured no scores" in reader.text[""]


def test_only_sft_ran(results):
    few = {
        "models": results["models"][:2],
        "curves": {"sft": results["curves"]["sft"]},
        "answers": results["answers"],
    }
    text = Reader(build_report(few)).text
    assert "Base −0.80 → SFT 1.55" in plain(text[""])
    assert "no reward model" in text["judge"]
    assert "Supervised fine-tuning" in text["curves"]


def test_the_users_own_prompts_without_gold(results):
    for model in results["models"]:
        model["evaluation"]["gold"] = model["evaluation"]["parts"] = None
    for row in results["answers"]:
        for answer in row["answers"].values():
            answer["gold"] = None
    results["frontier"], results["overoptimisation"] = [], None
    text = Reader(build_report(results)).text
    assert "Reward model’s score: Base −1.20" in plain(text[""])
    assert "There is no gold reward for these prompts" in text[""]
    assert "no gold reward" in text["quality"]
    assert "gold reward" not in text["answers"]


# ---- hostile and broken input ------------------------------------------------------------------


def test_every_text_is_escaped(results, hostile, attack):
    clean = Reader(build_report(results))
    hostile["settings"][attack] = {attack: attack}
    hostile["answers"][0]["answers"][attack] = {
        "text": attack,
        "gold": {"total": 1, "parts": {attack: 1}},
    }
    hostile["curves"][attack] = [{"step": 1, attack: 1.0}]
    page = build_report(hostile)
    reader = Reader(page)
    assert "<script>document" not in page
    assert "<img" not in page
    assert sum(n == "script" for n, _ in reader.elements) == 2
    assert {n for n, _ in reader.elements} == {n for n, _ in clean.elements}
    assert not [a for _, a in reader.elements if "onerror" in a]
    data = json.loads(reader.raw["application/json"])
    assert attack in data["frontier"][0]["points"][0]["text"]  # whole, as text


def test_script_json_cannot_end_the_script():
    text = script_json({"x": "</script><!-- \u2028 & 'é'"})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"x": "</script><!-- \u2028 & 'é'"}


def test_tag_escapes_text_and_attributes_but_not_markup():
    inner = tag("b", "1 < 2")
    assert tag("p", "a & ", inner, title='say "x"') == (
        '<p title="say &quot;x&quot;">a &amp; <b>1 &lt; 2</b></p>'
    )
    assert isinstance(inner, Markup)
    assert (
        tag("p", None, cls="c", data_x=1, hidden=True, id=None)
        == '<p class="c" data-x="1" hidden></p>'
    )


def test_nan_and_infinity_are_gaps(nan_results):
    page = build_report(nan_results)
    json.loads(Reader(page).raw["application/json"], parse_constant=pytest.fail)
    shown = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.S)
    assert not re.search(r"\b(nan|inf|Infinity|NaN)\b", shown)


@pytest.mark.parametrize("wrong", [1, "text", [1, "a", None], {"a": 1}, [[]], True])
def test_sections_of_the_wrong_shape_do_not_break_the_page(results, wrong):
    for key in [*FILLED_BY.values(), "win_rates", "settings", "versions", "notes", "stages"]:
        broken = {**results, key: wrong}
        assert "</html>" in build_report(broken)


def test_texts_of_any_length_and_lone_surrogates(results, tmp_path):
    results["answers"][0]["answers"]["sft"]["text"] = "long " * 100_000
    results["answers"][0]["answers"]["ppo"]["text"] = "half a pair \ud800"
    results["rollouts"][0]["tokens"] = ["x"] * 5000
    path = write_report(tmp_path, results)
    assert path.stat().st_size < 300_000
    assert "more characters)" in path.read_text(encoding="utf-8")


def test_the_page_stays_small(results):
    many = []
    for step in range(400):
        for row in results["rollouts"][:3]:
            many.append({**row, "step": step, "tokens": ["ö" * 60] * 150, "kl": [0.123456] * 150})
    results["rollouts"] = many
    results["curves"]["ppo"] = [{"step": i, "reward": i / 7, "kl": i / 9} for i in range(30_000)]
    page = build_report(results)
    assert len(page.encode()) < 1_500_000
    data = json.loads(Reader(page).raw["application/json"])
    steps = sorted({r["step"] for r in data["rollouts"]})
    assert (steps[0], steps[-1]) == (0, 399)  # thinned over the whole run
    assert max(len(s["points"]) for p in data["panels"] for s in p["series"]) <= 240


def test_files_are_written_and_read_back(results, tmp_path):
    results["seconds"] = math.nan
    path = write_report(tmp_path / "run", results)
    saved = json.loads((tmp_path / "run" / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved["seconds"] is None
    assert saved["answers"] == results["answers"]
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text() == build_report(saved)
    assert write_report(tmp_path / "run" / "report.html", results) == path  # the page's own path
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["report.html", "report.json"]
    assert json.loads(report_json({"a": (1, 2)})) == {"a": [1, 2]}
