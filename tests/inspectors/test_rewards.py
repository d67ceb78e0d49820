"""RewardInspector: its numbers against numpy and `evaluation`, its layers, bad input."""

import math
from typing import Any

import numpy as np
import pytest

from course_utils.errors import CourseError
from course_utils.evaluation import calibration, pair_accuracy
from course_utils.inspectors import RewardInspector, reward_numbers

from .conftest import NASTY, settle

RNG = np.random.default_rng(0)


def scores(n: int = 200, slope: float = 0.05) -> dict[str, Any]:
    """Scores that prefer the chosen answer, and longer answers by `slope` a word."""
    lengths = RNG.integers(3, 40, size=(n, 2))
    chosen = RNG.normal(0.5, 1, n) + slope * lengths[:, 0]
    rejected = RNG.normal(0, 1, n) + slope * lengths[:, 1]
    return {
        "chosen": chosen,
        "rejected": rejected,
        "chosen_lengths": lengths[:, 0],
        "rejected_lengths": lengths[:, 1],
    }


def texts(n: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"prompt {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)
    ]


# ---- numbers ---------------------------------------------------------------------------------


def test_summary_is_that_of_evaluation() -> None:
    data = scores()
    found = RewardInspector(**data).summary()
    margins = data["chosen"] - data["rejected"]
    expected = pair_accuracy(data["chosen"], data["rejected"]).accuracy
    assert found["accuracy"] == expected.to_json()
    assert found["margin"] == pytest.approx(margins.mean())
    curve = calibration(margins)
    assert found["ece"] == pytest.approx(curve.ece)
    assert found["brier"] == pytest.approx(curve.brier)


