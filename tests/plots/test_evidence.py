"""Figures show what they say, whole, and leave matplotlib as it was."""

import io
from itertools import pairwise

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pyro_vae.plots import plot_evidence, plot_forest, plot_khat, plot_predictive, plot_training
from pyro_vae.posterior import diagnose, from_pyro_svi
from tests import seeds
from tests.posterior.gaussians import GaussianGuide, LinearGaussian, observations

pytestmark = pytest.mark.arviz


@pytest.fixture(autouse=True)
def _matplotlib_is_as_before():
    matplotlib.pyplot.close("all")  # what another test has left open
    before = dict(matplotlib.rcParams)
    yield
    assert matplotlib.pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def pair(factor=1.0):
    model = LinearGaussian(torch.randn(9, 2, generator=seeds.generator(0)))
    return model, GaussianGuide.exact(model, factor)


def trees(draws=(60, 60), names=("logvar", "softplus")):
    model, guide = pair(0.8)
    x = observations(model, 4)
    return {
        name: from_pyro_svi(model, guide, x, n, seed=i)
        for i, (name, n) in enumerate(zip(names, draws, strict=True))
    }


def diagnostics(seeds=3, names=("logvar", "softplus")):
    out = {}
    for i, name in enumerate(names):
        model, guide = pair(1 - 0.3 * i)
        out[name] = [diagnose(model, guide, observations(model, 20), 100, seed=s) for s in range(seeds)]
    return out


def history(epochs=6, start=200.0, held_out=True, seed=0):
    steps = 4 * epochs
    loss = start * np.exp(-np.arange(steps) / 8) + np.random.default_rng(seed).normal(size=steps) + 100
    validation = loss[3::4] + 2 if held_out else np.full(epochs, np.nan)
    coords = {"epoch_step": ("epoch", np.arange(4, steps + 1, 4))}
    return xr.Dataset({"loss": ("step", loss), "validation": ("epoch", validation)}, coords)


def texts(figure):
    found = figure.findobj(matplotlib.text.Text)
    return " | ".join(text.get_text() for text in found if text.get_visible())


def assert_whole(figure):
    """No visible text is cut off at the edge or lies on a neighbouring label of its axis."""
    FigureCanvasAgg(figure)
    figure.savefig(io.BytesIO(), format="png", dpi=80)
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 > -0.02
    assert drawn.y0 > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            boxes = [label.get_window_extent() for label in labels if label.get_visible()]
            assert not any(a.overlaps(b) for a, b in pairwise(boxes))


class TestTraining:
    def test_a_line_for_each_seed_and_kind(self):
        figure = plot_training({"logvar": [history(), history(seed=1)], "softplus": [history(seed=2)]})
        assert_whole(figure)
        assert [len(axes.get_lines()) for axes in figure.axes] == [6, 6]
        assert "nats per observation" in texts(figure)
        np.testing.assert_allclose(
            figure.axes[0].get_lines()[0].get_ydata(), history()["loss"].values.reshape(6, 4).mean(1)
        )

    def test_steps_that_were_skipped_and_no_held_out_data(self):
        broken = history(held_out=False)
        broken["loss"][5] = np.nan
        broken["loss"][8:12] = np.nan
        figure = plot_training({"logvar": [broken]})
        assert_whole(figure)
        assert "held out" not in texts(figure)

    @pytest.mark.parametrize("epochs", [1, 2])
    def test_very_short_fits(self, epochs):
        assert_whole(plot_training({"logvar": [history(epochs)]}))


class TestEvidence:
    def test_intervals_seeds_and_verdicts(self):
        given = diagnostics(names=("right", "narrow"))
        shifted = [{"log_evidence": fit["log_evidence"].values - 3} for fit in given["right"]]
        figure = plot_evidence({**given, "shifted": shifted})
        assert_whole(figure)
        said = texts(figure)
        assert "right − narrow\nnot believed" in said  # k̂ of the narrow one
        assert "right − shifted\nright is better" in said
        assert "3 seeds" in said
        assert "difference in log evidence (nats per observation)" in said

    def test_one_seed_is_about_these_fits_only(self):
        figure = plot_evidence(diagnostics(seeds=1))
        assert_whole(figure)
        assert "observations of one seed: about these fits only" in texts(figure)

    def test_shared_model(self):
        assert "difference in ELBO" in texts(plot_evidence(diagnostics(), shared_model=True))


