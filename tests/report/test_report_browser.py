"""The report in chromium: it draws, reacts to mouse and keyboard, and keeps foreign scripts out."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from course_utils.report import build_report
from course_utils.report.series import panels

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

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
def test_the_policy_lets_our_script_run_and_nothing_else(hostile, tmp_path):
    page = build_report(hostile).replace(
        "</body>", "<script>document.title='owned'</script></body>"
    )
    _, dom, console = browse(page, tmp_path)
    assert dom.count("<svg") > 20  # the figures were drawn
    assert "<title>owned" not in dom
    assert "Content Security Policy" in console  # the foreign script was refused, aloud
    assert len(console.splitlines()) == 1


@needs_chromium
@pytest.mark.parametrize("case", ["nan", "one point"])
def test_no_errors_on_poor_data(results, nan_results, tmp_path, case):
    if case == "nan":
        results = nan_results
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
