"""Explorers on their pages: sliders by keyboard, boxes, presets, charts, refusals, three layers."""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from course_utils import inspectors
from course_utils.inspectors import page as pages
from course_utils.inspectors.explorers.explorer import Explorer, brief
from course_utils.inspectors.explorers.kl_estimators import KLExplorer
from course_utils.inspectors.explorers.lora_rank import LoRAExplorer
from course_utils.inspectors.explorers.memory import MemoryExplorer
from course_utils.inspectors.explorers.nf4_levels import NF4Explorer
from course_utils.inspectors.explorers.ppo_clip import PPOClipExplorer

from .conftest import NASTY, settle

NAMES = sorted(n for n in inspectors.__all__ if n.endswith("Explorer"))
Page = Callable[..., Any]


def made(name: str) -> Explorer:
    return getattr(inspectors, name)()


def figure(page: Any, label: str) -> str:
    """The number below the charts that has this label."""
    return page.locator(f".figures div:has(dt:text-is('{label}')) dd").first.inner_text()


# ---- every explorer ------------------------------------------------------------------------------


def test_there_are_eight() -> None:
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_three_layers_within_sixty_kilobytes(name: str) -> None:
    explorer = made(name)
    data, _ = explorer.mimebundle()
    assert data["text/plain"] == explorer.line() == repr(explorer)
    assert data["text/plain"].startswith(f"{name}: ")
    assert len(data["text/html"].encode()) <= 60_000
    assert "application/vnd.jupyter.widget-view+json" in data
    frame = explorer.first_frame()
    assert explorer.title.replace("'", "&#x27;") in frame
    shown = brief(explorer.told(explorer.frame())[0][1])
    assert shown.split(" ")[0] in frame
    assert not re.search(
        r"https?://", pages.bundle(explorer.module).replace("http://www.w3.org", "")
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("look", "width"), [("light", 1100), ("dark", 1100), ("narrow", 400)])
def test_it_draws_without_errors_and_within_its_width(
    name: str, look: str, width: int, show: Page, shot: Callable[[Any, str], None]
) -> None:
    page = show(made(name), dark=look == "dark", width=width)
    settle(page)
    assert page.locator(".stage svg").count() >= 1
    assert page.locator(".fault, .notice:visible").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert "NaN" not in page.locator(".cui").inner_html()
    assert "undefined" not in page.locator(".cui").inner_text()
    shot(page, f"{name}-{look}")


@pytest.mark.parametrize("name", NAMES)
def test_every_slider_moves_by_the_arrow_keys(name: str, live: Page) -> None:
    explorer = made(name)
    page = live(explorer)
    sliders = page.locator(".knob input[type=range]:visible")
    for i in range(sliders.count()):
        slider = sliders.nth(i)
        slider.focus()
        before = page.evaluate("JSON.stringify(model.get('ui'))")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowRight")
        after = page.evaluate("model.get('ui')")
        label = slider.get_attribute("aria-label")
        if slider.input_value() != slider.get_attribute("max"):
            assert page.evaluate("JSON.stringify(model.get('ui'))") != before, label
        explorer.checked({key: after[key] for key in explorer.inputs})
    settle(page)
    assert page.locator(".fault").count() == 0


@pytest.mark.parametrize("name", NAMES)
def test_presets_set_inputs_and_say_what_to_see(name: str, live: Page) -> None:
    explorer = made(name)
    page = live(explorer)
    for i, preset in enumerate(explorer.presets):
        button = page.locator(".presets button").nth(i)
        button.focus()
        page.keyboard.press("Enter")
        settle(page)
        assert button.get_attribute("aria-pressed") == "true"
        assert page.locator(".note").inner_text() == preset.note
        ui = page.evaluate("model.get('ui')")
        assert {key: ui[key] for key in preset.set} == preset.set
        assert page.locator(".stage > .notice:visible, .fault").count() == 0
    page.locator(".knob input[type=range]:visible").first.focus()
    page.keyboard.press("ArrowLeft")
    settle(page)
    assert not page.locator(".note").is_visible()


@pytest.mark.parametrize("name", NAMES)
def test_what_python_sets_is_shown_and_nonsense_is_not_computed(name: str, live: Page) -> None:
    explorer = made(name)
    page = live(explorer)
    wanted = explorer.presets[0].set
    page.evaluate("(set) => model.set('ui', { ...model.get('ui'), ...set })", wanted)
    settle(page)
    assert page.locator(".figures dd").count() > 0
    key = next(k for k, field in explorer.inputs.items() if field.kind == "number")
    page.evaluate("(key) => model.set('ui', { ...model.get('ui'), [key]: NaN })", key)
    settle(page)
    assert "not a number" in page.locator(".stage > .notice").inner_text()
    assert page.locator(".stage.stale").count() == 1
    page.evaluate(
        "([k, v]) => model.set('ui', { ...model.get('ui'), [k]: v })", [key, explorer.chosen[key]]
    )
    settle(page)
    assert page.locator(".stage.stale").count() == 0


# ---- one by one ----------------------------------------------------------------------------------


def test_the_box_takes_an_exact_number_and_refuses_others(show: Page) -> None:
    page = show(PPOClipExplorer())
    box = page.get_by_label("ratio r, exact value")
    box.fill("1.234")
    box.press("Enter")
    settle(page)
    assert figure(page, "objective") == "1.20"
    for wrong in ("abc", "", "11", "nan", NASTY):
        box.fill(wrong)
        box.press("Enter")
        assert box.get_attribute("aria-invalid") == "true"
        assert page.locator(".wrong:visible").count() == 1
        box.blur()
        assert box.input_value() == "1.234"
    assert page.evaluate("window.hacked") is None


