"""AdapterComposer: sliders for the weights of several adapters, and what the mixture writes."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError
from course_utils.inspectors import frames
from course_utils.inspectors.base import Inspector
from course_utils.inspectors.frames import Markup, fixed
from course_utils.inspectors.gold_answers import number
from course_utils.inspectors.methods import methods
from course_utils.inspectors.page import json_bytes

if TYPE_CHECKING:
    import pandas

# weights by adapter -> scores by style, or {"scores": {style: score}, "answers": {prompt: text}}
Compose = Callable[[dict[str, float]], Mapping[str, Any]]
MOST_CALLS = 1000
MAX_TEXT = 1500  # characters of one answer shown


class AdapterComposer(Inspector):
    """What a weighted sum of adapters does: style scores and answers as the weights move.

        composer = AdapterComposer(["pirate", "bard"], compose)     # measures 3 x 3 mixtures first
        composer.at(pirate=0.7, bard=0.3)                           # from Python: scores, answers

    With a kernel the sliders ask `compose` for every new setting, once the kernel is idle. On a
    page without one, scores between the settings measured beforehand are interpolated
    (multilinear), the answers are those of the nearest such setting, and the page says so.

    Args:
        names: the adapters.
        compose: weights -> scores, or {"scores": …, "answers": {prompt: text}}; None: only what
            `grid` holds is shown.
        levels: weights of each adapter that are measured beforehand, ascending: `compose` is called
            len(levels) ** N times. The sliders go from the first to the last.
        grid: the results of such calls, in the order of itertools.product(levels, repeat=N),
            instead of calling `compose`.
        labels: style -> name shown.

    Raises: CourseError for no adapters, levels that do not ascend, or more than 1,000 calls.
    Source: weighted sums of LoRA updates, ΔW = Σ w_i ΔW_i (task arithmetic, Ilharco et al. 2022).
    """

    module, css, title = (
        "composer.js",
        ("viewers.css", "cards.css", "composer.css"),
        "Mixing adapters",
    )

    def __init__(
        self,
        names: Sequence[str],
        compose: Compose | None = None,
        levels: Sequence[float] = (0.0, 0.5, 1.0),
        grid: Sequence[Mapping[str, Any]] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        _check(names, levels, grid, compose)
        self._compose = compose
        self._levels = [float(v) for v in levels]
        settings = list(itertools.product(self._levels, repeat=len(names)))
        if grid is None:
            grid = [] if compose is None else [self._ask(names, s) for s in settings]
        results = [_result(r) for r in grid]
        styles = list(dict.fromkeys(s for r in results for s in r["scores"]))
        prompts = list(dict.fromkeys(p for r in results for p in r["answers"]))
        middle = [min(self._levels, key=lambda v: abs(v - 1 / len(names)))] * len(names)
        state = {
            "adapters": methods(names),
            "levels": self._levels,
            "styles": _styles(names, styles, labels or {}),
            "scores": [[r["scores"].get(s) for s in styles] for r in results],
            "prompts": prompts,
            "answers": [[r["answers"].get(p) for p in prompts] for r in results],
            "kernel": compose is not None,
            "result": None,  # of the last call: {seq, weights, scores, answers}
            "cut": False,
        }
        super().__init__(state, {"weights": middle})

    # ---- asking --------------------------------------------------------------------------------

    def _ask(self, names: Sequence[str], weights: Sequence[float]) -> Mapping[str, Any]:
        assert self._compose is not None
        return self._compose({str(n): float(w) for n, w in zip(names, weights, strict=True)})

    def at(self, **weights: float) -> dict[str, Any]:
        """{weights, scores, answers, measured} at these weights, 0 for those not named; shows it.

        `measured` is False where there is no `compose` and the scores are interpolated. Raises
        CourseError for an adapter that is not here.
        """
        names = [m["key"] for m in self._state["adapters"]]
        if unknown := sorted(set(weights) - set(names)):
            raise CourseError(f"no adapter {unknown[0]!r} here; there are: {', '.join(names)}")
        setting = [float(weights.get(n, 0.0)) for n in names]
        self.show(weights=setting)
        if self._compose is not None:
            self._measure(setting, seq=None)
        return self.frame()

    def received(self, message: dict[str, Any]) -> None:
        """{"kind": "weights", "weights": [N], "seq": n}: measures; the result has the same seq."""
        given = message.get("weights")
        if message.get("kind") != "weights" or self._compose is None or not isinstance(given, list):
            return
        if len(given) != len(self._state["adapters"]) or any(number(w) is None for w in given):
            return
        self._measure([float(w) for w in given], message.get("seq"))

    def _measure(self, setting: list[float], seq: Any) -> None:
        names = [m["key"] for m in self._state["adapters"]]
        try:
            found = _result(self._ask(names, setting))
        except Exception as error:
            notice = f"compose failed at {_said(names, setting)}: {type(error).__name__}: {error}"
            failed = {"seq": seq, "weights": setting, "scores": None, "answers": None}
            self.append(set={"notice": notice, "result": failed})
            raise
        styles, prompts = [m["key"] for m in self._state["styles"]], self._state["prompts"]
        styles += [s for s in found["scores"] if s not in styles]
        prompts = [*prompts, *(p for p in found["answers"] if p not in prompts)]
        result = {
            "seq": seq,
            "weights": setting,
            "scores": [found["scores"].get(s) for s in styles],
            "answers": [found["answers"].get(p) for p in prompts],
        }
        changed: dict[str, Any] = {"result": result, "notice": None, "prompts": prompts}
        if len(styles) > len(self._state["styles"]):
            labels = {m["key"]: m["label"] for m in self._state["styles"]}
            changed["styles"] = _styles(names, styles, labels)
        self.append(set=changed)

    # ---- data --------------------------------------------------------------------------------

    def table(self) -> "pandas.DataFrame":
        """The measured settings: one row each, with a column per adapter and per style."""
        import pandas

        names = [m["key"] for m in self._state["adapters"]]
        styles = [f"score {m['key']}" for m in self._state["styles"]]
        settings = itertools.product(self._levels, repeat=len(names))
        rows = [
            {**dict(zip(names, s, strict=True)), **dict(zip(styles, scores, strict=False))}
            for s, scores in zip(settings, self._state["scores"], strict=False)
        ]
        return pandas.DataFrame(rows, columns=[*names, *styles])

    def frame(self) -> dict[str, Any]:
        """{weights, scores, answers, measured} of the sliders' setting."""
        names = [m["key"] for m in self._state["adapters"]]
        setting = [float(w) for w in self.ui["weights"]]
        result = self._state["result"]
        exact = result is not None and result["scores"] and _close(result["weights"], setting)
        if exact:
            scores, answers = result["scores"], result["answers"]
        elif self._state["scores"]:
            scores = interpolate(self._state["scores"], self._levels, setting)
            answers = self._state["answers"][nearest(self._levels, setting)]
        else:
            scores, answers = [None] * len(self._state["styles"]), []
        on_grid = bool(self._state["scores"]) and all(w in self._levels for w in setting)
        return {
            "weights": dict(zip(names, setting, strict=True)),
            "scores": {m["key"]: s for m, s in zip(self._state["styles"], scores, strict=False)},
            "answers": dict(zip(self._state["prompts"], answers, strict=False)),
            "measured": bool(exact or on_grid),
        }

    def summary(self) -> dict[str, Any]:
        """{adapters, styles, levels, measured (number of settings), now: frame()}."""
        return {
            "adapters": [m["key"] for m in self._state["adapters"]],
            "styles": [m["key"] for m in self._state["styles"]],
            "levels": self._levels,
            "measured": len(self._state["scores"]),
            "now": self.frame(),
        }

    # ---- layers ------------------------------------------------------------------------------

    def line(self) -> str:
        now = self.frame()
        setting = _said(list(now["weights"]), list(now["weights"].values()))
        scores = ", ".join(f"{name} {fixed(v)}" for name, v in now["scores"].items())
        return f"AdapterComposer: {setting}" + (f" → {scores}" if scores else "")

    def first_frame(self) -> Markup:
        now = self.frame()
        setting = _said(list(now["weights"]), list(now["weights"].values()))
        said = [
            frames.fine(frames.tag("b", prompt), " ", text)
            for prompt, text in now["answers"].items()
            if text is not None
        ]
        labels = {m["key"]: m["label"] for m in self._state["styles"]}
        bars = [(labels[name], value) for name, value in now["scores"].items()]
        return frames.card(self.title, frames.fine(setting), frames.bars(bars), *said[:4])

    def shortened(self, budget: int) -> dict[str, Any]:
        """Without a kernel: the grid; where its answers do not fit, only those of the corners."""
        state = {**self._state, "kernel": False, "result": None, "notice": None}
        if json_bytes(state) <= budget:
            return state
        ends = {self._levels[0], self._levels[-1]}
        settings = itertools.product(self._levels, repeat=len(self._state["adapters"]))
        corners = [set(s) <= ends for s in settings]
        blank = [None] * len(state["prompts"])
        rows = zip(state["answers"], corners, strict=False)
        state |= {"answers": [a if c else blank for a, c in rows], "cut": True}
        if json_bytes(state) > budget:
            state |= {"answers": [blank for _ in state["answers"]]}
        return state


