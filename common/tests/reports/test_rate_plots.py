"""What the ROC and DET figures draw, looked up in the figures themselves."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy.stats import norm

from common.evaluation.verification import verify_distances
from common.reports import plots
from common.reports.plots import CYCLE
from common.reports.rate_plots import Curve, det_figures, deviate, roc_figures


def result(pairs=400, gap=0.8, seed=0):
    issame = np.arange(pairs) % 2 == 0
    return verify_distances(np.random.default_rng(seed).normal(1.6 - gap * issame, 0.3).clip(0, 4), issame)


@pytest.fixture
def drawn(monkeypatch):
    """Axes of the figures."""
    figures = []
    monkeypatch.setattr(plots, "svg", lambda figure: figures.append(figure) or b"")

    def draw(make, panels):
        figures.clear()
        assert [one.svg for one in make(panels)] == [b""] * len(figures)
        return [axis for figure in figures for axis in figure.axes]

    return draw


def labels(axis):
    return [text.get_text() for text in axis.figure.legends[0].get_texts()]


def test_roc(drawn):
    one = result()
    (axis,) = drawn(roc_figures, {"": [Curve("lfw", one, 0), Curve("pixels", result(gap=0.2), 0, is_baseline=True)]})
    line, baseline = axis.lines
    x, y = line.get_data()
    assert axis.get_xscale() == "log"
    assert axis.get_xlim() == (1 / 200, 1)
    for far in (0.01, 0.1, 0.5):  # what a reader takes from the figure: the step at this rate
        assert y[np.searchsorted(x, far, "right") - 1] == one.roc.tpr[np.searchsorted(one.roc.fpr, far, "right") - 1]
    assert x.min() == 1 / 200
    assert y[0] == one.roc.tpr[np.searchsorted(one.roc.fpr, 1 / 200, "right") - 1], "not of no false accept"
    assert labels(axis)[0] == f"lfw: AUC {one.auc:.4f}"
    assert line.get_linestyle() == "-" != baseline.get_linestyle()
    assert line.get_drawstyle() == "steps-post"


def test_det(drawn):
    one = result()
    (axis,) = drawn(det_figures, {"": [Curve("lfw", one, 0)]})
    line = axis.lines[0]
    x, y = (norm.cdf(values) for values in line.get_data())
    middle = (one.roc.fpr > 1 / 200) & (one.roc.tpr < 1 - 1 / 200) & (one.roc.fpr < 0.9)
    assert x[middle] == pytest.approx(one.roc.fpr[middle])
    assert y[middle] == pytest.approx(1 - one.roc.tpr[middle])
    assert labels(axis) == [f"lfw: EER {100 * one.eer:.2f} %"]
    assert norm.cdf(axis.get_xlim()) == pytest.approx([1 / 200, 0.5])
    assert norm.cdf(axis.get_ylim()) == pytest.approx([1 / 200, 0.5])
    ticks = {text.get_text(): norm.cdf(text.get_position()[0]) for text in axis.get_xticklabels()}
    assert ticks == {
        "1%": pytest.approx(0.01),
        "5%": pytest.approx(0.05),
        "20%": pytest.approx(0.2),
        "50%": pytest.approx(0.5),
    }
    diagonal = axis.lines[1].get_data()
    assert np.array_equal(diagonal[0], diagonal[1])


def test_normal_distances_make_a_straight_det_curve(drawn):
    (axis,) = drawn(det_figures, {"": [Curve("x", result(200_000), 0)]})
    x, y = axis.lines[0].get_data()
    inside = (np.abs(x) < 2) & (np.abs(y) < 2)
    slope, intercept = np.polyfit(x[inside], y[inside], 1)
    assert slope == pytest.approx(-1, abs=0.03)  # both kinds have the same spread
    assert intercept == pytest.approx(-0.8 / 0.3, abs=0.03)
    assert np.abs(y - slope * x - intercept)[inside].max() < 0.05


def test_a_bad_network_gets_axes_that_show_its_curve(drawn):
    (axis,) = drawn(det_figures, {"": [Curve("x", result(gap=0), 0)]})
    assert norm.cdf(axis.get_xlim())[1] == pytest.approx(0.99)


def test_a_perfect_network_is_drawn_at_the_edge(drawn):
    perfect = verify_distances(np.arange(40) % 2 * 2.0, np.arange(40) % 2 == 0)
    for make in (roc_figures, det_figures):
        (axis,) = drawn(make, {"": [Curve("x", perfect, 0)]})
        for values in axis.lines[0].get_data():
            assert np.isfinite(values).all()


def test_a_panel_a_set_and_a_colour_a_run(drawn):
    one_kind = verify_distances(np.linspace(0, 1, 20), np.ones(20, bool))
    panels = {
        "agedb_30": [Curve("b", result(), 1)],
        "calfw": [Curve("a", one_kind, 0)],
        "lfw": [Curve("a", result(), 0), Curve("b", result(seed=1), 1), Curve("h", result(seed=2), 7)],
    }
    for make, kind in ((roc_figures, "ROC"), (det_figures, "DET")):
        axes = drawn(make, panels)
        titles = [axis.get_title("left") for axis in axes]
        assert titles == [f"{kind} on agedb_30", f"{kind} on lfw"], "calfw has nothing to draw"
        assert [to_hex(line.get_color()).upper() for line in axes[1].lines[:3]] == [CYCLE[0], CYCLE[1], CYCLE[1]]
        assert to_hex(axes[0].lines[0].get_color()).upper() == CYCLE[1]
        styles = [line.get_linestyle() for line in axes[1].lines[:3]]
        assert styles[0] == styles[1] != styles[2], "the colours are used up after six"


def test_nothing_to_draw():
    one_kind = verify_distances(np.linspace(0, 1, 20), np.ones(20, bool))
    for make in (roc_figures, det_figures):
        assert make({}) == []
        assert make({"lfw": [Curve("a", one_kind, 0)]}) == []


def test_deviate():
    rates = np.array([0.001, 0.1, 0.5, 0.9])
    assert deviate(rates) == pytest.approx(norm.ppf(rates), abs=1e-9)
