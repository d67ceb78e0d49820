"""Inspector: what all inspectors share. README.md beside this file says how to write one.

An inspector holds one `state`, a JSON-like dict made by its constructor, and shows it three ways:
live through anywidget, as self-contained HTML that runs the same script, and as one line of text.
Nothing here needs a front end, a kernel or anywidget: headless, `summary()` still returns data.
"""

import copy
import functools
import uuid
from pathlib import Path
from typing import Any, ClassVar

from course_utils.errors import CourseError
from course_utils.files import write_atomic
from course_utils.inspectors import page
from course_utils.inspectors.frames import Markup

INLINE_BYTES = 60_000  # of the HTML layer in a notebook, script and style included
PAGE_BYTES = 3_000_000  # of a page made by `save`


class Inspector:
    """Base class: give `module` and `title`, call `set_state`, write `line`, `first_frame`.

    `ui` is what the reader has chosen in the browser (a slider, a sort order). Python may read it
    in a later cell, and set it with `show`.
    """

    module: ClassVar[str] = ""  # the ES module beside the Python file: "mask.js"
    css: ClassVar[tuple[str, ...]] = ()  # style sheets besides base.css: ("mask.css",)
    title: ClassVar[str] = ""

    def __init__(self, state: dict[str, Any], ui: dict[str, Any] | None = None) -> None:
        self.key = uuid.uuid4().hex[:12]  # unlike that of any other inspector on the page
        self._ui: dict[str, Any] = dict(ui or {})
        self._live: Any = None  # the anywidget, from the first display on
        self._whole: dict[str, int] = {}  # rows per list when the whole state was last sent
        self._state: dict[str, Any] = {}
        self.set_state(state)

    # ---- to be written by each inspector -----------------------------------------------------

    def line(self) -> str:
        """The text layer: one line with the most telling numbers."""
        raise NotImplementedError

    def first_frame(self) -> Markup:
        """What the script will draw first, in plain HTML (see frames.py)."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """The numbers behind what is shown, for tests and for cells without a browser."""
        raise NotImplementedError

    def shortened(self, budget: int) -> dict[str, Any]:
        """The state in at most `budget` bytes of JSON. Override it where the state can be large."""
        return self._state

    def received(self, message: dict[str, Any]) -> None:
        """A message of `view.send` in the browser; it arrives once the kernel is idle."""

    # ---- state -------------------------------------------------------------------------------

    @property
    def state(self) -> dict[str, Any]:
        """All that the script draws from: a copy."""
        return copy.deepcopy(self._state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Replaces the whole state; NaN and infinities become None, floats get 4 digits."""
        self._state = page.finite(state)
        self._send_whole()

    def append(self, set: dict[str, Any] | None = None, **rows: list[Any]) -> None:
        """Adds `rows` to lists of the state and overwrites the keys of `set`, sending only these.

        A page that starts listening late misses increments: it then asks for all of it. As that
        waits for an idle kernel, the whole also goes out each time a list has doubled.
        """
        added = page.finite({name: new for name, new in rows.items() if new})
        changed = page.finite(set or {})
        at = {name: len(self._state.setdefault(name, [])) for name in added}
        for name, new in added.items():
            self._state[name].extend(new)
        self._state.update(changed)
        if self._live is None or not (added or changed):
            return
        if any(len(self._state[n]) >= 2 * self._whole.get(n, 0) for n in added):
            self._send_whole()
        else:
            self._live.send({"kind": "append", "at": at, "add": added, "set": changed})

    def _count(self) -> None:
        self._whole = {n: len(v) for n, v in self._state.items() if isinstance(v, list)}

    def _send_whole(self) -> None:
        self._count()
        if self._live is not None:
            self._live.send_state("state")

    # ---- what the reader chose ---------------------------------------------------------------

    @property
    def ui(self) -> dict[str, Any]:
        return dict(self._live.ui if self._live is not None else self._ui)

    def show(self, **chosen: Any) -> "Inspector":
        """Sets what a reader could set in the browser: `inspector.show(step=20)`."""
        ui = {**self.ui, **page.finite(chosen)}
        self._ui = ui
        if self._live is not None:
            self._live.ui = ui
        return self

    # ---- the three layers --------------------------------------------------------------------

    @property
    def widget(self) -> Any:
        """The anywidget, to place it in ipywidgets' boxes. Raises CourseError without anywidget."""
        if self._live is None:
            kind = self._kind()
            if kind is None:
                raise CourseError(
                    'a live inspector needs anywidget: pip install "anywidget>=0.9.21"; '
                    "without it, inspectors are shown as HTML"
                )
            self._live = kind(owner=self, ui=self._ui, key=self.key)
            self._live.on_msg(self._heard)
            self._count()
        return self._live

    def _kind(self) -> Any:
        owner: Any = type(self)  # mypy does not take a class for hashable
        return _live_class(owner)

    def _heard(self, _widget: Any, message: Any, _buffers: Any) -> None:
        if isinstance(message, dict) and message.get("kind") == "resend":
            self._send_whole()
        else:
            self.received(message)

    def html(self, budget: int = INLINE_BYTES) -> str:
        """The HTML layer: first frame, state, style and script, in at most about `budget` bytes."""
        frame, css = self.first_frame(), page.style(*self.css)

        def made(state: dict[str, Any]) -> str:
            return page.fragment(self.key, frame, self.module, css, state, self.ui)

        room = max(2_000, budget - len(made({}).encode("utf-8", "replace")))
        return made(self.shortened(room))

    def save(self, path: Path | str, budget: int = PAGE_BYTES) -> Path:
        """Writes a page that needs no network, no kernel and no other file; returns its path."""
        body = self.html(budget)
        text = page.document(self.title, self.key, self.module, body)
        return write_atomic(Path(path), text.encode("utf-8", "replace"))

    def mimebundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(data, metadata) of the output: text, HTML and, where anywidget is there, the widget."""
        data: dict[str, Any] = {"text/plain": self.line(), "text/html": self.html()}
        if self._kind() is None:
            return data, {}
        found = self.widget._repr_mimebundle_()
        live, metadata = found if isinstance(found, tuple) else (found, {})
        return {**live, **data}, metadata

    def _ipython_display_(self, **_: Any) -> None:
        # ipywidgets 7 has this method too, and IPython asks for it before anything else.
        from IPython.display import publish_display_data

        data, metadata = self.mimebundle()
        publish_display_data(data, metadata)

    def _repr_html_(self) -> str:
        return self.html()

    def __repr__(self) -> str:
        return self.line()


@functools.cache
def _live_class(owner: Any) -> Any:
    """The AnyWidget class for an inspector class; None where anywidget is not installed."""
    try:
        import anywidget
        import traitlets
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        return None
    return type(
        f"{owner.__name__}View",
        (anywidget.AnyWidget,),
        {
            "__module__": owner.__module__,
            "_esm": page.bundle(owner.module),
            "_css": page.style(*owner.css),
            # The lists of the state grow in place, which a trait would not notice: it reads the
            # owner's whenever it is sent.
            "owner": traitlets.Any(),
            "state": traitlets.Dict().tag(sync=True, to_json=lambda _, widget: widget.owner._state),
            "ui": traitlets.Dict().tag(sync=True),
            "key": traitlets.Unicode().tag(sync=True),
        },
    )