@pytest.mark.parametrize("within", [False, True])
def test_slopes_are_numpys(within: bool) -> None:
    data = scores()
    lc, lr = data["chosen_lengths"], data["rejected_lengths"]
    if within:
        x, y = lc - lr, data["chosen"] - data["rejected"]
    else:
        x = np.concatenate([lc, lr])
        y = np.concatenate([data["chosen"], data["rejected"]])
    found = RewardInspector(**data).summary()["length"]["within" if within else "answers"]
    slope, intercept = np.polyfit(x, y, 1)
    assert found["slope"] == pytest.approx(slope)
    assert found["intercept"] == pytest.approx(intercept)
    assert found["r"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found["n"] == len(x)


def test_shares_of_the_longer_answer_are_counted() -> None:
    found = RewardInspector([1, 0, 2, 0], [0, 1, 2, 5], [9, 9, 9, 4], [3, 3, 3, 4]).summary()[
        "length"
    ]
    assert found["longer_preferred"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["longer_chosen"] == 1.0


def test_histogram_counts_every_number_once_and_zero_is_an_edge() -> None:
    values = np.concatenate([RNG.normal(0.3, 2, 500), [50.0, -50.0]])
    found = reward_numbers.histogram(values)
    edges, counts = np.array(found["edges"]), found["counts"][0]
    assert sum(counts) == len(values)
    assert np.min(np.abs(edges)) == 0.0
    assert sum(c for c, e in zip(counts, edges, strict=False) if e < 0) == (values < 0).sum()
    assert len(counts) <= 2 * reward_numbers.BARS


def test_best_scale_is_where_the_likelihood_peaks() -> None:
    true = RNG.normal(0, 2, 20_000)
    outcome = RNG.random(len(true)) < 1 / (1 + np.exp(-true))
    margins = np.where(outcome, true, -true) * 2.0  # twice too sure
    found = reward_numbers.best_scale(margins)
    grid = np.linspace(0.25, 4, 4001)
    loss = [np.logaddexp(0, -s * margins).sum() for s in grid]
    assert found == pytest.approx(grid[int(np.argmin(loss))], abs=2e-3)
    assert found == pytest.approx(0.5, abs=0.03)
    assert reward_numbers.best_scale(np.array([1.0, 2.0])) == 4.0
    assert reward_numbers.best_scale(np.zeros(3)) is None


def test_calibrations_of_all_scales_are_those_of_evaluation() -> None:
    data = scores()
    state = RewardInspector(**data).state
    margins = data["chosen"] - data["rejected"]
    for found in state["calibrations"][::8]:
        curve = calibration(margins, scale=found["scale"])
        assert found["ece"] == pytest.approx(curve.ece, rel=1e-3)
        rows = [[b.confidence, b.accuracy, b.count] for b in curve.bins if b.count]
        assert np.allclose(found["bins"], rows, rtol=1e-3)


def test_of_scores_both_sides_and_measures_lengths() -> None:
    def reward(prompts: list[str], answers: list[str]) -> list[float]:
        return [float(len(p) + len(a)) for p, a in zip(prompts, answers, strict=True)]

    rows = [
        {
            "prompt": [{"role": "user", "content": "why"}],
            "chosen": [{"role": "assistant", "content": "a b c"}],
            "rejected": [{"role": "assistant", "content": "d"}],
        }
    ]
    found = RewardInspector.of(reward, rows).frame(0)
    assert found == {
        **{"chosen": 8, "rejected": 4, "chosen_length": 3, "rejected_length": 1, "margin": 4},
        **{"prompt": "why", "chosen_text": "a b c", "rejected_text": "d"},
    }


# ---- bad input -------------------------------------------------------------------------------


def test_empty_input_says_so(show: Any) -> None:
    inspector = RewardInspector([], [], pairs=[])
    assert inspector.line() == "RewardInspector: no pairs"
    assert inspector.summary()["pairs"] == 0
    assert "No pairs" in show(inspector).inner_text(".cui")


def test_numbers_that_are_not_finite_are_counted_and_left_out(show: Any) -> None:
    chosen = [1.0, math.nan, math.inf, None, 2.0]
    inspector = RewardInspector(chosen, [0.0] * 5, pairs=texts(5))
    assert inspector.summary()["pairs"] == 2
    assert inspector.summary()["dropped"] == 3
    assert inspector.frame(1)["prompt"] == "prompt 4"
    assert "3 pairs left out" in show(inspector).inner_text(".cui")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (([1, 2], [1]), r"shapes \(2,\), \(1,\)"),
        (([1], [1], [3]), "chosen_lengths and rejected_lengths"),
        (([1], [1], None, None, []), "1 pairs of scores but 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(given: Any, said: str) -> None:
    with pytest.raises(CourseError, match=said):
        RewardInspector(*given)


def test_one_pair_and_equal_scores_are_drawn(show: Any) -> None:
    page = show(RewardInspector([1.0], [1.0], [5], [5], pairs=texts(1)))
    assert "A tie" in page.inner_text(".cui")
    assert "no slope" in page.inner_text(".cui")


def test_text_stays_text(show: Any) -> None:
    words = [NASTY, "מה שלומך היום?", "🦊 👩‍👩‍👧 " * 20, "", "x" * 5000]
    rows = [{"prompt": w, "chosen": w, "rejected": w} for w in words]
    inspector = RewardInspector(range(5), [0] * 5, pairs=rows)
    page = show(inspector)
    for i in range(5):
        page.evaluate("i => { const r = document.querySelectorAll('.reader input')[0]; r.value = i;"
                      " r.dispatchEvent(new Event('input')); }", i)  # fmt: skip
        settle(page)
    assert page.evaluate("window.hacked") is None
    inspector.show(pair=0)
    page = show(inspector)
    assert page.inner_text(".reader .prompt") == NASTY
    assert NASTY in page.inner_text(".reply .quoted")


@pytest.mark.parametrize("n", [400, 20_000])
def test_a_notebook_output_is_small_whatever_the_number_of_pairs(n: int) -> None:
    inspector = RewardInspector(
        **scores(n), pairs=[{k: v * 30 for k, v in t.items()} for t in texts(n)]
    )
    assert len(inspector.html().encode()) <= 60_000
    kept = inspector.shortened(20_000)
    assert len(kept["pairs"]) + kept["skipped"] == n
    assert kept["margins"] == inspector.state["margins"]
    for i, prompt, *_ in kept["texts"]:
        k = int(prompt.split()[1].removesuffix("prompt"))
        assert kept["pairs"][i] == inspector.state["pairs"][k]


# ---- in the browser --------------------------------------------------------------------------


@pytest.fixture
def page(live: Any) -> Any:
    return live(RewardInspector(**scores(60), pairs=texts(60)))


def test_the_scale_slider_draws_the_calibration_of_that_scale(page: Any) -> None:
    page.focus('[aria-label="reward scale"]')
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    settle(page)
    state = page.evaluate("model.get('state')")
    assert page.evaluate("model.get('ui').scale") == 19
    assert f"error {state['calibrations'][19]['ece']:.3f}" in page.inner_text(".cui")
    page.click("text=likeliest")
    settle(page)
    ui = page.evaluate("model.get('ui').scale")
    assert state["scales"][ui] == pytest.approx(state["best_scale"], rel=0.05)


def test_pairs_are_read_in_the_chosen_order(page: Any) -> None:
    pairs = page.evaluate("model.get('state').pairs")
    margins = [row[0] - row[1] for row in pairs]
    for name, key in (("wrong", min), ("surest", max)):
        page.click(f"text={'most wrong' if name == 'wrong' else 'surest'} first")
        settle(page)
        i = margins.index(key(margins))
        assert page.inner_text(".reader .prompt") == f"prompt {i}"
        assert page.evaluate("model.get('ui').pair") == i


def test_a_point_is_chosen_by_keys_and_its_pair_is_shown(page: Any) -> None:
    chart = page.locator(".viewed svg").nth(3)
    chart.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    settle(page)
    i = page.evaluate("model.get('ui').pair")
    assert page.inner_text(".reader .prompt") == f"prompt {i}"
    assert page.locator(".halo[visibility=visible]").count() == 1
    page.keyboard.press("ArrowLeft")  # the chart still has the keyboard
    assert page.locator(".tip").is_visible()


def test_a_bar_of_the_margins_shows_a_pair_of_that_margin(page: Any) -> None:
    chart = page.locator(".viewed svg").nth(1)
    chart.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    settle(page)
    state = page.evaluate("model.get('state')")
    chosen = state["pairs"][page.evaluate("model.get('ui').pair")]
    assert chosen[0] - chosen[1] == pytest.approx(min(r[0] - r[1] for r in state["pairs"]))


def test_within_pairs_is_another_chart_and_slope(page: Any) -> None:
    before = page.locator(".viewed").nth(3).inner_text()
    page.click("text=within pairs")
    settle(page)
    after = page.locator(".viewed").nth(3).inner_text()
    assert before != after
    assert "margin" in after


def test_without_lengths_there_is_no_chart_of_them(live: Any) -> None:
    page = live(RewardInspector([1.0, 2.0, 0.0], [0.5, 0.0, 1.0]))
    assert page.locator(".viewed:visible").count() == 3
    assert not page.locator(".reader").is_visible()


def test_looks(show: Any, shot: Any) -> None:
    inspector = RewardInspector(**scores(400), pairs=texts(400))
    for name, options in (("light", {}), ("dark", {"dark": True}), ("narrow", {"width": 400})):
        page = show(inspector, **options)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        shot(page, f"rewards-{name}")
