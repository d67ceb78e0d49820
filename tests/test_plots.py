"""The course's look for plotly figures."""

from course_utils import plots
from course_utils.evaluation import Estimate


def test_a_curve_with_its_band() -> None:
    figure = plots.figure("T", x="step", y="loss", height=200)
    plots.line(figure, [0, 1], [2.0, 3.0], "a", plots.COLOURS["ppo"], spread=[0.5, 0.25])
    band, curve = figure.data
    assert list(curve.y) == [2.0, 3.0]
    assert list(band.y) == [2.5, 3.25, 2.75, 1.5]
    assert (figure.layout.xaxis.title.text, figure.layout.height) == ("step", 200)
    plots.line(figure, [0, 1], [2.0, 3.0], spread=([1.0, 1.0], [4.0, 5.0]))
    assert list(figure.data[2].y) == [4.0, 5.0, 1.0, 1.0]
    assert not figure.data[3].showlegend


def test_bars_show_intervals_only_where_there_are_some() -> None:
    figure = plots.bars(plots.figure("T"), ["a", "b"], [Estimate(1.0, 0.5, 2.0, 9), 3])
    assert list(figure.data[0].y) == [1.0, 3.0]
    assert list(figure.data[0].error_y.array) == [1.0, 0.0]
    assert list(figure.data[0].error_y.arrayminus) == [0.5, 0.0]
    assert plots.bars(plots.figure("T"), ["a"], [1.0]).data[0].error_y.array is None


def test_colours() -> None:
    assert plots.faint("#102030", 0.5) == "rgba(16,32,48,0.5)"
    assert plots.colour(0) == plots.colour(7) != plots.colour(1)
