"""The over-optimisation explorer: a run's proxy and gold over √KL, and a slider that stops it."""

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from course_utils import plots
from course_utils.errors import CourseError

_KEYS = ("step", "kl", "proxy", "gold")
_CURVES = (("proxy", "reward model (proxy)", "reward"), ("gold", "gold", "gold"))


def stop_explorer(rows: Sequence[Mapping[str, Any]], title: str = "Where would you stop?") -> Any:
    """A figure with both rewards above their start, over √KL, and a slider "stop after step …".

    The slider needs no kernel, so it works in an exported page too. Where a row has a `text`, the
    answer of that moment is shown.

    Args: rows: `lab.held_out(…)`: step, kl (nats per answer), proxy, gold; prompt and text too.
    Raises: CourseError for fewer than two rows, or a row without one of these numbers.
    """
    rows = [dict(row) for row in rows]
    if len(rows) < 2:
        raise CourseError(f"the explorer needs at least two measurements of a run, got {len(rows)}")
    for i, row in enumerate(rows):
        missing = [key for key in _KEYS if row.get(key) is None]
        if missing:
            raise CourseError(
                f"measurement {i} has no {', '.join(missing)}; pass the rows of lab.held_out(…)"
            )
    roots = [max(row["kl"], 0.0) ** 0.5 for row in rows]
    first = rows[0]
    rises = {key: [row[key] - first[key] for row in rows] for key, *_ in _CURVES}
    figure = plots.figure(title, x="√KL to the SFT model (√nats)", y="above the start", height=500)
    for key, name, colour in _CURVES:
        style: dict[str, Any] = {"mode": "lines+markers", "marker": {"size": 5}}
        plots.line(figure, roots, rises[key], name, plots.COLOURS[colour], **style)
    last = len(rows) - 1
    for key, _, colour in _CURVES:
        figure.add_scatter(
            x=[roots[last]],
            y=[rises[key][last]],
            mode="markers",
            marker={"size": 15, "color": plots.COLOURS[colour], "symbol": "diamond"},
            showlegend=False,
            hoverinfo="skip",
        )
    steps = [
        {
            "label": f"{row['step']}",
            "method": "update",
            "args": [
                {"x": [[roots[i]]] * 2, "y": [[rises[key][i]] for key, *_ in _CURVES]},
                {"annotations": [_words(row)]},
                [2, 3],
            ],
        }
        for i, row in enumerate(rows)
    ]
    slider = {
        "active": last,
        "steps": steps,
        "currentvalue": {"prefix": "stop after step "},
        "pad": {"t": 50},
    }
    return figure.update_layout(
        sliders=[slider],
        annotations=[_words(rows[last])],
        margin={"t": 130},
        legend={"orientation": "h", "y": -0.16, "x": 1, "xanchor": "right"},
    )


def _words(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is written above the curves for one moment of the run."""
    lines = [
        f"KL {row['kl']:.2f} nats · reward model {row['proxy']:+.2f} · gold {row['gold']:+.2f}"
    ]
    if row.get("text"):
        said = f"{row.get('prompt') or ''} → {row['text']}"
        lines += [escape(part) for part in textwrap.wrap(said, 90)[:3]]
    place = {"x": 0, "y": 1.02, "xref": "paper", "yref": "paper", "yanchor": "bottom"}
    return {"text": "<br>".join(lines), "showarrow": False, "align": "left", **place}