class TestKhat:
    def test_share_above_the_threshold(self):
        given = diagnostics(seeds=2)
        figure = plot_khat(given)
        assert_whole(figure)
        narrow = np.concatenate([fit["khat"] for fit in given["softplus"]])
        assert f"softplus: {(narrow > 0.5).mean():.0%} of 20 × 2 seeds above 0.50" in texts(figure)
        assert "100 draws of 2 latent dimensions" in texts(figure)

    def test_infinities_are_counted_and_shown(self):
        fit = diagnostics(seeds=1)["logvar"][0]
        fit["khat"][:3] = np.inf
        figure = plot_khat({"exact": fit})
        assert "15% of 20 above 0.50 (17 exact, 3 no tail)" in texts(figure)
        assert sum(patch.get_height() for patch in figure.axes[0].patches) == 20


class TestPredictive:
    def test_originals_and_means(self):
        figure = plot_predictive(trees())
        assert_whole(figure)
        images = [axes.get_images()[0].get_array() for axes in figure.axes]
        assert len(images) == 3 * 4
        model, _ = pair()
        np.testing.assert_allclose(np.stack(images[:4]).reshape(4, 9), observations(model, 4))
        assert "original | " in texts(figure)

    def test_some_observations_of_another_shape(self):
        figure = plot_predictive(trees(), observations=[3, 1], image_shape=(1, 9))
        assert figure.axes[0].get_images()[0].get_array().shape == (1, 9)
        assert "#3" in texts(figure)

    def test_features_that_fill_no_square(self):
        model = LinearGaussian(torch.randn(5, 2))
        tree = from_pyro_svi(model, GaussianGuide.exact(model), observations(model, 2), 40)
        with pytest.raises(ValueError, match=r"5 features do not fill a square image; give image_shape"):
            plot_predictive({"a": tree})


class TestForest:
    def test_guides_observations_and_caption(self):
        figure = plot_forest(trees(), observations=[0, 2])
        assert_whole(figure)
        said = texts(figure)
        assert "logvar" in said
        assert "softplus" in said
        assert "compare widths, not places" in said

    def test_unequal_draws_are_not_an_empty_figure(self):
        figure = plot_forest(trees(draws=(60, 45)), observations=[0])
        forest = figure.axes[1]
        drawn = [
            line for line in forest.get_lines() if np.isfinite(np.asarray(line.get_xdata(), float)).all()
        ]
        assert len(drawn) >= 2 * 2 * 2  # guides × latents × (interval, median)

    def test_one_guide(self):
        assert_whole(plot_forest(trees(draws=(50,), names=("only",)), observations=[1]))


def test_a_guide_has_one_color_everywhere():
    given = diagnostics()
    training = plot_training({name: [history()] for name in given})
    khat = plot_khat(given)
    colors = [axes.patches[0].get_facecolor() for axes in khat.axes]
    lines = training.axes[0].get_lines()
    assert [matplotlib.colors.to_rgba(lines[i].get_color()) for i in (0, 2)] == colors


@pytest.mark.parametrize("seeds", [1, 2])
def test_what_is_given_alone_needs_no_name(seeds: int) -> None:
    """A fit's own history, or those of several seeds."""
    history = xr.Dataset(
        {
            "loss": ("step", np.arange(6.0)),
            "epoch_step": ("epoch", [3, 6]),
            "validation": ("epoch", [np.nan, np.nan]),
        }
    )
    figure = plot_training(history if seeds == 1 else [history] * seeds)
    assert len(figure.axes[0].lines) == 2 * seeds
    assert figure.axes[0].get_legend() is None
