"""Lesson 02's pictures: step 1 of InstructGPT, packed attention, losses and scores of SFT."""

from collections.abc import Mapping, Sequence
from typing import Any

from course_utils import plots
from course_utils.pictures.draw import FROZEN, Picture, arrow, box

SFT = "40,120,220"
STEP_ONE = (
    (FROZEN, "a prompt is sampled", "“explain the moon landing to a 6 year old”"),
    (FROZEN, "a labeller demonstrates", "“some people flew to the moon …”"),
    (SFT, "the model imitates", "next-word prediction, on the answer only"),
)
_WIDE, _HIGH, _GAP = 284, 64, 40  # of a box, and between two, in SVG units

Curve = Sequence[tuple[float, float, float]]  # (step, loss on its own rows, loss on held-out rows)


def step_one() -> Picture:
    """Slide 8: step 1 of InstructGPT (Ouyang et al. 2022, figure 2), from left to right."""
    drawing = ""
    for place, (colour, title, words) in enumerate(STEP_ONE):
        x = 8 + place * (_WIDE + _GAP)
        drawing += box(x, 8, _WIDE, _HIGH, colour, title, words)
        if place:
            middle = 8 + _HIGH // 2
            drawing += arrow(f"M{x - _GAP + 4},{middle} h{_GAP - 14}", f"{x - 3},{middle}")
    said = ", then ".join(f"{title} ({words})" for _, title, words in STEP_ONE)
    width = 16 + len(STEP_ONE) * (_WIDE + _GAP) - _GAP
    return Picture(f"Step 1: {said}", width, _HIGH + 16, drawing)


def who_sees_whom(example: Sequence[int]) -> Any:
    """Which tokens each token of a packed row may look at: its own example, or also earlier ones.

    Args: example: (T,) the number of the example that each token belongs to.
    """
    grid = [
        [0 if k > q else 2 if example[k] == example[q] else 1 for k in range(len(example))]
        for q in range(len(example))
    ]  # 2: its own example, 1: a leak, 0: the future
    own, leak = plots.COLOURS["sft"], plots.faint(plots.COLOURS["ppo"], 0.35)
    figure = plots.figure(
        "Blue: its own example. Orange: what leaks without a block-diagonal mask",
        "token looked at",
        "token that looks",
        height=380,
    )
    figure.add_heatmap(
        z=grid,
        colorscale=[[0, "rgba(0,0,0,0)"], [0.5, leak], [1, own]],
        showscale=False,
        xgap=1,
        ygap=1,
        hoverinfo="skip",
    )
    figure.update_xaxes(constrain="domain", showgrid=False)
    return figure.update_yaxes(autorange="reversed", scaleanchor="x", showgrid=False)


def losses_by_step(history: Any) -> Any:
    """Training and held-out loss of a run; `history`: `RunLog.frame()` of `train_sft`."""
    figure = plots.figure("Loss of the run", "optimizer step", "nats per answer token")
    blue = plots.COLOURS["sft"]
    raw = plots.faint(blue, 0.35)
    plots.line(figure, history.step, history.loss, colour=raw, line={"width": 1})
    smooth = history.loss.rolling(8, min_periods=1).mean()
    plots.line(figure, history.step, smooth, "training, smoothed", blue)
    measured = history.dropna(subset=["eval_loss"])
    x, y, orange = measured.step, measured.eval_loss, plots.COLOURS["ppo"]
    return plots.line(figure, x, y, "held-out", orange, mode="lines+markers")


def losses_by_pass(passes: Sequence[float], small: Curve, large: Curve) -> Any:
    """A small set gone through many times beside a large one after as many steps.

    Args: passes: over the small set, one for each point of its curve.
    """
    figure = plots.figure("The small set, pass by pass", "passes over it", "nats per answer token")
    style: dict[str, Any] = {"mode": "lines+markers"}
    blue, orange, grey = (plots.COLOURS[key] for key in ("sft", "ppo", "base"))
    plots.line(figure, passes, [own for _, own, _ in small], "its own rows", blue, **style)
    plots.line(figure, passes, [held for _, _, held in small], "held-out rows", orange, **style)
    name = "held-out, large set after as many steps"
    return plots.line(
        figure, passes, [held for _, _, held in large], name, grey, line={"dash": "dot"}
    )


def quality_bars(golds: Mapping[str, Any], false: Mapping[str, float]) -> Any:
    """Gold reward (left) and share of false claims (right), one bar for each training set."""
    figure = plots.figure("Gold reward, and false among all claims", height=300)
    shades = [plots.COLOURS["base"], *(plots.colour(i) for i in range(len(golds) - 1))]
    plots.bars(figure, list(golds), list(golds.values()), shades)
    plots.bars(figure, list(false), list(false.values()), shades, xaxis="x2", yaxis="y2")
    return figure.update_layout(
        xaxis={"domain": [0, 0.46]},
        xaxis2={"domain": [0.54, 1], "anchor": "y2"},
        yaxis2={
            "anchor": "x2",
            "tickformat": ".0%",
            "gridcolor": "rgba(128,128,128,.25)",
            "rangemode": "tozero",
        },
    )
