"""The curves of a report: thinned, the learning rate in steps, and names from outside that fit."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from common.reports import plots
from common.reports.plots import MOST_POINTS, plain_text, rate_steps, runs_figures, training_figures


@pytest.mark.parametrize("points", [1, 799, 800, 801, 100_003])
def test_long_curves_are_averaged(points):
    steps = np.arange(points, dtype=float)
    thin_steps, thin_values = plots.thinned((steps, 2 * steps + 1))
    assert len(thin_steps) <= MOST_POINTS
    assert len(thin_steps) > min(points, MOST_POINTS) / 2
    assert thin_values == pytest.approx(2 * thin_steps + 1)
    if points <= MOST_POINTS:
        assert len(thin_steps) == points


def test_a_learning_rate_is_drawn_in_steps(monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "svg", lambda figure: drawn.append(figure) or b"")
    steps = np.arange(10.0, 10_010, 10)
    series = {"lr": (steps, np.where(steps < 5_000, 0.1, 0.01)), "loss": (steps, steps)}
    training_figures(series, {})
    (loss,), (rate,) = (figure.axes[0].lines for figure in drawn)
    assert (loss.get_drawstyle(), rate.get_drawstyle()) == ("default", "steps-post")
    assert rate.get_xdata().tolist() == [10, 5_000, 10_000]  # averages of neighbours would lie between the two rates
    assert rate.get_ydata().tolist() == [0.1, 0.01, 0.01]


@pytest.mark.parametrize("values", [[0.1, 0.2], [-1e-7, 3e9], [123456.5, 123457.5], [1e-5, 1.1e-5], [5, 5]])
@pytest.mark.parametrize("name", ["lfw", "W" * 100, "two words " * 12])
def test_no_text_is_cut(monkeypatch, name, values):
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "svg", lambda figure: drawn.append(figure) or b"")
    series = (np.array([1.0, 99_999.0]), np.array(values))
    runs_figures({name: series, "other": series}, {name: {name: series}, "other": {name: series}})
    assert len(drawn) == 2
    for figure in drawn:
        text, paper = figure.get_tightbbox(), figure.bbox_inches
        assert (text.min >= 0).all()
        assert (text.max <= paper.max).all()
        plot = figure.axes[0].get_window_extent()
        legend = figure.legends[0].get_window_extent()
        assert plot.height > 0.5 * figure.dpi
        assert legend.y1 < plot.y0


def test_a_long_warm_up_is_thinned():
    steps, rates = rate_steps((np.arange(9_000.0), np.minimum(np.arange(9_000.0), 5_000)))
    assert MOST_POINTS / 2 < len(steps) <= MOST_POINTS + 1
    assert (steps[-1], rates[-1]) == (8_999, 5_000)
    assert (rates == np.minimum(steps, 5_000)).all()


def test_long_names_are_broken_into_lines_and_shortened():
    assert plain_text("lfw") == "lfw"
    name = "runs/" + "/".join("abcdefgh" for _ in range(9)) + ": AUC 0.9876"
    assert plain_text(name).replace("\n", "").replace(" ", "") == name.replace(" ", "")
    assert max(map(len, plain_text(name).split("\n"))) <= plots.LINE
    longer = plain_text("x" * 1000 + ": AUC 0.9876")
    assert longer.replace("\n", " ").endswith(": AUC 0.9876")
    assert longer.count("\n") < 5
