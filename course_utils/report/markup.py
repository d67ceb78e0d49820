"""HTML in which nothing is trusted: text becomes markup only by way of `tag`, which escapes it."""

import html
import json
import math
from collections.abc import Iterable
from typing import Any

MINUS = "\N{MINUS SIGN}"


class Markup(str):
    """HTML that is ready to go on the page; any other string is text and gets escaped."""

    __slots__ = ()


_VOID = {"br", "hr", "meta", "link", "input"}


def join(children: Iterable[Any]) -> Markup:
    """Children one after the other: Markup as it is, None left out, the rest as escaped text."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(str(child), quote=True)
            for child in children
            if child is not None
        )
    )


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """`<name ...>children</name>`; `cls` is class, `_` is `-`, None and False are left out."""
    shown = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = "class" if key == "cls" else key.rstrip("_").replace("_", "-")
        shown += f" {key}" if value is True else f' {key}="{html.escape(str(value), quote=True)}"'
    if name in _VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def script_json(data: Any) -> Markup:
    """Strict JSON that can stand inside a <script> element: no "</script>", "<!--", NaN in it."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text.encode("utf-8", "replace").decode("utf-8"))


# ---- numbers -----------------------------------------------------------------------------------


def number(value: Any) -> float | None:
    """A finite number, or None for anything else (None, NaN, infinity, text, bool)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def rounded(value: Any, digits: int = 4) -> float | None:
    """`value` to so many significant digits: what the page's data holds."""
    found = number(value)
    return None if found is None else float(f"{found:.{digits}g}")


def fixed(value: Any, decimals: int = 2, sign: bool = False) -> str:
    """ "1.55", "−0.30" (a real minus sign), "+0.4" with `sign`; "–" where there is no number."""
    found = number(value)
    if found is None:
        return "–"
    text = f"{found:+.{decimals}f}" if sign else f"{found:.{decimals}f}"
    if not float(text):  # -0.00
        text = f"{0:.{decimals}f}"
    return text.replace("-", MINUS)


def percent(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{100 * found:.0f}%"


def amount(value: Any) -> str:
    """Counts in a few characters: 812, 12.3 k, 4.0 M; "–" where there is no number."""
    found = number(value)
    if found is None:
        return "–"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(found) >= size:
            return f"{found / size:.3g} {letter}"
    return f"{found:.0f}"


def duration(value: Any) -> str:
    """ "8.4 s", "2 min 51 s", "1 h 04 min"; "–" where there is no number."""
    found = number(value)
    if found is None:
        return "–"
    if found < 60:
        return f"{found:.1f} s"
    minutes, seconds = divmod(round(found), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
