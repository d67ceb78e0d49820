"""The base: three layers, increments, escaping, theme. A tiny inspector stands for all."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from course_utils.errors import CourseError, RunError
from course_utils.inspectors import base, frames, page, runs
from course_utils.inspectors.colours import Scale
from course_utils.training.run import RunLog

from .conftest import NASTY, settle

HERE = Path(page.__file__).parent
MODULES = sorted(p.name for p in HERE.glob("*.js") if p.name not in ("kit.js", "charts.js"))
PROBE = """
import { add, inspect, on } from "./kit.js";
export function render({ model, el }) {
  return inspect({ model, el }, (view) => {
    const list = add(view.root, "p", { class: "list" });
    const button = add(view.root, "button", { type: "button" }, "more");
    on(button, "click", () => view.choose({ clicks: (view.ui.clicks ?? 0) + 1 }));
    const bad = add(view.root, "button", { type: "button", id: "bad" }, "bad");
    on(bad, "click", () => { throw new Error("on purpose"); });
    return (state) => {
      window.draws = (window.draws ?? 0) + 1;
      list.textContent = state.rows.join(" ") + " clicks " + (view.ui.clicks ?? 0);
    };
  });
}
"""


class Probe(base.Inspector):
    module, title = "probe.js", "A probe"

    def line(self) -> str:
        return f"Probe: {len(self._state['rows'])} rows"

    def first_frame(self) -> frames.Markup:
        return frames.card(self.title, frames.prompt(" ".join(map(str, self._state["rows"]))))

    def summary(self) -> dict[str, Any]:
        return {"rows": len(self._state["rows"])}


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[Probe]:
    real = page.asset
    monkeypatch.setattr(page, "asset", lambda name: PROBE if name == "probe.js" else real(name))
    page.bundle.cache_clear()
    base._live_class.cache_clear()
    return Probe


# ---- Python ----------------------------------------------------------------------------------


def test_headless_it_gives_data_and_text_without_a_kernel(probe: type[Probe]) -> None:
    inspector = probe({"rows": [1, float("nan")]})
    assert inspector.summary() == {"rows": 2}
    assert repr(inspector) == "Probe: 2 rows"
    assert inspector.state == {"rows": [1, None]}


def test_the_three_layers_are_in_one_output(probe: type[Probe]) -> None:
    data, _ = probe({"rows": ["a"]}).mimebundle()
    assert data["text/plain"] == "Probe: 1 rows"
    assert "data-cui=" in data["text/html"]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]


def test_without_anywidget_the_html_layer_is_left(
    probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    base._live_class.cache_clear()
    data, _ = probe({"rows": []}).mimebundle()
    assert set(data) == {"text/plain", "text/html"}
    with pytest.raises(CourseError, match="anywidget"):
        _ = probe({"rows": []}).widget


def test_only_increments_are_sent_and_the_whole_when_a_list_has_doubled(
    probe: type[Probe], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = probe({"rows": list(range(10))})
    sent: list[Any] = []
    monkeypatch.setattr(inspector.widget, "send", sent.append)
    monkeypatch.setattr(inspector.widget, "send_state", lambda key: sent.append(key))
    for i in range(12):
        inspector.append(rows=[10 + i], set={"last": i})
    assert sent[0] == {
        "kind": "append",
        "at": {"rows": 10},
        "add": {"rows": [10]},
        "set": {"last": 0},
    }
    assert [m for m in sent if m == "state"] == ["state"]
    assert sent.index("state") == 9
    assert inspector.state["rows"] == list(range(22))
    assert inspector.widget.get_state("state")["state"] == inspector.state
    inspector._heard(None, {"kind": "resend"}, [])
    assert sent[-1] == "state"


def test_what_the_reader_chose_is_read_and_set(probe: type[Probe]) -> None:
    inspector = probe({"rows": []}, {"step": 1})
    assert inspector.show(step=4).ui == {"step": 4}
    inspector.widget.ui = {"step": 7}  # as the browser would
    assert inspector.ui == {"step": 7}


def test_numbers_become_strict_json() -> None:
    assert page.finite({"a": [1.23456789, float("inf"), 2.0, True, "x"]}) == {
        "a": [1.235, None, 2, True, "x"]
    }
    with pytest.raises(CourseError, match="set"):
        page.finite({"a": {1, 2}})


def test_scale_is_set_by_the_bulk_and_says_what_is_no_number() -> None:
    scale = Scale.of([0.1] * 99 + [1000.0], "KL", "…")
    assert scale.limit == 0.1
    assert scale.strength(-5.0) == -1
    assert Scale.of([float("nan"), 2.0], "KL", "…").missing
    assert Scale.of([], "KL", "…").limit == 1
    assert Scale.of([0.0, 0.0], "KL", "…").limit == 1
    assert Scale.of([1.0], "KL", "…", kind="sequential").strength(-1.0) == 0
    assert scale.strength(None) is None


@pytest.mark.parametrize("module", MODULES)
def test_code_of_each_inspector_is_small_and_loads_nothing(module: str) -> None:
    code = page.bundle(module)
    assert len(code.encode()) + len(page.style().encode()) < 60_000
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", code)
    assert "import(" not in code
    assert "innerHTML" not in code
    assert "</script" not in code


def test_the_palette_is_the_reports() -> None:
    report = (HERE.parent / "report" / "page.css").read_text()
    own = (HERE / "base.css").read_text()
    colour = re.compile(r"--([a-z-]+): (#\w{6}|\d+ \d+ \d+);")
    assert set(colour.findall(own)) == set(colour.findall(report))


def test_inspectors_import_no_trainer_and_no_torch() -> None:
    names = [p.stem for p in HERE.glob("*.py") if p.stem != "__init__"]
    code = (
        "import sys, importlib\n"
        f"for n in {names}: importlib.import_module('course_utils.inspectors.' + n)\n"
        "heavy = [m for m in sys.modules if m in ('torch', 'trl', 'anywidget', 'IPython')\n"
        "         or m.startswith(('course_utils.training.ppo', 'course_utils.training.sft'))]\n"
        "print(heavy)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---- following a run -------------------------------------------------------------------------


class Lines(runs.RunInspector):
    module, title = "probe.js", "Lines"
    line, first_frame, summary = Probe.line, Probe.first_frame, Probe.summary

    def __init__(self, run: Any) -> None:
        super().__init__(run, {"rows": []})

    def took(self, log: Any, rollouts: Any, fresh: bool) -> None:
        steps = [row["step"] for row in log]
        if fresh:
            self.set_state({"rows": steps})
        else:
            self.append(rows=steps)


def test_a_run_that_is_being_written(tmp_path: Path, probe: Any) -> None:
    inspector = Lines(tmp_path / "later")  # not there yet
    assert inspector.summary() == {"rows": 0}
    log = RunLog.create(tmp_path / "later", {}, 0)
    log.append({"step": 1})
    assert inspector.refresh() == 1
    with open(log.directory / "log.jsonl", "a") as file:
        file.write('{"step": 2, "rew')  # a torn line is not a row yet
    assert inspector.refresh() == 0
    with open(log.directory / "log.jsonl", "a") as file:
        file.write('ard": 1}\n')
    assert inspector.refresh() == 1
    log.rewind(1)
    log.append({"step": 2})
    log.append({"step": 3})
    inspector.refresh()
    assert inspector.state["rows"] == [1, 2, 3]


def test_a_damaged_line_is_named_also_when_a_thread_met_it(tmp_path: Path, probe: Any) -> None:
    log = RunLog.create(tmp_path / "run", {}, 0)
    log.append({"step": 1})
    inspector = Lines(log).follow(every=0.01)
    with open(log.directory / "log.jsonl", "a") as file:
        file.write("nonsense\n")
    inspector._thread.join(timeout=5)
    assert "line 2" in inspector.state["notice"]
    with pytest.raises(RunError, match="line 2"):
        inspector.stop()


def test_a_directory_of_several_runs_names_them(tmp_path: Path, probe: Any) -> None:
    RunLog.create(tmp_path / "all" / "ppo", {}, 0).append({"step": 1})
    with pytest.raises(RunError, match="all/ppo"):
        Lines(tmp_path / "all")


def test_follow_reads_rows_and_stops(tmp_path: Path, probe: Any) -> None:
    log = RunLog.create(tmp_path / "run", {}, 0)
    inspector = Lines(log).follow(every=0.01)
    assert inspector.state["live"]
    for step in range(5):
        log.append({"step": step})
    inspector.stop()
    assert inspector.state == {"rows": [0, 1, 2, 3, 4], "live": False}


# ---- in the browser --------------------------------------------------------------------------


def test_the_saved_page_draws_escapes_and_reacts(probe: Any, show: Any) -> None:
    opened = show(probe({"rows": [NASTY, "שלום", "🙂"]}))
    assert NASTY in opened.locator(".list").text_content()
    opened.click("text=more")
    settle(opened)
    assert "clicks 1" in opened.locator(".list").text_content()
    assert opened.evaluate("window.hacked") is None


def test_the_first_frame_alone_is_readable_and_harmless(probe: Any, open_page: Any) -> None:
    html = re.sub(r"<(script|style).*?</\1>", "", probe({"rows": [NASTY]}).html(), flags=re.S)
    opened = open_page(html)
    assert NASTY in opened.locator("body").text_content()
    assert opened.evaluate("window.hacked") is None


def test_increments_arrive_and_a_missed_one_is_asked_for(probe: Any, live: Any) -> None:
    opened = live(probe({"rows": [1]}))
    for at in (1, 2):
        message = {"kind": "append", "at": {"rows": at}, "add": {"rows": [at + 1]}, "set": {}}
        opened.evaluate(f"model.receive({json.dumps(message)})")
    settle(opened)
    assert opened.locator(".list").text_content().startswith("1 2 3 ")
    opened.evaluate("model.receive({kind: 'append', at: {rows: 9}, add: {rows: [9]}, set: {}})")
    assert opened.evaluate("model.sent") == [{"kind": "resend"}]
    opened.evaluate("model.set('state', {rows: [4, 5]})")
    settle(opened)
    assert opened.locator(".list").text_content().startswith("4 5 ")


def test_many_increments_are_drawn_once(probe: Any, live: Any) -> None:
    opened = live(probe({"rows": []}))
    opened.evaluate(
        "for (let i = 0; i < 50; i++) "
        "model.receive({kind: 'append', at: {rows: i}, add: {rows: [i]}})"
    )
    settle(opened)
    assert opened.evaluate("window.draws") <= 3


def test_a_closed_view_listens_no_more(probe: Any, live: Any) -> None:
    opened = live(probe({"rows": [1]}))
    opened.evaluate("window.close_view(); model.set('state', {rows: [2]})")
    settle(opened)
    assert opened.evaluate("window.draws") == 1


@pytest.mark.parametrize("dark", [False, True])
def test_the_theme_is_the_pages(probe: Any, show: Any, dark: bool) -> None:
    opened = show(probe({"rows": [1]}), dark=dark)
    assert opened.get_attribute(".cui", "data-theme") == ("dark" if dark else "light")
    opened.evaluate("document.body.style.color = 'white'")  # the notebook turns dark
    opened.wait_for_selector('.cui[data-theme="dark"]')


def test_an_error_is_shown_and_still_thrown(probe: Any, live: Any, open_page: Any) -> None:
    opened = live(probe({"rows": [1]}))
    opened.evaluate(
        "window.addEventListener('error', (e) => { window.seen = e.message; e.preventDefault(); })"
    )
    opened.click("#bad")
    assert "on purpose" in opened.locator(".fault").text_content()
    assert "on purpose" in opened.evaluate("window.seen")
