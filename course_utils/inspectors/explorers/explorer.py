"""Explorer: an inspector whose state is a formula. What all explorers share.

An explorer lists its inputs (`Number`, `Choice`, `Weights`) once; the browser makes the controls
from that list, and both sides refuse what is not in it. `numbers` is the formula in Python, the
same as `compute` in the ES module.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from course_utils.errors import CourseError
from course_utils.inspectors import frames
from course_utils.inspectors.base import Inspector
from course_utils.inspectors.frames import Markup
from course_utils.report.markup import MINUS


@dataclass(frozen=True)
class Number:
    """A slider and a box for an exact number."""

    label: str
    default: float
    low: float  # what is allowed, both ends included
    high: float
    step: float = 0.01  # of the slider
    slide: tuple[float, float] | None = None  # the slider's ends, if narrower than low … high
    stops: tuple[float, ...] = ()  # the slider's places, if they are not evenly spaced
    log: bool = False  # the slider is even in log(value)
    whole: bool = False
    help: str = ""
    needs: str = ""  # only shown while this other input is true

    kind: ClassVar[str] = "number"

    def fault(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{value!r} is not a number"
        if not math.isfinite(value):
            return f"{value} is not a finite number"
        if self.whole and value != int(value):
            return f"{value} is not a whole number"
        if not self.low <= value <= self.high:
            return f"{value:g} is not from {self.low:g} to {self.high:g}"
        return None


@dataclass(frozen=True)
class Choice:
    """A row of buttons, or a menu."""

    label: str
    default: Any
    options: tuple[tuple[Any, str], ...]  # (value, its text)
    help: str = ""
    needs: str = ""

    kind: ClassVar[str] = "choice"

    def fault(self, value: Any) -> str | None:
        known = [option for option, _ in self.options]
        same = any(value is k if isinstance(k, bool) else value == k for k in known)
        return None if same else f"{value!r} is none of {', '.join(map(repr, known))}"


@dataclass(frozen=True)
class Weights:
    """A few positive numbers that the reader shapes by hand; only their proportions count."""

    label: str
    default: tuple[float, ...]
    low: float
    high: float
    help: str = ""

    kind: ClassVar[str] = "weights"

    def fault(self, value: Any) -> str | None:
        if not isinstance(value, list | tuple) or len(value) != len(self.default):
            return f"{value!r} is not a list of {len(self.default)} numbers"
        each = Number("", 1, self.low, self.high)
        return next((found for v in value if (found := each.fault(v))), None)


Field = Number | Choice | Weights


@dataclass(frozen=True)
class Preset:
    """Something to try: a button that sets inputs, and what to see there."""

    text: str
    note: str
    set: dict[str, Any]


class Explorer(Inspector):
    """Base class: give inputs, presets, texts, `numbers` and `told`."""

    lead: ClassVar[str] = ""  # what the reader can find out here
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    inputs: Mapping[str, Field] = MappingProxyType({})
    presets: ClassVar[tuple[Preset, ...]] = ()
    css: ClassVar[tuple[str, ...]] = ("explorers/explore.css",)

    def __init__(self, **chosen: Any) -> None:
        """Raises CourseError for an input that does not exist, or a value it cannot have."""
        ui = {name: _plain(field.default) for name, field in self.inputs.items()}
        super().__init__(state={**self._texts(), **self.constants()}, ui=ui | self.checked(chosen))
        self.numbers(self.chosen)

    def _texts(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "lead": self.lead,
            "formula": self.formula,
            "source": self.source,
            "inputs": [
                {"name": name, "kind": field.kind, **_filled(asdict(field))}
                for name, field in self.inputs.items()
            ],
            "presets": [asdict(preset) for preset in self.presets],
        }

    # ---- to be written by each explorer --------------------------------------------------------

    def constants(self) -> dict[str, Any]:
        """What the formula needs besides the inputs; goes into the state."""
        return {}

    def numbers(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """The formula, by the course's own functions. `chosen` has been checked."""
        raise NotImplementedError

    def told(self, found: dict[str, Any]) -> list[tuple[str, Any]]:
        """The most telling of `numbers`, as (name, value), for the text and the first frame."""
        raise NotImplementedError

    # ---- data ----------------------------------------------------------------------------------

    def checked(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """`chosen` if it is right. Raises CourseError naming the input."""
        own = type(self).__name__
        for name, value in chosen.items():
            if name not in self.inputs:
                near = difflib.get_close_matches(name, self.inputs, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise CourseError(
                    f"{own} has no input {name!r}; {hint}it has {', '.join(self.inputs)}"
                )
            fault = self.inputs[name].fault(value)
            if fault:
                raise CourseError(f"{own}, {name} ({self.inputs[name].label}): {fault}")
        return {name: _plain(value) for name, value in chosen.items()}

    @property
    def chosen(self) -> dict[str, Any]:
        """The inputs as they are now: as given, or as the reader has set them."""
        ui = self.ui
        return {name: ui[name] for name in self.inputs}

    def frame(self, **chosen: Any) -> dict[str, Any]:
        """The formula's numbers, at the present inputs but for those given.

        Raises CourseError for an input that does not exist, or a value it cannot have (NaN, say).
        """
        return self.numbers(self.chosen | self.checked(chosen))

    def summary(self) -> dict[str, Any]:
        """The inputs and the formula's numbers."""
        return {**self.chosen, **self.frame()}

    def show(self, **chosen: Any) -> "Explorer":
        """Moves the sliders: `explorer.show(beta=0.3)`. Raises as `frame`."""
        ui = {**self.ui, **self.checked(chosen), "preset": None}
        self.numbers({name: ui[name] for name in self.inputs})
        self._ui = ui
        if self._live is not None:
            self._live.ui = ui
        return self

    # ---- layers --------------------------------------------------------------------------------

    def line(self) -> str:
        said = [f"{name} {brief(value)}" for name, value in self.told(self.frame())]
        return f"{type(self).__name__}: {', '.join(said)}"

    def first_frame(self) -> Markup:
        chosen = self.chosen
        given = [
            (field.label, brief(chosen[name]))
            for name, field in self.inputs.items()
            if isinstance(field, Number) and (not field.needs or chosen[field.needs])
        ]
        rows = [(name, brief(value)) for name, value in self.told(self.frame())]
        return frames.card(
            self.title,
            frames.fine(self.lead),
            frames.facts(given),
            frames.table(rows),
            frames.fine(self.formula),
        )


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what is empty, to keep pages small."""
    if "options" in fields:
        pairs = fields["options"]
        fields["options"] = [[value] if value == text else [value, text] for value, text in pairs]
    return {
        name: value
        for name, value in fields.items()
        if name == "default" or not (value is None or value is False or value in ("", ()))
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def brief(value: Any) -> str:
    """A number with as many decimals as its size needs (the twin of `brief` in kit.js)."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value if isinstance(value, str) else {None: "–", False: "no", True: "yes"}[value]
    if isinstance(value, Sequence):
        return " ".join(brief(v) for v in value)
    size = abs(value)
    if not math.isfinite(size):
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if size >= 1e6 or 0 < size < 1e-4:
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(power)}".replace("-", MINUS)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or not size else 3
    return f"{value:.{decimals if size >= 0.01 or not size else 4}f}".replace("-", MINUS)


def refuse(error: ValueError) -> CourseError:
    """A ValueError of the pure functions, as the reader of a notebook gets it."""
    return CourseError(str(error))
