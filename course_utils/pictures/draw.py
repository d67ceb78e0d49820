"""Boxes, arrows and words as inline SVG: text takes the page's own colour, light or dark."""

from dataclasses import dataclass
from html import escape

FROZEN, TRAINED, LINE = "120,120,130", "235,125,20", "rgb(128,128,128)"
_SMALL = 'font-size="12" fill="currentColor" fill-opacity=".75"'


@dataclass(frozen=True)
class Picture:
    """An SVG drawing, and the same in words where pictures cannot be shown."""

    words: str
    width: int  # SVG units
    height: int
    drawing: str

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.words)}" style="display:block;width:100%;'
            f'max-width:{self.width}px;height:auto;font-family:system-ui,sans-serif" '
            f'xmlns="http://www.w3.org/2000/svg">{self.drawing}</svg>'
        )


# ---- parts: x, y is the top left corner, in SVG units ------------------------------------------


def box(x: int, y: int, w: int, h: int, colour: str, title: str = "", words: str = "") -> str:
    middle = x + w / 2
    top = y + h / 2 + (5 if not words else -3)
    inside = (
        f'<text x="{middle}" y="{top}" text-anchor="middle" font-size="14" font-weight="600" '
        f'fill="currentColor">{escape(title)}</text>\n'
        f'<text x="{middle}" y="{top + 18}" text-anchor="middle" {_SMALL}>{escape(words)}</text>\n'
    )
    return (
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="9" fill="rgba({colour},.16)" '
        f'stroke="rgb({colour})" stroke-width="1.6"/>{inside}'
    )


def text(x: int, y: int, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {_SMALL}>{escape(words)}</text>\n'


def arrow(path: str, tip: str, direction: str = "right") -> str:
    """A line along `path`, and a head with its tip at `tip` ("x,y")."""
    head = {"right": "l-9,-5 v10 z", "up": "l-5,9 h10 z", "left": "l9,-5 v10 z"}[direction]
    return (
        f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.7"/>'
        f'<path d="M{tip}{head}" fill="{LINE}"/>'
    )


def legend(x: int, y: int, grey: str) -> str:
    return (
        box(x, y, 20, 14, FROZEN)
        + text(x + 28, y + 12, grey, "start")
        + box(x + 90, y, 20, 14, TRAINED)
        + text(x + 118, y + 12, "trained", "start")
    )
