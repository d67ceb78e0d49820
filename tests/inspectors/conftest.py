"""Inspectors in a real browser: Playwright drives the system's chromium, headless and offline.

    page = show(inspector)            # the saved page, as a student without a kernel gets it
    page = live(inspector)            # the module on a fake model that the test plays Python for
    page = show(inspector, dark=True)

Both fail the test on a script error or on a request that leaves the machine. With COURSE_SHOTS=1
`shot(page, "name")` leaves build/inspectors/name.png to look at.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from course_utils.inspectors import page as pages
from course_utils.inspectors.base import Inspector

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = Path(__file__).parents[2] / "build" / "inspectors"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@pytest.fixture(scope="session")
def playwright() -> Iterator[Any]:
    """One for all tests of a process: a second one cannot be started beside it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def chromium(playwright: Any) -> Iterator[Any]:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=120_000)
    context = browser.new_context()
    context.set_default_timeout(120_000)  # the machine may be busy
    yield context
    browser.close()


@pytest.fixture
def open_page(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """open_page(html, dark=False, width=1100) -> a Playwright page that has loaded it."""
    faults: list[str] = []
    pages: list[Any] = []

    def opened(html: str, dark: bool = False, width: int = 1100) -> Any:
        file = tmp_path / f"page{len(pages)}.html"
        file.write_text(html, encoding="utf-8")
        page = chromium.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.on("pageerror", lambda error: faults.append(f"error: {error}"))
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: _note_foreign(request.url, faults))
        page.goto(file.as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert not faults, faults


def _note_foreign(url: str, faults: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        faults.append(f"request to {url}")


@pytest.fixture
def show(open_page: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """The inspector's saved page, opened; `.cui` is its root."""

    def shown(inspector: Inspector, **options: Any) -> Any:
        saved = inspector.save(tmp_path / "saved.html").read_text(encoding="utf-8")
        page = open_page(saved, **options)
        page.wait_for_selector(".cui")
        return page

    return shown


@pytest.fixture
def live(open_page: Callable[..., Any]) -> Callable[..., Any]:
    """The inspector on a model that the test holds: `page.evaluate("model.receive({...})")`."""

    def shown(inspector: Inspector, **options: Any) -> Any:
        script = pages.bundle(inspector.module).rsplit("export default", 1)[0]
        state = pages.script_json([inspector.state, inspector.ui, inspector.key])
        html = (
            '<!doctype html><meta charset="utf-8"><style>:root{color-scheme:light dark}'
            f"{pages.style(*inspector.css)}</style>"
            f'<div id="host"></div><script type="module">\n{script}\n'
            f"const model = window.model = fakeModel(...{state});\ninitialize({{ model }});\n"
            "window.close_view = render({ model, el: document.getElementById('host') });\n</script>"
        )
        page = open_page(html, **options)
        page.wait_for_selector(".cui")
        return page

    return shown


@pytest.fixture
def shot() -> Callable[[Any, str], None]:
    def take(page: Any, name: str) -> None:
        if os.environ.get("COURSE_SHOTS"):
            SHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(SHOTS / f"{name}.png"), full_page=True)

    return take


def settle(page: Any) -> None:
    """Waits until an update that was asked for has been drawn."""
    page.evaluate("() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))")


NASTY = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>&amp;'
