"""From ES modules, style sheet and state to one string of HTML that needs nothing else.

The script on such a page is the inspector's own module, run on `fakeModel` of kit.js.
"""

import base64
import functools
import hashlib
import math
import posixpath
import re
from importlib import resources
from typing import Any

from course_utils.errors import CourseError
from course_utils.report.markup import Markup, script_json, tag

_IMPORT = re.compile(r'^import \{[^}]*\} from "(\.{1,2}/[a-z_]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function |const |class )", re.MULTILINE)
_COMMENT = re.compile(r"^\s*//.*\n|^\s+|(?<=[;{}),]) +// .*$", re.MULTILINE)
_DECLARED = re.compile(r"(?:async function|function|const|let|class) (\w+)")
_WORD = re.compile(r"(?:(?<=\.\.\.)|(?<![\w$.]))[\w$]+")
_PLAIN_STRING = re.compile(r'"[^"\n$]*"')  # with $ it may be a template's, around code
_ROOTS = {"initialize", "start", "fakeModel"}  # called by anywidget, by the page and by tests
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _bodies(name: str, seen: list[str]) -> list[str]:
    """The module's text after those of all modules that it imports, each once."""
    if name in seen:
        return []
    seen.append(name)
    text = asset(name)
    folder = posixpath.dirname(name)  # "explorers" of "explorers/lora.js"
    others = (posixpath.normpath(posixpath.join(folder, o)) for o in _IMPORT.findall(text))
    found = [body for other in others for body in _bodies(other, seen)]
    return [*found, _EXPORT.sub("", _IMPORT.sub("", text))]


def _words(text: str) -> set[str]:
    """What may be the name of something: no comments, no plain strings, no properties (`.size`)."""
    return set(_WORD.findall(_PLAIN_STRING.sub('""', _COMMENT.sub("", text))))


def _used(imported: str, own: str) -> str:
    """`imported` without the top-level functions and constants that nothing names.

    A declaration starts at the first column and lasts to the next one.
    """
    parts = re.split(rf"(?m)^(?={_DECLARED.pattern})", imported)[::2]
    names = [found[1] if (found := _DECLARED.match(part)) else None for part in parts]
    wanted = _words(own) | _ROOTS
    kept: set[int] = set()
    while more := {i for i, n in enumerate(names) if n is None or n in wanted} - kept:
        kept |= more
        wanted = wanted.union(*(_words(parts[i]) for i in more))
    return "".join(parts[i] for i in sorted(kept))


@functools.cache
def bundle(name: str) -> str:
    """One ES module: `name` with what it needs of its imports in front, comments and indentation
    left out.

    Its default export is what anywidget wants, {initialize, render}.
    """
    *imported, own = _bodies(name, [])
    text = _used("\n".join(imported), own) + "\n" + own
    if re.search(r"^import ", text, re.MULTILINE):
        raise CourseError(f'{name}: write imports as `import {{ a, b }} from "./kit.js";`')
    return _COMMENT.sub("", text) + "\nexport default { initialize, render };\n"


@functools.cache
def style(*names: str) -> str:
    """The common style sheet and the inspector's own, without comments and indentation."""
    text = _CSS_COMMENT.sub("", "\n".join(asset(name) for name in ("base.css", *names)))
    tight = re.sub(r"\s*([{};,])\s*", r"\1", re.sub(r"\s+", " ", text))
    return tight.replace(": ", ":").replace(";}", "}").strip() + "\n"


def finite(value: Any, digits: int = 4) -> Any:
    """`value` as strict JSON: floats to so many significant digits, NaN and infinities None."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        short = float(f"{value:.{digits}g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    if isinstance(value, dict):
        return {str(key): finite(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item, digits) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):  # arrays and tensors
        return finite(value.tolist(), digits)
    raise CourseError(f"an inspector's state cannot hold {type(value).__name__} {value!r}")


def json_bytes(state: Any) -> int:
    """How large `state` is on a page."""
    return len(script_json(state).encode("utf-8"))


def _script(module: str, key: str) -> str:
    """The module, and then the call that starts it. No "</script>" can be in our own files."""
    own = bundle(module).removesuffix("export default { initialize, render };\n")
    return (
        f"{own}\n{{\n"
        f"const host = document.querySelector('[data-cui=\"{key}\"]:not([data-started])');\n"
        f"if (host) start(render, host, JSON.parse(document.querySelector("
        f"'[data-cui-state=\"{key}\"]').textContent));\n}}\n"
    )


def fragment(key: str, frame: Markup, module: str, css: str, state: Any, ui: Any) -> str:
    """The HTML layer of a notebook output: first frame, state, style, script."""
    return "\n".join(
        (
            f"<style>{css}</style>",
            tag("div", frame, data_cui=key),
            tag(
                "script",
                script_json({"state": state, "ui": ui, "key": key}),
                type="application/json",
                data_cui_state=key,
            ),
            f'<script type="module">\n{_script(module, key)}</script>',
        )
    )


def document(title: str, key: str, module: str, body: str) -> str:
    """A whole page around a `fragment`; its policy lets nothing in from anywhere."""
    script = "\n" + _script(module, key)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        Markup(
            "<style>:root { color-scheme: light dark } body { margin: 20px auto; padding: 0 16px; "
            "max-width: 1100px; font-family: system-ui, sans-serif }</style>"
        ),
    )
    return f'<!doctype html>\n<html lang="en">{head}<body>\n{body}\n</body></html>\n'
