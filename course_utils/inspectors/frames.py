"""Pieces of the first frame: HTML that Python draws, for where no script runs.

A notebook that is not trusted loses its style sheets, scripts and SVG, so these pieces use inline
styles only, and colours that read on light and on dark pages. Text is escaped by `tag`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from course_utils.inspectors.colours import Scale, background
from course_utils.report.markup import Markup, fixed, join, tag

__all__ = [
    "Markup",
    "bars",
    "card",
    "facts",
    "fine",
    "fixed",
    "glue_of",
    "join",
    "prompt",
    "table",
    "tag",
    "tokens",
]

SERIF = "font-family:Charter,Palatino,Georgia,serif"
MOST_TOKENS = 80  # of one answer in a first frame: about 170 bytes each


def card(title: str, *children: Any) -> Markup:
    """The frame around everything."""
    return tag(
        "div",
        tag("div", title, style=f"{SERIF};font-weight:600;font-size:17px;margin-bottom:8px"),
        *children,
        style="border:1px solid rgba(128,128,128,.35);border-radius:12px;padding:14px 18px;"
        "max-width:1100px;font-size:14px;line-height:1.5",
    )


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """A line of names with their numbers; text stays text."""
    return tag(
        "div",
        *(
            tag("span", name, " ", tag("b", shown(value)), "   ", style="white-space:pre")
            for name, value in pairs
        ),
        style="font-size:13px;opacity:.9",
    )


def shown(value: Any) -> str:
    """A float with two decimals and a real minus sign; anything else as it is."""
    return fixed(value) if isinstance(value, float) or value is None else str(value)


def fine(*children: Any) -> Markup:
    """Small print."""
    return tag("div", *children, style="font-size:12.5px;opacity:.75;margin-top:6px")


def prompt(text: str) -> Markup:
    return tag(
        "div", text, dir="auto", style=f"{SERIF};font-style:italic;font-size:16px;margin:8px 0 4px"
    )


def tokens(words: Sequence[str], values: Sequence[Any], scale: Scale, glue: str = "") -> Markup:
    """A run of tokens coloured by `values` on `scale`; its first `MOST_TOKENS`."""
    spans: list[str] = []
    for word, value in zip(words[:MOST_TOKENS], values, strict=False):
        strength = scale.strength(value)
        if strength is not None and abs(strength) < 0.04:
            spans.append(word or "∅")  # no colour to be seen
        else:
            spans.append(tag("span", word or "∅", title=shown(value), style=background(strength)))
        spans.append(glue)
    if len(words) > MOST_TOKENS:
        spans.append(f" … {len(words) - MOST_TOKENS:,} more tokens")
    return tag(
        "div",
        *spans,
        dir="auto",
        style=f"{SERIF};font-size:17px;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere",
    )


def glue_of(tokens: list[str], completion: str) -> str:
    """What to put between tokens: nothing where they carry their blanks, else a blank."""
    bare = "".join(tokens)
    return "" if not completion or " " in bare or completion.strip() in bare else " "


def bars(pairs: Sequence[tuple[str, Any]], limit: float | None = None) -> Markup:
    """One bar a number, to the right of its name; `limit` is the number of a full bar."""
    sizes = [abs(v) for _, v in pairs if isinstance(v, int | float)]
    full = limit or max(sizes, default=0) or 1.0
    rows = []
    for name, value in pairs:
        size = min(1.0, abs(value) / full) if isinstance(value, int | float) else 0.0
        colour = "213,94,0" if isinstance(value, int | float) and value < 0 else "0,114,178"
        style = f"width:{150 * size:.0f}px;height:10px;background:rgba({colour},.6)"
        rows.append([name, shown(value), tag("div", style=style)])
    return table(rows)


def table(rows: Sequence[Sequence[Any]], heads: Sequence[str] = ()) -> Markup:
    cell = "padding:2px 14px 2px 0;text-align:left;border:0"
    head = tag("tr", *(tag("th", name, style=cell) for name in heads)) if heads else None
    body = (
        tag("tr", *(tag("td", v if isinstance(v, str) else shown(v), style=cell) for v in row))
        for row in rows
    )
    return tag("table", head, *body, style="border-collapse:collapse;font-size:13px")
