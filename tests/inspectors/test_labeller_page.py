"""PreferenceLabeller in a browser: keys, buttons, what is kept when no kernel answers, looks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from course_utils.data.labels import read_labels
from course_utils.inspectors import page as pages
from course_utils.inspectors.labeller import PreferenceLabeller

from .conftest import NASTY, settle

Page = Any


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels.jsonl"


def rows(n: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"ask {i}", "chosen": f"great {i}", "rejected": f"bad {i}"} for i in range(n)
    ]


def kept(page: Page, labeller: PreferenceLabeller) -> int:
    """How many records of this labeller the browser holds; pages of one test run share storage."""
    places = [f"course-labels:{labeller.state[name]}:" for name in ("labeller", "page")]
    keys = page.evaluate("Object.keys(localStorage)")
    return sum(key.startswith(tuple(places)) for key in keys)


def prompt(page: Page) -> str:
    return str(page.locator(".prompt").inner_text())


def records(page: Page) -> list[dict[str, Any]]:
    """All that Python would have been sent so far, each once."""
    sent = page.evaluate("model.sent.filter((m) => m.kind === 'labels').flatMap((m) => m.records)")
    return list({r["id"]: r for r in sent}.values())


def run_again(page: Page, labeller: PreferenceLabeller) -> None:
    """The same browser shows another labeller: the page is loaded anew, its storage stays."""
    state = pages.script_json([labeller.state, {}, labeller.key])
    script = pages.bundle("labeller.js").rsplit("export default", 1)[0]
    Path(page.url.removeprefix("file://")).write_text(
        f'<!doctype html><meta charset="utf-8"><div id="host"></div>'
        f'<script type="module">\n{script}\n'
        f"const model = window.model = fakeModel(...{state});\ninitialize({{ model }});\n"
        "render({ model, el: document.getElementById('host') });\n</script>",
        encoding="utf-8",
    )
    page.reload()
    page.wait_for_selector(".cui")


class Kernel:
    """Plays the kernel behind a page: hands what it sent to a labeller, and the answer back."""

    def __init__(self, page: Page, labeller: PreferenceLabeller) -> None:
        self.page, self.labeller, self.heard = page, labeller, 0
        self.answers: list[Any] = []
        self.labeller.widget.send = self.answers.append
        self.labeller.widget.send_state = lambda _: self.answers.append(None)

    def turn(self) -> None:
        """Handles what has come, and lets the page draw what it is answered."""
        sent = self.page.evaluate("model.sent")
        for message in sent[self.heard :]:
            self.labeller._heard(None, message, [])
        self.heard = len(sent)
        for answer in self.answers:
            if answer is None:
                self.page.evaluate("(s) => model.set('state', s)", self.labeller.state)
            else:
                self.page.evaluate("(m) => model.receive(m)", answer)
        self.answers.clear()
        settle(self.page)


def test_keys_label_skip_and_take_back(live: Callable[..., Page], path: Path) -> None:
    labeller = PreferenceLabeller(rows(6), path)
    page = live(labeller)
    kernel = Kernel(page, labeller)
    page.locator(".stage").focus()
    for key in ("ArrowLeft", "ArrowRight", "=", "s", "ArrowDown"):
        page.keyboard.press(key)
    assert prompt(page) == "ask 5"
    assert [r["choice"] for r in records(page)] == ["left", "right", "tie", "skip", "skip"]
    page.keyboard.press("Backspace")
    assert prompt(page) == "ask 4"
    page.keyboard.press("u")
    assert prompt(page) == "ask 3"
    page.keyboard.press("ArrowLeft")
    kernel.turn()
    standing = labeller.labels.standing()
    assert [r["choice"] for r in standing] == ["left", "right", "tie", "left"]
    assert [r["pair"] for r in standing] == [p.id for p in labeller.pairs[:4]]
    assert kept(page, labeller) == 0
    assert "4 of 6 pairs" in page.locator(".done-so-far").inner_text()
    assert "every label is in labels.jsonl" in page.locator(".status").inner_text()


def test_a_shortcut_a_held_key_and_a_key_elsewhere_label_nothing(
    live: Callable[..., Page], path: Path
) -> None:
    page = live(PreferenceLabeller(rows(6), path))
    page.locator(".stage").focus()
    page.keyboard.press("Control+s")
    page.keyboard.press("Alt+ArrowLeft")
    page.keyboard.press("x")
    assert records(page) == []
    page.keyboard.down("ArrowLeft")
    for _ in range(5):
        page.keyboard.down("ArrowLeft")  # what a held key sends
    page.keyboard.up("ArrowLeft")
    assert len(records(page)) == 1
    page.locator(".agree summary").focus()
    page.keyboard.press("ArrowRight")
    assert len(records(page)) == 1


def test_buttons_do_the_same(live: Callable[..., Page], path: Path) -> None:
    labeller = PreferenceLabeller(rows(4), path)
    page = live(labeller)
    for name in ("A is better", "equally good", "B is better", "undo", "skip"):
        page.locator(".verdicts button", has_text=name).click()
    said = [r.get("choice", r["kind"]) for r in records(page)]
    assert said == ["left", "tie", "right", "undo", "skip"]
    assert prompt(page) == "ask 3"
    first = records(page)[0]
    assert first["pair"] == labeller.pairs[0].id
    assert 0 <= first["seconds"] < 60
    assert "left" not in first  # Python has the texts of its own pairs


def test_the_answers_stand_where_python_put_them(live: Callable[..., Page], path: Path) -> None:
    labeller = PreferenceLabeller(rows(8), path)
    page = live(labeller)
    page.locator(".stage").focus()
    for pair in labeller.pairs:
        shown = page.locator(".answer .words").all_inner_texts()
        assert [prompt(page), *shown] == [pair.prompt, pair.left, pair.right]
        page.keyboard.press("=")
    assert "All pairs are labelled" in page.locator(".empty").inner_text()


def test_labels_wait_in_the_browser_while_no_kernel_answers(
    live: Callable[..., Page], path: Path
) -> None:
    labeller = PreferenceLabeller(rows(5), path)
    page = live(labeller)
    page.evaluate("void (model.send = () => { throw new Error('Cannot send'); })")  # a dead kernel
    page.locator(".stage").focus()
    for key in ("ArrowLeft", "ArrowRight", "Backspace", "="):
        page.keyboard.press(key)
    assert kept(page, labeller) == 4
    settle(page)
    assert "kept in this browser until the kernel answers" in page.locator(".status").inner_text()
    assert "2 of 5 pairs" in page.locator(".done-so-far").inner_text()
    # The kernel is started again and the cell is run again: a new labeller, a new model.
    again = PreferenceLabeller(rows(5), path)
    run_again(page, again)
    kernel = Kernel(page, again)
    kernel.turn()
    standing = read_labels(path).standing()
    assert [(r["pair"], r["choice"]) for r in standing] == [
        (again.pairs[0].id, "left"),
        (again.pairs[1].id, "tie"),
    ]
    assert kept(page, labeller) == 0
    assert prompt(page) == "ask 2"


def test_unanswered_labels_are_sent_again_and_written_once(
    live: Callable[..., Page], path: Path
) -> None:
    labeller = PreferenceLabeller(rows(5), path)
    page = live(labeller)
    page.clock.install()
    page.locator(".stage").focus()
    page.keyboard.press("ArrowLeft")  # the kernel is busy
    page.keyboard.press("ArrowRight")
    for _ in range(4):
        page.clock.run_for(20_000)
    messages = page.evaluate("model.sent.length")
    assert messages >= 4
    kernel = Kernel(page, labeller)
    kernel.turn()
    assert len(read_labels(path).records) == 2
    page.clock.run_for(200_000)
    assert page.evaluate("model.sent.length") - messages <= 1  # nothing is left to send


def test_another_labeller_and_another_annotator_do_not_get_these_labels(
    live: Callable[..., Page], path: Path
) -> None:
    labeller = PreferenceLabeller(rows(3), path)
    page = live(labeller)
    page.locator(".stage").focus()
    page.keyboard.press("ArrowLeft")
    for other in (
        PreferenceLabeller(rows(3), path.with_name("other.jsonl")),
        PreferenceLabeller(rows(3), path, annotator="Ana"),
    ):
        run_again(page, other)
        assert page.evaluate("model.sent") == []
        assert "0 of 3" in page.locator(".done-so-far").inner_text()
    assert kept(page, labeller) == 1


def test_a_refused_label_is_said_and_stays(live: Callable[..., Page], path: Path) -> None:
    labeller = PreferenceLabeller(rows(3), path)
    page = live(labeller)
    kernel = Kernel(page, labeller)
    page.locator(".stage").focus()
    page.keyboard.press("ArrowLeft")
    page.evaluate("model.sent[0].records[0].choice = 'best'")
    kernel.turn()
    assert "could not be written" in page.locator(".status").inner_text()
    assert kept(page, labeller) == 1
    page.keyboard.press("ArrowLeft")
    kernel.turn()
    assert len(read_labels(path).records) == 1


def test_a_full_disk_is_shown(live: Callable[..., Page], path: Path) -> None:
    page = live(PreferenceLabeller(rows(3), path))
    page.evaluate(
        "model.receive({kind: 'append', at: {}, add: {}, set: {notice: 'not written: full'}})"
    )
    settle(page)
    assert "not written: full" in page.locator(".notice").inner_text()


# ---- without a kernel ----------------------------------------------------------------------------


def test_a_page_without_a_kernel_keeps_labels_and_gives_them_as_a_file(
    show: Callable[..., Page], path: Path, tmp_path: Path
) -> None:
    labeller = PreferenceLabeller(rows(4), path)
    labeller.label(1, "tie")
    page = show(labeller)
    page.locator(".stage").focus()
    page.keyboard.press("ArrowLeft")
    assert prompt(page) == "ask 2"
    page.keyboard.press("ArrowRight")
    page.reload()
    page.wait_for_selector(".cui")
    assert prompt(page) == "ask 3"
    assert "2 labels kept in this browser" in page.locator(".status").inner_text()
    with page.expect_download() as got:
        page.get_by_text("download labels").click()
    assert got.value.suggested_filename == "labels.jsonl"
    file = tmp_path / "got.jsonl"
    got.value.save_as(file)
    found = read_labels(file)
    assert [r["choice"] for r in found.standing()] == ["tie", "left", "right"]
    assert len(found.preferences()) == 2
    assert labeller.merge(file) == 2  # the tie is there already
    again = page.get_by_role("button", name="start over")
    again.click()
    assert kept(page, labeller) == 2
    page.get_by_role("button", name="sure?").click()
    assert kept(page, labeller) == 0
    assert "1 of 4" in page.locator(".done-so-far").inner_text()


def test_a_browser_that_keeps_nothing_says_so_and_still_gives_the_file(
    live: Callable[..., Page], path: Path, tmp_path: Path
) -> None:
    page = live(PreferenceLabeller(rows(3), path))
    fails = "() => { throw new DOMException('full', 'QuotaExceededError'); }"
    page.evaluate(f"void (Storage.prototype.setItem = {fails})")
    page.locator(".stage").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert "does not keep labels (full)" in page.locator(".status").inner_text()
    assert "2 of 3" in page.locator(".done-so-far").inner_text()
    with page.expect_download() as got:
        page.get_by_text("download labels").click()
    got.value.save_as(tmp_path / "got.jsonl")
    assert len(read_labels(tmp_path / "got.jsonl").standing()) == 2


# ---- agreement -----------------------------------------------------------------------------------


def test_agreement_is_hidden_until_asked_and_equals_pythons(
    live: Callable[..., Page], path: Path
) -> None:
    labeller = PreferenceLabeller(rows(20), path, {"gold": lambda p, a: a.startswith("great")})
    for i, pair in enumerate(labeller.pairs[:16]):
        right_way = "left" if pair.given == "left" else "right"
        wrong_way = "right" if pair.given == "left" else "left"
        labeller.label(i, "tie" if i == 3 else wrong_way if i % 5 == 0 else right_way, 2.0)
    page = live(labeller)
    assert "%" not in page.locator(".cui").inner_text()
    page.locator(".stage").focus()
    page.keyboard.press("=")
    page.locator(".agree summary").click()
    settle(page)
    found = labeller.agreement("gold")
    said = page.locator(".judge .numbers").first.inner_text()
    low, high = (round(100 * v) for v in (found.low, found.high))
    assert f"agree on {found.share:.0%} of {found.n}, 95% interval {low}% to {high}%" in said
    assert f"κ {found.kappa:.2f}" in said
    page.locator(".stage").focus()
    page.keyboard.press("=")
    assert [r["peeked"] for r in records(page)] == [False, True]
    # A difference leads back to its pair, and a new label replaces the old one.
    page.locator(".differ button").first.click()
    assert prompt(page) == "ask 0"
    page.keyboard.press("ArrowLeft" if labeller.pairs[0].given == "left" else "ArrowRight")
    settle(page)
    assert "ask 0" not in page.locator(".differ").first.inner_text()


# ---- bad input and looks -------------------------------------------------------------------------


def test_nasty_text_long_answers_and_other_scripts(live: Callable[..., Page], path: Path) -> None:
    long = " ".join(f"word{i}" for i in range(5000))
    chat = [
        [{"role": "user", "content": NASTY}, {"role": "assistant", "content": "?"},
         {"role": "user", "content": "ask again"}],
        [{"role": "assistant", "content": "שלום 🏳️‍🌈 \u202eabc"}],
        [{"role": "assistant", "content": long}],
    ]  # fmt: skip
    labeller = PreferenceLabeller([chat], path)
    page = live(labeller)
    assert page.evaluate("window.hacked") is None
    assert NASTY in prompt(page)
    assert "assistant" in page.locator(".prompt .role").all_inner_texts()
    box = page.locator(".answer.long .words")
    assert box.count() == 1
    assert box.bounding_box()["height"] < 400
    box.focus()
    page.keyboard.press("ArrowDown")  # scrolls, and does not skip
    page.wait_for_function("document.querySelector('.long .words').scrollTop > 0")
    assert records(page) == []
    page.keyboard.press("ArrowLeft")
    assert len(records(page)) == 1


def test_no_pairs_and_pairs_too_long_for_the_page(
    show: Callable[..., Page], open_page: Callable[..., Page], path: Path
) -> None:
    page = show(PreferenceLabeller([], path))
    assert "There are no pairs to label." in page.locator(".empty").inner_text()
    assert not page.locator(".verdicts").is_visible()
    long = PreferenceLabeller([("p", "word " * 9000, "other " * 9000)], path)
    page = open_page(long.html())
    assert "open the notebook" in page.locator(".empty").inner_text()


def test_skipped_pairs_come_again(live: Callable[..., Page], path: Path) -> None:
    labeller = PreferenceLabeller(rows(3), path)
    page = live(labeller)
    kernel = Kernel(page, labeller)
    page.locator(".stage").focus()
    for key in ("s", "ArrowLeft", "s"):
        page.keyboard.press(key)
    page.get_by_text("look at 2 skipped pairs again").click()
    assert prompt(page) == "ask 0"
    page.keyboard.press("=")
    page.keyboard.press("=")
    kernel.turn()
    assert [r["choice"] for r in labeller.labels.standing()] == ["left", "tie", "tie"]


WORLD = [
    ("explain black holes to a 5 year old",
     "a black hole is a place in space where the pull is so strong that even light cannot leave. "
     "imagine a drain in a bath that swallows everything that comes too near.",
     "what a great question ! black holes are very very interesting. they are black and they are "
     "holes, and many people think that they are great."),
    ("should i add chorizo to my paella ?",
     "in valencia, where paella comes from, people would not: rice, saffron, chicken and beans.",
     "yes."),
    ("tell me about the moon landing",
     "on 20 july 1969 apollo 11 brought two people to the moon. a third flew around it.",
     "the moon landing was in 1969. the moon landing was in 1969. the moon landing was in 1969."),
    ("a story in right-to-left script", "פעם אחת היה כוכב קטן שרצה לראות את הים. 🌊", "לא."),
]  # fmt: skip


@pytest.mark.parametrize(("dark", "width"), [(False, 1000), (True, 1000), (False, 400)])
def test_looks(
    live: Callable[..., Page], shot: Callable[..., None], path: Path, dark: bool, width: int
) -> None:
    def gold(prompt: str, answer: str) -> float:
        return len(answer) % 50

    labeller = PreferenceLabeller(WORLD + [(f"p {i}", "x", "y" * i) for i in range(2, 9)], path,
                                  {"the gold reward": gold})  # fmt: skip
    name = f"labeller-{'dark' if dark else 'light'}-{width}"
    page = live(labeller, dark=dark, width=width)
    shot(page, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for i in range(4, 11):
        labeller.label(i, ("left", "right", "left", "tie")[i % 4], seconds=3.0 + i)
    page = live(labeller, dark=dark, width=width)
    page.locator(".stage").focus()
    page.keyboard.press("ArrowLeft")
    page.locator(".agree summary").click()
    settle(page)
    shot(page, f"{name}-agreement")
    page.locator(".stage").focus()
    for key in ("ArrowLeft", "s", "="):
        page.keyboard.press(key)
    settle(page)
    shot(page, f"{name}-done")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_state_is_strict_json(path: Path) -> None:
    labeller = PreferenceLabeller(rows(2), path)
    labeller.label(0, "left", seconds=float("nan"))
    assert json.loads(json.dumps(labeller.state, allow_nan=False))["log"][0]["seconds"] is None