def test_the_clip_shows_where_the_gradient_ends(show: Page) -> None:
    page = show(PPOClipExplorer(ratio=1.5))
    assert figure(page, "region") == "flat: no gradient"
    page.get_by_label("ratio r", exact=True).focus()
    for _ in range(31):
        page.keyboard.press("ArrowLeft")
    settle(page)
    assert figure(page, "region") == "inside 1 ± ε"
    page.get_by_role("group", name="dual clip").get_by_text("on").click()
    settle(page)
    page.get_by_label("dual clip c", exact=True).focus()
    page.keyboard.press("Home")
    settle(page)
    assert "must be above 1 + ε" in page.locator(".notice").inner_text()


def test_a_chart_is_read_and_set_by_keys(show: Page) -> None:
    page = show(LoRAExplorer())
    chart = page.locator(".chart svg[tabindex]").first
    chart.focus()
    page.keyboard.press("End")
    assert "rank 256" in page.locator(".unseen").inner_text()
    page.keyboard.press("Enter")
    page.keyboard.press("Home")
    settle(page)
    page.keyboard.press("Enter")  # the keyboard's place is kept when the chart is drawn again
    settle(page)
    assert page.get_by_label("rank r, exact value").input_value() in ("1", "256")
    assert page.evaluate("document.activeElement.tagName") == "svg"


def test_bars_are_shaped_by_keys_and_by_dragging(live: Page) -> None:
    page = live(KLExplorer())
    bar = page.get_by_role("slider", name="π of great", exact=True)
    bar.focus()
    for _ in range(5):
        page.keyboard.press("ArrowUp")
    settle(page)
    shaped = page.evaluate("model.get('ui').policy")
    assert abs(shaped[0] - 0.5) < 0.002
    assert abs(sum(shaped) - 1) < 0.002
    assert abs(shaped[1] / shaped[2] - 0.25 / 0.15) < 0.02  # the others keep their proportions
    assert page.evaluate("document.activeElement.getAttribute('aria-valuenow')") == "0.500"
    box = page.get_by_role("slider", name="π_ref of no", exact=True).bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + box["height"] - 40)
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] - 120, steps=4)
    page.mouse.up()
    settle(page)
    reference = page.evaluate("model.get('ui').reference")
    assert reference[4] > 0.3
    KLExplorer().checked({"policy": shaped, "reference": reference})


def test_a_format_is_chosen_on_the_number_line(show: Page) -> None:
    page = show(NF4Explorer())
    row = page.get_by_role("button", name="INT4: choose")
    row.focus()
    page.keyboard.press("Enter")
    settle(page)
    assert row.get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.activeElement.dataset.format") == "int4"
    assert "INT4" in page.locator(".stage h4").nth(1).inner_text()


def test_the_memory_page_gives_pythons_verdicts(show: Page) -> None:
    explorer = MemoryExplorer()
    page = show(explorer)
    verdicts = page.locator(".verdict").all_text_contents()
    fits = [text.startswith("✓") for text in verdicts]
    assert fits == list(explorer.frame()["fits"].values())
    page.get_by_label("recipe").select_option("full")
    settle(page)
    texts = page.locator(".verdict").all_text_contents()
    assert all(text.startswith("✗") for text in texts)
    page.get_by_label("model").select_option("gpt2")
    settle(page)
    page.get_by_label("tokens a row, exact value").fill("2048")
    page.keyboard.press("Enter")
    settle(page)
    assert "beyond the context of gpt2" in page.locator(".notice").inner_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_slider_answers_within_a_tenth_of_a_second(name: str, live: Page) -> None:
    """Measured, and generously bounded: the machine may be busy."""
    page = live(made(name))
    took = page.evaluate(
        """async () => {
          const slider = document.querySelector('.knob input[type=range]');
          const times = [];
          for (let i = 0; i < 5; i++) {
            slider.value = Number(slider.value) + Number(slider.step);
            const from = performance.now();
            slider.dispatchEvent(new Event('input', { bubbles: true }));
            await new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)));
            times.push(performance.now() - from);
          }
          return Math.min(...times);
        }"""
    )
    print(f"{name}: {took:.0f} ms")
    assert took < 1000


def test_a_page_holds_fewer_models_where_room_is_short() -> None:
    explorer = MemoryExplorer(model="qwen3-8b")
    kept = explorer.shortened(6_000)
    assert "qwen3-8b" in kept["shapes"]
    assert len(kept["shapes"]) < len(explorer.state["shapes"])
    models = next(field for field in kept["inputs"] if field["name"] == "model")
    assert [option[0] for option in models["options"]] == list(kept["shapes"])
    assert pages.json_bytes(kept) <= 6_000


def test_text_of_the_state_stays_text(show: Page) -> None:
    explorer = PPOClipExplorer()
    explorer.set_state({**explorer.state, "lead": NASTY, "title": NASTY, "formula": NASTY})
    page = show(explorer)
    assert page.locator(".opening p").inner_text() == NASTY
    assert page.evaluate("window.hacked") is None


def test_the_page_leaves_out_what_it_does_not_use() -> None:
    used = pages.bundle("explorers/memory.js")
    assert "function tokenRun" not in used
    assert "function inspect" in used
    start = time.perf_counter()
    pages.bundle.cache_clear()
    pages.bundle("explorers/memory.js")
    print(f"bundled in {time.perf_counter() - start:.3f} s")