def _check(names: Any, levels: Any, grid: Any, compose: Any) -> None:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise CourseError(f"give the adapters' names, each once; got {names!r}")
    if len(levels) < 2 or any(b <= a for a, b in itertools.pairwise(levels)):
        raise CourseError(f"levels must ascend and be two at least, got {tuple(levels)}")
    size = len(levels) ** len(names)
    if grid is None and compose is not None and size > MOST_CALLS:
        raise CourseError(
            f"{len(levels)} levels of {len(names)} adapters are {size:,} mixtures to measure; give "
            "fewer levels, such as levels=(0.0, 1.0)"
        )
    if grid is not None and len(grid) != size:
        raise CourseError(
            f"the grid has {len(grid)} results; {len(levels)} levels of {len(names)} adapters need "
            f"{size}, in the order of itertools.product(levels, repeat={len(names)})"
        )


def _result(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{scores: {style: number}, answers: {prompt: text}} of what `compose` returned."""
    if not isinstance(given, Mapping):
        raise CourseError(
            f"compose returned {type(given).__name__} {given!r:.80}; it must return style -> "
            'score, or {"scores": {…}, "answers": {prompt: text}}'
        )
    scores: Mapping[str, Any] = given
    answers: Mapping[str, Any] = {}
    if isinstance(given.get("scores"), Mapping):
        scores, answers = given["scores"], given.get("answers") or {}
    return {
        "scores": {str(k): number(v) for k, v in scores.items()},
        "answers": {str(k): str(v)[:MAX_TEXT] for k, v in answers.items() if v is not None},
    }


def _styles(
    names: Sequence[str], styles: Sequence[str], labels: Mapping[str, str]
) -> list[dict[str, str]]:
    """The styles as `methods`; one called like an adapter has its colour and mark."""
    both = {m["key"]: m for m in methods([*names, *styles], labels)}
    return [both[s] for s in styles]


def _said(names: Sequence[str], setting: Sequence[float]) -> str:
    return " + ".join(f"{fixed(w)} {n}" for n, w in zip(names, setting, strict=True))


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))


def _cell(levels: Sequence[float], weight: float) -> tuple[int, float]:
    """(k, t) with weight = (1 - t) levels[k] + t levels[k + 1]; weights outside are moved in."""
    weight = max(levels[0], min(levels[-1], weight))
    k = max(i for i in range(len(levels) - 1) if i == 0 or levels[i] <= weight)
    return k, (weight - levels[k]) / (levels[k + 1] - levels[k])


def interpolate(
    grid: Sequence[Sequence[float | None]], levels: Sequence[float], weights: Sequence[float]
) -> list[float | None]:
    """Multilinear interpolation on a regular grid; the twin of `interpolate` in composer.js.

    Args:
        grid: L^N rows of S numbers (None where unknown), the last adapter varying fastest.
        levels: L ascending weights, the same for each adapter.
        weights: N; what lies outside the levels counts as the nearest end.
    Returns: S numbers; None where a corner with a share in it is unknown.
    """
    cells = [_cell(levels, w) for w in weights]
    total: list[float | None] = [0.0] * len(grid[0])
    for corner in itertools.product((0, 1), repeat=len(cells)):
        share = math.prod(t if c else 1 - t for c, (_, t) in zip(corner, cells, strict=True))
        if not share:
            continue
        index = 0
        for c, (k, _) in zip(corner, cells, strict=True):
            index = index * len(levels) + k + c
        total = [
            None if a is None or v is None else a + share * v
            for a, v in zip(total, grid[index], strict=True)
        ]
    return total


def nearest(levels: Sequence[float], weights: Sequence[float]) -> int:
    """Index of the grid's setting nearest to `weights`, of equally near ones the lower."""
    index = 0
    for w in weights:
        index = index * len(levels) + min(range(len(levels)), key=lambda i: abs(levels[i] - w))
    return index
