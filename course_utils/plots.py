"""Plotly figures in the course's look: readable on light and dark pages, one colour per method.

Static `go.Figure`s only: a FigureWidget is megabytes and fails on Colab.
"""

from collections.abc import Sequence
from typing import Any

# Apart for every kind of colour vision, and on white as on black.
COLOURS = {
    "base": "#9a9aa4",
    "sft": "#2878dc",
    "reward": "#9b59d0",
    "ppo": "#eb7d14",
    "ppo_low_beta": "#cc3311",
    "dpo": "#149682",
    "best_of_n": "#b8950a",
    "gold": "#c8a000",
}
_CYCLE = ("sft", "ppo", "dpo", "reward", "best_of_n", "ppo_low_beta", "base")
LOOK: dict[str, Any] = {
    "template": "plotly_white",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"size": 13, "color": "#888"},
    "margin": {"l": 60, "r": 20, "t": 46, "b": 50},
}


def colour(i: int) -> str:
    """The i-th colour for methods without one of their own; starts again after seven."""
    return COLOURS[_CYCLE[i % len(_CYCLE)]]


def faint(colour: str, opacity: float = 0.2) -> str:
    """ "#rrggbb" as an rgba() with the opacity, for bands and raw curves."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def figure(title: str, x: str = "", y: str = "", height: int = 320, **layout: Any) -> Any:
    """An empty plotly Figure: axis titles x and y, `height` in pixels, more as `update_layout`."""
    import plotly.graph_objects as go

    made = go.Figure(layout={"title": title, "height": height, **LOOK})
    grid = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.5)"}
    made.update_xaxes(title=x, **grid)
    made.update_yaxes(title=y, **grid)
    return made.update_layout(**layout)


def line(
    figure: Any,
    x: Sequence[float],
    y: Sequence[float],
    name: str = "",
    colour: str = COLOURS["sft"],
    spread: Sequence[float] | tuple[Sequence[float], Sequence[float]] | None = None,
    **style: Any,
) -> Any:
    """Adds a curve; returns the figure.

    Args: spread: half-widths of a band around y, or its (lower, upper) edges; style: of the
        scatter, such as mode="lines+markers" or line={"dash": "dot"}.
    """
    if spread is not None:
        if isinstance(spread, tuple):
            low, high = spread
        else:
            low = [v - s for v, s in zip(y, spread, strict=True)]
            high = [v + s for v, s in zip(y, spread, strict=True)]
        figure.add_scatter(
            x=[*x, *reversed(list(x))],
            y=[*high, *reversed(list(low))],
            fill="toself",
            fillcolor=faint(colour),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            showlegend=False,
        )
    look = {"color": colour, "width": 2.5, **style.pop("line", {})}
    shown = {"name": name, "showlegend": bool(name), "mode": "lines", **style}
    return figure.add_scatter(x=list(x), y=list(y), line=look, **shown)


def bars(
    figure: Any,
    names: Sequence[str],
    values: Sequence[Any],
    colour: str | Sequence[str] = COLOURS["sft"],
    name: str = "",
    **style: Any,
) -> Any:
    """Adds bars, with 95% intervals where a value is an `Estimate`; returns the figure.

    Args: colour: one for all, or one for each bar.
    """
    means = [float(getattr(value, "mean", value)) for value in values]
    up = [getattr(v, "high", m) - m for v, m in zip(values, means, strict=True)]
    down = [m - getattr(v, "low", m) for v, m in zip(values, means, strict=True)]
    error = {"array": up, "arrayminus": down, "color": "#888", "thickness": 1}
    shown: dict[str, Any] = {"name": name, "showlegend": bool(name)}
    if any(up) or any(down):
        shown["error_y"] = error
    return figure.add_bar(x=list(names), y=means, marker_color=colour, **shown, **style)
