"""The report: nothing foreign gets in, nothing leaks out, every section can be missing."""

import copy
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from course_utils.report import build_report, report_json, write_report
from course_utils.report.markup import Markup, duration, fixed, script_json, tag
from course_utils.report.series import curve, overoptimisation, panels, rollouts, smooth, thinned
from course_utils.report.words import (
    frontier_text,
    overoptimisation_text,
    reward_model_text,
    verdict,
    verdict_details,
)

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
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


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

ATTACK = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&<!--"


def attacked(value):
    """The same results with the attack in every text (and key that is shown)."""
    if isinstance(value, dict):
        return {k: attacked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [attacked(v) for v in value]
    return f"{value} {ATTACK}" if isinstance(value, str) else value


def test_every_text_is_escaped(results):
    clean = Reader(build_report(results))
    hostile = attacked(results)
    for model, same in zip(hostile["models"], results["models"], strict=True):
        model["key"] = same["key"]
    for point, same in zip(hostile["frontier"], results["frontier"], strict=True):
        point["method"] = same["method"]
    hostile["settings"][ATTACK] = {ATTACK: ATTACK}
    hostile["answers"][0]["answers"][ATTACK] = {
        "text": ATTACK,
        "gold": {"total": 1, "parts": {ATTACK: 1}},
    }
    hostile["curves"][ATTACK] = [{"step": 1, ATTACK: 1.0}]
    page = build_report(hostile)
    reader = Reader(page)
    assert "<script>document" not in page
    assert "<img" not in page
    assert sum(n == "script" for n, _ in reader.elements) == 2
    assert {n for n, _ in reader.elements} == {n for n, _ in clean.elements}
    assert not [a for _, a in reader.elements if "onerror" in a]
    data = json.loads(reader.raw["application/json"])
    assert ATTACK in data["frontier"][0]["points"][0]["text"]  # whole, as text


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


def with_nan(value):
    if isinstance(value, dict):
        return {k: with_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [with_nan(v) for v in value]
    if isinstance(value, float):
        return (
            [math.nan, math.inf, -math.inf][int(abs(value) * 7) % 3] if abs(value) < 1e9 else value
        )
    return value


def test_nan_and_infinity_are_gaps(results):
    page = build_report(with_nan(results))
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


# ---- what the sentences say --------------------------------------------------------------------


def test_verdict_is_computed(results):
    assert plain(verdict(results)) == "Gold reward: Base −0.80 → SFT 1.55 → PPO 2.30"
    assert "PPO is better than SFT by 0.75" in verdict_details(results)
    assert "over held-out prompts (n = 200)" in verdict_details(results)
    ppo, dpo = (
        results["models"][2]["evaluation"]["gold"],
        results["models"][4]["evaluation"]["gold"],
    )
    ppo["mean"] = 1.0  # then DPO is the better one
    assert plain(verdict(results)).endswith("DPO 1.96")
    dpo.update(mean=1.60, low=1.50, high=1.70)
    assert "between SFT and DPO the intervals overlap" in verdict_details(results)
    dpo.update(mean=1.2, low=1.1, high=1.3)
    assert "DPO is worse than SFT by 0.35" in verdict_details(results)
    results["evaluated_on"] = "your prompts"
    assert "over your prompts (n = 200)" in verdict_details(results)


def over(golds, proxies=None, name="gold_heldout"):
    proxies = proxies or [0.1 * i for i in range(len(golds))]
    rows = [
        {"step": i, "kl": float(i), "proxy": p, name: g}
        for i, (g, p) in enumerate(zip(golds, proxies, strict=True))
    ]
    return {"overoptimisation": {"rows": rows}}


@pytest.mark.parametrize(
    ("golds", "said", "words"),
    [
        ([1, 1.4, 2, 2.2, 2, 1, 0, -1], "rise and fall", "then fell to −1.00 at KL 7.0"),
        ([1, 1.2, 1.5, 1.8, 2.1, 2.2], "rise", "no fall was seen up to 2.20 at KL 5.0"),
        ([2, 1.6, 1, 0.5, 0, -1], "fall", "Gold fell from 2.00 at KL 0.0 to −1.00"),
        ([1, 1.01, 1, 0.99, 1.0, 1.01], "flat", "hardly moved"),
    ],
)
def test_over_optimisation_is_told_as_it_was(golds, said, words):
    results = over(golds)
    assert overoptimisation(results)["verdict"] == said
    assert words in overoptimisation_text(results)


def test_noise_is_not_a_peak():
    import random

    rng = random.Random(0)
    told = []
    for _ in range(100):
        golds = [1.5 + rng.gauss(0, 0.2) for _ in range(20)]
        told.append(overoptimisation(over(golds))["verdict"])
    assert told.count("rise and fall") <= 2
    assert told.count("flat") >= 80
    found = overoptimisation(
        over([1.5 + 0.1 * min(i, 20 - i) + rng.gauss(0, 0.05) for i in range(20)])
    )
    assert found["verdict"] == "rise and fall"
    assert 8 <= found["peak"] <= 12


def test_the_proxy_is_described_by_its_own_numbers():
    golds = [1, 1.4, 2, 2.2, 2, 1, 0, -1]
    rising = overoptimisation_text(over(golds))
    assert "noticed nothing" in rising
    falling = overoptimisation_text(over(golds, [0, 1, 2, 3, 3, 2, 1, 0]))
    assert "noticed nothing" not in falling
    assert "stopped rising" in falling


def test_over_optimisation_prefers_held_out_gold_and_needs_three_points():
    results = over([1, 2, 3, 2])
    for row in results["overoptimisation"]["rows"]:
        row["gold"] = 0.0
    assert overoptimisation(results)["heldout"]
    assert not overoptimisation(over([1, 2, 3, 2], name="gold"))["heldout"]
    assert overoptimisation(over([1, 2])) is None
    assert overoptimisation({}) is None
    assert smooth([0, 3, 6, 0]) == [0, 3, 3, 0]


def test_frontier_and_judge_sentences(results):
    assert "PPO reaches the most gold reward" in frontier_text(results)
    assert "gets less: 2.10 at 1.8 nats" in frontier_text(results)
    for point in results["frontier"]:
        if point["method"] == "best_of_n":
            point["gold"] += 1
    assert "gets as much or more: 3.10" in frontier_text(results)
    assert "76% of cases (95% interval 72% to 79%)" in reward_model_text(results)
    for b in results["reward_model"]["calibration"]["bins"]:
        b["confidence"] += 0.2
    assert "surer than it is right" in reward_model_text(results)


def test_numbers_as_text():
    assert (fixed(-0.001), fixed(None), fixed(math.nan), fixed(-1.5)) == ("0.00", "–", "–", "−1.50")
    assert (duration(8.44), duration(171.2), duration(3840)) == (
        "8.4 s",
        "2 min 51 s",
        "1 h 04 min",
    )
    assert duration(119.7) == "2 min 00 s"


# ---- curves and rollouts -----------------------------------------------------------------------


def test_curves_know_trl_names_and_strangers():
    rows = [{"step": i, "rewards/margins": 0.1 * i, "rewards/accuracies": 0.5} for i in range(5)]
    titles = [p["title"] for p in panels({"dpo": rows})]
    assert titles == ["Implicit reward margin", "Accuracy on pairs"]
    strange = panels({"other": [{"step": 1, "bananas": 2.0, "name": "x"}]})
    assert [(p["stage"], p["title"]) for p in strange] == [("other", "bananas")]
    assert curve([{"step": 1, "loss": math.nan}, {"step": 2, "loss": 1.0}], ("loss",)) == [
        [2.0, 1.0]
    ]


def test_thinning_keeps_the_ends_and_the_level():
    points = [[float(i), float(i)] for i in range(10_000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert all(abs(x - y) < 1e-9 for x, y in few)


def test_rollouts_drop_lists_of_the_wrong_length(results):
    row = copy.deepcopy(results["rollouts"][0])
    row["kl"] = row["kl"][:-1]
    kept = rollouts({"rollouts": [row]})[0]
    assert "kl" not in kept
    assert len(kept["advantages"]) == len(kept["tokens"])
    assert rollouts({"rollouts": [{"step": 1}]}) == []


# ---- in a browser ------------------------------------------------------------------------------

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=4000",
    "--enable-logging=stderr",
    "--v=0",
    "--dump-dom",
]
# Reads and pokes the page as a reader would, and leaves what it found in the body's data-probe.
PROBE = """
const seen = {svgs: document.querySelectorAll('[data-chart] > svg').length};
const key = (node, name) =>
  node.dispatchEvent(new KeyboardEvent('keydown', {key: name, bubbles: true}));
const tabs = [...document.querySelectorAll('[role=tab]')];
const cards = () =>
  [...document.querySelectorAll('[data-card]')].map(c => getComputedStyle(c).display);
seen.cards = [cards()];
tabs[1].click();
seen.cards.push(cards());
tabs[1].focus(); key(tabs[1], 'ArrowRight');
seen.cards.push(cards());
const frontier = document.querySelector('[data-chart=frontier] > svg');
const example = document.getElementById('frontier-example');
seen.example = [example.textContent];
key(frontier, 'End');
seen.tip = document.querySelector('.tip').textContent;
key(frontier, 'Enter');
seen.example.push(example.textContent);
key(frontier, 'Escape');
seen.tipHidden = document.querySelector('.tip').hidden;
document.querySelectorAll('[aria-label="KL axis"] button').forEach(b => b.click());
seen.panel = [document.querySelector('.panel-head output').textContent];
key(document.querySelector('[data-chart=panel] > svg'), 'Home');
seen.panel.push(document.querySelector('.panel-head output').textContent);
const tokens = () => [...document.querySelectorAll('.token')].map(t => t.textContent).join(' ');
const range = document.querySelector('input[type=range]');
seen.tokens = [tokens()];
range.value = 0; range.dispatchEvent(new Event('input', {bubbles: true}));
seen.tokens.push(tokens());
document.querySelector('[aria-label="next answer"]').click();
seen.tokens.push(tokens());
document.querySelectorAll('[aria-label="colour by"] button')[1].click();
document.querySelectorAll('.token')[3].click();
seen.token = document.querySelector('.token-detail').textContent;
seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.title = document.title;
document.body.dataset.probe = JSON.stringify(seen);
"""


def browse(page: str, folder: Path, probe: str = "", width: int = 1200) -> tuple[dict, str, str]:
    """(what the probe saw, the DOM, console lines). A probe needs the policy out of the way."""
    if probe:
        page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
        page = page.replace("</body>", f"<script>{probe}</script></body>")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    own = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900"]
    command = [str(CHROMIUM), *FLAGS, *own, file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    seen = json.loads(found.group(1).replace("&quot;", '"').replace("&amp;", "&")) if found else {}
    return seen, done.stdout, console


@needs_chromium
def test_the_page_works_in_a_browser(results, tmp_path):
    seen, _, console = browse(build_report(results), tmp_path, PROBE)
    assert console == ""
    assert seen["svgs"] == len(panels(results["curves"])) + 5
    block, none = "block", "none"
    assert seen["cards"] == [[block, none, none], [none, block, none], [none, none, block]]
    assert "PPO" in seen["example"][0]
    assert "pushed too far" in seen["tip"]
    assert seen["example"][1] != seen["example"][0]
    assert "pushed too far" in seen["example"][1]
    assert seen["tipHidden"] is True
    assert seen["panel"][1].startswith("step 1")
    assert seen["panel"][0] != seen["panel"][1]
    assert len(set(seen["tokens"])) == 3
    assert "advantage" in seen["token"]
    assert seen["overflow"] <= 0


@needs_chromium
def test_the_policy_lets_our_script_run_and_nothing_else(results, tmp_path):
    page = build_report(attacked(results)).replace(
        "</body>", "<script>document.title='owned'</script></body>"
    )
    _, dom, console = browse(page, tmp_path)
    assert dom.count("<svg") > 20  # the figures were drawn
    assert "<title>owned" not in dom
    assert "Content Security Policy" in console  # the foreign script was refused, aloud
    assert len(console.splitlines()) == 1


@needs_chromium
@pytest.mark.parametrize("case", ["nan", "one point"])
def test_no_errors_on_poor_data(results, tmp_path, case):
    if case == "nan":
        results = with_nan(results)
    else:
        results["curves"] = {"sft": [{"step": 1, "loss": 2.0}], "ppo": [{"step": 1, "reward": 0.0}]}
        results["models"] = results["models"][:1]
        results["win_rates"] = results["win_rates"][:1]
        results["rollouts"] = results["rollouts"][:1]
    _, dom, console = browse(build_report(results), tmp_path)
    assert console == ""
    assert "could not be drawn.</p>" not in dom


@needs_chromium
def test_a_phone_needs_no_sideways_scrolling(results, tmp_path):
    probe = (
        "document.body.dataset.probe = JSON.stringify({overflow: "
        "document.documentElement.scrollWidth - document.documentElement.clientWidth, "
        "width: document.documentElement.clientWidth});"
    )
    seen, _, console = browse(build_report(results), tmp_path, probe, width=500)
    assert console == ""
    assert seen["width"] <= 500
    assert seen["overflow"] <= 0
