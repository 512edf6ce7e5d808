"""What a learning-curve figure must hold, read back from the figure itself."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lo_framework.eval.report.curves import Curve, Panel, draw_curves
from lo_framework.eval.report.drawing import COLOURS, LONGEST, label, looks, png
from lo_framework.eval.statistics import iqm

STEPS = np.arange(0, 100, 10)


def runs(seeds=8, scale=1.0):
    rng = np.random.default_rng(0)
    return scale * np.exp(-STEPS / 40) * np.exp(0.1 * rng.normal(size=(seeds, STEPS.size)))


def broken(values, count, at=4):
    values = values.copy()
    values[:count, at:] = math.nan
    return values


def lines(figure):
    return [line for axes in figure.axes for line in axes.lines]


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_same_data_give_the_same_png():
    panels = [Panel(title="mlp/digits", curves=[Curve(label="adamw", steps=STEPS, values=runs())])]
    first, second = (png(draw_curves(panels, title="a title"), 150) for _ in "ab")
    assert first.startswith(b"\x89PNG") and first == second


def test_no_pyplot_state():
    draw_curves([Panel(title="", curves=[Curve(label="adamw", steps=STEPS, values=runs(1))])])
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_line_is_the_iqm_on_a_log_axis():
    values = runs()
    figure = draw_curves(
        [Panel(title="t", curves=[Curve(label="adamw", steps=STEPS, values=values)])]
    )
    (line,) = lines(figure)
    np.testing.assert_allclose(line.get_ydata(), iqm(values.T))
    assert figure.axes[0].get_yscale() == "log"
    assert to_hex(line.get_color()).upper() == COLOURS[0]


def test_few_divergences_are_crosses_and_counted():
    curve = Curve(label="sgdm lr=3", steps=STEPS, values=broken(runs(), 2))
    figure = draw_curves([Panel(title="t", curves=[curve]), Panel(title="u", curves=[curve])])
    assert legend_texts(figure) == ["sgdm lr=3 (4 of 16 diverged)"]
    crosses = figure.axes[0].collections[-1].get_offsets()
    np.testing.assert_allclose(crosses[:, 0], 30.0)  # the last finite point is the fourth
    np.testing.assert_allclose(crosses[:, 1], runs()[:2, 3])
    assert np.isfinite(lines(figure)[0].get_ydata()).all()  # a quarter diverged: the IQM bears it
    assert "a run diverged" in figure.legends[0].get_title().get_text()


def test_line_ends_where_too_many_diverged():
    figure = draw_curves(
        [Panel(title="t", curves=[Curve(label="a", steps=STEPS, values=broken(runs(), 5))])]
    )
    np.testing.assert_array_equal(np.isfinite(lines(figure)[0].get_ydata()), STEPS < 40)


def test_divergence_is_for_good():
    values = runs()
    values[:, 4] = math.inf  # finite again afterwards: still gone
    figure = draw_curves(
        [Panel(title="t", curves=[Curve(label="a", steps=STEPS, values=values)])], smooth=3
    )
    assert not np.isfinite(lines(figure)[0].get_ydata()[4:]).any()


def test_diverged_at_the_first_point_and_everywhere():
    curve = Curve(label="a", steps=STEPS, values=np.full((3, STEPS.size), math.nan))
    figure = draw_curves([Panel(title="t", curves=[curve])])
    assert legend_texts(figure) == ["a (3 of 3 diverged)"]
    figure.canvas.draw()


def test_explosions_do_not_squash_the_axis():
    values = runs()
    values[0, 5:7] = [1e6, 1e30]
    values[0, 7:] = math.nan
    for log in (True, False):
        figure = draw_curves(
            [Panel(title="t", curves=[Curve(label="a", steps=STEPS, values=values)])], log=log
        )
        assert figure.axes[0].get_ylim()[1] < 3.0


def test_zeros_negatives_and_constants_draw():
    for values in (np.zeros((2, STEPS.size)), np.ones((2, STEPS.size)), -runs(2)):
        for log in (True, False):
            figure = draw_curves(
                [Panel(title="t", curves=[Curve(label="a", steps=STEPS, values=values)])], log=log
            )
            figure.canvas.draw()


def test_running_mean():
    values = np.arange(1.0, 5.0)[None].repeat(2, axis=0)
    curve = Curve(label="a", steps=range(4), values=values)
    figure = draw_curves([Panel(title="t", curves=[curve])], smooth=2, centre="median")
    np.testing.assert_allclose(lines(figure)[0].get_ydata(), [1.0, 1.5, 2.5, 3.5])
    assert "running mean of 2 points" in figure.legends[0].get_title().get_text().replace("\n", " ")


def test_looks_are_fixed_and_distinct():
    both = looks(["attention-mlp", "adamw lr=0.01", "adamw lr=0.01 cosine"])
    assert both["adamw lr=0.01"] == looks(["adamw lr=0.01"])["adamw lr=0.01"]
    assert both["adamw lr=0.01"].colour == both["adamw lr=0.01 cosine"].colour
    many = looks(["adamw", "sam", "gsam", "attention", *(f"other{i}" for i in range(8))])
    assert len(set(many.values())) == 12


def test_bad_input():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curves([])
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curves([Panel(title="t", curves=[])])
    with pytest.raises(ValueError, match=r"adamw: expected values \[seeds, points\] for 10 steps"):
        draw_curves(
            [Panel(title="t", curves=[Curve(label="adamw", steps=STEPS, values=runs()[0])])]
        )


def test_long_names_that_differ_at_their_ends_differ_in_a_legend() -> None:
    long = "metaadamw:" + ",".join(f"option{i}=value" for i in range(9))
    short, other = label(long), label(f"{long},online=false")
    assert short != other and len(other) == LONGEST
    assert other.startswith("metaadamw:option0") and other.endswith("online=false")
    assert label("adamw") == "adamw"
