"""The page that a run ends with: report.html, one self-contained file made from report.json.

`schema.Results` says what goes in. The page loads nothing from anywhere: style, script and
data are in the file, and its content security policy forbids everything else.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from course_utils.files import write_atomic
from course_utils.report import closing, quality, sections
from course_utils.report.data import page_data
from course_utils.report.markup import Markup, join, script_json, tag
from course_utils.report.series import cut
from course_utils.training.jsonl import plain

__all__ = ["build_report", "report_json", "write_report"]

MAX_BYTES = 1_400_000  # of the page; rollouts are left out beyond it
_SCRIPTS = ("charts.js", "figures.js", "inspector.js", "page.js")
_NAVIGATION = (
    ("answers", "Answers"),
    ("curves", "Training"),
    ("frontier", "Frontier"),
    ("overoptimisation", "Over-optimisation"),
    ("quality", "Reward"),
    ("judge", "Judge"),
    ("costs", "Costs"),
    ("rollouts", "Rollouts"),
    ("run", "Run"),
)


def _asset(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _page(results: Mapping[str, Any], most_rollouts: int) -> str:
    data = page_data(results, most_rollouts)
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(name) for name in _SCRIPTS) + "\n})();"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    title = cut(results.get("title") or "From base model to aligned model", 200)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(_asset("page.css"))),
    )
    links = [tag("a", text, href=f"#{name}") for name, text in _NAVIGATION]
    body = tag(
        "body",
        tag("a", "Skip to the report", href="#answers", cls="skip"),
        tag("nav", *links, aria_label="Sections"),
        tag(
            "main",
            sections.header(results),
            tag(
                "noscript",
                tag("p", "The charts need JavaScript; the text and tables do not.", cls="missing"),
            ),
            sections.answers(results),
            sections.curves(results),
            sections.frontier(results),
            sections.overoptimisation(results),
            quality.quality(results),
            quality.reward_model(results),
            closing.costs(results),
            closing.rollouts(results, len(data["rollouts"])),
            closing.how(results),
        ),
        tag("script", script_json(data), type="application/json", id="data"),
        tag("script", Markup(script)),
    )
    page = join([Markup("<!doctype html>\n"), tag("html", head, body, lang="en"), Markup("\n")])
    return page.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no UTF-8


def build_report(results: Mapping[str, Any]) -> str:
    """The whole page as one string of HTML; see `schema.Results` for what it reads.

    Whatever is missing from `results` becomes a sentence; NaN and infinities become gaps; all text
    is escaped. The page stays below 1.5 MB: beyond that, fewer rollouts are shown.
    """
    most = 120
    page = _page(results, most)
    while len(page.encode()) > MAX_BYTES and most:
        most //= 2
        page = _page(results, most)
    return page


def report_json(results: Mapping[str, Any]) -> str:
    """The results as strict JSON (NaN and infinities become null), as report.json holds them."""
    return json.dumps(plain(dict(results)), allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def write_report(path: Path | str, results: Mapping[str, Any]) -> Path:
    """Writes the page and report.json beside it; returns the path of the page.

    Args:
        path: of the page ("runs/latest/report.html"), or a directory, which gets a report.html.
    """
    page = Path(path)
    page = page if page.suffix == ".html" else page / "report.html"
    text = report_json(results)
    write_atomic(page.with_name("report.json"), text.encode("utf-8", "replace"))
    return write_atomic(page, build_report(json.loads(text)))
